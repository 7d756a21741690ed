"""The dispatcher with a socket in the place of the kernel: every request gets exactly one reply, whatever it holds."""

import errno
import gc
import mmap
import os
import socket
import weakref
from collections.abc import Iterator
from typing import ClassVar
from unittest.mock import Mock

import pytest
import trio
import trio.testing
from bridge.fake_kernel import ANSWERS, Canned, dispatching
from hypothesis import given
from hypothesis import strategies as st

from pinfs.bridge import wire
from pinfs.bridge.channel import Channel
from pinfs.bridge.handlers import UNANSWERED, Handlers
from pinfs.bridge.negotiate import BUFFER_SIZE, Init, Requested
from pinfs.runtime.parking import OneShot, park


@pytest.fixture(autouse=True)
def every_failure_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many these tests have caused before."""
    monkeypatch.setattr("pinfs.runtime.errors._tokens", 1e9)


NAME = b"name\0"
WELL_FORMED = {
    wire.LOOKUP: NAME,
    wire.GETATTR: bytes(16),
    wire.SETATTR: bytes(88),
    wire.STATX: bytes(24),
    wire.ACCESS: bytes(8),
    wire.MKNOD: bytes(16) + NAME,
    wire.MKDIR: bytes(8) + NAME,
    wire.SYMLINK: NAME + NAME,
    wire.LINK: bytes(8) + NAME,
    wire.READLINK: b"",
    wire.STATFS: b"",
    wire.UNLINK: NAME,
    wire.RMDIR: NAME,
    wire.RENAME: bytes(8) + NAME + NAME,
    wire.RENAME2: bytes(16) + NAME + NAME,
    wire.OPEN: bytes(8),
    wire.CREATE: bytes(16) + NAME,
    wire.TMPFILE: bytes(16) + NAME,
    wire.READ: bytes(40),
    wire.WRITE: wire.WRITE_IN.pack(1, 0, 4, 0, 0, 0, 0) + b"data",
    wire.RELEASE: bytes(24),
    wire.FSYNC: bytes(16),
    wire.FALLOCATE: bytes(32),
    wire.LSEEK: bytes(24),
    wire.COPY_FILE_RANGE: bytes(56),
    wire.COPY_FILE_RANGE_64: bytes(56),
    wire.IOCTL: wire.IOCTL_IN.pack(1, 0, 5, 0, 4, 8) + b"data",
    wire.POLL: bytes(24),
    wire.OPENDIR: bytes(8),
    wire.READDIR: wire.READ_IN.pack(1, 0, 500, 0, 0, 0, 0),
    wire.READDIRPLUS: wire.READ_IN.pack(1, 0, 500, 0, 0, 0, 0),
    wire.RELEASEDIR: bytes(24),
    wire.FSYNCDIR: bytes(16),
    wire.SETXATTR: wire.SETXATTR_IN.pack(5, 0) + NAME + b"value",
    wire.GETXATTR: wire.GETXATTR_IN.pack(5, 0) + NAME,
    wire.LISTXATTR: wire.GETXATTR_IN.pack(50, 0),
    wire.REMOVEXATTR: NAME,
    wire.SYNCFS: bytes(8),
    wire.DESTROY: b"",
}


def test_the_table_of_requests_is_complete() -> None:
    routes = Handlers(Canned(), lambda message: None).routes()  # type: ignore[arg-type]
    assert routes.keys() - UNANSWERED == WELL_FORMED.keys()


@pytest.mark.parametrize("opcode", WELL_FORMED)
async def test_each_request_is_answered(opcode: int) -> None:
    async with dispatching(Canned()) as (kernel, _):
        assert (await kernel.ask(opcode, WELL_FORMED[opcode])).error == 0
        await kernel.nothing_more()


@pytest.mark.parametrize("opcode", WELL_FORMED)
async def test_a_request_that_is_too_short_is_einval(opcode: int) -> None:
    body = WELL_FORMED[opcode]
    async with dispatching(Canned()) as (kernel, _):
        for size in range(0 if opcode == wire.SYNCFS else len(body)):
            error = (await kernel.ask(opcode, body[:size])).error
            assert error == -errno.EINVAL or _is_whole(opcode, size)
        await kernel.nothing_more()


def _is_whole(opcode: int, size: int) -> bool:
    """What carries more than it needs: SYNCFS's padding, a TMPFILE's name."""
    return opcode == wire.SYNCFS or (opcode == wire.TMPFILE and size >= 16)


@given(
    st.integers(0, 60) | st.integers(0, 2**32 - 1),
    st.binary(max_size=200),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**16 - 1) | st.just(0),
)
def test_fuzzed_requests_get_exactly_one_reply(opcode: int, body: bytes, nodeid: int, extensions: int) -> None:
    async def fuzz() -> None:
        async with dispatching(Canned()) as (kernel, dispatcher):
            unique = kernel.send(opcode, body, nodeid, extensions)
            if opcode not in UNANSWERED:
                reply = await kernel.receive()
                assert reply.unique == unique
                assert -512 < reply.error <= 0
                assert not reply.error or not reply.body
            if not dispatcher.refused_because:  # an INIT that ends the connection
                await kernel.nothing_more()

    trio.run(fuzz)


@given(st.binary(max_size=60))
def test_fuzzed_bytes_never_end_the_dispatcher(data: bytes) -> None:
    async def fuzz() -> None:
        async with dispatching(Canned()) as (kernel, _):
            if data:  # an empty packet is the end of the connection
                kernel.send_raw(data)
            unique = kernel.send(wire.GETATTR, bytes(16))
            while (await kernel.receive()).unique != unique:
                pass

    trio.run(fuzz)


async def test_a_lying_length_is_einval() -> None:
    async with dispatching(Canned()) as (kernel, _):
        kernel.send_raw(wire.IN_HEADER.pack(4000, wire.GETATTR, 2, 1, 0, 0, 0, 0, 0) + bytes(16))
        assert (await kernel.receive()).error == -errno.EINVAL


async def test_unknown_opcodes_and_flush_are_enosys() -> None:
    async with dispatching(Canned()) as (kernel, _):
        for opcode in (0, 7, 19, wire.FLUSH, 37, 48, 54, 4096, 2**32 - 1):
            assert (await kernel.ask(opcode, bytes(24))).error == -errno.ENOSYS


async def test_extensions_are_not_taken_for_a_name() -> None:
    ops = Canned()
    async with dispatching(ops) as (kernel, _):
        kernel.send(wire.LOOKUP, NAME + b"12345678", extensions=1)
        assert (await kernel.receive()).error == 0
    assert ops.calls[0][1][1] == b"name"


@pytest.mark.parametrize(
    ("raised", "answered"),
    [
        (OSError(errno.EBUSY, "pinned"), errno.EBUSY),
        (OSError(errno.ENOSYS, "the backing cannot"), errno.EOPNOTSUPP),
        (OSError("no number"), errno.EIO),
        (OSError(5000, "not a number of the kernel's"), errno.EIO),
        (ZeroDivisionError(), errno.EIO),
    ],
)
async def test_errors(raised: Exception, answered: int) -> None:
    ops = Canned()
    ops.fail_with = raised
    async with dispatching(ops) as (kernel, _):
        for opcode, body in WELL_FORMED.items():
            if opcode not in (wire.READDIR, wire.READDIRPLUS, wire.DESTROY):
                assert (await kernel.ask(opcode, body)).error == -answered


async def test_a_name_that_is_not_there_may_be_remembered_as_such() -> None:
    ops = Canned()
    ops.fail_with = FileNotFoundError(errno.ENOENT, "no such name")
    async with dispatching(ops) as (kernel, _):
        reply = await kernel.ask(wire.LOOKUP, NAME)
    assert reply.error == 0
    nodeid, _, entry_valid, _, entry_valid_ns, *_ = wire.ENTRY_OUT.unpack(reply.body)
    assert (nodeid, entry_valid, entry_valid_ns) == (0, 1, 500_000_000)


async def test_callers_and_arguments_arrive() -> None:
    ops = Canned()
    async with dispatching(ops) as (kernel, _):
        await kernel.ask(wire.MKDIR, wire.MKDIR_IN.pack(0o755, 0o027) + b"dir\0", nodeid=9)
    assert ops.calls == [("mkdir", (9, b"dir", 0o755, (1, 2, 3, 0o027, 2)))]


async def test_a_write_of_a_mebibyte() -> None:
    ops = Canned()
    data = os.urandom(1 << 20)
    written = []

    async def write(fh, offset, data, *, kill_suidgid, unique):
        written.append((fh, offset, bytes(data), kill_suidgid))
        return len(data)

    ops.write = write
    async with dispatching(ops) as (kernel, _):
        body = wire.WRITE_IN.pack(6, 4096, len(data), wire.WRITE_KILL_SUIDGID, 0, 0, 0) + data
        assert wire.IN_SIZE + len(body) <= BUFFER_SIZE
        assert (await kernel.ask(wire.WRITE, body)).body == wire.WRITE_OUT.pack(1 << 20, 0)
    assert written == [(6, 4096, data, True)]


async def test_a_large_read_arrives_whole() -> None:
    ops = Canned()
    data = os.urandom(1 << 20)

    async def read(fh, offset, size, unique):
        return data

    ops.read = read
    async with dispatching(ops) as (kernel, _):
        assert (await kernel.ask(wire.READ, bytes(40))).body == data


async def test_attributes_by_name_tell_their_size_or_that_it_does_not_fit() -> None:
    async with dispatching(Canned()) as (kernel, _):
        for opcode, name, whole in ((wire.GETXATTR, NAME, b"value"), (wire.LISTXATTR, b"", b"user.a\0user.b\0")):
            for size, expected in ((0, wire.GETXATTR_OUT.pack(len(whole), 0)), (len(whole), whole), (100, whole)):
                assert (await kernel.ask(opcode, wire.GETXATTR_IN.pack(size, 0) + name)).body == expected
            reply = await kernel.ask(opcode, wire.GETXATTR_IN.pack(len(whole) - 1, 0) + name)
            assert reply.error == -errno.ERANGE


async def test_forgets() -> None:
    ops = Canned()
    async with dispatching(ops) as (kernel, _):
        kernel.send(wire.FORGET, wire.U64.pack(3), nodeid=8)
        kernel.send(wire.BATCH_FORGET, wire.BATCH_FORGET_IN.pack(2, 0) + wire.FORGET_ONE.pack(5, 1) + bytes(16))
        await kernel.nothing_more()
    assert ops.forgotten == [(8, 3), (5, 1), (0, 0)]


# Waiting


async def test_a_parked_request_does_not_hold_up_others() -> None:
    ops = Canned()
    ops.park_in = "setattr"
    async with dispatching(ops) as (kernel, dispatcher):
        waiting = [kernel.send(wire.SETATTR, bytes(88)) for _ in range(300)]
        for _ in range(20):
            await kernel.nothing_more()
        assert dispatcher.parked == 300
        ops.gate.set()
        answered = [await kernel.receive() for _ in waiting]
        assert sorted(reply.unique for reply in answered) == waiting
        assert {reply.error for reply in answered} == {0}
        await kernel.nothing_more()
        assert dispatcher.parked == 0


async def test_a_parked_write_keeps_its_data() -> None:
    ops = Canned()
    seen = []

    async def write(fh, offset, data, *, kill_suidgid, unique):
        ops.park_in = "gate"
        await ops.gate_passed()
        seen.append(bytes(data))
        return len(data)

    async def gate_passed():
        await park()
        await ops.gate.wait()

    ops.write, ops.gate_passed = write, gate_passed
    async with dispatching(ops) as (kernel, _):
        kernel.send(wire.WRITE, WELL_FORMED[wire.WRITE])
        await kernel.ask(wire.SETXATTR, wire.SETXATTR_IN.pack(100, 0) + NAME + b"z" * 100)
        ops.gate.set()
        assert (await kernel.receive()).body == wire.WRITE_OUT.pack(4, 0)
    assert seen == [b"data"]


@pytest.mark.parametrize("by", ["park_in", "wait_in"])
async def test_an_interrupt_ends_the_request_it_names_with_eintr(by: str) -> None:
    ops = Canned()
    setattr(ops, by, "setattr")
    async with dispatching(ops) as (kernel, dispatcher):
        first, second = (kernel.send(wire.SETATTR, bytes(88)) for _ in range(2))
        kernel.send(wire.INTERRUPT, wire.U64.pack(first))
        reply = await kernel.receive()
        assert (reply.unique, reply.error) == (first, -errno.EINTR)
        await kernel.nothing_more()
        assert dispatcher.parked == 1
        ops.gate.set()
        for event in ops.events:  # also the one whose handler was interrupted
            event.set()
        reply = await kernel.receive()
        assert (reply.unique, reply.error) == (second, 0)
        await kernel.nothing_more()
        assert dispatcher.parked == 0


async def test_an_interrupt_that_is_read_together_with_its_request() -> None:
    """Both are read before the parked handler has run a single step in its task."""
    ops = Canned()
    ops.park_in = "setattr"
    async with dispatching(ops) as (kernel, _):
        unique = kernel.send(wire.SETATTR, bytes(88))
        kernel.send(wire.INTERRUPT, wire.U64.pack(unique))
        assert (await kernel.receive()).error == -errno.EINTR


async def test_an_interrupt_of_what_does_not_wait_is_ignored() -> None:
    async with dispatching(Canned()) as (kernel, _):
        for unique in (0, 2, 2**64 - 1):
            kernel.send(wire.INTERRUPT, wire.U64.pack(unique))
        await kernel.nothing_more()


async def test_what_ends_before_its_interrupt_keeps_its_result() -> None:
    ops = Canned()
    ops.park_in = "setattr"
    async with dispatching(ops) as (kernel, _):
        unique = kernel.send(wire.SETATTR, bytes(88))
        await kernel.nothing_more()
        ops.gate.set()
        kernel.send(wire.INTERRUPT, wire.U64.pack(unique))
        reply = await kernel.receive()
        assert reply.unique == unique
        assert reply.error in (0, -errno.EINTR)
        await kernel.nothing_more()


async def test_the_end_of_the_connection_cancels_what_waits() -> None:
    ops = Canned()
    ops.park_in = "setattr"
    async with dispatching(ops) as (kernel, dispatcher):
        kernel.send(wire.SETATTR, bytes(88))
        await kernel.nothing_more()
    assert dispatcher.parked == 0


async def test_a_waiting_handler_goes_on_when_another_request_sets_its_event() -> None:
    ops = Canned()
    ops.wait_in = "setattr"

    async def removexattr(nodeid, name, ctx):
        ops.events.pop(0).set()

    ops.removexattr = removexattr
    async with dispatching(ops) as (kernel, dispatcher):
        waiting = [kernel.send(wire.SETATTR, bytes(88)) for _ in range(3)]
        await kernel.nothing_more()
        assert dispatcher.parked == 3
        for unique in waiting:
            release = kernel.send(wire.REMOVEXATTR, NAME)
            assert [(await kernel.receive()).unique for _ in range(2)] == [release, unique]
        assert dispatcher.parked == 0


async def test_a_waiting_handler_goes_on_when_a_task_sets_its_event() -> None:
    ops = Canned()
    ops.wait_in = "setattr"
    async with dispatching(ops) as (kernel, dispatcher):
        waiting = [kernel.send(wire.SETATTR, bytes(88)) for _ in range(3)]
        await kernel.nothing_more()
        for event in ops.events:
            event.set()
        assert [(await kernel.receive()).unique for _ in range(3)] == waiting
        assert dispatcher.parked == 0


async def test_a_handler_that_waits_twice_goes_on_twice() -> None:
    ops = Canned()
    gates = [OneShot(), OneShot()]

    async def setattr(*args):
        for gate in gates:
            await gate.wait()
        await park()
        await ops.gate.wait()
        return ANSWERS["setattr"]

    ops.setattr = setattr
    async with dispatching(ops) as (kernel, dispatcher):
        kernel.send(wire.SETATTR, bytes(88))
        for gate in gates:
            await kernel.nothing_more()
            gate.set()
        await kernel.nothing_more()
        assert dispatcher.parked == 1
        ops.gate.set()
        assert (await kernel.receive()).error == 0


async def test_the_end_of_the_connection_closes_handlers_that_wait() -> None:
    ops = Canned()
    closed = []

    async def setattr(*args):
        try:
            await OneShot().wait()
        finally:
            closed.append(args)

    ops.setattr = setattr
    async with dispatching(ops) as (kernel, dispatcher):
        kernel.send(wire.SETATTR, bytes(88))
        await kernel.nothing_more()
    assert len(closed) == 1
    assert dispatcher.parked == 0


async def test_poll_wakes_by_a_notification() -> None:
    ops = Canned()
    wakes = []

    async def poll(fh, events, wake):
        wakes.append(wake)
        return 0

    ops.poll = poll
    async with dispatching(ops) as (kernel, _):
        await kernel.ask(wire.POLL, wire.POLL_IN.pack(1, 77, wire.POLL_SCHEDULE_NOTIFY, 1))
        await kernel.ask(wire.POLL, wire.POLL_IN.pack(1, 77, 0, 1))
        assert wakes[1] is None
        wakes[0]()
        message = await kernel.receive()
        assert (message.unique, message.error, message.body) == (0, wire.NOTIFY_POLL, wire.U64.pack(77))


async def test_what_the_handlers_start_runs_although_requests_keep_coming() -> None:
    """The fast path must not starve trio: a task that a handler wakes gets its turn at once."""
    ops = Canned()
    woken = trio.Event()
    ran = []

    async def sleeper() -> None:
        await woken.wait()
        ran.append(len(ops.calls))

    async def removexattr(*args):
        woken.set()

    ops.removexattr = removexattr
    async with dispatching(ops) as (kernel, _), trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            kernel.send(wire.GETATTR, bytes(16))
        kernel.send(wire.REMOVEXATTR, NAME)
        for _ in range(5):
            kernel.send(wire.GETATTR, bytes(16))
        for _ in range(11):
            await kernel.receive()
    assert ran == [5]


# INIT

OFFERED = Init.DO_READDIRPLUS | Init.INIT_EXT | Init.ATOMIC_O_TRUNC | Init.POSIX_ACL | 1 << 1 | 1 << 16


def init_request(major: int = 7, minor: int = 45, flags: int = int(OFFERED), flags2: int = 0) -> bytes:
    """As of 7.36."""
    return wire.INIT_IN.pack(major, minor, 131072, flags) + wire.INIT_FLAGS2.pack(flags2) + bytes(44)


async def test_init_is_negotiated() -> None:
    async with dispatching(Canned(), Requested(passthrough=True)) as (kernel, dispatcher):
        reply = await kernel.ask(wire.INIT, init_request(flags2=Init.PASSTHROUGH >> 32))
        fields = wire.INIT_OUT.unpack(reply.body)
        major, minor, readahead, flags, _, _, max_write, gran, pages, _, flags2, depth, _ = fields
        assert (major, minor, readahead, max_write, gran, depth) == (7, 45, 131072, 1 << 20, 1, 1)
        assert pages * mmap.PAGESIZE == max_write
        assert flags | flags2 << 32 == (Init.DO_READDIRPLUS | Init.INIT_EXT | Init.ATOMIC_O_TRUNC | Init.PASSTHROUGH)
        assert kernel.negotiated == [dispatcher.negotiated]
        assert kernel.negotiated[0].passthrough


async def test_a_kernel_before_7_36_sends_no_second_word_of_flags() -> None:
    async with dispatching(Canned()) as (kernel, _):
        reply = await kernel.ask(wire.INIT, wire.INIT_IN.pack(7, 31, 4096, int(OFFERED & ~Init.INIT_EXT)))
        fields = wire.INIT_OUT.unpack(reply.body)
        assert (fields[:4], fields[10]) == ((7, 31, 4096, Init.DO_READDIRPLUS | Init.ATOMIC_O_TRUNC), 0)
        assert kernel.negotiated[0].kernel_minor == 31


async def test_a_kernel_of_a_newer_major_version_is_told_ours_and_asks_again() -> None:
    async with dispatching(Canned()) as (kernel, _):
        reply = await kernel.ask(wire.INIT, init_request(major=8, minor=1))
        assert reply.body == wire.INIT_OUT.pack(7, 45, *[0] * 11)
        assert not kernel.negotiated
        assert not (await kernel.ask(wire.INIT, init_request())).error
        assert kernel.negotiated[0].kernel_minor == 45


@pytest.mark.parametrize("version", [(6, 99), (7, 22), (0, 0)])
async def test_a_kernel_that_is_too_old_is_refused_and_the_connection_ends(version: tuple[int, int]) -> None:
    async with dispatching(Canned()) as (kernel, dispatcher):
        assert (await kernel.ask(wire.INIT, init_request(*version))).error == -errno.EPROTO
        assert "FUSE {}.{}".format(*version) in dispatcher.refused_because
        assert not kernel.negotiated
        with trio.fail_after(10):
            await kernel.ended.wait()


async def test_a_second_init_is_refused() -> None:
    async with dispatching(Canned()) as (kernel, _):
        assert not (await kernel.ask(wire.INIT, init_request())).error
        assert (await kernel.ask(wire.INIT, init_request())).error == -errno.EIO
        assert len(kernel.negotiated) == 1
        await kernel.nothing_more()


async def test_an_init_that_is_too_short_is_einval() -> None:
    async with dispatching(Canned()) as (kernel, _):
        for size in range(wire.INIT_IN.size):
            assert (await kernel.ask(wire.INIT, init_request()[:size])).error == -errno.EINVAL
        await kernel.nothing_more()


async def test_setxattr_comes_in_the_form_that_was_negotiated() -> None:
    ops = Canned()
    async with dispatching(ops) as (kernel, _):
        await kernel.ask(wire.INIT, init_request(flags=int(Init.SETXATTR_EXT)))
        body = wire.SETXATTR_EXT_IN.pack(5, 0, wire.SETXATTR_ACL_KILL_SGID, 0) + NAME + b"value"
        assert not (await kernel.ask(wire.SETXATTR, body)).error
    assert ops.calls[0][1][:3] == (1, b"name", b"value")


# Faults: a request can fail, the connection cannot


async def test_replies_that_are_not_taken_are_taken_back() -> None:
    """A handle or a lookup count that the kernel never heard of must not stay."""
    ops = Canned()
    async with dispatching(ops) as (kernel, _):
        await kernel.nothing_more()
        ops.calls.clear()
        kernel.end.shutdown(socket.SHUT_RD)  # from here on writing to the kernel fails
        kernel.send(wire.CREATE, WELL_FORMED[wire.CREATE])
        kernel.send(wire.OPENDIR, WELL_FORMED[wire.OPENDIR])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert ops.forgotten == [(7, 1)]
        kernel.send(wire.READDIRPLUS, wire.READ_IN.pack(1, 96, 4096, 0, 0, 0, 0))  # four names
        kernel.send(wire.READDIR, wire.READ_IN.pack(1, 96, 4096, 0, 0, 0, 0))
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert ops.forgotten == [(7, 1)] * 5
    assert [call for call in ops.calls if call[0].startswith("release")] == [("release", (3,)), ("releasedir", (4,))]


@pytest.mark.parametrize("failing", ["release", "releasedir", "forget"])
async def test_taking_back_a_reply_may_fail(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    ops = Canned()

    def fail(*args):
        raise KeyError(*args)

    async def fail_later(*args):
        fail(*args)

    setattr(ops, failing, fail if failing == "forget" else fail_later)
    async with dispatching(ops) as (kernel, _):
        await kernel.nothing_more()
        kernel.end.shutdown(socket.SHUT_RD)
        kernel.send(wire.CREATE, WELL_FORMED[wire.CREATE])
        kernel.send(wire.OPENDIR, WELL_FORMED[wire.OPENDIR])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not kernel.ended.is_set()
        kernel.send(wire.MKDIR, WELL_FORMED[wire.MKDIR])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert "mkdir" in dict(ops.calls), "the dispatcher goes on"
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("by", ["straight", "park_in", "wait_in"])
@pytest.mark.parametrize("body", [7, "text", [b"list"], None])
async def test_what_is_not_a_reply_is_eio(body: object, by: str, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that returns something else than bytes; None would leave the caller waiting for ever."""
    ops = Canned()
    async with dispatching(ops) as (kernel, dispatcher):

        async def wrong(nodeid, ctx, body_of_request):
            if by == "park_in":
                await park()
                await ops.gate.wait()
            if by == "wait_in":
                ops.events.append(event := OneShot())
                await event.wait()
            return body

        dispatcher._routes[wire.STATFS] = dispatcher._routes[wire.STATFS]._replace(handler=wrong)
        unique = kernel.send(wire.STATFS)
        await trio.testing.wait_all_tasks_blocked()
        ops.gate.set()
        for event in ops.events:
            event.set()
        reply = await kernel.receive()
        assert (reply.unique, reply.error) == (unique, -errno.EIO)
        await kernel.nothing_more()
        assert dispatcher.parked == 0


