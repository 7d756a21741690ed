"""The guard with a clock that jumps: leases of 45 seconds, breakers that wait, are interrupted, are too many."""

import errno
import itertools
import logging
import math
import mmap
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pinfs.core.book import COOL_DOWN_S, DEFAULT_SLICES, KILL_GRACE_S
from pinfs.core.events import BookEvent
from pinfs.core.pins import Mode, Pin, PinRequest, PinSpec
from pinfs.core.policy import Limits, Policy, PolicySet
from pinfs.core.ranges import END
from pinfs.enforce.guard import Guard, RemovalCall
from pinfs.runtime.parking import Parked, rest_of, run_straight
from pinfs.runtime.stats import Stats

SIZE = 10_000
INODE = 4
SIGIO = 29


class Caller(NamedTuple):
    uid: int = 1000
    pid: int = 500


class Name(str):
    """Stands for a `ProcessId`: "p1" for the process whose threads are 100 to 199."""

    @property
    def pid(self) -> int:
        return 100 * int(self[1:])


class FakeProcess(NamedTuple):
    id: Any
    pid: int
    comm: str = ""


class FakeHolders:
    """Threads 100 to 199 belong to process "p1", and so on."""

    on_death: Callable[[Any], None]

    def __init__(self) -> None:
        self.signals: list[tuple[Hashable, int, int, int]] = []
        self.killed: list[Hashable] = []
        self.dead: list[Hashable] = []
        self.ended: list[Hashable] = []
        self.out_of_descriptors = False

    def process_of(self, tid: int) -> FakeProcess | None:
        if self.out_of_descriptors:
            raise OSError(errno.EDQUOT, "no descriptor left")
        return FakeProcess(Name(f"p{tid // 100}"), tid) if tid else None

    def is_dead(self, process: Hashable) -> bool:
        return process in self.ended

    def report_deaths(self) -> None:
        """Who is dead, and has not been reported."""
        dead, self.dead = self.dead, []
        for process in dead:
            self.on_death(process)

    def signal(self, process: Hashable, signo: int, value: int, uid: int) -> bool:
        self.signals.append((process, signo, value, uid))
        return True

    def kill(self, process: Hashable) -> bool:
        self.killed.append(process)
        return True


class FakeEventFds:
    def __init__(self) -> None:
        self.signalled: list[int] = []

    def signal(self, eventfd: int) -> None:
        self.signalled.append(eventfd)


class FakePolicies:
    def __init__(self) -> None:
        self.current = PolicySet()

    def set(self, **values: Any) -> None:
        self.current = PolicySet(Policy(**values), limits=self.current.limits)


class FakeEvents:
    def __init__(self) -> None:
        self.events: list[BookEvent] = []
        self.fails = False

    def publish(self, event: BookEvent) -> None:
        self.events.append(event)
        if self.fails:
            raise RuntimeError("no room")

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events if event.kind != "pinned"]


