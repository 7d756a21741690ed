"""A truncate that meets pins, on the fast path: it waits without a coroutine."""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from bridge.fake_kernel import FakeKernel, dispatching

from pinfs.bridge import wire
from pinfs.bridge.dispatch import Dispatcher
from pinfs.bridge.negotiate import Init
from pinfs.fs.types import Opened

from .conftest import ME, Bench

INIT_IN = wire.INIT_IN.pack(7, 45, 131072, int(Init.INIT_EXT | Init.BIG_WRITES)) + bytes(48)


def shrink(size: int) -> bytes:
    """The body of a SETATTR by path."""
    return wire.SETATTR_IN.pack(wire.FATTR_SIZE, 0, 0, size, *[0] * 12)


def size_in(body: bytes) -> int:
    """st_size in struct fuse_attr_out."""
    return int.from_bytes(body[24:32], "little")


class World:
    def __init__(self, bench: Bench, kernel: FakeKernel, dispatcher: Dispatcher, nodeid: int, handle: Opened) -> None:
        self.bench = bench
        self.kernel = kernel
        self.dispatcher = dispatcher
        self.nodeid = nodeid
        self.handle = handle

    @property
    def size(self) -> int:
        return (self.bench.source / "f").stat().st_size

    async def begin(self, size: int = 0) -> int:
        """A truncate that waits; its unique number."""
        unique = self.kernel.send(wire.SETATTR, shrink(size), self.nodeid)
        await self.kernel.nothing_more()
        assert self.dispatcher.parked == 1
        assert self.size == 8192
        return unique

    async def close(self) -> None:
        """The handle was the last use of the file's descriptors: none is left behind."""
        await self.bench.ops.release(self.handle.fh)
        inode = self.bench.fs.inodes.get(self.nodeid)
        assert inode.file is None or not inode.file.opens


@asynccontextmanager
async def world_of(bench: Bench, pin: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A file that is open for writing and pinned, behind a dispatcher."""
    nodeid = await bench.file("f", 8192)
    handle = await bench.ops.open(nodeid, os.O_RDWR, ME)
    await bench.pin(nodeid, "p", pin)

    async def never(*args: object) -> None:
        raise AssertionError("the fast path has left this to Operations")

    monkeypatch.setattr(bench.ops, "setattr", never)
    async with dispatching(bench.ops) as (kernel, dispatcher):
        assert (await kernel.ask(wire.INIT, INIT_IN)).error == 0
        yield World(bench, kernel, dispatcher, nodeid, handle)
    assert dispatcher.parked == 0


async def test_it_goes_on_when_the_pin_is_released(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of(bench, "0:8192,mode=lease,signal=none", monkeypatch) as world:
        unique = await world.begin(100)
        await bench.ops.removexattr(world.nodeid, b"user.pinfs.pin.p", ME)
        reply = await world.kernel.receive()
        assert (reply.unique, reply.error, size_in(reply.body)) == (unique, 0, 100)
        assert (world.size, world.dispatcher.parked) == (100, 0)
        assert not bench.fs.guard.book.files.states
        await world.close()


async def test_the_breakers_go_on_one_after_the_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of(bench, "0:8192,mode=lease,signal=none", monkeypatch) as world:
        first = await world.begin(100)
        second = world.kernel.send(wire.SETATTR, shrink(50), world.nodeid)
        await world.kernel.nothing_more()
        assert world.dispatcher.parked == 2
        await bench.ops.removexattr(world.nodeid, b"user.pinfs.pin.p", ME)
        replies = [await world.kernel.receive() for _ in range(2)]
        assert [(reply.unique, reply.error) for reply in replies] == [(first, 0), (second, 0)]
        assert world.size == 50
        await world.close()


async def test_an_interrupt_is_eintr_and_the_break_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of(bench, "0:8192,mode=lease,signal=none", monkeypatch) as world:
        unique = await world.begin()
        world.kernel.send(wire.INTERRUPT, wire.U64.pack(unique))
        reply = await world.kernel.receive()
        assert (reply.unique, reply.error) == (unique, -errno.EINTR)
        book = bench.fs.guard.book
        assert [pin.breaking is not None for pin in book.table.of_file(world.nodeid)] == [True]
        assert (world.size, world.dispatcher.parked, book.waiting) == (8192, 0, 0)
        await bench.ops.removexattr(world.nodeid, b"user.pinfs.pin.p", ME)
        await world.kernel.nothing_more()
        await world.close()


async def test_a_deny_pin_is_ebusy_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of(bench, "0:8192", monkeypatch) as world:
        assert (await world.kernel.ask(wire.SETATTR, shrink(0), world.nodeid)).error == -errno.EBUSY
        assert (world.size, world.dispatcher.parked) == (8192, 0)
        await world.close()


@pytest.mark.parametrize("options", [["break_timeout=5", "on_timeout=deny"]])
async def test_a_deadline_without_an_answer_is_ebusy(
    bench: Bench, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world_of(bench, "0:8192,mode=lease,signal=none", monkeypatch) as world:
        unique = await world.begin()
        reply = await world.kernel.receive()
        assert (reply.unique, reply.error) == (unique, -errno.EBUSY)
        assert world.size == 8192
        await world.close()


@pytest.mark.parametrize("options", [["own=allow"]])
async def test_what_need_not_wait_is_cut_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The removal is ready when it has been judged: all pins in its way are the breaker's own."""
    async with world_of(bench, "0:8192", monkeypatch) as world:
        world.kernel.send_raw(
            wire.IN_HEADER.pack(wire.IN_SIZE + len(shrink(7)), wire.SETATTR, 1000, world.nodeid, 0, 0, ME.pid, 0, 0)
            + shrink(7)
        )
        reply = await world.kernel.receive()
        assert (reply.unique, reply.error, size_in(reply.body), world.size) == (1000, 0, 7, 7)
        await world.close()


async def test_the_end_of_the_connection_leaves_nothing_that_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world_of(bench, "0:8192,mode=lease,signal=none", monkeypatch) as world:
        await world.begin()
    assert bench.fs.guard.book.waiting == 0
    assert world.size == 8192
    await world.close()
