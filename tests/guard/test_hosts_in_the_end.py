"""Removals and pins across hosts, at their ends: long waits, breakers that are refused elsewhere or killed, mounts that
end."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio
from guard.test_hosts import PIN_TIMEOUT_S, SOON_S, TIMING, Site, World, a, b, world
from support import seeds

from pinfs.core.pins import Mode, Pin

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


async def test_a_mount_that_ends_refuses_breakers_that_wait_for_other_hosts(world: World, a: Site, b: Site) -> None:
    await b.pin()
    a.begin("x")
    await trio.sleep(1)
    a.guard.close()
    await trio.sleep(SOON_S)
    assert a.outcomes == [("x", "EBUSY", 1.0)]
    assert a.last("refused").why == "shutdown"
    assert not world.network.keys("r/")


async def test_a_host_that_is_cut_off_says_so_once(world: World, a: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Not each time that a program tries."""
    world.network.is_cut = True
    await trio.sleep(TIMING.pin_ttl_s)
    caplog.clear()
    for number in range(5):
        await a.cut("x", inode=70 + number)
    assert caplog.text.count("a pin or removal has failed") == 1
    world.network.is_cut = False
    await a.pin()
    world.network.is_cut = True
    await trio.sleep(TIMING.pin_ttl_s)
    await a.cut("y", inode=80)
    assert caplog.text.count("a pin or removal has failed") == 2


@pytest.mark.parametrize("seed", range(4))
async def test_callers_that_are_killed_at_any_moment_leave_nothing(
    world: World, a: Site, b: Site, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Holders and breakers of two hosts, each killed after milliseconds or seconds."""
    draw = random.Random(seeds.SEED + seed)
    sites = (a, b)
    for site in sites:
        site.policies.set(break_timeout=3, on_timeout="deny", unlink=draw.choice(("deny", "break", "defer")))
    pins: list[tuple[Site, Pin]] = []

    async def hold(site: Site, number: int) -> None:
        pin = await site.pin(
            draw.randrange(0, 40, 10),
            20,
            owner=f"p{number}",
            mode=draw.choice([*Mode]),
            name=draw.choice((None, b"n")),
        )
        pins.append((site, pin))

    async def work(site: Site, number: int) -> None:
        for _ in range(15):
            with trio.move_on_after(draw.choice((0.0005, 0.002, 0.004, 0.008, 0.02, 1.0, 5.0)) * draw.random()):
                with suppress(OSError):
                    match draw.randrange(4):
                        case 0 | 1:
                            await hold(site, number)
                        case 2:
                            await site.cut("x", draw.randrange(0, 60, 10), nonblock=draw.random() < 0.3)
                        case _:
                            await site.cut("x", op="unlink")
            if pins and draw.random() < 0.5:
                of, pin = pins.pop(draw.randrange(len(pins)))
                if pin.id in of.book.table.by_id:
                    of.guard.release(pin)

    if seed % 2:
        world.network.answer_lag_s = {"p/": 0.3, "r/": 0.2}
    async with trio.open_nursery() as nursery:
        for number in range(1, 7):
            nursery.start_soon(work, sites[number % 2], number)
    for site, pin in pins:
        if pin.id in site.book.table.by_id:
            site.guard.release(pin)
    await trio.sleep(60)
    assert not world.network.keys("p/")
    assert not world.network.keys("r/")
    assert not world.network.keys("v/")
    for site in sites:
        hosts, host = site.hosts, site.host
        kept = hosts._uses, hosts._nodes, hosts._files_of, hosts._numbers, hosts._pins, hosts._questions, hosts._told
        assert not any(kept), kept
        assert not hosts.left_behind
        assert not host._pins
        assert not host._removals
        assert not host._told
        assert not host._releases._ends
        assert host.status()["waiting"] == 0
        assert not site.book.files.states
    assert "Traceback" not in caplog.text


async def test_no_file_gets_its_first_pin_while_a_call_may_take_one_that_is_not_known(
    world: World, a: Site, b: Site
) -> None:
    """A rename hangs at a, to a name under which b makes a file meanwhile."""
    known = await b.pin(inode=71)
    over = a.hosts.begin_unseen()
    await b.pin(20, inode=71, owner="p2")
    for site in (a, b):
        with pytest.raises(BlockingIOError, match="host at a"):
            await site.pin(inode=72)
    over()
    await b.pin(inode=72)
    b.guard.release(known)
    assert not a.host._removals


async def test_a_host_that_is_cut_off_may_still_rename(world: World, a: Site) -> None:
    world.network.is_cut = True
    await trio.sleep(TIMING.pin_ttl_s)
    a.hosts.begin_unseen()()


async def test_no_file_gets_its_first_pin_while_a_last_name_goes_whose_bytes_have_another(a: Site, b: Site) -> None:
    """The server may take the last name so late that the other one has been taken back."""
    await b.pin()
    a.begin("x", op="unlink", lasts_s=2 * PIN_TIMEOUT_S)
    await trio.sleep(SOON_S)
    with pytest.raises(BlockingIOError, match="host at a"):
        await b.pin(inode=72)
    await trio.sleep(2 * PIN_TIMEOUT_S)
    assert a.outcomes[0][1] == "cut"
    await b.pin(inode=72)
    assert not a.hosts._questions
