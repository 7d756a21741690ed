"""Nothing is left of what has been closed, released, answered, interrupted or has died, without a mount.

Each test does one thing PINFS_SOAK_ROUNDS times (default 1,000; the mixed one ten times as often), and counts this
process's descriptors and objects before and after. See census.py.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from support.seeds import chance
from trio.testing import MockClock, wait_all_tasks_blocked

from pinfs.client import ioctl
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.types import Caller, SetAttr
from pinfs.serve.assembly import FileSystem
from soak import census
from soak.nest import Nest

ROUNDS = int(os.environ.get("PINFS_SOAK_ROUNDS", "1000"))
WARMING_UP = 200
"""Rounds until every cache is as full as it gets."""

PROCESSES = 8
SIZE = 8192
PIN = b"user.pinfs.pin.p"
LEASE = "0:0,mode=lease,signal=none"
EVENTS = b"events"


class World:
    """A file system and the processes that use it: what one round needs, in few words."""

    def __init__(self, fs: FileSystem, nest: Nest) -> None:
        self.fs = fs
        self.ops = fs.operations
        self.nest = nest
        self.callers = [self.hatch() for _ in range(PROCESSES)]
        self.round = 0

    def hatch(self) -> Caller:
        """A new process."""
        return Caller(0, 0, self.nest.hatch(), 0o022)

    @property
    def holder(self) -> Caller:
        return self.callers[self.round % PROCESSES]

    @property
    def breaker(self) -> Caller:
        return self.callers[(self.round + 1) % PROCESSES]

    @asynccontextmanager
    async def file(self) -> AsyncIterator[tuple[int, int]]:
        """A file of the round, and a handle of it; both are gone afterwards."""
        name = b"f%d" % self.round
        opened, entry = await self.ops.create(ROOT_ID, name, 0o644, os.O_RDWR, self.holder)
        await self.ops.write(opened.fh, 0, bytes(SIZE))
        yield entry.nodeid, opened.fh
        await self.ops.release(opened.fh)
        await self.ops.unlink(ROOT_ID, name, self.holder)
        self.ops.forget([(entry.nodeid, 1)])

    async def open_control(self, name: bytes, caller: Caller, flags: int = os.O_RDONLY) -> int:
        directory = await self.ops.lookup(ROOT_ID, b".pinfs", caller)
        entry = await self.ops.lookup(directory.nodeid, name, caller)
        return (await self.ops.open(entry.nodeid, flags, caller)).fh

    @asynccontextmanager
    async def channel(self, caller: Caller) -> AsyncIterator[int]:
        fh = await self.open_control(EVENTS, caller, os.O_RDWR)
        yield fh
        await self.ops.release(fh)

    async def pin(self, nodeid: int, value: str = LEASE, caller: Caller | None = None) -> int:
        """Registers the pin p of the round's holder. Returns its id."""
        caller = caller or self.holder
        await self.ops.setxattr(nodeid, PIN, value.encode(), 0, caller)
        return int(json.loads(await self.ops.getxattr(nodeid, PIN, caller, 65536))["id"])

    async def pin_handle(self, fh: int, mode: int = ioctl.LEASE) -> int:
        answer = await self.ops.ioctl(fh, ioctl.PIN, ioctl.PinRequest(0, 1, mode, 0).pack(), 200, self.holder)
        return ioctl.PinRequest.unpack(answer).id

    async def command(self, text: str, caller: Caller) -> None:
        async with self.channel(caller) as fh:
            await self.ops.write(fh, 0, text.encode())

    async def cut(self, nodeid: int, *expected: int, fh: int | None = None) -> None:
        """A truncate to nothing by the round's breaker, which ends with one of the errors expected (0: none)."""
        number = 0
        try:
            await self.ops.setattr(nodeid, SetAttr(size=0), fh, self.breaker)
        except OSError as failure:
            number = failure.errno or 0
        assert number in (expected or (0,)), errno.errorcode.get(number)

    async def rest(self) -> None:
        """Until every deadline and every cool-down is over, and every death reported."""
        await trio.sleep(1000)
        self.fs.holders.report_deaths()


Round = Callable[[World], Awaitable[None]]


async def a_file(w: World) -> None:
    async with w.file() as (nodeid, fh):
        await w.ops.read(fh, 0, SIZE)
        await w.ops.getattr(nodeid, w.holder)
        await w.ops.link(nodeid, ROOT_ID, b"second name", w.holder)
        await w.ops.rename(ROOT_ID, b"second name", ROOT_ID, b"third name", 0, w.holder)
        await w.ops.unlink(ROOT_ID, b"third name", w.holder)
        w.ops.forget([(nodeid, 1)])
        second = await w.ops.open(nodeid, os.O_RDONLY, w.breaker)
        await w.ops.release(second.fh)


