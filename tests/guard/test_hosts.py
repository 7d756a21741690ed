"""Guards of several hosts, over a simulated etcd, with a clock that jumps: pins and removals as programs see them."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from cluster.simulated_client import Network
from guard.test_guard import INODE, SIZE, Caller, FakeEventFds, FakeEvents, FakeHolders, FakePolicies, Name
from support import seeds

from pinfs.cluster.host import Host
from pinfs.cluster.membership import Limits, Timing
from pinfs.core.pins import Mode, Pin, PinRequest, PinSpec
from pinfs.core.ranges import END
from pinfs.enforce.guard import Guard, RemovalCall
from pinfs.enforce.hosts import SWEEP_S, OtherHosts
from pinfs.runtime.stats import Stats

TIMING = Timing()
PIN_TIMEOUT_S = 5.0
SOON_S = 0.5
"""More than any number of round trips to the simulated etcd takes, less than anything that waits."""


class Directory:
    """Files as all hosts see them. `names`: those that keep bytes whose last name has gone."""

    numbers_end = 1 << 40

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fails = False

    def number(self, inode: int) -> int:
        return inode

    def path(self, inode: int) -> str | None:
        return "f"

    async def ask_server(self, inode: int) -> None:
        await trio.lowlevel.checkpoint()

    async def name(self, inode: int) -> str:
        return f"{inode:x}.ab"

    async def hold(self, inode: int) -> None:
        if self.fails:
            raise OSError(errno.EMLINK, "no more links")
        self.names.append(await self.name(inode))

    async def held(self) -> list[str]:
        return [*self.names]

    async def let_go(self, name: str) -> None:
        self.names.remove(name)


class Site:
    """A host: its guard, and what became of its breakers."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.holders, self.policies, self.events, self.stats = FakeHolders(), FakePolicies(), FakeEvents(), Stats()
        self.guard = Guard(self.holders, FakeEventFds(), self.policies, self.events, self.stats)
        self.book = self.guard.book
        self.hosts = OtherHosts(self.guard, self.policies, world.directory, PIN_TIMEOUT_S)
        self.host = Host(world.network.connect, "/p/", name, TIMING, Limits(), self.hosts, clock=trio.current_time)
        self.hosts.host = self.host
        self.guard.hosts = self.hosts
        self.book.on_end = self.hosts.ended
        self.hosts.on_state = self.keep
        self.kept: dict[str, Any] = {}
        self.outcomes: list[tuple[str, str, float]] = []
        self._world = world

    def keep(self, state: dict[str, Any]) -> None:
        self.kept = state

    async def pin(self, start: int = 0, length: int = 10, owner: str = "p1", **more: Any) -> Pin:
        """What the verbs of pins do."""
        spec = PinSpec(start, length, more.pop("mode", Mode.LEASE), more.pop("signal", None))
        inode = more.pop("inode", INODE)
        number = await self.hosts.pin(inode, spec)
        try:
            pin = self.guard.pin(PinRequest(inode, owner, Name(owner), 7, more.pop("name", None), spec), SIZE)
        except BaseException:
            self.hosts.release(number)
            raise
        self.hosts.commit(pin, number)
        return pin

    async def cut(self, name: str, start: int = 0, end: int | None = None, **more: Any) -> None:
        """A breaker, whose outcome is `cut` or an errno, and the second it came."""
        op, inode, lasts_s = more.pop("op", "truncate"), more.pop("inode", INODE), more.pop("lasts_s", 0.0)
        call = RemovalCall(inode, lambda: "f", op, start, end or END, Caller(), lambda: None, **more)
        what = "cut"
        try:
            async with self.guard.removal_in_thread(call):
                await trio.sleep(lasts_s)
        except trio.Cancelled:
            what = "killed"
            raise
        except OSError as e:
            what = errno.errorcode[e.errno or 0]
        finally:
            self.outcomes.append((name, what, round(trio.current_time() - self._world.began, 1)))

    def begin(self, name: str, *args: Any, **more: Any) -> None:
        self._world.nursery.start_soon(partial(self.cut, name, *args, **more))

    def last(self, kind: str) -> Any:
        return next(event for event in reversed(self.events.events) if event.kind == kind)


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network = Network()
        self.directory = Directory()
        self.began = 0.0

    async def site(self, name: str) -> Site:
        """A host that has joined."""
        site = Site(self, name)
        await self.run(site)
        return site

    async def run(self, site: Site) -> None:
        self.nursery.start_soon(site.guard.run)
        self.nursery.start_soon(site.hosts.run)
        await self.nursery.start(site.host.run)
        while site.host.status()["state"] != "joined":
            await trio.sleep(0.01)
        self.began = trio.current_time()