class World:
    """A guard, its collaborators, and what became of the breakers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.holders, self.policies, self.events, self.stats = FakeHolders(), FakePolicies(), FakeEvents(), Stats()
        self.eventfds = FakeEventFds()
        self.guard = Guard(self.holders, self.eventfds, self.policies, self.events, self.stats)
        self.outcomes: list[tuple[str, str, float]] = []
        self._nursery = nursery

    def pin(self, start: int = 0, length: int = 10, owner: Hashable = "p1", **more: Any) -> Pin:
        process, mode = more.pop("process", owner), more.pop("mode", Mode.LEASE)
        process = process and Name(process)
        spec = PinSpec(start, length, mode, more.pop("signal", None), eventfd=more.pop("eventfd", None))
        return self.guard.pin(PinRequest(more.pop("inode", INODE), owner, process, 7, None, spec), SIZE)

    def removal(self, start: int = 0, end: int | None = None, **more: Any) -> AbstractAsyncContextManager[object]:
        inode, op = more.pop("inode", INODE), more.pop("op", "truncate")
        caller, check = more.pop("ctx", Caller()), more.pop("check", lambda: None)
        end = END if end is None else end
        return self.guard.removal(RemovalCall(inode, lambda: "f", op, start, end, caller, check, **more))

    async def cut(self, name: str, start: int = 0, end: int | None = None, **more: Any) -> None:
        """A breaker, whose outcome is `cut` or an errno, and the second it came."""
        try:
            async with self.removal(start, end, **more):
                what = "cut"
        except (trio.Cancelled, GeneratorExit, InterruptedError):
            what = "interrupted"
            raise
        except OSError as e:
            what = errno.errorcode[e.errno or 0]
        finally:
            self.outcomes.append((name, what, trio.current_time()))

    async def breaker(self, name: str, *args: Any, **more: Any) -> trio.CancelScope:
        """A breaker that waits by now, or has its answer; cancelling is what an INTERRUPT does."""
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await self.cut(name, *args, **more)

        self._nursery.start_soon(run)
        await wait_all_tasks_blocked()
        return scope


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        await nursery.start(world.guard.run)
        yield world
        nursery.cancel_scope.cancel()


# What needs no wait


async def test_nothing_pinned_nothing_asked(world: World) -> None:
    world.pin(100, 10)
    await world.cut("before", 0, 100)
    await world.cut("behind", 110)
    await world.cut("other file", inode=5)
    assert [what for _, what, _ in world.outcomes] == ["cut"] * 3
    assert world.events.kinds() == []


async def test_a_deny_pin_refuses_and_is_logged_and_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pinfs.guard")
    world.pin(mode=Mode.DENY)
    with pytest.raises(OSError) as caught:
        async with world.removal(5):
            pytest.fail("pinned bytes were cut")
    assert caught.value.errno == errno.EBUSY
    assert world.stats.refusals == {("truncate", "deny"): 1}
    assert "truncate of 'f' [5, end) by pid 500 uid 1000 is refused (deny): pin 1 [0, 10)" in caplog.text


async def test_the_policy_of_the_moment_counts(world: World) -> None:
    world.pin(mode=Mode.DENY)
    await world.cut("first")
    world.policies.set(errno="ETXTBSY")
    await world.cut("second")
    assert [what for _, what, _ in world.outcomes] == ["EBUSY", "ETXTBSY"]


async def test_the_limits_of_the_moment_count(world: World) -> None:
    world.policies.current = PolicySet(limits=Limits(max_pins=1))
    world.pin()
    with pytest.raises(OSError) as caught:
        world.pin()
    assert caught.value.errno == errno.EDQUOT
    assert world.stats.limit_reached == {"max_pins": 1}


async def test_any_thread_of_the_holder_is_the_holder(world: World) -> None:
    world.pin(owner="p1")
    await world.cut("own", ctx=Caller(pid=199))
    world.policies.set(own="allow")
    await world.cut("allowed", ctx=Caller(pid=199))
    assert [what for _, what, _ in world.outcomes] == ["EBUSY", "cut"]


async def test_a_breaker_that_cannot_be_identified_is_one_like_any_other(world: World) -> None:
    pin = world.pin()
    world.holders.out_of_descriptors = True
    await world.breaker("b")
    world.guard.release(pin)
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 0.0)]


async def test_who_has_seen_the_holder_end_is_not_refused_for_its_pins(world: World) -> None:
    world.pin(mode=Mode.DENY)
    world.holders.dead = ["p1"]
    await world.cut("b")
    assert world.outcomes == [("b", "cut", 0.0)]
    assert world.guard.book.files.states == {}


# Mappings


@pytest.fixture
def mapped_file(world: World) -> Iterator[os.stat_result]:
    """A file that this process has mapped; the world takes it for one of its mount."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(3 * mmap.PAGESIZE)
        world.guard.mount_device = os.fstat(file.fileno()).st_dev
        with mmap.mmap(file.fileno(), mmap.PAGESIZE):
            yield os.fstat(file.fileno())


async def test_policy_mapped_refuses_what_anybody_has_mapped(world: World, mapped_file: os.stat_result) -> None:
    await world.cut("ignored", inode=mapped_file.st_ino)
    world.policies.set(mapped="deny")
    await world.cut("mapped", inode=mapped_file.st_ino)
    await world.cut("beside", mmap.PAGESIZE, inode=mapped_file.st_ino)
    assert [what for _, what, _ in world.outcomes] == ["cut", "EBUSY", "cut"]
    assert world.stats.refusals == {("truncate", "mapped"): 1}


async def test_own_mappings_are_allowed_where_own_pins_are(world: World, mapped_file: os.stat_result) -> None:
    own = Caller(pid=os.getpid())
    for what in ("deny", "allow"):
        world.policies.set(mapped="deny", own=what)
        await world.cut(what, inode=mapped_file.st_ino, ctx=own)
    assert [what for _, what, _ in world.outcomes] == ["EBUSY", "cut"]


