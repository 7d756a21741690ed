"""Hosts over a simulated etcd, in trio's time: what they do by the clock, and in which order the daemon hears of it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from cluster.hosts import FILE, INODE, Breaker, Cluster, Machine, cut, lease, pin
from cluster.simulated_client import Network
from pinfs.cluster.driver import Driver
from pinfs.cluster.host import Host
from pinfs.cluster.membership import CLOCK_TRUST, Limits, Timing
from pinfs.cluster.outputs import Output, Pinned, Told
from pinfs.cluster.protocol import Member

TIMING = Timing()


@asynccontextmanager
async def simulated(network: Network) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        yield Cluster(nursery, "/p/", network.connect, TIMING, clock=trio.current_time)
        nursery.cancel_scope.cancel()


@pytest.fixture
def network() -> Network:
    return Network()


async def test_each_beat_moves_the_fence_and_is_written_down(network: Network, autojump_clock: MockClock) -> None:
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        first = a.daemon.kept["fence"]
        assert first == a.host.fence
        await a.daemon.until(lambda: a.daemon.kept["fence"] > first)
        assert a.daemon.kept["fence"] == a.host.fence == pytest.approx(first + TIMING.beat_s, abs=0.1)


async def test_the_fence_comes_while_a_call_hangs(network: Network, autojump_clock: MockClock) -> None:
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        number = await a.host.pin(FILE, pin(0, 4), 5)
        breaker = Breaker(a.host, cut(6, 9))
        await breaker.answer()
        assert a.host.may_begin(breaker.number)
        fence = a.host.fence
        network.is_cut = True
        await a.daemon.until(lambda: a.daemon.fences)
        [(pins, why)] = a.daemon.fences
        assert (pins, why) == ((number,), "silent")
        assert trio.current_time() - fence < TIMING.beat_s
        assert a.host.must_ask(INODE)
        assert not a.host.may_begin(breaker.number)
        assert await Breaker(a.host, cut(0, 1), "77.1").answer() == (errno.EIO, "cluster", "")
        with pytest.raises(OSError, match="cluster"):
            await a.host.pin(FILE, pin(0, 4), 5)


async def test_nothing_begins_past_the_fence_even_before_it_has_been_noticed(network: Network) -> None:
    now = 0.0
    async with trio.open_nursery() as nursery:
        hosts = Cluster(nursery, "/p/", network.connect, TIMING, clock=lambda: now)
        a = await hosts.start("a")
        breaker = Breaker(a.host, cut(0, 9))
        assert a.host.fence == pytest.approx(TIMING.pin_ttl_s * CLOCK_TRUST - TIMING.margin_s)
        assert a.host.may_begin(breaker.number)
        assert not a.host.must_ask(INODE)
        now = a.host.fence
        assert not a.host.may_begin(breaker.number)
        assert a.host.must_ask(INODE)
        nursery.cancel_scope.cancel()


async def test_a_fenced_host_joins_anew_and_its_member_before_leaves(
    network: Network, autojump_clock: MockClock
) -> None:
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        before = a.host.status()["incarnation"]
        breaker = Breaker(a.host, cut(0, 9))
        network.is_cut = True
        await a.daemon.until(lambda: a.daemon.fences)
        network.is_cut = False
        await a.daemon.until(lambda: a.daemon.joins == 2)
        assert a.host.status()["incarnation"] != before
        assert a.host.status()["leaving"] == [f"a/{before}"]
        assert len(network.keys("m/")) == 2
        breaker.over()
        await network.until(lambda: len(network.keys("m/")) == 1)


async def test_what_waits_when_the_host_is_fenced_gets_eio(network: Network, autojump_clock: MockClock) -> None:
    async with simulated(network) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        await b.host.pin(FILE, lease(0, 4), 5)
        breaker = Breaker(a.host, cut(0, 9))
        await breaker.waiting()
        network.is_cut = True
        with pytest.raises(OSError, match="cluster") as refused:
            await a.host.pin("7.1", pin(0, 4), 60)
        assert refused.value.errno == errno.EIO
        assert await breaker.answer() == (errno.EIO, "cluster", "")


@pytest.mark.parametrize("noticed_by", ["calls", "watches"])
async def test_a_restored_etcd_fences_and_another_client_goes_on(
    network: Network, autojump_clock: MockClock, noticed_by: str
) -> None:
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        number = await a.host.pin(FILE, pin(0, 4), 5)
        allowed = Breaker(a.host, cut(6, 9))
        await allowed.answer()
        network.restore(noticed_by)
        await a.daemon.until(lambda: a.daemon.joins == 2)
        assert not a.host.may_begin(allowed.number)
        assert a.daemon.fences == [((number,), "restored")]
        assert [client.is_closed for client in network.clients] == [True, False]
        allowed.over()
        await network.until(lambda: len(network.keys("m/")) == 1)
        assert not network.keys("p/")


async def test_a_pin_that_is_gone_before_its_caller_has_heard_of_it(
    network: Network, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence comes between the answer of etcd and the caller's turn."""
    hear = Host._hear

    def hear_and_end(self: Host, driver: Driver, output: Output) -> None:
        hear(self, driver, output)
        if isinstance(output, Pinned):
            driver.feed(driver.member.etcd_restored)

    monkeypatch.setattr(Host, "_hear", hear_and_end)
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        with pytest.raises(OSError, match="cluster"):
            await a.host.pin(FILE, pin(0, 4), 5)
        assert a.daemon.fences == [((), "restored")]