@asynccontextmanager
async def worlds() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with worlds() as world:
        yield world


@pytest.fixture
async def a(world: World) -> Site:
    return await world.site("a")


@pytest.fixture
async def b(world: World, a: Site) -> Site:
    return await world.site("b")


async def test_a_deny_pin_of_another_host_refuses(a: Site, b: Site) -> None:
    await b.pin(mode=Mode.DENY)
    await a.cut("x")
    assert [outcome[:2] for outcome in a.outcomes] == [("x", "EBUSY")]
    refused = a.last("refused")
    assert (refused.why, refused.removal.pinned_at) == ("deny", "b")
    assert a.stats.refusals["truncate", "deny"] == 1
    assert b.events.kinds() == []


async def test_bytes_beside_the_pin_of_another_host_go(a: Site, b: Site) -> None:
    await b.pin(mode=Mode.DENY)
    await a.cut("x", 10)
    assert a.outcomes[0][1] == "cut"


async def test_a_lease_of_another_host_is_broken_by_its_own_daemon(a: Site, b: Site) -> None:
    pin = await b.pin(signal=10)
    a.begin("x", 4)
    await trio.sleep(1)
    broken = b.last("break")
    assert (broken.breaking.host, broken.breaking.op, broken.breaking.start) == ("a", "truncate", 4)
    assert b.holders.signals == [("p1", 10, pin.id, 7)]
    assert not a.outcomes
    b.guard.release(pin)
    await trio.sleep(SOON_S)
    assert a.outcomes == [("x", "cut", 1.0)]


async def test_the_holders_policy_and_clock_decide(a: Site, b: Site) -> None:
    b.policies.set(break_timeout=3)
    a.policies.set(break_timeout=1)
    await b.pin()
    await a.cut("x")
    assert a.outcomes == [("x", "EBUSY", 3.0)]
    assert (a.last("refused").why, a.last("refused").removal.pinned_at) == ("timeout", "b")
    await a.cut("again")
    assert a.outcomes[1] == ("again", "EBUSY", 3.0), "retry_after"
    assert a.last("refused").why == "unanswered"


async def test_a_silent_holder_is_revoked_where_it_lives(a: Site, b: Site) -> None:
    b.policies.set(break_timeout=3, on_timeout="revoke")
    await b.pin()
    await a.cut("x")
    assert a.outcomes == [("x", "cut", 3.0)]
    assert b.last("revoked").by == "policy"


async def test_the_breakers_errno_is_its_own_policys(a: Site, b: Site) -> None:
    a.policies.set(errno="ETXTBSY")
    await b.pin(mode=Mode.DENY)
    await a.cut("x")
    assert a.outcomes[0][1] == "ETXTBSY"


@pytest.mark.parametrize(("conflict", "mode", "what"), [("deny", Mode.LEASE, "EBUSY"), ("break", Mode.DENY, "cut")])
async def test_the_holders_policy_says_how_its_pins_answer(
    a: Site, b: Site, conflict: str, mode: Mode, what: str
) -> None:
    b.policies.set(conflict=conflict)
    pin = await b.pin(mode=mode)
    a.begin("x")
    await trio.sleep(SOON_S)
    if what == "cut":
        b.guard.release(pin)
        await trio.sleep(SOON_S)
    assert [outcome[1] for outcome in a.outcomes] == [what]


