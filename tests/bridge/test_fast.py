"""The fast path answers as the long way does, and leaves the same behind (docs/architecture.md, "Bridge")."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing
from bridge.twins import Mount, Side, Twins, twins, two_sources
from hypothesis import given
from hypothesis import strategies as st
from support import start

from pinfs.bridge import wire
from pinfs.bridge.dispatch import Dispatcher
from pinfs.fs.directories import DirectoryHandle
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.pendingpins import PendingPins
from pinfs.fs.restore import Restored
from pinfs.interface import ioctls as ioc
from pinfs.linux import syscalls

ROOT = os.geteuid() == 0
MY_PID = os.getpid()
OTHER_PID = os.getppid()
UIDS = [(0, 0), (0, 0), (1000, 1001)] if ROOT else [(os.getuid(), os.getgid())]
LONG_AGO = 1_000_000_000
FOREIGN = 1 << 63


def prepare(source: Path) -> None:
    """What both begin with."""
    (source / "a").write_bytes(b"x" * 100)
    (source / "b").write_bytes(b"y" * 5000)
    (source / "h").hardlink_to(source / "a")
    (source / "d").mkdir()
    (source / "d/a").write_bytes(b"")
    (source / "s").symlink_to("a")
    (source / "empty").mkdir()
    (source / "set").write_bytes(b"z" * 10)
    (source / "set").chmod(0o6755)
    os.mkfifo(source / "fifo")
    os.setxattr(source / "a", b"user.x", b"value")
    for path in source.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


# Requests, as hypothesis draws them: numbers stand for node ids and handles that are known when it is sent.

NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"d", b"h", b"set", b"new", b"newer"]),
    st.sampled_from([b"a", b"b", b"new", b"empty"]),
    st.sampled_from([b"s", b"fifo", b"c", b".", b"..", b".pinfs", b"", b"x/y", b"n" * 255, b"n" * 256]),
)
KNOWN = [b"a", b"b", b"d", b"set", b"s", b"empty"]
"""What is looked up first, after the root: node 1, 2, 3..."""
ANY_NODE = st.one_of(st.integers(0, 20), st.sampled_from([-1, -2, -3]))
"""Which of the known inodes; negative: none."""
DIRECTORIES = st.one_of(st.just(0), st.just(0), st.just(3), ANY_NODE)
FILES = st.one_of(st.sampled_from([1, 2, 4]), st.integers(1, 2), st.integers(1, 2), ANY_NODE)
OF_NAMES = frozenset(
    {
        *(wire.LOOKUP, wire.MKDIR, wire.SYMLINK, wire.LINK, wire.UNLINK, wire.RMDIR, wire.RENAME, wire.RENAME2),
        *(wire.CREATE, wire.TMPFILE, wire.MKNOD, wire.OPENDIR),
    }
)
NODES = ANY_NODE
NO_NODES = {-1: 1 << 40, -2: FOREIGN + 5, -3: 0}
HANDLES = st.one_of(st.integers(0, 1), st.integers(0, 3), st.integers(0, 12), st.sampled_from([0, 1, -1]))
ACCESS = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
OPEN_FLAGS = st.builds(
    lambda access, more: access | more,
    ACCESS,
    st.sampled_from([0, 0, 0, os.O_TRUNC, os.O_APPEND, os.O_NONBLOCK, os.O_TRUNC | os.O_NONBLOCK, os.O_EXCL]),
)
LOOKED_AT = 0 if os.geteuid() == 0 else 0o700
"""What only root could look at otherwise."""
MODES = st.sampled_from([mode | LOOKED_AT for mode in (0o644, 0o600, 0o755, 0o4755, 0o2775, 0o1777, 0, 0o7777)])
SIZES = st.sampled_from([0, 1, 10, 50, 99, 100, 101, 4096, 5000, 10_000])
PIN_VALUES = st.sampled_from(
    [
        *(b"0:10", b"0:0", b"50:50", b"0:10,mode=lease,signal=none", b"0:0,mode=lease,signal=none"),
        *(b"0:10,mode=lease,signal=none,note=n", b"9000:1", b"nonsense", b"", b"0:10,dirty=1", b"0:10,pid=1"),
    ]
)
ATTRIBUTES = st.sampled_from(
    [
        *(b"user.x", b"user.x", b"user.new", b"user.pinfs.pin.p", b"user.pinfs.pin.p", b"user.pinfs.pin.q"),
        *(b"user.pinfs.release.p", b"user.pinfs.pins", b"user.pinfs.pin.", b"user.pinfs.", b"unknown.x", b""),
        *(b"user.a/b", b"user.", b"user." + b"n" * 300, b"trusted.t"),
    ]
)
CALLERS = st.builds(
    lambda ids, pid: (*ids, pid), st.sampled_from(UIDS), st.sampled_from([MY_PID, MY_PID, OTHER_PID, 0])
)
SPOILED = st.sampled_from([None] * 40 + ["cut", "longer", "extended", "unterminated"])
TIMES = st.sampled_from([0, 1, LONG_AGO, 2_000_000_000, -5])
SET = [wire.FATTR_MODE, wire.FATTR_UID, wire.FATTR_GID, wire.FATTR_SIZE, wire.FATTR_ATIME, wire.FATTR_MTIME]
SET_TIMES = [
    wire.FATTR_ATIME | wire.FATTR_MTIME,
    wire.FATTR_TIMES,
    wire.FATTR_MTIME | wire.FATTR_MTIME_NOW,
    wire.FATTR_ATIME | wire.FATTR_ATIME_NOW | wire.FATTR_MTIME,
]
VALID = st.one_of(
    st.sampled_from([wire.FATTR_MODE, wire.FATTR_SIZE, *SET_TIMES]),
    st.sampled_from([wire.FATTR_MODE, wire.FATTR_SIZE, wire.FATTR_SIZE, *SET_TIMES, 0, wire.FATTR_KILL_SUIDGID]),
    st.sets(st.sampled_from([*SET, wire.FATTR_KILL_SUIDGID, 1 << 9, 1 << 10]), max_size=3).map(sum),
)

Act = tuple[Any, ...]
"""Opcode, node, how its body is made, the caller, what is wrong with it."""


class Bodies:
    """What the body of a request is made of, on one side."""

    def __init__(self, twins: Twins, side: Side) -> None:
        self.nodes = [pair[side is twins.sides[1]] for pair in twins.nodes]
        self.handles = twins.handles

    def node(self, index: int) -> int:
        return NO_NODES[index] if index < 0 else self.nodes[index % len(self.nodes)]

    def handle(self, index: int) -> int:
        return 9999 if index < 0 or not self.handles else self.handles[-1 - index % len(self.handles)]


Make = Callable[[Bodies], bytes]


def _const(body: bytes) -> Make:
    return lambda bodies: body


def _setattr(valid: int, fh: int, size: int, times: tuple[int, int], mode: int, ids: tuple[int, int]) -> Make:
    """SETATTR. The kernel gives the handle of a file that is open, or none."""

    def make(bodies: Bodies) -> bytes:
        return wire.SETATTR_IN.pack(
            valid, 0, bodies.handle(fh), size, 0, *times, 0, 5, 999_999_999, 0, mode, 0, *ids, 0
        )  # fmt: skip

    return make


def name(text: bytes) -> bytes:
    return text + b"\0"


@st.composite
def acts(draw: st.DrawFn) -> Act:
    """One request."""
    opcode = draw(st.sampled_from(OPCODES))
    node, caller = draw(DIRECTORIES if opcode in OF_NAMES else FILES), draw(CALLERS)
    return opcode, node, draw(BODIES[opcode]), caller, draw(SPOILED)


UMASK = 0o022
NAMED = NAMES.map(lambda text: _const(name(text)))


def _by_handle(layout: Any, *rest: st.SearchStrategy[int]) -> st.SearchStrategy[Make]:
    """A body that begins with a file handle."""
    return st.builds(
        lambda fh, fields: lambda bodies: layout.pack(bodies.handle(fh), *fields), HANDLES, st.tuples(*rest)
    )


def _number(*values: int) -> st.SearchStrategy[int]:
    return st.sampled_from(values)


def _setxattr(long: bool, attribute: bytes, value: bytes, flags: int, more: int, lie: int) -> bytes:
    if long:
        return wire.SETXATTR_EXT_IN.pack(len(value) + lie, flags, more, 0) + name(attribute) + value
    return wire.SETXATTR_IN.pack(len(value) + lie, flags) + name(attribute) + value


VALUES = st.one_of(PIN_VALUES, st.sampled_from([b"value", b"\0", b"v" * 4000]))
BODIES: dict[int, st.SearchStrategy[Any]] = {
    wire.LOOKUP: NAMED,
    wire.FORGET: _number(1, 1, 1, 2, 100).map(lambda n: _const(wire.U64.pack(n))),
    wire.BATCH_FORGET: st.lists(st.tuples(NODES, st.just(1)), max_size=3).map(
        lambda each: lambda b: wire.BATCH_FORGET_IN.pack(len(each), 0)
        + b"".join(wire.FORGET_ONE.pack(b.node(node), n) for node, n in each if b.node(node) != ROOT_ID)
        + b"".join(wire.FORGET_ONE.pack(5, n) for node, n in each if b.node(node) == ROOT_ID)
    ),
    wire.MKDIR: st.builds(lambda text, mode: _const(wire.MKDIR_IN.pack(mode, UMASK) + name(text)), NAMES, MODES),
    wire.MKNOD: st.builds(
        lambda text, mode, kind: _const(wire.MKNOD_IN.pack(kind | mode, 0, UMASK, 0) + name(text)),
        NAMES, MODES, _number(stat.S_IFREG, stat.S_IFIFO),
    ),
    wire.SYMLINK: st.builds(lambda one, two: _const(name(one) + name(two)), NAMES, NAMES),
    wire.LINK: st.builds(lambda node, text: lambda b: wire.U64.pack(b.node(node)) + name(text), FILES, NAMES),
    wire.UNLINK: NAMED,
    wire.RMDIR: NAMED,
    wire.RENAME: st.builds(
        lambda node, one, two: lambda b: wire.U64.pack(b.node(node)) + name(one) + name(two), DIRECTORIES, NAMES, NAMES
    ),
    wire.RENAME2: st.builds(
        lambda node, flags, one, two: lambda b: wire.RENAME2_IN.pack(b.node(node), flags, 0) + name(one) + name(two),
        DIRECTORIES, _number(0, 0, 1, 2, 3, 8), NAMES, NAMES,
    ),
    wire.READLINK: st.just(_const(b"")),
    wire.GETATTR: st.builds(
        lambda flags, fh: lambda b: wire.GETATTR_IN.pack(flags, 0, b.handle(fh)), _number(0, 1), HANDLES
    ),
    wire.STATX: st.just(_const(wire.STATX_IN.pack(0, 0, 0, 0, 0))),
    wire.SETATTR: st.builds(
        _setattr, VALID, HANDLES, SIZES, st.tuples(TIMES, TIMES), MODES,
        st.tuples(*[_number(0, 1000, 65534) if ROOT else _number(os.getuid())] * 2),
    ),
    wire.OPEN: st.builds(lambda flags, more: _const(wire.OPEN_IN.pack(flags, more)), OPEN_FLAGS, _number(0, 0, 0, 1)),
    wire.CREATE: st.builds(
        lambda flags, mode, more, text: _const(wire.CREATE_IN.pack(flags | os.O_CREAT, mode, UMASK, more) + name(text)),
        OPEN_FLAGS, MODES, _number(0, 0, 0, 1), NAMES,
    ),
    wire.TMPFILE: st.builds(
        lambda access, mode: _const(wire.CREATE_IN.pack(access, mode, UMASK, 0) + b"\0"),
        _number(os.O_RDWR, os.O_WRONLY), MODES,
    ),
    wire.RELEASE: _by_handle(wire.RELEASE_IN, st.just(0), st.just(0), st.just(0)),
    wire.RELEASEDIR: _by_handle(wire.RELEASE_IN, st.just(0), st.just(0), st.just(0)),
    wire.FSYNC: _by_handle(wire.FSYNC_IN, _number(0, 1), st.just(0)),
    wire.READ: _by_handle(wire.READ_IN, _number(0, 50, 10_000), _number(0, 10, 4096), *[st.just(0)] * 4),
    wire.WRITE: st.builds(
        lambda fh, offset, flags: lambda b: wire.WRITE_IN.pack(b.handle(fh), offset, 4, flags, 0, 0, 0) + b"data",
        HANDLES, _number(0, 98, 20_000), _number(0, 0, wire.WRITE_KILL_SUIDGID),
    ),
    wire.FALLOCATE: _by_handle(wire.FALLOCATE_IN, _number(0, 50), _number(0, 10, 4096), _number(0, 3, 1), st.just(0)),
    wire.OPENDIR: st.just(_const(bytes(8))),
    wire.READDIR: _by_handle(wire.READ_IN, _number(0, 2, 5), _number(100, 4096), *[st.just(0)] * 4),
    wire.READDIRPLUS: _by_handle(wire.READ_IN, _number(0, 2, 5), _number(400, 8192), *[st.just(0)] * 4),
    wire.SETXATTR: st.tuples(
        ATTRIBUTES, VALUES, _number(0, 0, 0, 1, 2), _number(0, 0, 0, 1), _number(0, 0, 0, 0, 0, 1)
    ),
    wire.GETXATTR: st.builds(
        lambda size, text: _const(wire.GETXATTR_IN.pack(size, 0) + name(text)), _number(0, 1, 5, 10, 65536), ATTRIBUTES
    ),
    wire.LISTXATTR: _number(0, 3, 65536).map(lambda size: _const(wire.GETXATTR_IN.pack(size, 0))),
    wire.REMOVEXATTR: ATTRIBUTES.map(lambda text: _const(name(text))),
    wire.IOCTL: st.builds(
        lambda fh, start, length, mode: lambda b: wire.IOCTL_IN.pack(b.handle(fh), 0, ioc.PIN, 0, 192, 192)
        + ioc.PinRequest(start, length, mode, signal=0).pack().ljust(192, b"\0"),
        HANDLES, _number(0, 50), _number(0, 10), st.sampled_from([ioc.DENY, ioc.LEASE]),
    ),
}  # fmt: skip
FAST = [
    *(
        wire.LOOKUP,
        wire.FORGET,
        wire.MKDIR,
        wire.SYMLINK,
        wire.LINK,
        wire.UNLINK,
        wire.RMDIR,
        wire.RENAME,
        wire.RENAME2,
    ),
    *(wire.GETATTR, wire.SETATTR, wire.OPEN, wire.CREATE, wire.RELEASE, wire.FSYNC, wire.OPENDIR, wire.SETXATTR),
    *(wire.GETXATTR, wire.REMOVEXATTR),
]
OPCODES = [*FAST, *FAST, *(opcode for opcode in BODIES if opcode not in FAST)]
SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda body: body[:-1],
    "longer": lambda body: body + b"x\0",
    "unterminated": lambda body: body[:-1] + b"x",
    "extended": lambda body: body + bytes(8),
}


async def send(both: Twins, act: Act) -> None:
    opcode, index, make, caller, spoiled = act
    node = NO_NODES[index] if index < 0 else both.nodes[index % len(both.nodes)]
    if opcode in (wire.FORGET,) and node == (ROOT_ID, ROOT_ID):
        return  # the kernel never does
    if opcode == wire.SETXATTR:
        body = _setxattr(both.sides[0].mount.long_setxattr, *make)
        make = _const(body)

    def made(side: Side) -> bytes:
        body: bytes = make(Bodies(both, side))
        return SPOIL[spoiled](body) if spoiled else body

    if opcode in (wire.RELEASE, wire.RELEASEDIR):
        handle = both.sides[0].fs.operations.handles.find(wire.U64.unpack_from(made(both.sides[0]))[0])
        if handle is not None and (opcode == wire.RELEASEDIR) is not isinstance(handle, DirectoryHandle):
            return  # the kernel never does; both ways would leave a descriptor open
    if both.sides[0].mount.exports and opcode == wire.LOOKUP and made(both.sides[0]).startswith(b"."):
        return  # asks in a thread, for which a clock that jumps does not wait
    await both.ask(opcode, node, made, caller, extensions=spoiled == "extended")


ME = (0, 0, MY_PID)
FIRST: list[Act] = [
    *((wire.LOOKUP, 0, _const(name(each)), ME, None) for each in KNOWN),
    (wire.OPEN, 2, _const(wire.OPEN_IN.pack(os.O_RDONLY, 0)), ME, None),
    (wire.OPEN, 1, _const(wire.OPEN_IN.pack(os.O_RDWR, 0)), ME, None),
]


class Lock:
    """A removal that the kernel does not finish for a while (SPEC 3.9): requests on its file wait, and those that wait
    for longer than a breaker would are refused."""

    FOR_S = 300.0

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.reserved = None

    async def hold(self, both: Twins, pair: tuple[int, int]) -> None:
        for side, nodeid in zip(both.sides, pair, strict=True):
            side.fs.guard.cuts.inodes[nodeid] = {self: None}  # type: ignore[dict-item]
        try:
            await trio.sleep(self.FOR_S)
        finally:
            for side in both.sides:
                side.fs.guard.cuts.inodes.clear()
            self.ended.set()


async def run_all(base: Path, mount: Mount, sent: list[Act], locked: int) -> None:
    async with twins(base, mount) as both:
        async with trio.open_nursery() as nursery:
            for number, act in enumerate([*FIRST, *sent]):
                if number == locked:
                    nursery.start_soon(Lock().hold, both, both.nodes[1])
                    await trio.testing.wait_all_tasks_blocked()
                try:
                    await send(both, act)
                    both.compare()
                except AssertionError as e:
                    e.add_note(f"request {number - len(FIRST)} of {len(sent)}: opcode {act[0]}")
                    raise
            nursery.cancel_scope.cancel()
        await both.let_go()
        both.compare()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def compare_ways(mount: Mount, sent: list[Act], locked: int = 1000) -> None:
    before = descriptors()
    os.umask(UMASK)
    try:
        with two_sources(prepare) as base:
            trio.run(partial(run_all, base, mount, sent, locked), clock=trio.testing.MockClock(autojump_threshold=0))
        assert descriptors() == before, "descriptors are left"
    finally:
        os.umask(start.UMASK)


@pytest.fixture(autouse=True)
def _same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a file has changed since it was opened last shows by its size: the two do not work at the same moment,
    and the time of a change is only known to a tick. And the one does not wait for a request while the other has one.
    """
    monkeypatch.setattr("pinfs.fs.opens.settled_ctime_ns", lambda st: st.st_size + 1)
    monkeypatch.setattr("pinfs.bridge.dispatch.TURN_MS", 0)


