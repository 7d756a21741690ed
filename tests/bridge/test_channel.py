"""The channel of the fast path: what it takes out of a request and what it answers, and that both kinds of the leaf,
Python and Cython, do the same with the same bytes."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.sources import source_of
from support.stat_results import S, stat_results

from pinfs.bridge import channel, wire
from pinfs.bridge.wire import IN_HEADER, IN_SIZE, OUT_HEADER, OUT_SIZE
from pinfs.linux import calls
from pinfs.pure import is_compiled

channel_source = source_of("bridge/channel.py")
calls_source = source_of("linux/calls.py")

ROOM = 512
"""Bytes of a buffer, the least that is longer than any request here that is not to be cut."""
NOT_OPEN = 1 << 30
"""A descriptor that is none."""
HEADER_FIELDS = ("opcode", "unique", "nodeid", "uid", "gid", "pid", "umask", "size", "error")

compiled = pytest.mark.compiled
both = pytest.mark.parametrize(
    ("module", "stats"),
    [
        pytest.param(channel, calls, id="as imported"),
        pytest.param(channel_source, calls_source, id="source", marks=compiled),
    ],
)

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
Answer = Callable[[Any], Any]


class Line:
    """A channel, and the kernel's end of it."""

    def __init__(self, module: ModuleType, room: int = ROOM) -> None:
        self.kernel, self.daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.daemon):
            end.setblocking(False)
        self.buffer = bytearray(room)
        self.channel = module.Channel(self.daemon.fileno(), self.buffer)

    def close(self) -> None:
        self.kernel.close()
        self.daemon.close()

    def take(self, message: bytes) -> tuple[Any, ...]:
        """What is known of a request."""
        self.kernel.send(message)
        assert self.channel.take(0) == 1
        return self.header()

    def header(self) -> tuple[Any, ...]:
        return tuple(getattr(self.channel, name) for name in HEADER_FIELDS)

    def replies(self) -> list[bytes]:
        """All that the kernel has got."""
        got: list[bytes] = []
        while True:
            try:
                message = self.kernel.recv(1 << 20)
            except (BlockingIOError, ConnectionResetError):
                return got
            if not message:
                return got
            got.append(message)


@contextmanager
def lines(*modules: ModuleType, room: int = ROOM) -> Iterator[list[Line]]:
    made = [Line(module, room) for module in modules]
    try:
        yield made
    finally:
        for line in made:
            line.close()


def request(opcode: int, body: bytes = b"", unique: int = 2, nodeid: int = 1, *, extensions: int = 0) -> bytes:
    return IN_HEADER.pack(IN_SIZE + len(body), opcode, unique, nodeid, 1000, 1001, 4711, extensions, 0) + body


# What a request is


@both
def test_a_request(module, stats) -> None:
    with lines(module) as [line]:
        assert line.channel.take(0) == 0
        body = struct.pack("<IIqQ", 1, 2**32 - 1, -3, 2**64 - 4)
        line.take(request(wire.MKDIR, body, unique=2**63 + 2, nodeid=2**64 - 1))
        assert line.header() == (wire.MKDIR, 2**63 + 2, 2**64 - 1, 1000, 1001, 4711, 0, IN_SIZE + 24, 0)
        taken = line.channel
        assert (taken.u32(0), taken.u32(4), taken.i64(8), taken.u64(16)) == (1, 2**32 - 1, -3, 2**64 - 4)
        assert taken.u64(8) == 2**64 - 3


@both
@pytest.mark.parametrize(
    "message",
    [
        b"x",
        request(wire.LOOKUP)[:-1],
        request(wire.LOOKUP, b"name\0", extensions=1),
        request(wire.LOOKUP, b"name\0")[:-1],
        request(wire.LOOKUP, b"name\0") + b"x",
        request(wire.WRITE, bytes(ROOM)),
    ],
    ids=["a byte", "less than a header", "with extensions", "too short", "too long", "longer than the buffer"],
)
def test_what_is_no_request_has_no_opcode(module, stats, message: bytes) -> None:
    """It goes the long way, which says what it is."""
    with lines(module) as [line]:
        line.take(request(wire.LOOKUP, b"name\0"))
        line.take(message)
        assert line.channel.opcode == 0
        assert line.channel.size == min(len(message), ROOM)


