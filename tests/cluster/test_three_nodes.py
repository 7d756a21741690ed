"""The client and three real nodes that die, stop and come back."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from cluster.conftest import StartNodes
from cluster.nodes import Node, wait_until
from cluster.test_node import LIMIT_S, PATIENT, changes, value_of
from pinfs.cluster.etcd import (
    Compare,
    Done,
    Etcd,
    Limits,
    Put,
    Range,
    Refused,
    Restored,
    Unknown,
    Unreachable,
    below,
    one,
)

pytestmark = pytest.mark.etcd
QUICK = Limits(call_s=1.5, attempt_s=0.5, bad_for_s=2, silence_s=1)


@pytest.fixture
def three(start_nodes: StartNodes) -> list[Node]:
    return start_nodes("abc")


def _leader(nodes: list[Node]) -> Node:
    leaders: list[Node] = []

    def is_found() -> bool:
        leaders[:] = [node for node in nodes if node.is_leader()]
        return len(leaders) == 1

    wait_until(is_found, "there is no leader")
    return leaders[0]


async def _until_done(put: Callable[[], Awaitable[object]]) -> int:
    """The calls that it took."""
    calls = 0
    with trio.fail_after(LIMIT_S):
        while True:
            calls += 1
            outcome = await put()
            assert not isinstance(outcome, Refused | Restored), outcome
            if isinstance(outcome, Done):
                return calls


async def test_the_leader_dies(three: list[Node]) -> None:
    """Keys, leases and the watch survive it, without a gap or a double."""
    leader = _leader(three)
    others = [node for node in three if node is not leader]
    number = 0
    async with Etcd([node.endpoint for node in (leader, *others)], limits=QUICK) as client:

        async def put() -> object:
            nonlocal number
            number += 1
            return await client.txn(
                [Compare(one(b"/%d" % number), "create", "=", 0)], [Put(b"/%d" % number, b"", lease)]
            )

        lease = value_of(await client.lease_grant(600)).lease
        async with client.watch(below(b"/"), 1) as watch:
            for _ in range(20):
                await _until_done(put)
            last = value_of(await client.range(Range(below(b"/")))).items[0].mod_revision
            seen = await changes(watch, last)
            leader.kill()
            began = trio.current_time()
            calls = await _until_done(put)
            took_s = trio.current_time() - began
            for _ in range(20):
                await _until_done(put)
            items = value_of(await client.range(Range(below(b"/")))).items
            revisions = sorted(item.mod_revision for item in items)
            seen += await changes(watch, revisions[-1]) if seen[-1] < revisions[-1] else []
        assert seen == revisions
        assert {item.version for item in items} == {1}
        assert value_of(await client.lease_keepalive(lease)) == 600
    print(f"the first put after {took_s:.2f} s and {calls} calls; {len(items)} keys of {number} puts")


async def test_a_node_without_a_majority(three: list[Node]) -> None:
    """It answers no call in time, and its watch says that it stands still, until the others come back."""
    alone, *others = three
    async with Etcd([alone.endpoint], limits=QUICK) as client:
        first = await client.put(b"/k", b"1")
        assert isinstance(first, Done)
        async with client.watch(below(b"/"), first.revision) as watch, trio.open_nursery() as nursery:
            assert await changes(watch, first.revision) == [first.revision]
            for node in others:
                node.suspend()
            began = trio.current_time()
            assert isinstance(await client.put(b"/k", b"2"), Unknown)
            for outcome in (await client.range(Range(one(b"/k"))), await client.lease_keepalive(1)):
                assert isinstance(outcome, Unreachable)
            assert trio.current_time() - began < 10 * QUICK.call_s
            seen: list[int] = []

            async def watching() -> None:
                seen.extend(await changes(watch, first.revision + 1))

            nursery.start_soon(watching)
            with trio.fail_after(LIMIT_S):
                while not watch.interrupted_because:
                    await trio.sleep(0.05)
            assert "no leader" in watch.interrupted_because
            for node in others:
                node.resume()
            await _until_done(lambda: client.put(b"/k", b"3"))
        assert seen[0] == first.revision + 1
        assert seen == sorted({*seen})


async def test_without_the_header_such_a_watch_stays_open(three: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Grpc-Metadata-hasleader` is for."""
    monkeypatch.setattr("pinfs.cluster.etcd.watch.HAS_LEADER", ("X-Nothing", "true"))
    alone, *others = three
    async with Etcd([alone.endpoint], limits=PATIENT) as client:
        first = await client.put(b"/k", b"1")
        assert isinstance(first, Done)
        async with client.watch(below(b"/"), first.revision) as watch:
            await changes(watch, first.revision)
            for node in others:
                node.suspend()
            with trio.move_on_after(6) as scope:  # with the header it ends after two
                await anext(watch)
            assert scope.cancelled_caught
            assert not watch.interrupted_because
            for node in others:
                node.resume()


async def test_a_node_that_stops_is_left(three: list[Node]) -> None:
    """Its connections stay open: time limits and silence tell."""
    leader = _leader(three)
    stopped = next(node for node in three if node is not leader)
    others = [node for node in three if node is not stopped]
    async with Etcd([node.endpoint for node in (stopped, *others)], limits=QUICK) as client:
        first = await client.put(b"/k", b"1")
        assert isinstance(first, Done)
        async with client.watch(below(b"/"), first.revision) as watch:
            assert await changes(watch, first.revision) == [first.revision]
            stopped.suspend()
            assert isinstance(await client.range(Range(one(b"/k"))), Done)
            assert isinstance(second := await client.put(b"/k", b"2"), Done)
            assert await changes(watch, second.revision) == [second.revision]
        stopped.resume()


async def test_answers_of_several_nodes_tell_of_one_history(three: list[Node]) -> None:
    """However calls and nodes mix: no revision seems to go back. Tasks ask nodes at random, while one of them is
    stopped again and again, so that it lags."""
    endpoints = [node.endpoint for node in three]
    draw = random.Random(random.random())
    outcomes: list[object] = []
    lagging = next(node for node in three if not node.is_leader())
    async with Etcd(endpoints, limits=QUICK) as client:

        async def ask(name: int) -> None:
            key = b"/%d" % name
            calls: list[Callable[[], Awaitable[object]]] = [
                partial(client.put, key, b""),
                partial(client.delete, one(key)),
                partial(client.range, Range(one(key))),
                partial(client.txn, [], [Range(one(key))]),
                partial(client.lease_grant, 60),
                partial(client.lease_keepalive, 1),
                client.status,
            ]
            while trio.current_time() < end:
                client._transport.endpoints.worked(draw.choice(endpoints))
                outcomes.append(await draw.choice(calls)())

        end = trio.current_time() + 5
        async with trio.open_nursery() as nursery:
            for name in range(8):
                nursery.start_soon(ask, name)
            while trio.current_time() < end:
                lagging.suspend()
                await trio.sleep(0.1)
                lagging.resume()
                await trio.sleep(0.1)
    assert sum(isinstance(outcome, Done) for outcome in outcomes) > 100
    assert [outcome for outcome in outcomes if isinstance(outcome, Restored | Refused)] == []
    print(f"{len(outcomes)} calls")