async def test_a_handler_that_fails_before_it_is_a_coroutine_is_eio() -> None:
    async with dispatching(Canned()) as (kernel, dispatcher):

        def broken(nodeid, ctx, body):
            raise ZeroDivisionError

        dispatcher._routes[wire.STATFS] = dispatcher._routes[wire.STATFS]._replace(handler=broken)
        assert (await kernel.ask(wire.STATFS)).error == -errno.EIO
        dispatcher._routes[wire.STATFS] = dispatcher._routes[wire.STATFS]._replace(
            handler=lambda *args: b"no coroutine"  # type: ignore[arg-type]
        )
        assert (await kernel.ask(wire.STATFS)).error == -errno.EIO
        await kernel.nothing_more()


@pytest.mark.parametrize("raised", [GeneratorExit, StopIteration, StopAsyncIteration, RecursionError, MemoryError])
@pytest.mark.parametrize("by", ["", "park_in", "wait_in"])
async def test_unusual_exceptions_are_eio(raised: type[BaseException], by: str) -> None:
    ops = Canned()
    ops.fail_with = raised()  # type: ignore[assignment]
    if by:
        setattr(ops, by, "statfs")
    async with dispatching(ops) as (kernel, dispatcher):
        unique = kernel.send(wire.STATFS)
        await trio.testing.wait_all_tasks_blocked()
        ops.gate.set()
        for event in ops.events:
            event.set()
        reply = await kernel.receive()
        assert (reply.unique, reply.error) == (unique, -errno.EIO)
        ops.fail_with, ops.park_in, ops.wait_in = None, "", ""
        await kernel.nothing_more()
        assert dispatcher.parked == 0