@both
def test_the_next_request_knows_nothing_of_the_one_before(module, stats) -> None:
    with lines(module) as [line]:
        line.take(request(wire.MKDIR))
        line.channel.umask = 0o22
        line.channel.error = errno.EPIPE
        line.take(request(wire.GETATTR))
        assert (line.channel.umask, line.channel.error) == (0, 0)


@both
def test_another_buffer(module, stats) -> None:
    """A handler keeps the first one, and what is in it."""
    with lines(module) as [line]:
        line.take(request(wire.LOOKUP, b"first\0"))
        kept = bytes(line.buffer)
        fresh = bytearray(ROOM)
        line.channel.use(fresh)
        line.take(request(wire.LOOKUP, b"second\0"))
        assert line.channel.buffer is fresh
        assert (line.channel.name(0), bytes(line.buffer)) == (b"second", kept)


@both
def test_a_wait_ends_with_the_request(module, stats) -> None:
    with lines(module) as [line]:
        assert line.channel.take(1) == 0
        line.kernel.send(request(wire.STATFS))
        assert line.channel.take(60_000) == 1


# What the kernel itself makes fail

READ_FAILURES = {
    errno.EISDIR: lambda: os.open("/", os.O_RDONLY),
    errno.EINVAL: lambda: os.eventfd(1),  # of a buffer of less than 8 bytes
    errno.EIO: lambda: os.open("/proc/self/mem", os.O_RDONLY),  # at 0
}


@both
@pytest.mark.parametrize("number", READ_FAILURES, ids=errno.errorcode.get)
def test_a_read_that_fails(module, stats, number: int) -> None:
    fd = READ_FAILURES[number]()
    try:
        taken = module.Channel(fd, bytearray(7))
        assert taken.take(0) == -1
        assert taken.error == number
    finally:
        os.close(fd)


@both
def test_the_end_of_the_connection(module, stats) -> None:
    """Nothing is read, and nothing is taken."""
    with lines(module) as [line]:
        line.take(request(wire.GETATTR, bytes(16)))
        line.kernel.close()
        assert line.channel.take(0) == 1
        assert (line.channel.size, line.channel.opcode) == (0, 0)
        assert line.channel.done()
        assert (line.channel.error, line.channel.reply) == (errno.EPIPE, b"")
        assert line.channel.opened(5, 6, 7)
        assert (line.channel.error, line.channel.reply) == (errno.EPIPE, wire.OPEN_OUT.pack(5, 6, 7))


@both
def test_a_reply_that_is_not_taken_is_kept(module, stats) -> None:
    """Without its header; a refusal has no body."""
    with lines(module) as [line]:
        line.take(request(wire.LOOKUP, b"name\0"))
        full = 0
        while not line.channel.error:
            line.channel.opened(full := full + 1, 0, 0)
        assert (line.channel.error, line.channel.reply) == (errno.EAGAIN, wire.OPEN_OUT.pack(full, 0, 0))
        assert line.channel.refuse(errno.ENOENT)
        assert (line.channel.error, line.channel.reply) == (errno.EAGAIN, b"")
        assert len(line.replies()) == full - 1
        line.take(request(wire.LOOKUP, b"name\0"))
        assert line.channel.error == 0


# Names

NOT_ONE = [b"", b"\0", b"name", b"na\0me\0", b"name\0\0", b"\0name\0", b"a/b\0", b"/\0", b"name/\0"]


@both
@pytest.mark.parametrize("text", NOT_ONE)
@pytest.mark.parametrize("at", [0, 8])
def test_what_is_not_one_name(module, stats, text: bytes, at: int) -> None:
    with lines(module) as [line]:
        line.take(request(wire.LOOKUP, b"\1" * at + text))
        assert line.channel.name(at) == b""


@both
@pytest.mark.parametrize("text", [b"", b"\0", b"a\0", b"\0\0\0", b"a\0b", b"a\0b\0c\0", b"a\0b\0c", b"a\0b\0\0", b"ab"])
def test_what_is_not_two_names(module, stats, text: bytes) -> None:
    with lines(module) as [line]:
        line.take(request(wire.RENAME, bytes(8) + text))
        assert line.channel.two(8) == (b"", b"")


