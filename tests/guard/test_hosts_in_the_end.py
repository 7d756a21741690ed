"""Removals and pins across hosts, at their ends: long waits, breakers that are refused elsewhere, calls that do not come
back, mounts that end."""

from __future__ import annotations

import trio
from guard.test_hosts import SOON_S, TIMING, Site, World, a, b, world
from pinfs.core.pins import Mode

__all__ = ["a", "b", "world"]


async def test_a_breaker_may_wait_for_a_holder_of_its_own_host_for_longer_than_a_beat_counts(a: Site, b: Site) -> None:
    pin = await a.pin(owner="p2")
    a.begin("x")
    await trio.sleep(2 * TIMING.pin_ttl_s)
    a.guard.release(pin)
    await trio.sleep(SOON_S)
    assert [outcome[1] for outcome in a.outcomes] == ["cut"]


async def test_the_breaks_of_a_breaker_that_another_host_refuses_are_withdrawn(world: World, a: Site, b: Site) -> None:
    c = await world.site("c")
    b.policies.set(break_timeout=20, on_timeout="kill")
    c.policies.set(break_timeout=1)
    wanted, silent = await b.pin(owner="p2"), await c.pin(owner="p3")
    world.began = trio.current_time()
    await a.cut("x")
    assert a.outcomes == [("x", "EBUSY", 1.0)]
    await trio.sleep(SOON_S)
    assert wanted.breaking is None
    assert silent.breaking is None
    await trio.sleep(30)
    assert not b.holders.killed
    assert b.events.kinds().count("withdrawn") == 1
    assert "refused" not in b.events.kinds(), "no removal of this host"
