"""Removals that wait in the kernel, with a clock that jumps, and threads that return when the test says so."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from guard.test_guard import INODE, Caller, FakeEventFds, FakeEvents, FakeHolders, FakePolicies
from trio.testing import wait_all_tasks_blocked

from pinfs.core.events import Mapper
from pinfs.core.pins import Mode, Pin, PinRequest, PinSpec
from pinfs.core.ranges import END
from pinfs.enforce.cuts import GRACE_S, LEAST_S, MAX_CUTS, MAX_CUTS_PER_USER, ROOM_S, SHORT_S
from pinfs.enforce.guard import Guard, RemovalCall
from pinfs.linux.interruptible import Result
from pinfs.runtime.stats import Stats


class FakeCall:
    """A thread in the kernel. It comes back when it is interrupted, unless it is `deaf`."""

    def __init__(self, ended: Callable[[Result], None], *, deaf: bool) -> None:
        self._ended = ended
        self.deaf = deaf
        self.interrupts = 0
        self.at_once: Result | None = None

    def wait(self, limit_s: float) -> Result | None:
        return self.at_once

    def interrupt(self) -> None:
        self.interrupts += 1
        if not self.deaf and self.interrupts == 3:  # the first ones came before the call began
            self.end(errno.EINTR)

    def end(self, number: int = 0) -> None:
        self._ended(number)


class World:
    """A guard whose removals wait in the kernel, and what became of their breakers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.policies, self.events, self.stats = FakePolicies(), FakeEvents(), Stats()
        self.guard = Guard(FakeHolders(), FakeEventFds(), self.policies, self.events, self.stats)
        self.cuts = self.guard.cuts
        self.cuts.start = self._start
        self.cuts.search = self._search
        self.calls: list[FakeCall] = []
        self.deaf = False
        self.at_once: Result | None = None
        self.outcomes: list[tuple[str, str, float]] = []
        self._nursery = nursery

    def _start(self, fd: int, work: Callable[[int], None], ended: Callable[[Result], None]) -> FakeCall:
        call = FakeCall(ended, deaf=self.deaf)
        call.at_once = self.at_once
        self.calls.append(call)
        return call

    async def _search(self, device: int, inode: int, start: int, end: int) -> tuple[Mapper, ...]:
        return (Mapper(77, "reader", 8192),)

    async def cut(self, name: str, start: int = 0, *, inode: int = INODE, uid: int = 1000, takes: bool = True) -> None:
        call = RemovalCall(inode, lambda: "f", "truncate", start, END, Caller(uid), lambda: None)
        what = "cut"
        try:
            await self.guard.cut(call, -1, lambda fd: None, takes=takes)
        except trio.Cancelled:
            what = "interrupted"
            raise
        except OSError as e:
            what = errno.errorcode[e.errno or 0]
        finally:
            self.outcomes.append((name, what, round(trio.current_time(), 3)))

    async def breaker(self, name: str, start: int = 0, **more: int) -> trio.CancelScope:
        """A breaker that waits by now, or has its answer; cancelling is what an INTERRUPT does."""
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await self.cut(name, start, **more)

        self._nursery.start_soon(run)
        await wait_all_tasks_blocked()
        return scope

    def pin(self, start: int, length: int) -> Pin:
        spec = PinSpec(start, length, Mode.DENY, None)
        return self.guard.pin(PinRequest(INODE, "p1", None, 7, None, spec), 10_000)

    def refusals(self) -> list[str | None]:
        return [event.why for event in self.events.events if event.kind == "refused"]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        await nursery.start(world.guard.run)
        yield world
        nursery.cancel_scope.cancel()


async def test_a_call_that_comes_back_is_a_removal_like_any_other(world: World) -> None:
    await world.breaker("b")
    assert len(world.cuts) == 1
    assert INODE in world.cuts.inodes
    await trio.sleep(3)
    world.calls[0].end()
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 3.0)]
    assert (len(world.cuts), world.cuts.inodes, world.guard.book.files.states) == (0, {}, {})


async def test_a_call_that_comes_back_at_once_needs_no_task(world: World) -> None:
    world.at_once = 0
    with pytest.raises(StopIteration):
        world.cut("b").send(None)
    world.at_once = errno.EFBIG
    await world.cut("c")
    assert [what for _, what, _ in world.outcomes] == ["cut", "EFBIG"]
    assert (len(world.cuts), world.cuts.inodes, world.guard.book.files.states) == (0, {}, {})


async def test_an_error_of_the_call_is_the_breakers(world: World) -> None:
    await world.breaker("b")
    world.calls[0].end(errno.EFBIG)
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "EFBIG", 0.0)]
    assert world.refusals() == []


async def test_the_deadline_takes_it_back(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.policies.set(break_timeout=7.0, errno="ETXTBSY")
    await world.cut("b")
    assert [(name, what) for name, what, _ in world.outcomes] == [("b", "ETXTBSY")]
    assert 7.0 <= world.outcomes[0][2] < 7.0 + GRACE_S
    assert world.calls[0].interrupts == 3
    assert world.refusals() == ["kernel"]
    assert world.stats.refusals == {("truncate", "kernel"): 1}
    assert "truncate of 'f' [0, end) by pid 500 uid 1000 is refused (kernel)" in caplog.text
    assert "waits in the kernel: pid 77 (reader, 8 KiB pinned) maps it" in caplog.text
    assert (world.cuts.inodes, world.guard.book.files.states) == ({}, {})


async def test_a_call_that_is_only_slow_has_a_second(world: World) -> None:
    world.policies.set(break_timeout=0.01)
    await world.breaker("b")
    await trio.sleep(LEAST_S * 0.9)
    world.calls[0].end()
    await wait_all_tasks_blocked()
    assert [what for _, what, _ in world.outcomes] == ["cut"]


async def test_an_interrupt_of_the_breaker_ends_it_at_once(world: World) -> None:
    scope = await world.breaker("b")
    await trio.sleep(5)
    scope.cancel()
    await trio.sleep(GRACE_S)
    assert [(name, what) for name, what, _ in world.outcomes] == [("b", "interrupted")]
    assert world.outcomes[0][2] < 5.1
    assert world.refusals() == []
    assert (len(world.cuts), world.guard.book.files.states) == (0, {})


async def test_an_interrupt_that_comes_too_late_finds_the_bytes_gone(world: World) -> None:
    world.deaf = True
    scope = await world.breaker("b")
    scope.cancel()
    await wait_all_tasks_blocked()
    world.calls[0].end()
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 0.0)]