@both
def test_names_and_values(module, stats) -> None:
    with lines(module) as [line]:
        line.take(request(wire.LOOKUP, b"12345678name\xff \n\0"))
        assert line.channel.name(8) == b"name\xff \n"
        line.take(request(wire.RENAME, b"12345678old\0new/\0"))
        assert line.channel.two(8) == (b"old", b"new/")
        line.take(request(wire.SYMLINK, b"\0target\0"))
        assert line.channel.two(0) == (b"", b"target")
        line.take(request(wire.SETXATTR, b"12345678name\0va\0ue"))
        assert line.channel.name_and_value(8, 5) == (b"name", b"va\0ue")
        for size in (0, 4, 6, 2**32 - 1):
            assert line.channel.name_and_value(8, size) == (b"", b"")
        line.take(request(wire.SETXATTR, b"12345678name\0"))
        assert line.channel.name_and_value(8, 0) == (b"name", b"")


@both
def test_what_an_earlier_request_has_left_in_the_buffer_is_no_name(module, stats) -> None:
    with lines(module) as [line]:
        line.take(request(wire.LOOKUP, b"12345678longer\0and longer\0"))
        line.take(request(wire.LOOKUP, b"1234"))
        assert line.channel.name(8) == b""
        assert line.channel.two(8) == (b"", b"")
        assert line.channel.name_and_value(8, 0) == (b"", b"")
        line.take(request(wire.LOOKUP, b"12345678x"))
        assert line.channel.name(8) == b""
        assert line.channel.two(8) == (b"", b"")
        assert line.channel.name_and_value(8, 0) == (b"", b"")


# Replies, as the handlers of the long way encode them


def known(stats: ModuleType, result: os.stat_result) -> Any:
    told = stats.Stat()
    told.fill(result)
    return told