@pytest.mark.parametrize("parked", [False, True])
async def test_a_handler_that_awaits_something_foreign_is_eio(parked: bool) -> None:
    ops = Canned()

    class Foreign:
        def __await__(self):
            yield "asyncio has these"

    async def statfs(ctx, nodeid):
        if parked:
            await park()
        await Foreign()

    ops.statfs = statfs
    async with dispatching(ops) as (kernel, dispatcher):
        assert (await kernel.ask(wire.STATFS)).error == -errno.EIO
        await kernel.nothing_more()
        assert dispatcher.parked == 0


async def test_a_handler_that_forgets_to_park_is_eio() -> None:
    ops = Canned()

    async def statfs(ctx, nodeid):
        try:
            await trio.sleep(0)
        finally:
            await trio.sleep(0)  # and does not even let itself be closed

    ops.statfs = statfs
    async with dispatching(ops) as (kernel, _):
        assert (await kernel.ask(wire.STATFS)).error == -errno.EIO
        await kernel.nothing_more()


async def test_no_buffer_for_a_request_that_becomes_a_task_is_eio(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = Canned()
    ops.park_in = "statfs"

    def no_memory() -> None:
        raise MemoryError

    async with dispatching(ops) as (kernel, dispatcher):
        monkeypatch.setattr(dispatcher, "_take_fresh_buffer", no_memory)
        assert (await kernel.ask(wire.STATFS)).error == -errno.EIO
        await kernel.nothing_more()
        assert dispatcher.parked == 0


class FailingReads(Channel):
    """A connection whose reads fail as these numbers say, the last one first (tests/bridge/test_channel.py has what
    the kernel itself makes fail)."""

    numbers: ClassVar[list[int]] = []

    def take(self, wait_ms: int) -> int:
        if self.numbers:
            self.error = self.numbers.pop()
            return -1
        return super().take(wait_ms)


@pytest.fixture
def failing_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What fails from now on."""
    monkeypatch.setattr("pinfs.bridge.dispatch.Channel", FailingReads)
    monkeypatch.setattr("pinfs.bridge.dispatch.FAILED_READ_S", 0)
    yield FailingReads.numbers
    FailingReads.numbers.clear()


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EFAULT, errno.EIO, errno.EINVAL])
async def test_a_read_that_fails_costs_one_request(number: int, failing_reads: list[int]) -> None:
    """Whose caller the kernel has answered with EIO (fuse_dev_do_read)."""
    async with dispatching(Canned()) as (kernel, _):
        await kernel.nothing_more()
        failing_reads += [number, number]
        await kernel.nothing_more()
    assert not failing_reads


async def test_a_connection_that_cannot_be_read_is_given_up(failing_reads: list[int]) -> None:
    async with dispatching(Canned()) as (kernel, _):
        await kernel.nothing_more()
        failing_reads += [errno.EIO] * 1000
        kernel.send(wire.STATFS)
        with trio.fail_after(10):
            await kernel.ended.wait()
        assert kernel.aborted


@pytest.mark.parametrize("by", ["straight", "park_in"])
async def test_a_reply_that_the_kernel_does_not_take_is_eio(by: str) -> None:
    """EINVAL, ENOMEM or EFAULT of write(2), where the caller may still wait; here it is EMSGSIZE."""
    ops = Canned()

    async def read(fh, offset, size, unique):
        if by == "park_in":
            await park()
        return bytes(64 << 20)

    ops.read = read
    async with dispatching(ops) as (kernel, _):
        assert (await kernel.ask(wire.READ, bytes(40))).error == -errno.EIO
        await kernel.nothing_more()


async def test_an_event_that_is_set_after_the_interrupt_resumes_nothing() -> None:
    """The handler waits for a second event by then, under the same number."""
    ops = Canned()
    first, second = OneShot(), OneShot()

    async def setattr(*args):
        try:
            await first.wait()
        except InterruptedError:
            await second.wait()
        return ANSWERS["setattr"]

    ops.setattr = setattr
    async with dispatching(ops) as (kernel, dispatcher):
        unique = kernel.send(wire.SETATTR, bytes(88))
        await kernel.nothing_more()
        kernel.send(wire.INTERRUPT, wire.U64.pack(unique))
        await kernel.nothing_more()
        first.set()
        await kernel.nothing_more()
        assert dispatcher.parked == 1
        second.set()
        reply = await kernel.receive()
        assert (reply.unique, reply.error) == (unique, 0)


async def test_an_interrupt_between_the_event_and_its_handler() -> None:
    """The handler waits for a second event by the time when it would be resumed for the first."""
    ops = Canned()
    first, second = OneShot(), OneShot()

    async def setattr(*args):
        try:
            await first.wait()
        except InterruptedError:
            await second.wait()
        return ANSWERS["setattr"]

    async with dispatching(ops) as (kernel, dispatcher):

        async def removexattr(nodeid, name, ctx):
            first.set()
            await dispatcher._interrupt(nodeid, ctx, memoryview(wire.U64.pack(unique)))

        ops.setattr, ops.removexattr = setattr, removexattr
        unique = kernel.send(wire.SETATTR, bytes(88))
        await kernel.nothing_more()
        await kernel.ask(wire.REMOVEXATTR, NAME)
        await kernel.nothing_more()
        assert dispatcher.parked == 1
        second.set()
        reply = await kernel.receive()
        assert (reply.unique, reply.error) == (unique, 0)


async def test_an_event_that_is_set_after_the_end_is_no_error() -> None:
    ops = Canned()
    ops.wait_in = "setattr"
    async with dispatching(ops) as (kernel, _):
        kernel.send(wire.SETATTR, bytes(88))
        await kernel.nothing_more()
    ops.events[0].set()


async def test_a_handler_that_does_not_let_itself_be_closed_stops_no_unmount() -> None:
    ops = Canned()
    closed = []

    async def setattr(nodeid, *args):
        try:
            await OneShot().wait()
        finally:
            closed.append(nodeid)
            await OneShot().wait() if nodeid == 1 else 1 / 0

    ops.setattr = setattr
    async with dispatching(ops) as (kernel, dispatcher):
        for nodeid in (1, 2, 3):
            kernel.send(wire.SETATTR, bytes(88), nodeid)
        await kernel.nothing_more()
    assert sorted(closed) == [1, 2, 3]
    assert dispatcher.parked == 0


async def test_what_is_told_of_init_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    async with dispatching(Canned()) as (kernel, dispatcher):
        dispatcher._on_negotiated = Mock(side_effect=ZeroDivisionError)
        assert not (await kernel.ask(wire.INIT, init_request())).error
        await kernel.nothing_more()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("flag", [0, wire.OPEN_KILL_SUIDGID])
async def test_an_open_says_whether_set_ids_go(flag: int) -> None:
    """O_TRUNC by a caller that may not keep set-user-id. The operation undoes the open where they cannot go."""
    ops = Canned()
    async with dispatching(ops) as (kernel, _):
        assert (await kernel.ask(wire.OPEN, wire.OPEN_IN.pack(os.O_TRUNC, flag))).error == 0
    [(name, (_, flags, _, kill_suidgid))] = ops.calls
    assert (name, flags, kill_suidgid) == ("open", os.O_TRUNC, bool(flag))


async def test_an_interrupted_request_leaves_no_cycle_behind() -> None:
    """Reference counts alone free what its handler held: the daemon does not search all of its memory for garbage."""

    class Held:
        pass

    ops = Canned()
    held: list[weakref.ref[Held]] = []

    async def setattr(*args):
        local = Held()
        held.append(weakref.ref(local))
        await OneShot().wait()

    ops.setattr = setattr
    gc.disable()
    try:
        async with dispatching(ops) as (kernel, _):
            unique = kernel.send(wire.SETATTR, bytes(88))
            kernel.send(wire.INTERRUPT, wire.U64.pack(unique))
            assert (await kernel.receive()).error == -errno.EINTR
            await kernel.nothing_more()
            assert held[0]() is None
    finally:
        gc.enable()


async def test_pollers_are_woken_by_the_numbers_of_their_files() -> None:
    async with dispatching(Canned()) as (kernel, dispatcher):
        dispatcher.wake_pollers([7, 9])
        for kh in (7, 9):
            message = await kernel.receive()
            assert (message.unique, message.error, message.body) == (0, wire.NOTIFY_POLL, wire.U64.pack(kh))