# The life of a break


async def test_a_lease_of_45_seconds_and_its_deadline(world: World) -> None:
    pin = world.pin(signal=SIGIO)
    await world.cut("b")
    assert world.outcomes == [("b", "EBUSY", 45.0)]
    assert world.holders.signals == [("p1", SIGIO, pin.id, 7)]
    assert world.events.kinds() == ["break", "withdrawn", "refused"]
    assert world.stats.breaks_timed_out == {"deny": 1}


async def test_the_holder_lets_go_and_the_bytes_are_cut(world: World) -> None:
    pin = world.pin()
    await world.breaker("b")
    await trio.sleep(3)
    world.guard.release(pin)
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 3.0)]
    assert (world.stats.breaks_started, world.stats.breaks_answered, world.stats.break_seconds.total) == (1, 1, 3.0)
    assert world.guard.book.files.states == {}


async def test_waiting_is_logged_with_some_holders(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pinfs.guard")
    for _ in range(5):
        world.pin()
    await world.breaker("b", 0, 20, op="punch_hole")
    assert (
        "punch_hole of 'f' [0, 20) by pid 500 uid 1000 waits for pin 1 [0, 10) of pid 100 uid 7, pin 2" in caplog.text
    )
    assert caplog.text.rstrip().endswith("and others")


async def test_a_pin_without_a_signal_gets_none(world: World) -> None:
    world.pin()
    world.pin(owner="handle", process=None, signal=SIGIO)
    await world.breaker("b")
    assert world.holders.signals == []
    assert world.events.kinds() == ["break", "break"]


async def test_the_death_of_the_holder_lets_the_removal_go_on(world: World) -> None:
    world.pin()
    await world.breaker("b")
    world.holders.on_death("p1")
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 0.0)]
    assert world.guard.book.ended == {"death": 1}


async def test_an_extension_moves_the_deadline(world: World) -> None:
    pin = world.pin()
    await world.breaker("b")
    await trio.sleep(40)
    assert world.guard.extend(pin, 100) == 140.0
    await trio.sleep(99)
    assert world.outcomes == []
    await trio.sleep(2)
    assert world.outcomes == [("b", "EBUSY", 140.0)]


async def test_a_shorter_deadline_that_comes_later_is_kept(world: World) -> None:
    world.pin()
    world.pin(inode=5)
    await world.breaker("long")
    world.policies.set(break_timeout=2.0)
    await world.breaker("short", inode=5)
    await trio.sleep(50)
    assert world.outcomes == [("short", "EBUSY", 2.0), ("long", "EBUSY", 45.0)]


async def test_on_timeout_revoke(world: World) -> None:
    world.policies.set(on_timeout="revoke", break_timeout=5.0)
    world.pin()
    await world.cut("b")
    assert world.outcomes == [("b", "cut", 5.0)]
    assert world.events.kinds() == ["break", "revoked", "proceeded"]
    assert world.stats.breaks_timed_out == {"revoke": 1}
    assert world.guard.book.ended == {"policy": 1}


async def test_on_timeout_kill(world: World) -> None:
    world.policies.set(on_timeout="kill", break_timeout=5.0)
    world.pin()
    await world.breaker("b")
    await trio.sleep(6)
    assert world.holders.killed == ["p1"]
    assert world.outcomes == [], "it may still write until it is dead"
    world.holders.on_death("p1")
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 6.0)]
    assert world.guard.book.ended == {"kill": 1}


async def test_on_timeout_kill_of_a_holder_that_does_not_die(world: World) -> None:
    world.policies.set(on_timeout="kill", break_timeout=5.0)
    world.pin()
    await world.cut("b")
    assert world.outcomes == [("b", "EBUSY", 5.0 + KILL_GRACE_S)]
    assert world.stats.breaks_timed_out == {"kill": 1}


async def test_root_revokes(world: World) -> None:
    pin = world.pin()
    await world.breaker("b")
    world.guard.revoke(pin)
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 0.0)]
    assert world.guard.book.ended == {"root": 1}