@both
def test_replies_are_those_of_the_long_way(module, stats) -> None:
    st_ = os.stat("/")
    told = known(stats, st_)
    entry = wire.ENTRY_OUT.pack(
        7, 5, 1, 3, 2, 4, 7, st_.st_size, st_.st_blocks, int(st_.st_atime_ns // S), int(st_.st_mtime_ns // S),
        int(st_.st_ctime_ns // S), st_.st_atime_ns % S, st_.st_mtime_ns % S, st_.st_ctime_ns % S, st_.st_mode,
        st_.st_nlink, st_.st_uid, st_.st_gid, st_.st_rdev, st_.st_blksize, 0,
    )  # fmt: skip
    opened = wire.OPEN_OUT.pack(8, 9, 10)
    cases: list[tuple[Answer, int, bytes]] = [
        (lambda taken: taken.done(), 0, b""),
        (lambda taken: taken.refuse(errno.EBUSY), -errno.EBUSY, b""),
        (lambda taken: taken.attributes(7, told, 1, 2), 0, wire.attr_out(7, st_, (1, 2))),
        (lambda taken: taken.entry(7, 5, told, 1, 2, 3, 4), 0, entry),
        (lambda taken: taken.no_entry(1, 2), 0, wire.no_entry_out((1, 2))),
        (lambda taken: taken.opened(8, 9, 10), 0, opened),
        (lambda taken: taken.created(7, 5, told, 1, 2, 3, 4, 8, 9, 10), 0, entry + opened),
    ]
    with lines(module) as [line]:
        for answer, error, body in cases:
            line.take(request(wire.LOOKUP, unique=2**63 + 6))
            assert answer(line.channel) is True
            assert line.channel.error == 0
            assert line.replies() == [OUT_HEADER.pack(OUT_SIZE + len(body), error, 2**63 + 6) + body]


@both
@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_the_value_of_an_attribute(module, stats, tmp_path: Path, by: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    os.setxattr(path, b"user.a", b"va\0ue")
    os.setxattr(path, b"user.empty", b"")
    with lines(module) as [line], path.open() as file:
        where = file.fileno() if by == "descriptor" else os.fsencode(path)

        def asked(name: bytes, size: int) -> tuple[int, bytes]:
            line.take(request(wire.GETXATTR))
            assert line.channel.attribute(where, name, size) is True
            [reply] = line.replies()
            length, error, unique = OUT_HEADER.unpack_from(reply)
            assert (length, unique) == (len(reply), 2)
            return -error, reply[OUT_SIZE:]

        assert asked(b"user.a", 0) == (0, wire.GETXATTR_OUT.pack(5, 0))
        assert asked(b"user.a", 5) == asked(b"user.a", 65536) == (0, b"va\0ue")
        assert asked(b"user.a", 4) == (errno.ERANGE, b"")
        assert asked(b"user.empty", 0) == (0, wire.GETXATTR_OUT.pack(0, 0))
        assert asked(b"user.empty", 1) == (0, b"")
        assert asked(b"user.b", 0) == asked(b"user.b", 100) == (errno.ENODATA, b"")
        assert asked(b"unknown.a", 0) == (errno.EOPNOTSUPP, b"")
        assert asked(b"user." + b"n" * 251, 0) == (errno.ERANGE, b"")
        where = NOT_OPEN if by == "descriptor" else b"/nowhere"
        assert asked(b"user.a", 0) == (errno.EBADF if by == "descriptor" else errno.ENOENT, b"")


@pytest.mark.parametrize("module", [channel_source])
def test_a_backing_without_attributes(module, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSYS: the kernel would take it that this mount has none at all, and never ask again (`errno_of`)."""

    def missing(where: object, name: bytes) -> bytes:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "getxattr", missing)
    with lines(module) as [line]:
        line.take(request(wire.GETXATTR))
        assert line.channel.attribute(b"/", b"user.a", 0)
        assert line.replies() == [OUT_HEADER.pack(OUT_SIZE, -errno.EOPNOTSUPP, 2)]


# Parity, with any bytes

EXTENSIONS = st.sampled_from([0, 0, 0, 1, 2**16 - 1])
LYING = st.sampled_from([0, 0, 0, 0, -1, 1, IN_SIZE, -IN_SIZE, 2**31])
TEXTS = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"name", b"", b"a/b", b"\xff\n", b"v" * 30]), max_size=4).map(b"\0".join),
    st.lists(st.sampled_from([b"name", b"", b"."]), max_size=3).map(lambda parts: b"".join(p + b"\0" for p in parts)),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Requests, and what is like them: cut, too long, with a length that is not theirs, with extensions."""
    body = draw(st.sampled_from([b"", bytes(8), b"\xff" * 8, bytes(16), bytes(range(88))])) + draw(TEXTS)
    length = (IN_SIZE + len(body) + draw(LYING)) % 2**32
    ids = [draw(u32) for _ in range(3)]
    header = IN_HEADER.pack(length, draw(u32), draw(u64), draw(u64), *ids, draw(EXTENSIONS), draw(u16))
    message = header + body + draw(st.sampled_from([b"", b"", b"more", bytes(ROOM)]))
    return message[: draw(st.one_of(st.none(), st.integers(1, len(message))))]


def seen(line: Line, message: bytes, probes: list[tuple[int, int]]) -> tuple[Any, ...]:
    """All that a handler might look at."""
    header = line.take(message)
    taken = line.channel
    if taken.size < IN_SIZE:
        return header[:1] + header[-3:]  # there is nobody to answer
    return header, bytes(line.buffer), [
        (taken.u32(at), taken.u64(at), taken.i64(at), taken.name(at), taken.two(at), taken.name_and_value(at, size))
        for at, size in probes
    ]  # fmt: skip


@compiled
@given(st.lists(messages(), min_size=1, max_size=4), st.lists(st.tuples(st.integers(0, 100), st.integers(0, 40))))
@example([request(wire.LOOKUP, b"name\0"), request(wire.LOOKUP, b"")], [(0, 0), (4, 1), (5, 0), (6, 0)])
@example([request(wire.RENAME, b"a\0b\0")], [(at, at) for at in range(8)])
def test_both_take_the_same_from_any_bytes(sent: list[bytes], probes: list[tuple[int, int]]) -> None:
    with lines(channel, channel_source) as [one, other]:
        for message in sent:
            assert seen(one, message, probes) == seen(other, message, probes)
        assert one.channel.take(0) == other.channel.take(0) == 0
        one.kernel.close()
        other.kernel.close()
        assert one.channel.take(0) == other.channel.take(0) == 1
        assert one.channel.size == other.channel.size == one.channel.opcode == other.channel.opcode == 0


numbers = st.integers(1, 4095)
valid = st.tuples(u64, u32)
backing_ids = st.integers(0, 2**31 - 1)
OPEN = (u64, u32, backing_ids)


def _answers() -> st.SearchStrategy[Callable[[Any, Any], object]]:
    """What sends a reply, given a channel and what stat(2) has told."""
    return st.one_of(
        st.just(lambda taken, told: taken.done()),
        st.builds(lambda number: lambda taken, told: taken.refuse(number), numbers),
        st.builds(lambda nodeid, v: lambda taken, told: taken.attributes(nodeid, told, *v), u64, valid),
        st.builds(
            lambda nodeid, generation, e, a: lambda taken, told: taken.entry(nodeid, generation, told, *e, *a),
            *(u64, u64, valid, valid),
        ),
        st.builds(lambda v: lambda taken, told: taken.no_entry(*v), valid),
        st.builds(lambda *opened: lambda taken, told: taken.opened(*opened), *OPEN),
        st.builds(
            lambda nodeid, generation, e, a, *opened: (
                lambda taken, told: taken.created(nodeid, generation, told, *e, *a, *opened)
            ),
            *(u64, u64, valid, valid, *OPEN),
        ),
    )


@compiled
@given(st.lists(st.tuples(u64, stat_results(), _answers()), min_size=1, max_size=5), st.sampled_from(["taken", "gone"]))
def test_both_answer_the_same(replies: list[tuple[int, os.stat_result, Any]], kernel: str) -> None:
    """Byte by byte; and where the kernel does not take it, with the same errno, and the same body kept."""
    with lines(channel, channel_source) as [one, other]:
        for unique, result, answer in replies:
            told = []
            for line, stats in ((one, calls), (other, calls_source)):
                if kernel == "gone" and line.kernel.fileno() >= 0:
                    line.take(request(wire.LOOKUP, unique=unique))
                    line.kernel.close()
                elif kernel != "gone":
                    line.take(request(wire.LOOKUP, unique=unique))
                done = answer(line.channel, known(stats, result))
                got = line.replies() if kernel != "gone" else []
                told.append((done, line.channel.error, line.channel.reply, got))
            assert told[0] == told[1]
            assert told[0][1] == (errno.EPIPE if kernel == "gone" else 0)


@compiled
@given(
    st.one_of(st.none(), st.binary(max_size=300), st.sampled_from([b"v" * 60_000, b"v" * 65_536])),
    st.lists(st.one_of(st.sampled_from([0, 1, 65_535, 65_536, 2**32 - 1]), st.integers(0, 400))),
)
def test_both_read_the_same_attributes(tmp_path_factory, value: bytes | None, sizes: list[int]) -> None:
    directory = tmp_path_factory.getbasetemp()
    path = Path("/dev/shm" if value is not None and len(value) > 4000 else directory) / f"attribute-{os.getpid()}"
    path.write_bytes(b"")
    try:
        if value is not None:
            os.setxattr(path, b"trusted.a" if os.geteuid() == 0 else b"user.a", value)
        with path.open() as file, lines(channel, channel_source) as [one, other]:
            for size in [*sizes, 0, 65_536]:
                for where in (os.fsencode(path), file.fileno()):
                    for name in (b"user.a", b"trusted.a"):
                        told = []
                        for line in (one, other):
                            line.take(request(wire.GETXATTR))
                            line.channel.attribute(where, name, size)
                            told.append((line.channel.error, line.channel.reply, line.replies()))
                        assert told[0] == told[1]
    finally:
        path.unlink()


# Requests that come one after the other: compiled, reads block from the eighth of a turn on


def blocks(line: Line) -> bool:
    return os.get_blocking(line.daemon.fileno())


@both
def test_reads_that_block_end_with_a_request_or_without(module, stats) -> None:
    is_leaf = module is channel and is_compiled()
    with lines(module) as [line]:
        for _ in range(3):
            for unique in range(1, 21):
                assert blocks(line) == (is_leaf and unique > 8)
                line.kernel.send(request(wire.GETATTR, unique=unique))
                assert line.channel.take(5) == 1
                assert (line.channel.unique, line.channel.opcode) == (unique, wire.GETATTR)
            for _ in range(3):
                assert line.channel.take(5) == 0
            line.channel.settle()
            assert not blocks(line)
            assert line.channel.take(0) == 0


@both
@pytest.mark.parametrize("wait_ms", [0, 1, 4])
def test_no_read_blocks_where_tasks_wait_for_their_turn(module, stats, wait_ms: int) -> None:
    with lines(module) as [line]:
        for _ in range(20):
            line.kernel.send(request(wire.GETATTR))
            assert line.channel.take(wait_ms) == 1
        assert not blocks(line)


@both
def test_the_connection_ends_in_a_read_that_blocks(module, stats) -> None:
    with lines(module) as [line]:
        for _ in range(20):
            line.kernel.send(request(wire.GETATTR))
            assert line.channel.take(5) == 1
        ending = threading.Thread(target=line.kernel.shutdown, args=(socket.SHUT_RDWR,))
        ending.start()
        while not (taken := line.channel.take(5)):
            pass
        ending.join()
        assert (taken, line.channel.size) == (1, 0)


def test_a_read_that_blocks_ends_whatever_signals_were_blocked() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with lines(channel) as [line]:
            for _ in range(20):
                line.kernel.send(request(wire.GETATTR))
                assert line.channel.take(5) == 1
            assert line.channel.take(5) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_child_lets_go_of_a_channel_whose_thread_it_does_not_have() -> None:
    with lines(channel) as [line]:
        for _ in range(20):
            line.kernel.send(request(wire.GETATTR))
            assert line.channel.take(5) == 1
        child = os.fork()
        if not child:
            del line.channel
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert line.channel.take(5) == 0


def test_what_ends_a_read_reaches_no_other_call() -> None:
    """A request comes at about the time at which its read would be ended: the call after it is not interrupted."""
    usleep = ctypes.CDLL(None, use_errno=True).usleep
    with lines(channel) as [line]:
        ended = 0
        for turn in range(100):
            for _ in range(10):
                line.kernel.send(request(wire.GETATTR))
                assert line.channel.take(5) == 1
            sending = threading.Timer(0.0045 + turn % 10 * 0.0006, line.kernel.send, [request(wire.STATFS)])
            sending.start()
            while not line.channel.take(5):
                ended += 1
            assert usleep(1000) == 0
            line.channel.settle()
            assert usleep(1000) == 0
            sending.join()
        assert ended


# Looking for the next request before sleeping


@both
def test_requests_are_taken_with_busy_polling(module, stats) -> None:
    """Whether they come at once, later, or not at all; also when the credit is used up."""
    with lines(module) as [line]:
        line.channel = module.Channel(line.daemon.fileno(), line.buffer, 1000)
        line.take(request(wire.STATFS))
        for _ in range(2 * channel_source.FULL_CREDIT // channel_source.IN_VAIN):
            assert line.channel.take(1) == 0
        sending = threading.Thread(target=line.kernel.send, args=(request(wire.DESTROY),))
        sending.start()
        assert line.channel.take(60_000) == 1
        sending.join()
        assert line.channel.opcode == wire.DESTROY
        line.kernel.close()
        assert (line.channel.take(1), line.channel.size) == (1, 0)


def test_a_spin_in_vain_costs_more_than_one_that_pays_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the source: `spins` says in how many turns the clock was asked."""
    ticks = 0
    during_a_spin: list[Callable[[], object]] = []

    def clock() -> float:
        nonlocal ticks
        ticks += 1
        if ticks % 2 == 0 and during_a_spin:
            during_a_spin.pop()()
        return ticks

    def spins(turns: int, wait_ms: int = 1) -> int:
        tried = 0
        for _ in range(turns):
            before = ticks
            line.channel.take(wait_ms)
            tried += ticks > before
        return tried

    monkeypatch.setattr(channel_source, "clock", clock)
    with lines(channel_source) as [line]:
        line.channel = channel_source.Channel(line.daemon.fileno(), line.buffer, 1)
        assert spins(3, wait_ms=0) == 0
        in_vain = channel_source.FULL_CREDIT // channel_source.IN_VAIN
        line.channel._busy_poll_s = 1.5  # of the clock's seconds: two looks in each spin
        assert spins(in_vain - 1) == in_vain - 1
        for _ in range(channel_source.IN_VAIN):
            during_a_spin.append(lambda: line.kernel.send(request(wire.STATFS)))
            assert spins(1) == 1
            assert line.channel.opcode == wire.STATFS
        assert spins(2) == 2
        assert spins(channel_source.PAUSE) == 0
        assert spins(1) == 1
        assert spins(channel_source.PAUSE) == 0
