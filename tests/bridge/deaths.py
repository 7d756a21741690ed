"""Daemons that are killed at a chosen instruction: real processes over one source, one journal and one connection, with
the test in the place of the kernel and of the keeper."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn

import trio

import pinfs
from pinfs.bridge import dispatch, wire
from pinfs.bridge.channel import Channel
from pinfs.bridge.dispatch import Dispatcher
from pinfs.bridge.negotiate import WANTED, Negotiated, Requested
from pinfs.bridge.once import Once
from pinfs.config.options import load
from pinfs.config.policies import PolicyBox
from pinfs.fs.backing import NoPassthrough
from pinfs.fs.recorder import Recorder
from pinfs.fs.restore import Restoration
from pinfs.journal.slots import Slots, new_journal_file
from pinfs.linux import syscalls
from pinfs.serve.assembly import FileSystem, assemble

PACKAGE = str(Path(pinfs.__file__).parent)
NEGOTIATED = Negotiated(45, WANTED, WANTED)
SOURCES = {"syscalls": syscalls, "os": os}
Reply = SimpleNamespace
Plan = Callable[[], None]
"""Called in the daemon when it has read the request that is to be fatal."""
When = Callable[..., bool]


def always(*args: object) -> bool:
    return True


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("the dead do not come here")


def before(name: str, when: When = always) -> Plan:
    """Die before a call (`os.unlink`, `syscalls.fallocate`) with arguments that are meant."""
    return partial(_replace_call, name, when, called_first=False)


def after(name: str, when: When = always) -> Plan:
    """Die as soon as the call has returned."""
    return partial(_replace_call, name, when, called_first=True)


def _replace_call(name: str, when: When, *, called_first: bool) -> None:
    module, _, function = name.partition(".")
    call = getattr(SOURCES[module], function)

    def last(*args: Any, **kwargs: Any) -> Any:
        if not when(*args):
            return call(*args, **kwargs)
        try:
            if called_first:
                call(*args, **kwargs)
        finally:
            die()

    setattr(SOURCES[module], function, last)


_told: list[bool] = []
"""Not empty: no reply may be written any more."""


def before_the_reply() -> None:
    """Die when all is done but to tell."""
    _told.append(False)


def _unless_told(write: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: die() if _told else write(*args)


class MortalChannel(Channel):
    """What the fast path reads and writes, which does not come by `os` where it is compiled."""

    plan: Plan | None = None

    def take(self, wait_ms: int) -> int:
        got = super().take(wait_ms)
        if got > 0:
            _arm_if_marked(MortalChannel.plan, self.buffer, self.size)
        return got

    done = _unless_told(Channel.done)
    refuse = _unless_told(Channel.refuse)
    attributes = _unless_told(Channel.attributes)
    entry = _unless_told(Channel.entry)
    no_entry = _unless_told(Channel.no_entry)
    opened = _unless_told(Channel.opened)
    created = _unless_told(Channel.created)
    attribute = _unless_told(Channel.attribute)
    data = _unless_told(Channel.data)


def at_line(number: int) -> Plan:
    """Die before the `number`-th line of pinfs that this request takes."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            lines += 1
            if lines == number:
                die()
        return trace

    def arm() -> None:
        sys.settrace(trace)

    return arm


@dataclass
class KeptDescriptors:
    """A keeper, at the other end of a socket."""

    fds: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._in, self._out = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._in.setblocking(False)

    def keep(self, name: str, fd: int) -> bool:
        socket.send_fds(self._out, [b"+" + name.encode()], [fd])
        return True

    def drop(self, name: str) -> None:
        self._out.send(b"-" + name.encode())

    def receive(self) -> None:
        """Take what daemons have sent."""
        with suppress(BlockingIOError):
            while True:
                message, fds, _, _ = socket.recv_fds(self._in, 300, 1)
                name = message[1:].decode()
                if name in self.fds:
                    os.close(self.fds.pop(name))
                if message[:1] == b"+":
                    (self.fds[name],) = fds

    def close(self) -> None:
        self.receive()
        for fd in self.fds.values():
            os.close(fd)
        self._in.close()
        self._out.close()


