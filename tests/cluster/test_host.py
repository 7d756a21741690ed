"""Hosts over a real etcd: pins and removals."""

from __future__ import annotations

import errno

import pytest
import trio

from cluster.hosts import FILE, INODE, Breaker, cluster, cut, lease, pin
from cluster.nodes import Node


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