async def test_a_handle_that_is_polled_hears_of_its_pins(world: World) -> None:
    told: list[Any] = []
    world.guard.on_handle_event = told.append
    pin = world.pin(owner="handle", process="p1")
    world.pin(owner="p2")
    told.clear()
    await world.breaker("b")
    assert told == ["handle"]
    world.guard.owner_gone("handle", "close")
    assert told == ["handle", "handle"]
    assert pin.id not in world.guard.book.table.by_id
    assert world.guard.book.ended == {"close": 1}


async def test_own_pins_of_a_handle(world: World) -> None:
    world.pin(owner="handle", process=None)
    await world.cut("own", handle="handle")
    assert world.outcomes == [("own", "EBUSY", 0.0)]


# Owners that are gone with a great many pins

MANY = 3 * DEFAULT_SLICES.pins


async def test_a_great_many_pins_of_the_dead_go_in_slices(world: World) -> None:
    for _ in range(MANY):
        world.pin(inode=9)
    world.guard.owner_gone("p1")
    left = [len(world.guard.book.table)]
    while left[-1]:
        assert len(left) < 10
        await trio.lowlevel.checkpoint()  # here all others have their turn
        left.append(len(world.guard.book.table))
    assert all(before - after <= 2 * DEFAULT_SLICES.pins for before, after in itertools.pairwise(left))
    assert left[0] == MANY
    assert world.guard.book.ended == {"death": MANY}
    assert (world.guard.book.reaping.dead_owners, world.guard.book.next_deadline()) == ({}, None)


async def test_a_removal_drops_the_few_pins_of_the_dead_that_are_in_its_way(world: World) -> None:
    for _ in range(MANY):
        world.pin(inode=9, mode=Mode.DENY)
    world.pin(mode=Mode.DENY)
    world.holders.dead.append("p1")
    run_straight(world.cut("b"))  # without a wait
    assert world.outcomes == [("b", "cut", 0.0)]
    assert len(world.guard.book.table) == MANY


async def test_a_removal_is_not_refused_for_a_great_many_pins_of_the_dead(world: World) -> None:
    for number in range(MANY):
        world.pin(start=number, mode=Mode.DENY)
    world.holders.dead.append("p1")
    await world.breaker("b")
    assert world.outcomes == [("b", "cut", 0.0)]
    assert world.guard.book.files.states == {}


async def test_the_living_refuse_once_the_dead_are_buried(world: World) -> None:
    for number in range(MANY):
        world.pin(start=number, mode=Mode.DENY)
        world.pin(start=number, owner="p2", mode=Mode.DENY)
    world.guard.owner_gone("p1")
    await world.breaker("b")
    assert world.outcomes == [("b", "EBUSY", 0.0)]
    assert len(world.guard.book.table) == MANY


async def test_a_break_ends_with_the_death_of_who_holds_a_great_many_pins(world: World) -> None:
    for _ in range(MANY):
        world.pin(inode=9)
    for number in range(MANY):
        world.pin(start=number)
    await world.breaker("b")
    world.guard.owner_gone("p1")
    while world.guard.book.breaks.of_owner:
        assert len(world.guard.book.table) > MANY, "the breaking pins go first"
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 0.0)]
    assert world.stats.breaks_answered == MANY


async def test_the_dead_do_not_let_a_break_time_out(world: World) -> None:
    for number in range(MANY):
        world.pin(start=number)
    await world.breaker("b")
    world.guard.owner_gone("p1")
    world.guard.book.expire(trio.current_time() + 45)
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 0.0)]
    assert not world.stats.breaks_timed_out


@pytest.mark.parametrize("how", ["interrupted", "closed"])
async def test_who_waits_for_a_burial_can_be_answered_before(world: World, how: str) -> None:
    for number in range(MANY):
        world.pin(start=number, mode=Mode.DENY)
    world.guard.owner_gone("p1")
    parked = world.cut("b")
    with pytest.raises(Parked):
        run_straight(parked)
    if how == "interrupted":
        with pytest.raises(InterruptedError):
            run_straight(parked, InterruptedError())
    else:
        world.guard.close()
        run_straight(parked)
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", {"interrupted": "interrupted", "closed": "EBUSY"}[how], 0.0)]
    assert world.guard.book.files.states == {}


async def asked(world: World) -> list[int]:
    """How many had been asked whenever others had their turn."""
    counts = [world.stats.breaks_started]
    while world.guard.book.next_deadline() == -math.inf:
        await trio.lowlevel.checkpoint()
        counts.append(world.stats.breaks_started)
    return counts


