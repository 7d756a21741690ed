"""Hosts that die or are cut off, daemons that are replaced, and an etcd that dies, forgets and is restored."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import StartNodes
from cluster.hosts import FILE, INODE, MORTAL, Breaker, Cluster, Machine, cluster, connecting, cut, lease, pin, until
from cluster.nodes import Node
from cluster.proxy import Proxy
from pinfs.cluster.former import boottime
from pinfs.cluster.keys import PinValue
from pinfs.cluster.membership import CLOCK_TRUST
from pinfs.cluster.outputs import Told


async def cut_off(hosts: Cluster, node: Node, name: str) -> tuple[Machine, Proxy]:
    """A host with a way to etcd of its own, which goes on for now."""
    proxy = Proxy(hosts.nursery, node.client_port)
    await proxy.start()
    return await hosts.start(name, connecting(proxy.endpoint)), proxy


async def test_the_pins_of_a_dead_host_end_after_its_time_to_live(node: Node, prefix: bytes) -> None:
    """And not before; its promise later still."""
    async with cluster(prefix, node.endpoint, timing=MORTAL) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        await a.host.pin(FILE, lease(0, 4), 60)
        await a.stop()
        last_beat = a.daemon.kept["fence"] - MORTAL.pin_ttl_s * CLOCK_TRUST + MORTAL.margin_s
        breaker = Breaker(b.host, cut(0, 2))
        assert await breaker.answer() == (0, "", "")
        assert breaker.answered_at > last_beat + MORTAL.pin_ttl_s
        breaker.over()
        with pytest.raises(OSError, match="host at a"):
            await b.host.pin("99.1", pin(0, 4), 0.1)
        await b.host.pin("99.1", pin(0, 4), 60)
        assert boottime() > last_beat + MORTAL.member_ttl_s
        print(f"\npins ended {breaker.answered_at - last_beat:.2f} s after the last beat, of {MORTAL.pin_ttl_s} s")


async def test_a_host_that_is_cut_off_tells_its_holders_before_others_may_cut(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint, timing=MORTAL) as hosts:
        a, proxy = await cut_off(hosts, node, "a")
        b = await hosts.start("b")
        number = await a.host.pin(FILE, lease(0, 4), 60)
        allowed = Breaker(a.host, cut(0, 9), "77.1")
        assert a.host.may_begin(allowed.number)
        proxy.cut()
        cut_at = boottime()
        breaker = Breaker(b.host, cut(0, 2))
        waiting = Breaker(a.host, cut(6, 9))
        await a.daemon.until(lambda: a.daemon.fences)
        assert not breaker.is_answered
        assert a.daemon.fences == [((number,), "silent")]
        assert not a.host.may_begin(allowed.number)
        assert await waiting.answer() == (errno.EIO, "cluster", "")
        assert a.host.must_ask(INODE + 1)
        assert await Breaker(a.host, cut(6, 9), "99.1").answer() == (errno.EIO, "cluster", "")
        assert await breaker.answer() == (0, "", "")
        assert a.daemon.fenced_at[0] < breaker.answered_at
        told_s, cut_s = a.daemon.fenced_at[0] - cut_at, breaker.answered_at - cut_at
        print(f"\ntold after {told_s:.2f} s, others cut after {cut_s:.2f} s")
        breaker.over()
        allowed.over()
        proxy.mend()
        await a.daemon.until(lambda: a.daemon.joins == 2)
        await a.host.pin(FILE, lease(0, 4), 60)


async def test_etcd_dies_and_comes_back(start_nodes: StartNodes) -> None:
    """Pins stand, and all goes on."""
    [node] = start_nodes()
    async with cluster(b"/p/", node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        number = await a.host.pin(FILE, lease(0, 4), 60)
        node.kill()
        breaker = Breaker(b.host, cut(0, 2))
        assert not b.host.must_ask(INODE + 1)
        node.start_again()
        await breaker.waiting()
        await a.daemon.until(lambda: a.daemon.toldings)
        a.host.release(number)
        assert await breaker.answer() == (0, "", "")
        breaker.over()
        assert not a.daemon.fences + b.daemon.fences


@pytest.mark.etcd
async def test_the_leader_of_three_nodes_dies(start_nodes: StartNodes) -> None:
    """Nobody is fenced, and pins are registered and refuse removals as before."""
    nodes = start_nodes("abc")
    async with cluster(b"/p/", *(node.endpoint for node in nodes)) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        await a.host.pin(FILE, pin(0, 4), 60)
        next(node for node in nodes if node.is_leader()).kill()
        await a.host.pin("99.1", pin(0, 4), 60)
        for file in (FILE, "99.1"):
            assert await Breaker(b.host, cut(0, 9), file).answer() == (errno.EBUSY, "deny", "a")
        assert not a.daemon.fences + b.daemon.fences


async def test_a_pin_whose_answers_are_lost_is_not_left_in_etcd(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, proxy = await cut_off(hosts, node, "a")
        await a.host.pin(FILE, pin(8, 9), 60)
        proxy.lost = "answers"
        with pytest.raises(OSError, match="etcd") as refused:
            await a.host.pin(FILE, pin(0, 4), 0.3)
        assert refused.value.errno == errno.EIO
        assert node.count(prefix + b"p/") == 2
        proxy.lost = ""
        await until(lambda: node.count(prefix + b"p/") == 1)
        assert not a.daemon.fences
        assert a.host.status()["counters"]["unanswered"]


async def test_etcd_is_restored_from_a_snapshot(start_nodes: StartNodes, etcdctl: Path) -> None:
    """All hosts are fenced and join anew, and what the snapshot has of them goes."""
    [node] = start_nodes()
    async with cluster(b"/p/", node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        number = await a.host.pin(FILE, pin(0, 4), 60)
        node.snapshot(etcdctl)
        await b.host.pin(FILE, pin(0, 4), 60)
        node.kill()
        node.restore(etcdctl)
        node.start_again()
        await a.daemon.until(lambda: a.daemon.joins == 2)
        await b.daemon.until(lambda: b.daemon.joins == 2)
        assert a.daemon.fences == [((number,), "restored")]
        assert b.daemon.fences[0][1] == "restored"
        await until(lambda: node.count(b"/p/m/") == 2 and node.count(b"/p/p/") == 0)
        await a.host.pin("99.1", pin(0, 4), 60)
        assert await Breaker(b.host, cut(0, 9), "99.1").answer() == (errno.EBUSY, "deny", "a")


async def test_a_watch_that_comes_too_late_has_everything_read_anew(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, proxy = await cut_off(hosts, node, "a")
        b = await hosts.start("b")
        proxy.lost = "answers"
        with pytest.raises(OSError, match="host at a"):  # and so the mark is there
            await b.host.pin(FILE, pin(0, 4), 0.5)
        assert not a.host.must_ask(INODE)
        node.compact(node.put(b"/other", b""))
        proxy.lost = ""
        await until(lambda: a.host.must_ask(INODE))
        assert a.host.status()["counters"]["watches lost"] == 1
        assert not a.daemon.fences
        await b.host.pin(FILE, pin(0, 4), 60)
        assert await Breaker(a.host, cut(0, 9)).answer() == (errno.EBUSY, "deny", "b")


class Next:
    """A daemon that goes on for one that has died. `ended`: tokens of pins that end while etcd is asked."""

    def __init__(
        self, hosts: Cluster, state: dict[str, Any], *pins: tuple[int, str, PinValue], ended: tuple[int, ...] = ()
    ) -> None:
        self.machine = hosts.make("a")
        self.host, self.daemon = self.machine.host, self.machine.daemon
        self.ended = ended
        self.numbers: dict[int, int] = {}
        self.matches = 0
        self.host.resume(state, pins, self._matched)

    def _matched(self, numbers: dict[int, int]) -> list[int]:
        assert not self.daemon.joins
        self.numbers = numbers
        self.matches += 1
        return [numbers[token] for token in self.ended]

    def let_go(self, told: Told) -> None:
        for number in told.pins:
            self.host.release(number)

    async def join(self, hosts: Cluster) -> None:
        await hosts.nursery.start(self.machine.run)
        await self.daemon.until(lambda: self.daemon.joins)
        assert self.matches == 1


async def test_the_next_daemon_goes_on_with_the_pins(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        for value in (lease(0, 4), lease(0, 4), pin(8, 9), pin(20, 30)):
            await a.host.pin(FILE, value, 60)
        await a.stop()
        state = {**a.daemon.kept, "is_settled": True}
        again = Next(
            hosts, state, (7, FILE, lease(0, 4)), (8, FILE, lease(0, 4)), (9, FILE, pin(8, 9)), (5, "1.1", pin(0, 4))
        )
        await again.join(hosts)
        assert again.daemon.kept["incarnation"] == a.daemon.kept["incarnation"]
        assert again.daemon.kept["life"] == 1
        assert again.numbers.keys() == {7, 8, 9}
        assert again.host.status()["pins"] == 3
        await until(lambda: node.count(prefix + b"p/") == 3)
        assert await Breaker(b.host, cut(8, 12)).answer() == (errno.EBUSY, "deny", "a")
        breaker = Breaker(b.host, cut(20, 22))
        assert await breaker.answer() == (0, "", "")
        breaker.over()
        again.daemon.on_told = again.let_go
        breaker = Breaker(b.host, cut(0, 2))
        assert await breaker.answer() == (0, "", "")
        breaker.over()
        assert {number for told in again.daemon.toldings for number in told.pins} == {
            again.numbers[7],
            again.numbers[8],
        }
        assert not b.daemon.fences
        await again.host.pin("99.1", pin(0, 4), 60)


async def test_keys_that_may_be_of_the_same_pin_stay_as_long_as_it_does(node: Node, prefix: bytes) -> None:
    """One of them may be that of a released pin, and about to be deleted."""
    async with cluster(prefix, node.endpoint) as hosts:
        a = await hosts.start("a")
        for _ in range(3):
            await a.host.pin(FILE, pin(0, 4), 60)
        await a.stop()
        again = Next(hosts, a.daemon.kept, (7, FILE, pin(0, 4)), (8, FILE, pin(0, 4)))
        await again.join(hosts)
        assert again.host.status()["pins"] == 2
        again.host.release(again.numbers[7])
        await until(lambda: node.count(prefix + b"p/") == 2)
        again.host.release(again.numbers[8])
        await until(lambda: node.count(prefix + b"p/") == 0)


async def test_pins_that_end_while_the_next_daemon_asks_etcd_are_released(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        for value in (pin(0, 4), pin(8, 9), pin(8, 9)):
            await a.host.pin(FILE, value, 60)
        await a.stop()
        before = [(7, FILE, pin(0, 4)), (8, FILE, pin(8, 9)), (9, FILE, pin(8, 9))]
        again = Next(hosts, {**a.daemon.kept, "is_settled": True}, *before, ended=(7, 9))
        await again.join(hosts)
        assert again.host.status()["pins"] == 1
        await until(lambda: node.count(prefix + b"p/") == 1)
        assert await Breaker(b.host, cut(8, 12)).answer() == (errno.EBUSY, "deny", "a")
        breaker = Breaker(b.host, cut(0, 4))
        assert await breaker.answer() == (0, "", "")
        breaker.over()


async def test_the_next_daemon_comes_after_the_fence(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a = await hosts.start("a")
        await a.host.pin(FILE, lease(0, 4), 60)
        await a.stop()
        again = Next(hosts, {**a.daemon.kept, "fence": boottime() - 1}, (7, FILE, lease(0, 4)))
        await again.join(hosts)
        assert again.numbers == {}
        assert again.daemon.kept["incarnation"] != a.daemon.kept["incarnation"]


@pytest.mark.parametrize(
    "wrong", [{"boot": "of before"}, {"host": "b"}, {"prefix": "/q/"}, {"life": "x"}, {"fence": None}]
)
async def test_a_state_of_elsewhere_is_not_gone_on_with(node: Node, prefix: bytes, wrong: dict[str, Any]) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a = await hosts.start("a")
        await a.stop()
        again = Next(hosts, {**a.daemon.kept, **wrong}, (7, FILE, lease(0, 4)))
        await again.join(hosts)
        assert again.numbers == {}
        assert again.daemon.kept["incarnation"] != a.daemon.kept["incarnation"]


async def test_the_next_daemon_is_fenced_if_others_have_buried_its_member(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        await a.host.pin(FILE, lease(0, 4), 60)
        await a.stop()
        assert b.host.forget("a")
        await until(lambda: node.count(prefix + b"m/") == 1)
        again = Next(hosts, a.daemon.kept, (7, FILE, lease(0, 4)))
        await again.join(hosts)
        assert again.numbers == {}
        assert again.daemon.kept["incarnation"] != a.daemon.kept["incarnation"]
        await again.host.pin(FILE, lease(0, 4), 60)


async def test_etcd_cannot_be_reached_until_the_fence_of_the_daemon_before(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint, timing=MORTAL) as hosts:
        a = await hosts.start("a")
        await a.host.pin(FILE, lease(0, 4), 60)
        await a.stop()
        proxy = Proxy(hosts.nursery, node.client_port)
        await proxy.start()
        proxy.cut()
        hosts.connect = connecting(proxy.endpoint)
        again = Next(hosts, a.daemon.kept, (7, FILE, lease(0, 4)))
        await hosts.nursery.start(again.machine.run)
        await until(lambda: again.matches)
        assert again.numbers == {}
        assert 0 <= boottime() - a.daemon.kept["fence"] < 0.5
        proxy.mend()
        await again.daemon.until(lambda: again.daemon.joins)
