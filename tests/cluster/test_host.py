"""Hosts over a real etcd: pins and removals."""

from __future__ import annotations

import errno
import random
from collections import Counter

import pytest
import trio
from support import seeds

from cluster.hosts import FILE, INODE, LIMIT_S, Breaker, Machine, cluster, cut, lease, pin, until
from cluster.nodes import Node
from pinfs.core.pins import Mode


async def test_a_host_joins_and_leaves_nothing_behind(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a = await hosts.start("a")
        status = a.host.status()
        assert (status["host"], status["state"]) == ("a", "joined")
        assert [(member["host"], member["own"]) for member in status["members"]] == [("a", True)]
        assert 0 < status["fence_in_s"] < 20
        assert node.count(prefix) == 1
        with trio.fail_after(60):
            await a.host.leave(60)
        assert a.host.must_ask(INODE)
        assert node.count(prefix) == 0


async def test_a_removal_of_a_file_without_pins_is_answered_at_once(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a = await hosts.start("a")
        assert not a.host.must_ask(INODE)
        breaker = Breaker(a.host, cut(0, 9))
        assert breaker.allowed
        assert a.host.may_begin(breaker.number)
        breaker.over()
        breaker.over()
        assert not a.host.may_begin(breaker.number)


async def test_a_deny_pin_refuses_removals_of_other_hosts_and_names_its_own(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        number = await a.host.pin(FILE, pin(0, 4), 60)
        assert b.host.must_ask(INODE)
        assert not b.host.must_ask(INODE + 1)
        assert await Breaker(b.host, cut(0, 2)).answer() == (errno.EBUSY, "deny", "a")
        beside = Breaker(b.host, cut(4, 8))
        assert await beside.answer() == (0, "", "")
        beside.over()
        await b.host.pin(FILE, pin(0, 4), 60)
        a.host.release(number)
        assert (a.host.status()["pins"], b.host.status()["pins"]) == (0, 1)
        assert a.host.status()["interrupted_because"] == ""


async def test_a_lease_is_told_released_and_cut(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        number = await a.host.pin(FILE, lease(0, 4), 60)
        breaker = Breaker(b.host, cut(2, 9))
        await breaker.waiting()
        assert breaker.waits[0].hosts == ("a",)
        await a.daemon.until(lambda: a.daemon.toldings)
        [told] = a.daemon.toldings
        assert (told.start, told.end, told.operation, told.pins) == (2, 9, "truncate", (number,))
        a.host.release(number)
        assert await breaker.answer() == (0, "", "")
        with pytest.raises(OSError, match="removal at b") as refused:
            await a.host.pin(FILE, pin(0, 4), 60)
        assert refused.value.errno == errno.EAGAIN
        breaker.over()
        await a.daemon.until(lambda: a.daemon.over)
        assert a.daemon.over == [told.removal]
        await a.host.pin(FILE, pin(0, 4), 60)


async def test_a_holders_daemon_that_does_not_let_go_says_why(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        a.daemon.on_told = lambda told: a.host.deny(told.removal, "busy")
        await a.host.pin(FILE, lease(0, 4), 60)
        assert await Breaker(b.host, cut(2, 9)).answer() == (errno.EBUSY, "busy", "a")
        await a.daemon.until(lambda: a.daemon.over)


async def test_a_breaker_that_goes_takes_its_removal_along(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        await a.host.pin(FILE, lease(0, 4), 60)
        breaker = Breaker(b.host, cut(2, 9))
        await breaker.waiting()
        await a.daemon.until(lambda: a.daemon.toldings)
        breaker.over()
        await a.daemon.until(lambda: a.daemon.over)
        assert not breaker.is_answered
        assert b.host.status()["waiting"] == 0
        await until(lambda: node.count(prefix + b"r/") == 0)


async def test_a_pin_waits_until_a_removal_that_has_not_asked_is_over(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        breaker = Breaker(b.host, cut(0, 9))
        with pytest.raises(OSError, match="host at b") as refused:
            await a.host.pin(FILE, pin(0, 4), 0.1)
        assert refused.value.errno == errno.EAGAIN
        assert b.host.may_begin(breaker.number)
        breaker.over()
        await a.host.pin(FILE, pin(0, 4), 60)


async def test_names_that_no_key_can_carry(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a = await hosts.start("a")
        with pytest.raises(ValueError, match="a/b"):
            await a.host.pin("a/b", pin(0, 4), 60)
        with pytest.raises(ValueError, match="a/b"):
            Breaker(a.host, cut(0, 4), "a/b")
        assert (a.host.status()["removals"], a.host.status()["pins"]) == (0, 0)


async def test_a_host_joins_however_many_keys_there_are(
    node: Node, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read in pages, while they change."""
    monkeypatch.setattr("pinfs.cluster.store.PAGE_KEYS", 3)
    files = [f"{number:x}.0" for number in range(20)]
    async with cluster(prefix, node.endpoint) as hosts:
        a = await hosts.start("a")
        for file in files:
            await a.host.pin(file, pin(0, 4), 60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.host.pin, "ff.0", pin(0, 4), 60)
            b = await hosts.start("b")
        assert all(b.host.must_ask(number) for number in range(20))
        await until(lambda: b.host.must_ask(0xFF))
        assert b.host.status()["marks"] == 21


async def test_a_daemon_of_another_version_keeps_hosts_out(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a = await hosts.start("a")
        node.put(prefix + b"x/\xff", b"")
        await a.daemon.until(lambda: a.daemon.fences)
        [(_, why)] = a.daemon.fences
        assert why.startswith("unreadable: ")
        node.delete(prefix + b"x/\xff")
        await a.daemon.until(lambda: a.daemon.joins == 2)


async def test_a_dead_host_is_forgotten_by_an_operator(node: Node, prefix: bytes) -> None:
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        await b.host.pin(FILE, lease(0, 4), 60)
        await b.stop()
        breaker = Breaker(a.host, cut(0, 9))
        await breaker.waiting()
        assert not a.host.forget("a")
        assert not a.host.forget("c")
        assert a.host.forget("b")
        assert await breaker.answer() == (0, "", "")
        await until(lambda: [member["host"] for member in a.host.status()["members"]] == ["a"])
        await a.host.pin("99.1", pin(0, 4), 60)


class Race:
    """A pin and a removal of a fresh file, on two hosts. The oracle knows what the holder and the breaker know."""

    def __init__(self, holder: Machine, breaker: Machine, number: int, chance: random.Random) -> None:
        self.holder, self.breaker = holder, breaker
        self.number = number
        self.chance = chance
        self.value = chance.choice([pin, lease])(0, 4)
        self.ends: list[str] = []
        self._is_pinned = self._is_cutting = False
        self._cut = trio.Event()

    async def run(self) -> None:
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hold)
                nursery.start_soon(self._remove)

    @property
    def _file(self) -> str:
        return f"{self.number:x}.0"

    async def _dawdle(self, steps: int = 30) -> None:
        for _ in range(self.chance.randrange(steps)):
            await trio.lowlevel.checkpoint()

    async def _hold(self) -> None:
        await self._dawdle()
        try:
            held = await self.holder.host.pin(self._file, self.value, LIMIT_S)
        except OSError as error:
            assert error.errno == errno.EAGAIN
            self.ends.append("pin refused")
            return
        assert not self._is_cutting
        self._is_pinned = True
        self.ends.append("pinned")
        if self.value.mode is Mode.LEASE:
            daemon = self.holder.daemon
            await daemon.until(lambda: self._cut.is_set() or any(held in told.pins for told in daemon.toldings))
        else:
            await self._cut.wait()
        await self._dawdle()
        self._is_pinned = False
        self.holder.host.release(held)

    async def _remove(self) -> None:
        host = self.breaker.host
        if self.chance.random() < 0.7:  # else mostly before the mark
            while not host.must_ask(self.number):
                await trio.lowlevel.checkpoint()
        await self._dawdle(100)
        if not host.must_ask(self.number) and self.chance.random() < 0.5:
            self._begin()
            self._end("cut at once")
            return
        removal = Breaker(host, cut(2, 12), self._file)
        refused, _, _ = await removal.answer()
        if not refused and host.may_begin(removal.number):
            self._begin()
            await self._dawdle()
        removal.over()
        self._end("removal refused" if refused else "cut after a wait" if removal.waits else "cut")

    def _begin(self) -> None:
        assert not self._is_pinned
        self._is_cutting = True

    def _end(self, how: str) -> None:
        assert not (self._is_cutting and self._is_pinned)
        self._is_cutting = False
        self.ends.append(how)
        self._cut.set()
        self.holder.daemon.change()


async def test_no_pin_is_cut_in_three_hundred_races(node: Node, prefix: bytes) -> None:
    chance = seeds.chance("races")
    ends: Counter[str] = Counter()
    async with cluster(prefix, node.endpoint) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        for number in range(300):
            race = Race(*((a, b) if chance.random() < 0.5 else (b, a)), number, chance)
            await race.run()
            ends.update(race.ends)
        print(f"\n{dict(ends)}")
        assert {"pinned", "removal refused", "cut", "cut after a wait", "cut at once"} <= ends.keys()
        await until(lambda: node.count(prefix + b"p/") + node.count(prefix + b"r/") == 0)