async def test_the_range_is_reserved_although_nothing_is_pinned(world: World) -> None:
    await world.breaker("b", 100)
    with pytest.raises(OSError) as caught:
        world.pin(50, 51)
    assert caught.value.errno == errno.EAGAIN
    world.pin(0, 100)
    world.calls[0].end()
    await wait_all_tasks_blocked()
    world.pin(50, 51)


async def test_other_removals_of_the_file_queue(world: World) -> None:
    await world.breaker("first")
    await world.breaker("second")
    assert len(world.calls) == 1
    world.calls[0].end()
    await wait_all_tasks_blocked()
    assert len(world.calls) == 2
    world.calls[1].end()
    await wait_all_tasks_blocked()
    assert [name for name, _, _ in world.outcomes] == ["first", "second"]


async def test_a_file_that_grows_asks_no_pin_and_meets_the_deadline_too(world: World) -> None:
    world.pin(0, 0)
    await world.cut("b", 10_000, takes=False)
    assert [what for _, what, _ in world.outcomes] == ["EBUSY"]
    assert world.refusals() == ["kernel"]


async def test_after_a_deadline_a_crowd_is_answered_soon(world: World) -> None:
    world.policies.set(break_timeout=10.0, retry_after=5.0)
    for number in range(40):
        await world.breaker(str(number))
    await trio.sleep(10.0 + 40 * (SHORT_S + GRACE_S))
    assert [what for _, what, _ in world.outcomes] == ["EBUSY"] * 40
    assert world.outcomes[-1][2] < 16.0
    await trio.sleep(60)
    await world.breaker("later")
    await trio.sleep(9)
    world.calls[-1].end()
    await wait_all_tasks_blocked()
    assert world.outcomes[-1][:2] == ("later", "cut")


async def test_the_end_of_the_mount_answers_it(world: World) -> None:
    await world.breaker("b")
    world.guard.close()
    await trio.sleep(GRACE_S)
    await world.cut("after")
    assert [what for _, what, _ in world.outcomes] == ["EBUSY", "EBUSY"]
    assert world.refusals() == ["shutdown", "shutdown"]
    assert len(world.calls) == 1


async def test_a_call_that_no_signal_ends_is_left_alone_in_its_range(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.deaf = True
    await world.cut("b")
    assert world.outcomes == [("b", "EBUSY", 45.0 + GRACE_S)]
    assert "cannot be interrupted in the kernel" in caplog.text
    assert (len(world.cuts), world.cuts.left_alone) == (1, 1)
    with pytest.raises(OSError):
        world.pin(0, 1)
    world.calls[0].end()
    await wait_all_tasks_blocked()
    assert (len(world.cuts), world.cuts.left_alone) == (0, 0)
    world.pin(0, 1)


async def test_operations_on_the_file_wait_outside_the_kernel(world: World) -> None:
    await world.breaker("b")
    with pytest.raises(OSError) as caught:
        await world.cuts.until_over(INODE, 2.0)
    assert caught.value.errno == errno.EBUSY
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.cuts.until_over, INODE, 2.0)
        await wait_all_tasks_blocked()
        world.calls[0].end()
    await world.cuts.until_over(INODE, 2.0)


async def test_threads_are_limited(world: World) -> None:
    for number in range(MAX_CUTS_PER_USER + 1):
        await world.breaker(f"{number}", inode=number)
    assert len(world.calls) == MAX_CUTS_PER_USER
    await trio.sleep(2 * ROOM_S)
    assert world.outcomes == [(f"{MAX_CUTS_PER_USER}", "EBUSY", ROOM_S)]
    assert (world.refusals(), dict(world.stats.limit_reached)) == (["kernel"], {"cuts": 1})
    await world.breaker("another user", inode=1000, uid=1001)
    assert len(world.calls) == MAX_CUTS_PER_USER + 1
    for number in range(MAX_CUTS - MAX_CUTS_PER_USER):
        await world.breaker("more", inode=2000 + number, uid=2000 + number)
    assert len(world.calls) == MAX_CUTS
    world.calls[0].end()
    await wait_all_tasks_blocked()
    assert len(world.calls) == MAX_CUTS + 1


async def test_what_is_shown_and_to_whom(world: World) -> None:
    await world.breaker("b", 4096)
    await trio.sleep(2)
    (shown,) = world.cuts.shown(1000)
    assert {key: shown[key] for key in ("op", "path", "from", "to", "waited_s", "interruptible", "pid", "uid")} == {
        "op": "truncate", "path": "f", "from": 4096, "to": None, "waited_s": 2.0, "interruptible": True,
        "pid": 500, "uid": 1000,
    }  # fmt: skip
    assert shown["mapped_by"] == [{"pid": 77, "comm": "reader", "pinned_bytes": 8192}]
    assert "pid" in world.cuts.shown(0)[0]
    assert not {"pid", "uid", "mapped_by"} & world.cuts.shown(1001)[0].keys()