async def a_file_without_a_name(w: World) -> None:
    opened, entry = await w.ops.tmpfile(ROOT_ID, 0o600, os.O_RDWR, w.holder)
    await w.ops.write(opened.fh, 0, b"x")
    pin = await w.pin(entry.nodeid, "0:1")
    w.ops.forget([(entry.nodeid, 1)])
    await w.ops.release(opened.fh)
    await w.command(f"release {pin}", w.holder)


async def a_directory(w: World) -> None:
    name = b"d%d" % w.round
    entry = await w.ops.mkdir(ROOT_ID, name, 0o755, w.holder)
    for node in (ROOT_ID, entry.nodeid):
        opened = await w.ops.opendir(node, w.holder)
        await w.ops.readdir(opened.fh, 0, False, lambda *_: True)
        await w.ops.releasedir(opened.fh)
    await w.ops.rmdir(ROOT_ID, name, w.holder)
    w.ops.forget([(entry.nodeid, 1)])


async def what_pinfs_tells(w: World) -> None:
    for name in (b"pins", b"trace", b"policy", b"policy.error", b"metrics", b"status"):
        fh = await w.open_control(name, w.holder)
        if name != b"trace":
            assert await w.ops.read(fh, 0, 100) or name in (b"pins", b"policy.error")
        await w.ops.release(fh)


async def event_channels(w: World) -> None:
    """Of several processes, several of each, read and polled."""
    handles = [await w.open_control(EVENTS, caller, os.O_RDWR) for caller in w.callers[:3] * 2]
    for fh in handles:
        await w.ops.poll(fh, 1, lambda: None)
    with trio.move_on_after(1):
        await w.ops.read(handles[0], 0, 100)
    for fh in handles:
        await w.ops.release(fh)


async def a_channel_of_a_process_that_dies(w: World) -> None:
    caller = w.hatch()
    fh = await w.open_control(EVENTS, caller, os.O_RDWR)
    w.nest.end(caller.pid)
    w.fs.holders.report_deaths()
    await w.ops.release(fh)


async def pins_by_attribute(w: World) -> None:
    async with w.file() as (nodeid, _):
        for mode in ("deny", "lease"):
            await w.pin(nodeid, f"0:0,mode={mode},note=n{w.round % 4}")
            await w.pin(nodeid, f"10:10,mode={mode},signal=USR1")
            await w.ops.getxattr(nodeid, PIN, w.holder, 65536)
            await w.ops.getxattr(nodeid, b"user.pinfs.pins", w.breaker, 65536)
            await w.ops.removexattr(nodeid, PIN, w.holder)
            await w.pin(nodeid)
            await w.ops.getxattr(nodeid, b"user.pinfs.release.p", w.holder, 0)
            await w.ops.getxattr(nodeid, b"user.pinfs.release.p", w.holder, 100)
            pin = await w.pin(nodeid, f"0:0,pid={w.breaker.pid}")
            await w.command(f"resize {pin} 0 5\nrelease {pin}", w.breaker)


async def pins_by_handle(w: World) -> None:
    async with w.file() as (nodeid, fh):
        pin = await w.pin_handle(fh)
        await w.ops.ioctl(fh, ioctl.QUERY, ioctl.PinQuery(0).pack(), 200, w.holder)
        await w.ops.ioctl(fh, ioctl.UNPIN, struct.pack("<Q", pin), 0, w.holder)
        await w.pin_handle(fh)
        second = await w.ops.open(nodeid, os.O_RDWR, w.breaker)
        await w.pin_handle(second.fh, ioctl.DENY)
        await w.ops.release(second.fh)


async def a_break_answered_by_release(w: World) -> None:
    async with w.file() as (nodeid, _), w.channel(w.holder) as fh, trio.open_nursery() as nursery:
        pin = await w.pin(nodeid)
        nursery.start_soon(w.cut, nodeid)
        assert await w.ops.read(fh, 0, 4096)
        async with w.channel(w.holder) as second:  # begins with the break
            assert await w.ops.read(second, 0, 4096)
        await w.ops.write(fh, 0, b"release %d" % pin)


async def a_break_answered_by_shrinking(w: World) -> None:
    async with w.file() as (nodeid, _):
        async with trio.open_nursery() as nursery:
            pin = await w.pin(nodeid, f"{SIZE // 2}:1,mode=lease,signal=none")
            nursery.start_soon(w.ops.setattr, nodeid, SetAttr(size=10), None, w.breaker)
            await wait_all_tasks_blocked()
            await w.command(f"resize {pin} 0 10", w.holder)
        await w.command(f"release {pin}", w.holder)


async def a_break_answered_by_a_new_value(w: World) -> None:
    async with w.file() as (nodeid, _):
        async with trio.open_nursery() as nursery:
            await w.pin(nodeid)
            nursery.start_soon(w.ops.setattr, nodeid, SetAttr(size=10), None, w.breaker)
            await wait_all_tasks_blocked()
            await w.pin(nodeid, "0:10,mode=lease,signal=none")
        await w.ops.removexattr(nodeid, PIN, w.holder)