async def test_a_great_many_holders_are_asked_in_slices(world: World) -> None:
    pins = [world.pin(start=number, signal=SIGIO) for number in range(MANY)]
    parked = world.cut("b")
    with pytest.raises(Parked):
        run_straight(parked)
    counts = await asked(world)
    assert all(after - before <= 2 * DEFAULT_SLICES.pins for before, after in itertools.pairwise([0, *counts]))
    assert counts[-1] == MANY
    assert [signal[2] for signal in world.holders.signals] == [pin.id for pin in pins]
    for pin in pins:
        world.guard.release(pin)
    await rest_of(parked)
    assert world.outcomes == [("b", "cut", 0.0)]
    assert world.stats.breaks_answered == MANY


async def test_a_great_many_breaks_are_withdrawn_in_slices(world: World) -> None:
    for number in range(MANY):
        world.pin(start=number)
    await world.breaker("b")
    await trio.sleep_until(45)
    withdrawn = [0]
    while withdrawn[-1] < MANY:
        await trio.lowlevel.checkpoint()
        withdrawn.append(world.events.kinds().count("withdrawn"))
    assert all(after - before <= 4 * DEFAULT_SLICES.pins for before, after in itertools.pairwise(withdrawn))
    await wait_all_tasks_blocked()  # trio runs what is runnable in any order
    assert world.outcomes == [("b", "EBUSY", 45.0)]
    assert world.stats.refusals == {("truncate", "timeout"): 1}
    assert (len(world.guard.book.table), world.guard.book.breaks.of_owner) == (MANY, {})


async def test_others_are_answered_while_a_great_many_are_asked(world: World) -> None:
    for number in range(MANY):
        world.pin(start=number)
    other = world.pin(inode=9)
    parked = world.cut("b"), world.cut("other", inode=9)
    for breaker in parked:
        with pytest.raises(Parked):
            run_straight(breaker)
    world.guard.release(other)
    run_straight(parked[1])
    assert world.outcomes == [("other", "cut", 0.0)]
    assert world.stats.breaks_started < MANY
    parked[0].close()


async def test_who_does_not_wait_is_answered_before_a_great_many_are_asked(world: World) -> None:
    for number in range(MANY):
        world.pin(start=number)
    run_straight(world.cut("b", nonblock=True))
    assert world.outcomes == [("b", "EAGAIN", 0.0)]
    assert (await asked(world))[-1] == MANY


async def test_a_great_many_holders_are_dead_before_they_are_asked(world: World) -> None:
    for number in range(MANY):
        world.pin(start=number)
    parked = world.cut("b")
    with pytest.raises(Parked):
        run_straight(parked)
    world.guard.owner_gone("p1")
    await rest_of(parked)
    assert world.outcomes == [("b", "cut", 0.0)]
    assert world.guard.book.files.states == {}


async def test_closing_answers_who_has_a_great_many_asked(world: World) -> None:
    for number in range(MANY):
        world.pin(start=number)
    parked = world.cut("b")
    with pytest.raises(Parked):
        run_straight(parked)
    world.guard.close()
    run_straight(parked)
    assert world.outcomes == [("b", "EBUSY", 0.0)]
    await wait_all_tasks_blocked()
    assert (world.guard.book.breaks.of_owner, world.guard.book.notifying.notified_up_to) == ({}, {})


# Breakers


async def test_breakers_of_one_file_go_in_order(world: World) -> None:
    pin = world.pin()
    for name in "abc":
        await world.breaker(name)
    world.guard.release(pin)
    await wait_all_tasks_blocked()
    assert [name for name, _, _ in world.outcomes] == ["a", "b", "c"]


async def test_an_interrupted_breaker_leaves_the_break_behind(world: World) -> None:
    pin = world.pin()
    scope = await world.breaker("b")
    scope.cancel()
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "interrupted", 0.0)]
    assert pin.deadline == 45.0
    await trio.sleep(44)
    assert pin.deadline == 45.0
    await trio.sleep(2)
    assert pin.deadline is None
    await trio.sleep(COOL_DOWN_S)
    assert world.pin(5000, 10)


async def test_a_breaker_that_is_interrupted_when_its_turn_has_come_lets_the_next_one_go_on(world: World) -> None:
    pin = world.pin()
    parked = world.cut("first")
    with pytest.raises(Parked):
        run_straight(parked)
    await world.breaker("second")
    world.guard.release(pin)
    with pytest.raises(InterruptedError):
        run_straight(parked, InterruptedError())
    await wait_all_tasks_blocked()
    assert world.outcomes == [("first", "interrupted", 0.0), ("second", "cut", 0.0)]
    assert world.guard.book.files.states == {}