class Lineage:
    """A mount without a kernel, and its daemons, one after the other."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.store = KeptDescriptors()
        self.journal = new_journal_file()
        self.kernel, self.daemon_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.daemon_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.daemon_end.setblocking(False)
        self.kernel.settimeout(20)
        self.last_unique = 0
        self.pid = 0
        self._pidfd = -1
        self.fs: FileSystem

    # In the daemon

    async def serve(self, *, resumed: bool) -> None:
        """Serve, from the beginning or by taking over, until the kernel goes away."""
        self.assemble()
        counts: Counter[str] = Counter()
        begin = self.resume if resumed else self.begin
        dispatcher = Dispatcher(self.daemon_end.fileno(), self.fs.operations, Requested(), begin, counts)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.fs.guard.run)
            await nursery.start(self.fs.holders.run)
            await dispatcher.run(NEGOTIATED)
            nursery.cancel_scope.cancel()
        self.fs.close()

    def assemble(self) -> None:
        """A file system that knows nothing yet."""
        config = load([], None)
        source_fd = os.open(self.source, os.O_PATH | os.O_DIRECTORY)
        self.fs = assemble(source_fd, config, PolicyBox(config.policies), NoPassthrough(), dict, 1 << 16)

    def _record(self) -> Recorder:
        fs = self.fs
        recorder = Recorder(Slots(self.journal), self.store, fs.inodes.device, fs.guard.book.files.__contains__)
        fs.record(recorder)
        return recorder

    def begin(self, negotiated: Negotiated) -> Once:
        """For the first daemon."""
        return Once(self._record(), self.fs.operations, self.fs.parts)

    def resume(self, negotiated: Negotiated) -> Once:
        """For the next."""
        recorder = self._record()
        found = recorder.slots.load()
        restoration = Restoration(self.fs.parts, recorder, found, dict(self.store.fds))
        restoration.inodes()
        restoration.handles()
        restoration.pins()
        restoration.requests()
        return Once(recorder, self.fs.operations, self.fs.parts, restoration.restored, restoration.pending)

    # From the outside

    def spawn(self, plan: Plan | None = None, *, resumed: bool = False) -> None:
        """Start a daemon, which `plan` kills while it answers the request that is marked as fatal."""
        self.pid = os.fork()
        if not self.pid:
            try:
                if plan is not None:
                    _arm_when_marked(plan)
                trio.run(partial(self.serve, resumed=resumed))
            finally:
                os._exit(99)
        self._pidfd = os.pidfd_open(self.pid)

    def request(self, opcode: int, nodeid: int = 1, body: bytes = b"", bits: int = 0, *, fatal: bool = False) -> bytes:
        """One more request of this process, or (`bits`) the last one again."""
        self.last_unique += 0 if bits else 2
        header = wire.IN_HEADER.pack(
            wire.IN_SIZE + len(body), opcode, self.last_unique | bits, nodeid,
            os.geteuid(), os.getegid(), os.getpid(), 0, fatal,
        )  # fmt: skip
        return header + body

    def ask(self, opcode: int, body: bytes = b"", nodeid: int = 1) -> Reply:
        self.kernel.send(self.request(opcode, nodeid, body))
        reply = self.reply()
        assert reply is not None, "the daemon has died"
        assert reply.error == 0, os.strerror(-reply.error)
        return reply

    def reply(self) -> Reply | None:
        """The next reply; None: the daemon has died instead."""
        while True:
            ready, _, _ = select.select([self.kernel.fileno(), self._pidfd], [], [], 20)
            if self.kernel.fileno() in ready:
                message = self.kernel.recv(2 << 20)
                _, error, unique = wire.OUT_HEADER.unpack_from(message)
                if unique:
                    return SimpleNamespace(unique=unique, error=error, body=message[wire.OUT_SIZE :])
            else:
                assert ready, "the daemon hangs"
                self.bury()
                return None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.bury()

    def bury(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self.pid = 0
        self.store.receive()
        assert os.WIFSIGNALED(status), f"the daemon has ended by itself: {status}"

    def close(self) -> None:
        if self.pid:
            self.kill()
        self.store.close()
        os.close(self.journal)
        self.kernel.close()
        self.daemon_end.close()

    # What a kernel does first

    def lookup(self, name: bytes, parent: int = 1) -> int:
        (nodeid,) = wire.U64.unpack_from(self.ask(wire.LOOKUP, name + b"\0", parent).body)
        assert nodeid
        return int(nodeid)

    def open(self, nodeid: int, flags: int = os.O_RDWR) -> int:
        return int(wire.OPEN_OUT.unpack(self.ask(wire.OPEN, wire.OPEN_IN.pack(flags, 0), nodeid).body)[0])

    def set_attribute(self, nodeid: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self.ask(wire.SETXATTR, setxattr_body(name, value, flags), nodeid)


def setxattr_body(name: bytes, value: bytes, flags: int = 0) -> bytes:
    return wire.SETXATTR_EXT_IN.pack(len(value), flags, 0, 0) + name + b"\0" + value


def _arm_when_marked(plan: Plan) -> None:
    """Call `plan` when a request has been read whose header has its last, unused field set: by a take-over, or by the
    loop."""
    readv = os.readv

    def reading(fd: int, buffers: Any) -> int:
        size = readv(fd, buffers)
        _arm_if_marked(plan, buffers[0], size)
        return size

    os.readv = reading
    MortalChannel.plan = plan
    dispatch.Channel = MortalChannel  # type: ignore[attr-defined]
    os.write, os.writev = _unless_told(os.write), _unless_told(os.writev)


_armed: list[Plan] = []
"""What has been called: interpreted, the loop reads by `os.readv` as well."""


def _arm_if_marked(plan: Plan | None, buffer: bytearray, size: int) -> None:
    if plan is not None and not _armed and size >= wire.IN_SIZE and wire.IN_HEADER.unpack_from(buffer)[-1]:
        _armed.append(plan)
        plan()


@contextmanager
def lineage(source: Path) -> Iterator[Lineage]:
    line = Lineage(source)
    try:
        yield line
    finally:
        line.close()