async def a_break_of_a_handles_pin(w: World) -> None:
    """Answered by closing the handle, which somebody polls."""
    async with w.file() as (nodeid, _), trio.open_nursery() as nursery:
        opened = await w.ops.open(nodeid, os.O_RDWR, w.holder)
        await w.pin_handle(opened.fh)
        await w.ops.poll(opened.fh, 2, lambda: None)
        nursery.start_soon(w.cut, nodeid)
        await wait_all_tasks_blocked()
        await w.ops.release(opened.fh)


async def a_break_that_is_withdrawn(w: World) -> None:
    async with w.file() as (nodeid, _):
        await w.pin(nodeid)
        await w.cut(nodeid, errno.EBUSY)
        await w.ops.removexattr(nodeid, PIN, w.holder)


async def a_refusal(w: World) -> None:
    async with w.file() as (nodeid, _):
        await w.pin(nodeid, "0:0")
        await w.cut(nodeid, errno.EBUSY)
        await w.ops.removexattr(nodeid, PIN, w.holder)


async def a_revocation(w: World) -> None:
    async with w.file() as (nodeid, _), trio.open_nursery() as nursery:
        pin = await w.pin(nodeid)
        nursery.start_soon(w.cut, nodeid)
        await wait_all_tasks_blocked()
        await w.command(f"revoke {pin}", w.breaker)


async def an_interrupted_breaker(w: World) -> None:
    async with w.file() as (nodeid, _):
        await w.pin(nodeid)
        with trio.move_on_after(1):
            await w.cut(nodeid)
        await w.ops.removexattr(nodeid, PIN, w.holder)


async def an_interrupted_breaker_behind_another(w: World) -> None:
    async with w.file() as (nodeid, _), trio.open_nursery() as nursery:
        await w.pin(nodeid)
        nursery.start_soon(w.cut, nodeid)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await w.cut(nodeid)
        await w.ops.removexattr(nodeid, PIN, w.holder)


async def a_breaker_that_does_not_wait(w: World) -> None:
    async with w.file() as (nodeid, _):
        await w.pin(nodeid)
        opened = await w.ops.open(nodeid, os.O_RDWR | os.O_NONBLOCK, w.breaker)
        await w.cut(nodeid, errno.EAGAIN, fh=opened.fh)
        await w.ops.removexattr(nodeid, PIN, w.holder)
        await w.cut(nodeid, fh=opened.fh)
        await w.ops.release(opened.fh)


async def a_holder_that_dies(w: World) -> None:
    """In the middle of a break of its pins, with a channel open."""
    caller = w.hatch()
    async with w.file() as (nodeid, _), w.channel(caller), trio.open_nursery() as nursery:
        await w.pin(nodeid, caller=caller)
        await w.ops.setxattr(nodeid, b"user.pinfs.pin.q", b"0:1", 0, caller)
        await w.ops.removexattr(nodeid, b"user.pinfs.pin.q", caller)
        nursery.start_soon(w.cut, nodeid)
        await wait_all_tasks_blocked()
        w.nest.end(caller.pid)
        w.fs.holders.report_deaths()


EVERYTHING: list[Round] = [
    a_file,
    a_file_without_a_name,
    a_directory,
    what_pinfs_tells,
    event_channels,
    a_channel_of_a_process_that_dies,
    pins_by_attribute,
    pins_by_handle,
    a_break_answered_by_release,
    a_break_answered_by_shrinking,
    a_break_answered_by_a_new_value,
    a_break_of_a_handles_pin,
    a_break_that_is_withdrawn,
    a_refusal,
    a_revocation,
    an_interrupted_breaker,
    an_interrupted_breaker_behind_another,
    a_breaker_that_does_not_wait,
    a_holder_that_dies,
]


async def rounds(w: World, count: int, choose: Callable[[], Round]) -> None:
    for _ in range(count):
        w.round += 1
        await choose()(w)
    await w.rest()


async def soak(w: World, count: int, choose: Callable[[], Round]) -> dict[str, int]:
    """What has grown in `count` rounds."""
    await rounds(w, WARMING_UP, choose)
    gc.collect()
    gc.disable()
    try:
        before = census.take()
        await rounds(w, count, choose)
        after = census.take()
    finally:
        gc.enable()
    return census.growth(before, after, count)


@pytest.fixture
async def world(file_system: FileSystem, nest: Nest) -> World:
    return World(file_system, nest)


@pytest.mark.parametrize("what", EVERYTHING, ids=lambda what: what.__name__)
async def test_nothing_is_left_of(world: World, what: Round, autojump_clock: MockClock) -> None:
    assert await soak(world, ROUNDS, lambda: what) == {}


async def test_nothing_is_left_of_everything_mixed(world: World, autojump_clock: MockClock) -> None:
    pick = chance("soak")
    assert await soak(world, 10 * ROUNDS, lambda: pick.choice(EVERYTHING)) == {}
