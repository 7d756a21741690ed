"""A socket pair in the place of /dev/fuse, with the test in the place of the kernel."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio

from pinfs.bridge import wire
from pinfs.bridge.dispatch import Dispatcher
from pinfs.bridge.negotiate import Negotiated, Requested
from pinfs.fs.types import Entry, Opened
from pinfs.fs.uncached import UncachedFiles
from pinfs.runtime.parking import OneShot, park

ST = os.stat("/")
ENTRY = Entry(7, ST)
ANSWERS = {
    "lookup": ENTRY, "mknod": ENTRY, "mkdir": ENTRY, "symlink": ENTRY, "link": ENTRY, "readlink": b"target",
    "statfs": os.statvfs("/"),
    "getattr": ST, "setattr": ST, "statx_btime": (ST, 5), "open": Opened(3, 0, 0),
    "opendir": Opened(4, 0, 0), "create": (Opened(3, 0, 0), ENTRY), "tmpfile": (Opened(3, 0, 0), ENTRY),
    "read": b"data", "write": 4, "lseek": 9, "copy_file_range": 5, "poll": 1, "ioctl": b"12345678",
    "getxattr": b"value", "listxattr": [b"user.a", b"user.b"],
}  # fmt: skip


class Canned:
    """Operations that answer everything at once. `park_in` names one that waits for `gate` in a task, `wait_in` one
    that waits for a OneShot: those are in `events`."""

    if TYPE_CHECKING:  # a test may replace any operation

        def __setattr__(self, name: str, value: Any) -> None: ...

    entry_timeout_s = attr_timeout_s = 1.5
    fast = exports = None
    in_threads = False
    directories = SimpleNamespace(with_entries=True)

    def __init__(self) -> None:
        self.uncached = UncachedFiles(lambda inode, flags: -1)
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.park_in = ""
        self.wait_in = ""
        self.events: list[OneShot] = []
        self.fail_with: Exception | None = None
        self.gate = trio.Event()
        self.forgotten: list[tuple[int, int]] = []

    def forget(self, forgets) -> None:
        self.forgotten += forgets

    async def readdir(self, fh, offset, plus, add, unique=0) -> None:
        for number in range(offset, 100):
            if not add(b"name%d" % number, number + 1, ENTRY if plus else (7, 8)):
                return

    def __getattr__(self, name: str) -> Any:
        async def answer(*args, **kwargs):
            self.calls.append((name, args))
            if name == self.park_in:
                await park()
                await self.gate.wait()
            if name == self.wait_in:
                self.events.append(event := OneShot())
                await event.wait()
            if self.fail_with:
                raise self.fail_with
            return ANSWERS.get(name)

        return answer


class FakeKernel:
    """Sends requests and takes replies."""

    def __init__(self, end: socket.socket, negotiated: list[Negotiated]) -> None:
        self.end = end
        self.negotiated = negotiated
        """What the dispatcher reported."""
        self.ended = trio.Event()
        """The dispatcher has ended by itself; `aborted` is what it returned."""
        self.aborted: bool | None = None
        self.last_unique = 0
        self.early: list[SimpleNamespace] = []

    def send(self, opcode: int, body: bytes = b"", nodeid: int = 1, extensions: int = 0) -> int:
        """One request of uid 1, gid 2, pid 3; its unique number."""
        self.last_unique += 2
        size = wire.IN_SIZE + len(body)
        self.send_raw(wire.IN_HEADER.pack(size, opcode, self.last_unique, nodeid, 1, 2, 3, extensions, 0) + body)
        return self.last_unique

    def send_raw(self, request: bytes) -> None:
        self.end.send(request)

    async def receive(self) -> SimpleNamespace:
        """The next message: unique, error, body."""
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(self.end)
        message = self.end.recv(2 << 20)
        size, error, unique = wire.OUT_HEADER.unpack_from(message)
        assert size == len(message)
        return SimpleNamespace(unique=unique, error=error, body=message[wire.OUT_SIZE :])

    async def ask(self, opcode: int, body: bytes = b"", nodeid: int = 1) -> SimpleNamespace:
        """A request and its reply, which must be the next message."""
        unique = self.send(opcode, body, nodeid)
        reply = await self.receive()
        assert reply.unique == unique
        return reply

    async def nothing_more(self) -> None:
        """Everything that was sent has been answered: a marker's reply is the next message."""
        assert (await self.ask(wire.GETATTR, bytes(16))).error == 0


@asynccontextmanager
async def dispatching(ops, requested: Requested | None = None) -> AsyncIterator[tuple[FakeKernel, Dispatcher]]:
    """A dispatcher that runs, and its kernel; at the end the kernel goes away, which must end the dispatcher."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (theirs, ours):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        end.setblocking(False)
    negotiated: list[Negotiated] = []
    dispatcher = Dispatcher(ours.fileno(), ops, requested or Requested(), negotiated.append, Counter())
    kernel = FakeKernel(theirs, negotiated)

    async def run() -> None:
        kernel.aborted = await dispatcher.run()
        kernel.ended.set()

    with theirs, ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield kernel, dispatcher
            theirs.shutdown(socket.SHUT_RDWR)