MOUNTS = {
    "plain": Mount(),
    "with a journal": Mount(journal=True),
    "with passthrough": Mount(passthrough=True, long_setxattr=False),
    "with passthrough and a journal": Mount(passthrough=True, journal=True, policy='unlink = "break"'),
    "exported": Mount(exports=True),
}
LOCKED = st.sampled_from([1000, 1000, 1000, 1000, 1000, len(FIRST), 12, 20])
MOST = hypothesis.settings().max_examples


@pytest.mark.parametrize("mount", MOUNTS.values(), ids=MOUNTS)
@hypothesis.settings(max_examples=max(10, MOST // 3))
@given(sent=st.lists(acts(), min_size=10, max_size=40), locked=LOCKED)
def test_both_ways_answer_and_leave_the_same(mount: Mount, sent: list[Act], locked: int) -> None:
    compare_ways(mount, sent, locked)


# Faults: a request can fail, the connection cannot


async def known(both: Twins) -> None:
    """What is sent first, and the handle of a file that is open for writing: the newest one."""
    for act in FIRST:
        await send(both, act)


def _attributes(valid: int, size: int = 0) -> bytes:
    return wire.SETATTR_IN.pack(valid, 0, 0, size, 0, 5, 5, 0, 0, 0, 0, 0o600, 0, 0, 0, 0)


def _create(text: bytes) -> Make:
    return _const(wire.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o644, UMASK, 0) + name(text))


def _of_newest(layout: Any, *rest: int) -> Make:
    return lambda bodies: layout.pack(bodies.handle(0), *rest)


A, B, EMPTY = 1, 2, 6
USUAL: dict[str, tuple[str, int, int, Make]] = {
    "mkdir": ("os.mkdir", wire.MKDIR, 0, _const(wire.MKDIR_IN.pack(0o755, UMASK) + b"new\0")),
    "symlink": ("os.symlink", wire.SYMLINK, 0, _const(b"new\0target\0")),
    "link": ("os.link", wire.LINK, 0, lambda bodies: wire.U64.pack(bodies.node(A)) + b"new\0"),
    "unlink": ("os.unlink", wire.UNLINK, 0, _const(b"b\0")),
    "rmdir": ("os.rmdir", wire.RMDIR, 0, _const(b"empty\0")),
    "rename": ("pinfs.linux.syscalls.renameat2", wire.RENAME, 0, _const(wire.U64.pack(ROOT_ID) + b"a\0b\0")),
    "rename2": ("pinfs.linux.syscalls.renameat2", wire.RENAME2, 0, _const(wire.RENAME2_IN.pack(1, 2, 0) + b"a\0b\0")),
    "chmod": ("os.chmod", wire.SETATTR, A, _const(_attributes(wire.FATTR_MODE))),
    "truncate": ("os.ftruncate", wire.SETATTR, A, _const(_attributes(wire.FATTR_SIZE, 10))),
    "utimes": ("os.utime", wire.SETATTR, A, _const(_attributes(wire.FATTR_ATIME | wire.FATTR_MTIME))),
    "open": ("os.open", wire.OPEN, B, _const(wire.OPEN_IN.pack(os.O_RDWR, 0))),
    "create": (
        "os.open",
        wire.CREATE,
        0,
        _const(wire.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o644, UMASK, 0) + b"new\0"),
    ),
    "opendir": ("os.open", wire.OPENDIR, EMPTY, _const(bytes(8))),
    "fsync": ("os.fsync", wire.FSYNC, A, _of_newest(wire.FSYNC_IN, 0, 0)),
    "setxattr": ("os.setxattr", wire.SETXATTR, A, _const(_setxattr(True, b"user.new", b"v", 0, 0, 0))),
    "removexattr": ("os.removexattr", wire.REMOVEXATTR, A, _const(b"user.x\0")),
}
JOURNALS = pytest.mark.parametrize("journal", [False, True], ids=["plain", "with a journal"])