async def test_a_failed_cut_lets_the_next_one_go_on(world: World) -> None:
    pin = world.pin()

    async def fail() -> None:
        with pytest.raises(OSError, match="no such size"):
            async with world.removal():
                raise OSError(errno.EFBIG, "no such size")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await wait_all_tasks_blocked()
        await world.breaker("next")
        world.guard.release(pin)
    await wait_all_tasks_blocked()
    assert world.outcomes == [("next", "cut", 0.0)]


async def test_no_new_pin_until_a_breaker_that_gave_up_had_time_to_try_again(world: World) -> None:
    pin = world.pin()
    await world.cut("b", nonblock=True)
    assert world.outcomes == [("b", "EAGAIN", 0.0)]
    world.guard.release(pin)
    with pytest.raises(OSError) as caught:
        world.pin()
    assert caught.value.errno == errno.EAGAIN
    await trio.sleep(COOL_DOWN_S)
    await wait_all_tasks_blocked()
    assert world.pin()


async def test_hundreds_of_breakers_wait_and_no_more_than_allowed(world: World) -> None:
    world.policies.current = PolicySet(limits=Limits(max_waiting=300))
    pin = world.pin()
    for i in range(310):
        world._nursery.start_soon(world.cut, str(i))
    await wait_all_tasks_blocked()
    assert [what for _, what, _ in world.outcomes] == ["EBUSY"] * 10
    assert world.guard.book.waiting == 300
    world.guard.release(pin)
    await wait_all_tasks_blocked()
    assert [what for _, what, _ in world.outcomes].count("cut") == 300
    assert world.stats.limit_reached == {"max_waiting": 10}


async def test_ten_thousand_holders_of_one_file(world: World) -> None:
    pins = [world.pin(owner=f"p{i}", signal=SIGIO) for i in range(1000, 11_000)]
    await world.breaker("b")
    assert [signal[2] for signal in world.holders.signals] == [pin.id for pin in pins]
    for pin in pins[:-1]:
        world.guard.release(pin)
    await wait_all_tasks_blocked()
    assert world.outcomes == []
    world.guard.release(pins[-1])
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 0.0)]


# The end of the mount


async def test_closing_answers_all_who_wait_and_all_who_come(world: World) -> None:
    world.pin()
    world.pin(inode=5)
    await world.breaker("a")
    await world.breaker("b", inode=5)
    world.guard.close()
    await wait_all_tasks_blocked()
    await world.cut("late")
    assert sorted(world.outcomes) == [("a", "EBUSY", 0.0), ("b", "EBUSY", 0.0), ("late", "EBUSY", 0.0)]
    assert world.stats.refusals == {("truncate", "shutdown"): 3}


async def test_with_nothing_to_wait_for_the_guard_sleeps_for_ever(world: World) -> None:
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


# Trouble, and the short way


async def test_an_event_that_cannot_be_told_stops_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.events.fails = True
    pin = world.pin()
    await world.breaker("b")
    world.guard.release(pin)
    await wait_all_tasks_blocked()
    assert world.outcomes == [("b", "cut", 0.0)]
    assert "while telling of break" in caplog.text


async def test_on_the_short_way_nothing_yields_unless_it_waits(world: World) -> None:
    world.pin(100, 10)
    run_straight(world.cut("free", 0, 50))
    world.pin(mode=Mode.DENY)
    run_straight(world.cut("refused"))
    assert [what for _, what, _ in world.outcomes] == ["cut", "EBUSY"]


async def test_on_the_short_way_the_holder_is_told_before_the_breaker_parks(world: World) -> None:
    pin = world.pin(signal=SIGIO)
    handler = world.cut("b")
    with pytest.raises(Parked):
        run_straight(handler)
    assert len(world.holders.signals) == 1
    world.guard.release(pin)
    await rest_of(handler)
    assert [what for _, what, _ in world.outcomes] == ["cut"]


async def test_a_breaker_that_is_dropped_while_parked_leaves_the_queue(world: World) -> None:
    world.pin()
    handler = world.cut("b")
    with pytest.raises(Parked):
        run_straight(handler)
    handler.close()
    assert world.guard.book.waiting == 0