async def test_holders_here_and_there_are_told_at_the_same_time(a: Site, b: Site) -> None:
    here, there = await a.pin(signal=10, owner="p2"), await b.pin(signal=12)
    a.begin("x")
    await trio.sleep(SOON_S)
    assert a.holders.signals and b.holders.signals
    b.guard.release(there)
    await trio.sleep(SOON_S)
    assert not a.outcomes
    a.guard.release(here)
    await trio.sleep(SOON_S)
    assert [outcome[1] for outcome in a.outcomes] == ["cut"]


async def test_a_refusal_there_ends_the_wait_here(a: Site, b: Site) -> None:
    b.policies.set(break_timeout=2)
    here = await a.pin(owner="p2")
    await b.pin()
    await a.cut("x")
    assert a.outcomes == [("x", "EBUSY", 2.0)]
    await trio.sleep(SOON_S)
    assert here.breaking is None, "its break is withdrawn"


async def test_a_refusal_here_ends_the_wait_there(a: Site, b: Site) -> None:
    a.policies.set(break_timeout=2)
    await a.pin(owner="p2")
    there = await b.pin()
    await a.cut("x")
    assert a.outcomes == [("x", "EBUSY", 2.0)]
    b.guard.release(there)
    await trio.sleep(TIMING.patience_s)
    await b.pin()


async def test_no_pin_comes_anywhere_while_bytes_go(a: Site, b: Site) -> None:
    await b.pin(20, 10)
    a.begin("x", 0, 10, lasts_s=2.0)
    await trio.sleep(SOON_S)
    with pytest.raises(BlockingIOError):
        await b.pin()
    with pytest.raises(BlockingIOError):
        await a.pin()
    await b.pin(10, 5)
    await trio.sleep(2)
    assert a.outcomes[0][1] == "cut"
    await b.pin()


async def test_a_breaker_that_does_not_wait(a: Site, b: Site) -> None:
    pin = await b.pin()
    await a.cut("x", nonblock=True)
    assert a.outcomes == [("x", "EAGAIN", 0.0)]
    assert pin.breaking is not None, "the break goes on"
    with pytest.raises(BlockingIOError):
        await b.pin(owner="p2")
    b.guard.release(pin)
    await trio.sleep(SOON_S)
    with pytest.raises(BlockingIOError):
        await b.pin(owner="p2")  # the cool-down: the breaker shall win when it tries again
    await a.cut("again", nonblock=True)
    assert a.outcomes[1][1] == "cut"
    await trio.sleep(2)
    await b.pin(owner="p2")


async def test_a_breaker_that_is_killed_leaves_its_breaks(world: World, a: Site, b: Site) -> None:
    b.policies.set(break_timeout=3, on_timeout="revoke")
    await b.pin()
    with trio.move_on_after(1):
        await a.cut("x")
    assert a.outcomes == [("x", "killed", 1.0)]
    assert len(world.network.keys("r/")) == 1
    await trio.sleep(2.5)
    assert b.last("revoked").by == "policy"
    await trio.sleep(2)
    assert not world.network.keys("r/")
    await b.pin()


async def test_a_host_that_is_cut_off_tells_its_holders(world: World, a: Site, b: Site) -> None:
    pin, mute = await a.pin(signal=10), await a.pin(20, mode=Mode.DENY)
    world.network.is_cut = True
    await trio.sleep(TIMING.pin_ttl_s - TIMING.margin_s)
    revoked = [event for event in a.events.events if event.kind == "revoked"]
    assert [(event.pin and event.pin.id, event.by, event.why) for event in revoked] == [
        (pin.id, "cluster", "cluster"),
        (mute.id, "cluster", "cluster"),
    ]
    assert a.holders.signals == [("p1", 10, pin.id, 7)]
    assert not a.holders.killed
    await a.cut("x", inode=77)
    assert a.outcomes[0][1] == "EIO"
    with pytest.raises(OSError, match="cut off") as refused:
        await a.pin(inode=77)
    assert refused.value.errno == errno.EIO
    world.network.is_cut = False
    await a.pin()