def run_twins(mount: Mount, act: Callable[[Twins], Coroutine[Any, Any, None]]) -> None:
    """Both serve, with `known`, while `act` runs."""

    async def run(base: Path) -> None:
        async with twins(base, mount) as both:
            await known(both)
            await act(both)

    with two_sources(prepare) as base:
        trio.run(run, base, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.interpreted  # the system call fails as Python makes it
@JOURNALS
@pytest.mark.parametrize("failure", [KeyError("a fault"), OSError(errno.ENOSPC, "a fault"), OSError()], ids=repr)
@pytest.mark.parametrize("what", USUAL)
def test_a_call_that_fails_costs_one_request(
    what: str, failure: Exception, journal: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An errno for its caller, or EIO and a line in the log; no intent, handle or lookup stays."""
    call, opcode, node, make = USUAL[what]
    monkeypatch.setattr("pinfs.runtime.errors._tokens", 1e9)

    def fail(*args: object, **how: object) -> None:
        raise failure

    async def act(both: Twins) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(call, fail)
            reply = await both.ask(opcode, both.nodes[node], lambda side: make(Bodies(both, side)))
        assert reply.error == -(failure.errno if isinstance(failure, OSError) and failure.errno else errno.EIO)
        both.compare()
        assert not (await both.ask(opcode, both.nodes[node], lambda side: make(Bodies(both, side)))).error
        both.compare()

    run_twins(Mount(journal=journal), act)
    expected = isinstance(failure, OSError) and failure.errno
    assert caplog.text.count(f"opcode {opcode} failed unexpectedly") == (0 if expected else 2)


@JOURNALS
@pytest.mark.parametrize("what", USUAL)
def test_the_usual_requests_take_the_fast_path(what: str, journal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only there: else all the rest would compare the long way with itself."""
    answer = Dispatcher._answer
    asked: list[tuple[Dispatcher, int]] = []

    def slowly(dispatcher: Dispatcher, size: int) -> None:
        asked.append((dispatcher, wire.IN_HEADER.unpack_from(dispatcher._buffer)[1]))
        answer(dispatcher, size)

    monkeypatch.setattr(Dispatcher, "_answer", slowly)
    _, opcode, node, make = USUAL[what]

    async def act(both: Twins) -> None:
        asked.clear()
        assert not (await both.ask(opcode, both.nodes[node], lambda side: make(Bodies(both, side)))).error
        assert (both.sides[0].dispatcher, opcode) not in asked
        assert (both.sides[1].dispatcher, opcode) in asked
        both.compare()

    run_twins(Mount(journal=journal), act)


GIVING = [
    (wire.LOOKUP, 0, _const(b"h\0")),
    (wire.MKDIR, 0, USUAL["mkdir"][3]),
    (wire.SYMLINK, 0, _const(b"newer\0target\0")),
    (wire.LINK, 0, lambda bodies: wire.U64.pack(bodies.node(B)) + b"linked\0"),
    (wire.OPEN, B, USUAL["open"][3]),
    (wire.CREATE, 0, _create(b"made")),
    (wire.OPENDIR, EMPTY, _const(bytes(8))),
    (wire.LOOKUP, 0, _const(b"missing\0")),
    (wire.GETATTR, A, _const(bytes(16))),
    (wire.GETXATTR, A, _const(wire.GETXATTR_IN.pack(0, 0) + b"user.x\0")),
]


@pytest.mark.parametrize("mount", [Mount(), Mount(journal=True), Mount(passthrough=True)], ids=repr)
def test_what_a_reply_gives_is_taken_back_where_the_kernel_does_not_take_it(mount: Mount) -> None:
    """Lookup counts and handles, as the long way does it."""

    async def act(both: Twins) -> None:
        for side in both.sides:
            side.kernel.shutdown(socket.SHUT_RD)  # from here on writing to the kernel fails
        counts = {inode.nodeid: inode.lookups for inode in both.sides[0].fs.inodes}
        handles = len(both.sides[0].fs.operations.handles)
        for opcode, node, make in GIVING:
            for side, nodeid in zip(both.sides, both.nodes[node], strict=True):
                side.send(opcode, nodeid, make(Bodies(both, side)), ME)
            await trio.testing.wait_all_tasks_blocked(0.001)
            both.compare()
        fs = both.sides[0].fs
        assert {inode.nodeid: inode.lookups for inode in fs.inodes} == counts
        assert len(fs.operations.handles) == handles

    run_twins(mount, act)


# Files that have to wait


WAITING = {
    "chmod": (wire.SETATTR, A, USUAL["chmod"][3]),
    "utimes": (wire.SETATTR, A, USUAL["utimes"][3]),
    "setxattr": (wire.SETXATTR, A, USUAL["setxattr"][3]),
    "removexattr": (wire.REMOVEXATTR, A, USUAL["removexattr"][3]),
    "link": (wire.LINK, 0, USUAL["link"][3]),
    "unlink": (wire.UNLINK, 0, _const(b"a\0")),
    "rename": (wire.RENAME, 0, _const(wire.U64.pack(ROOT_ID) + b"a\0newer\0")),
    "rename over": (wire.RENAME, 0, _const(wire.U64.pack(ROOT_ID) + b"b\0a\0")),
    "release": (wire.RELEASE, A, _of_newest(wire.RELEASE_IN, 0, 0, 0)),
}


@JOURNALS
@pytest.mark.parametrize("what", WAITING)
def test_requests_wait_while_the_kernel_is_at_a_removal_of_their_file(what: str, journal: bool) -> None:
    opcode, node, make = WAITING[what]

    async def act(both: Twins) -> None:
        lock, began = Lock(), trio.current_time()
        lock.FOR_S = 5.0  # shorter than the patience of a request
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock.hold, both, both.nodes[A])
            await trio.testing.wait_all_tasks_blocked()
            reply = await both.ask(opcode, both.nodes[node], lambda side: make(Bodies(both, side)))
            assert trio.current_time() >= began + lock.FOR_S
        assert not reply.error
        both.compare()

    run_twins(Mount(journal=journal), act)


async def test_requests_wait_for_the_pins_of_a_take_over() -> None:
    """Until all are restored the fast path is not used; then it is."""
    with two_sources(prepare) as base:
        side = Side(base, Mount(journal=True), fast=True)
        restored: list[int] = []
        side.restored, side.pending = Restored(), PendingPins(restored.append, lambda nodeid: None)
        ino = (side.source / "a").stat().st_ino
        side.pending.begin({ino: [7]})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.serve)
            found, _ = await side.answered(side.send(wire.LOOKUP, ROOT_ID, b"a\0", ME))
            assert not found.error
            assert side.dispatcher._loop.fast is None
            asked = side.send(wire.GETATTR, ino, bytes(16), ME)
            unlinked = side.send(wire.UNLINK, ROOT_ID, b"a\0", ME)
            other, _ = await side.answered(side.send(wire.LOOKUP, ROOT_ID, b"b\0", ME))
            assert not other.error
            assert side.dispatcher.parked == 2
            assert not restored
            await side.pending.run()
            for unique in (asked, unlinked):
                reply, _ = await side.answered(unique)
                assert not reply.error
            assert restored == [7]
            assert side.dispatcher._loop.fast is not None
            again, _ = await side.answered(side.send(wire.GETATTR, ROOT_ID, bytes(16), ME))
            assert not again.error
            assert side.intents() == 0
            side.kernel.shutdown(socket.SHUT_RDWR)
        side.close()