async def test_the_fence_is_noticed_after_a_suspend(network: Network, autojump_clock: MockClock) -> None:
    """In which trio's clock stands still."""
    slept_s = 0.0
    async with trio.open_nursery() as nursery:
        clock = lambda: trio.current_time() + slept_s  # noqa: E731
        a = await Cluster(nursery, "/p/", network.connect, TIMING, clock).start("a")
        network.is_cut = True
        slept_s = 3600.0
        began = trio.current_time()
        assert a.host.must_ask(INODE)
        await a.daemon.until(lambda: a.daemon.fences)
        assert trio.current_time() - began <= 1.0
        nursery.cancel_scope.cancel()


async def test_holders_are_told_if_the_host_itself_fails(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenError(Exception):
        pass

    def broken(self: Member, now: float) -> list[Output]:
        raise BrokenError

    daemon = None
    with pytest.raises(ExceptionGroup) as failed:
        async with trio.open_nursery() as nursery:
            a = await Cluster(nursery, "/p/", network.connect, TIMING).start("a")
            daemon = a.daemon
            number = await a.host.pin(FILE, pin(0, 4), 5)
            monkeypatch.setattr(Member, "tick", broken)
    assert failed.group_contains(BrokenError)
    assert daemon
    assert daemon.fences == [((number,), "failed")]
    assert a.host.must_ask(INODE)
    a.host.release(number)


async def test_a_watch_that_is_refused_is_asked_for_again_with_pauses(
    network: Network, autojump_clock: MockClock
) -> None:
    async with simulated(network) as hosts:
        network.refuses_watches = "permission denied"
        a = hosts.make("a")
        await hosts.nursery.start(a.run)
        await a.daemon.until(lambda: a.daemon.joins)
        await trio.sleep(1)
        assert 2 < a.host.status()["counters"]["watches lost"] < 7
        assert a.host.status()["interrupted_because"]
        network.refuses_watches = ""
        await network.until(lambda: a.host.status()["interrupted_because"] == "")


async def test_a_host_too_many_tries_again(network: Network, autojump_clock: MockClock) -> None:
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        b = hosts.make("b", limits=Limits(hosts=1))
        await hosts.nursery.start(b.run)
        await network.until(lambda: network.calls.count("Revoke") >= 4)
        assert not b.daemon.joins
        assert not b.daemon.fences
        await a.host.leave(5)
        await b.daemon.until(lambda: b.daemon.joins)


async def test_leaving_waits_for_removals_and_for_no_longer_than_it_may(
    network: Network, autojump_clock: MockClock
) -> None:
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        await a.host.pin(FILE, lease(0, 4), 5)
        breaker = Breaker(a.host, cut(6, 9))
        await breaker.answer()
        await a.host.leave(2.0)
        assert network.keys("m/")
        breaker.over()
        await a.host.leave(2.0)
        assert not network.keys("m/") + network.keys("p/") + network.keys("r/")
        assert not a.daemon.fences
        assert a.host.status()["state"] == "stopped"


async def test_leaving_before_it_has_joined(network: Network, autojump_clock: MockClock) -> None:
    network.is_cut = True
    async with simulated(network) as hosts:
        a = hosts.make("a")
        await hosts.nursery.start(a.run)
        await a.host.leave(5.0)
        network.is_cut = False
        await trio.sleep(60)
        assert not a.daemon.joins
        assert not network.keys("m/")


async def test_leaving_when_it_would_join_anew(network: Network, autojump_clock: MockClock) -> None:
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        network.is_cut = True
        await a.daemon.until(lambda: a.daemon.fences)
        network.is_cut = False
        await a.host.leave(5.0)
        await trio.sleep(60)
        assert a.daemon.joins == 1
        assert not network.keys("m/")


async def test_a_pin_that_is_not_wanted_any_more_is_taken_back(network: Network, autojump_clock: MockClock) -> None:
    async with simulated(network) as hosts:
        a = await hosts.start("a")
        for patience_s in (0.0015, 0.0035, 0.0045, 0.0055, 0.0065, 0.0075):  # each at another step
            with trio.move_on_after(patience_s):
                a.host.release(await a.host.pin(FILE, pin(0, 4), 5))
        await network.until(lambda: not network.keys("p/"))
        assert a.host.status()["pins"] == a.host.status()["waiting"] == 0


@pytest.mark.parametrize("is_fenced", [True, False])
async def test_what_was_told_is_over_when_the_pins_are_gone(
    network: Network, autojump_clock: MockClock, is_fenced: bool
) -> None:
    async with simulated(network) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        number = await a.host.pin(FILE, lease(0, 4), 5)
        breaker = Breaker(b.host, cut(0, 2))
        await breaker.waiting()
        await a.daemon.until(lambda: a.daemon.toldings)
        if is_fenced:
            network.is_cut = True
            await a.daemon.until(lambda: a.daemon.over)
        else:
            await a.host.leave(5)
            assert await breaker.answer() == (0, "", "")
        assert a.daemon.over == [a.daemon.toldings[0].removal]
        assert a.daemon.fences == ([((number,), "silent")] if is_fenced else [])


async def test_a_pin_is_refused_when_its_time_is_over(network: Network, autojump_clock: MockClock) -> None:
    async with simulated(network) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        Breaker(b.host, cut(0, 9))
        began = trio.current_time()
        with pytest.raises(OSError, match="host at b"):
            await a.host.pin(FILE, pin(0, 4), 0.3)
        assert trio.current_time() - began == pytest.approx(0.3, abs=0.02)


async def test_a_pin_is_told_of_after_the_daemon_has_its_number(network: Network, autojump_clock: MockClock) -> None:
    """A removal may come in the same moment in which the pin is registered."""
    known: list[int] = []
    heard: list[tuple[Told, int]] = []
    async with simulated(network) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        a.daemon.on_told = lambda told: heard.append((told, len(known)))
        await b.host.pin(FILE, pin(6, 9), 5)
        network.answer_lag_s["p/"] = 0.5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                known.append(await a.host.pin(FILE, lease(0, 4), 5))

            await network.until(lambda: len(network.keys("p/")) == 2)
            breaker = Breaker(b.host, cut(2, 5))
            await breaker.waiting()
            assert not known
        await a.daemon.until(lambda: a.daemon.toldings)
        [(told, how_many_were_known)] = heard
        assert (told.pins, how_many_were_known) == ((known[0],), 1)
        a.host.release(known[0])
        assert await breaker.answer() == (0, "", "")


async def test_a_daemon_that_fails_is_no_reason_to_stop(
    network: Network, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    async with simulated(network) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        a.daemon.on_told = fail
        number = await a.host.pin(FILE, lease(0, 4), 5)
        breaker = Breaker(b.host, cut(0, 2))
        await breaker.waiting()
        await network.until(lambda: "ZeroDivisionError" in caplog.text)
        a.host.release(number)
        assert await breaker.answer() == (0, "", "")


async def test_a_host_that_does_not_run_refuses(network: Network) -> None:
    async with trio.open_nursery() as nursery:
        machine: Machine = Cluster(nursery, "/p/", network.connect, TIMING).make("a")
        assert machine.host.must_ask(INODE)
        assert await Breaker(machine.host, cut(0, 9)).answer() == (errno.EIO, "cluster", "")
        with pytest.raises(OSError, match="cluster"):
            await machine.host.pin(FILE, pin(0, 4), 5)
        assert not machine.host.forget("b")
        assert machine.host.status()["state"] == "stopped"


@pytest.mark.parametrize("name", ["", "a/b", "x" * 65])
def test_a_name_that_no_key_can_carry(network: Network, name: str) -> None:
    with pytest.raises(ValueError):
        Cluster(None, "/p/", network.connect, TIMING).make(name)  # type: ignore[arg-type]