async def test_holders_of_a_host_that_is_cut_off_are_killed_where_the_policy_says_so(world: World, a: Site) -> None:
    a.policies.set(cut_off="kill")
    await a.pin()
    world.network.is_cut = True
    await trio.sleep(TIMING.pin_ttl_s)
    assert a.holders.killed == ["p1"]


async def test_a_removal_waits_for_its_host_to_join(world: World) -> None:
    world.network.is_cut = True
    site = Site(world, "a")
    world.nursery.start_soon(site.host.run)
    world.began = trio.current_time()
    site.begin("x", inode=5)
    await trio.sleep(2)
    assert not site.outcomes
    world.network.is_cut = False
    await trio.sleep(2)
    assert site.outcomes[0][1] == "cut"


async def test_last_names_that_nobody_has_pinned_go_with_their_bytes(world: World, a: Site, b: Site) -> None:
    pin = await b.pin()
    b.guard.release(pin)
    await trio.sleep(SOON_S)
    await a.cut("x", op="unlink")
    assert a.outcomes[0][1] == "cut"
    assert not world.directory.names


@pytest.mark.parametrize("mode", Mode)
async def test_the_bytes_behind_a_last_name_are_held_for_other_hosts(
    world: World, a: Site, b: Site, mode: Mode
) -> None:
    pin = await b.pin(mode=mode)
    await a.cut("x", op="unlink")
    assert a.outcomes == [("x", "cut", 0.0)]
    assert world.directory.names == [f"{INODE:x}.ab"]
    assert b.events.kinds() == []
    assert pin.breaking is None
    b.guard.release(pin)
    await trio.sleep(2 * TIMING.linger_s + 3 * SWEEP_S)
    assert not world.directory.names


async def test_a_last_name_stays_where_the_bytes_get_no_other(world: World, a: Site, b: Site) -> None:
    world.directory.fails = True
    await b.pin()
    await a.cut("x", op="rename")
    assert a.outcomes[0][1] == "EBUSY"


async def test_a_host_that_is_cut_off_holds_the_bytes_of_all_last_names(world: World, a: Site) -> None:
    world.network.is_cut = True
    await trio.sleep(TIMING.pin_ttl_s)
    world.began = trio.current_time()
    await a.cut("x", op="unlink")
    assert a.outcomes == [("x", "cut", 0.0)]
    assert world.directory.names


@pytest.mark.parametrize(("unlink", "what"), [("deny", "EBUSY"), ("break", "cut")])
async def test_policies_of_last_names(a: Site, b: Site, unlink: str, what: str) -> None:
    for site in (a, b):
        site.policies.set(unlink=unlink, break_timeout=2, on_timeout="revoke")
    await b.pin()
    await a.cut("x", op="unlink")
    assert a.outcomes[0][1] == what


async def test_a_pin_that_moves(world: World, a: Site, b: Site) -> None:
    pin = await b.pin(0, 10, name=b"n")
    assert await b.pin(20, 10, name=b"n") is pin
    await trio.sleep(SOON_S)
    assert len(world.network.keys("p/")) == 1
    await a.cut("x", 0, 20)
    assert a.outcomes[0][1] == "cut"
    a.begin("y", 25)
    await trio.sleep(SOON_S)
    assert pin.breaking is not None
    await b.pin(20, 5, name=b"n")
    await trio.sleep(SOON_S)
    assert [outcome[1] for outcome in a.outcomes] == ["cut", "cut"]


async def test_leases_that_break_each_other_across_hosts(a: Site, b: Site) -> None:
    mine, yours = await a.pin(), await b.pin()
    a.begin("x")
    b.begin("y")
    await trio.sleep(SOON_S)
    a.guard.release(mine)
    b.guard.release(yours)
    await trio.sleep(SOON_S)
    assert [site.outcomes[0][1] for site in (a, b)] == ["cut", "cut"]