# Pins in the way

REMOVALS = {
    "unlink": (wire.UNLINK, 0, _const(b"b\0")),
    "unlink of one of two names": (wire.UNLINK, 0, _const(b"a\0")),
    "rename over": (wire.RENAME, 0, _const(wire.U64.pack(ROOT_ID) + b"set\0b\0")),
    "exchange": (wire.RENAME2, 0, _const(wire.RENAME2_IN.pack(ROOT_ID, syscalls.RENAME_EXCHANGE, 0) + b"set\0b\0")),
    "truncate": (wire.SETATTR, B, _const(_attributes(wire.FATTR_SIZE, 10))),
    "truncate of a file that is open": (wire.SETATTR, A, _const(_attributes(wire.FATTR_SIZE, 10))),
    "growing": (wire.SETATTR, A, _const(_attributes(wire.FATTR_SIZE, 10_000))),
    "open": (wire.OPEN, B, _const(wire.OPEN_IN.pack(os.O_RDWR | os.O_TRUNC, 0))),
    "create": (
        wire.CREATE,
        0,
        _const(wire.CREATE_IN.pack(os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644, UMASK, 0) + b"b\0"),
    ),
}
TAKE_NOTHING = {"unlink of one of two names", "exchange", "growing"}
DEFERRED = {"unlink", "rename over"}
"""By policy `unlink` the name goes, and the bytes stay."""
OTHER = (0, 0, OTHER_PID)


@JOURNALS
@pytest.mark.parametrize("value", [b"50:20", b"50:20,mode=lease,signal=none"], ids=["deny", "lease"])
@pytest.mark.parametrize("unlink", ["defer", "break"])
@pytest.mark.parametrize("what", REMOVALS)
def test_pins_are_asked(what: str, unlink: str, value: bytes, journal: bool) -> None:
    """A removal by another process is refused, at once or when the break has met its deadline; after the release of the
    pin it is not."""
    opcode, node, make = REMOVALS[what]

    async def act(both: Twins) -> None:
        for pinned in (A, B):
            body = _setxattr(True, b"user.pinfs.pin.p", value, 0, 0, 0)
            assert not (await both.ask(wire.SETXATTR, both.nodes[pinned], body, ME)).error
            both.compare()
        pair = both.nodes[node]
        if what not in TAKE_NOTHING and (unlink == "break" or what not in DEFERRED):
            refused = await both.ask(opcode, pair, lambda side: make(Bodies(both, side)), OTHER)
            assert refused.error == -errno.EBUSY
            both.compare()
            for pinned in (A, B):
                name_ = b"user.pinfs.pin.p\0"
                assert not (await both.ask(wire.REMOVEXATTR, both.nodes[pinned], name_, ME)).error
            both.compare()
            await trio.sleep(60)  # of a break, nothing holds it back any more
        assert not (await both.ask(opcode, pair, lambda side: make(Bodies(both, side)), OTHER)).error
        both.compare()

    run_twins(Mount(journal=journal, policy=f'unlink = "{unlink}"'), act)