async def test_the_next_daemon_goes_on_with_the_pins(world: World, a: Site, b: Site) -> None:
    """The one before has died: nothing of it goes on but what it has left in etcd and in its journal."""
    async with trio.open_nursery() as life:
        c = Site(world, "c")
        await life.start(c.host.run)
        while c.host.status()["state"] != "joined":
            await trio.sleep(0.01)
        kept = await c.pin(0, 10, mode=Mode.DENY)
        await c.pin(20, 10)
        gone = await c.pin(40, 10)
        ends = await c.pin(80, 10)
        state = dict(c.kept)
        life.cancel_scope.cancel()
    d = Site(world, "c")
    for pin in (kept, c.book.table.by_id[2], ends):
        d.book.table.restore(pin)
    unknown = Pin(99, PinRequest(INODE, "p9", Name("p9"), 7, None, PinSpec(60, 10, Mode.LEASE)), 0, 10, 99)
    d.book.table.restore(unknown)
    former = await d.hosts.former_pins()
    d.guard.release(ends)  # before the cluster has given it a number
    d.host.resume(
        state | {"is_settled": True}, former, partial(d.hosts.resumed, {token: file for token, file, _ in former})
    )
    await world.run(d)
    await trio.sleep(SOON_S)
    assert d.host.status()["incarnation"] == state["incarnation"]
    assert [event.pin and event.pin.id for event in d.events.events if event.kind == "revoked"] == [99]
    assert len(world.network.keys("p/")) == 2, gone
    await a.cut("x", 0, 10)
    assert a.outcomes[0][1] == "EBUSY"
    a.begin("y", 20, 30)
    await trio.sleep(SOON_S)
    assert d.last("break").breaking.host == "a"
    for pin in [*d.book.table.by_id.values()]:
        d.guard.release(pin)
    await trio.sleep(SOON_S)
    assert a.outcomes[-1][1] == "cut"
    assert not world.network.keys("p/")


async def test_no_cut_takes_the_bytes_of_a_pin(seed: int) -> None:
    """Drawn schedules over three hosts and two files. The oracle sees what programs see."""
    draw = random.Random(seed)
    async with worlds() as world:
        sites = [await world.site(name) for name in "abc"]
        held: dict[tuple[str, int], tuple[int, int, int]] = {}

        async def holder(site: Site, number: int) -> None:
            for _ in range(12):
                await trio.sleep(draw.random() * 3)
                inode, start = draw.choice((INODE, INODE + 1)), draw.randrange(0, 40, 10)
                try:
                    mode = draw.choice((Mode.DENY, Mode.LEASE))
                    pin = await site.pin(start, 20, owner=f"p{number}", inode=inode, mode=mode)
                except BlockingIOError:
                    continue
                held[site.name, pin.id] = inode, start, start + 20
                await trio.sleep(draw.random() * 3)
                del held[site.name, pin.id]
                site.guard.release(pin)

        async def breaker(site: Site) -> None:
            for _ in range(12):
                await trio.sleep(draw.random() * 2)
                inode, start = draw.choice((INODE, INODE + 1)), draw.randrange(0, 60, 10)
                call = RemovalCall(inode, lambda: "f", "truncate", start, END, Caller(pid=900), lambda: None)
                try:
                    async with site.guard.removal_in_thread(call):
                        for _ in range(3):
                            under = [of for of, (at, low, high) in held.items() if at == inode and high > start]
                            assert not under, (site.name, inode, start, under)
                            await trio.sleep(draw.random() / 10)
                    site.outcomes.append(("x", "cut", 0.0))
                except OSError as e:
                    site.outcomes.append(("x", errno.errorcode[e.errno or 0], 0.0))

        async with trio.open_nursery() as nursery:
            for number, site in enumerate(sites, 1):
                nursery.start_soon(holder, site, number)
                nursery.start_soon(holder, site, 10 + number)
                nursery.start_soon(breaker, site)
        seen = {outcome[1] for site in sites for outcome in site.outcomes}
        assert seen == {"cut", "EBUSY"}
        await trio.sleep(5)
        assert not world.network.keys("p/")
        assert not world.network.keys("r/")
        for site in sites:
            assert not site.book.table.by_id
            assert not site.hosts._told
            assert not site.hosts._questions


@pytest.fixture(params=range(5))
def seed(request: pytest.FixtureRequest) -> int:
    return seeds.SEED + int(request.param)
