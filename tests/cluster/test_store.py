"""A member's words in those of the client, over one real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from cluster.hosts import CLIENT, LIMIT_S
from cluster.nodes import Node
from pinfs.cluster import etcd
from pinfs.cluster.etcd import Etcd, Found, Outcome, Restored, Unreachable
from pinfs.cluster.messages import (
    Batch,
    Compare,
    Delete,
    Deleted,
    Done,
    Grant,
    KeepAlive,
    KeyValue,
    LeaseDone,
    LeaseGone,
    Put,
    Range,
    Refused,
    Relation,
    Request,
    Revoke,
    Target,
    Txn,
    absent,
    all_above,
    none_newer,
    unchanged,
)
from pinfs.cluster.store import Store


class Changing(Etcd):
    """`between`: a key that is deleted after the first page of a read. `compacts`: the store is compacted there."""

    node: Node
    between = b""
    compacts = False

    async def range(self, request: etcd.Range) -> Outcome[Found]:
        page = await super().range(request)
        if self.between:
            self.node.delete(self.between)
            if self.compacts:
                self.node.compact(self.node.put(b"/other", b""))
            self.between = b""
        return page


@pytest.fixture
async def changing(node: Node) -> AsyncIterator[Changing]:
    client = Changing([node.endpoint], limits=CLIENT)
    client.node = node
    async with client:
        yield client


@pytest.fixture
def store(changing: Changing, prefix: bytes) -> Store:
    return Store(lambda: changing, prefix.decode())


async def done(store: Store, request: Request) -> Done:
    answer = await store.ask(request)
    assert isinstance(answer, Done), answer
    return answer


async def test_a_transaction_and_its_conditions(store: Store) -> None:
    put = await done(store, Txn((absent("m/a"),), (Put("m/a", "0005 x"), Put("c", "1"))))
    assert put.succeeded
    found = await done(store, Txn((absent("m/a"),), (), (Range("m/a"), Range("none"))))
    assert not found.succeeded
    assert found.ranges == ((KeyValue("m/a", "0005 x", put.revision, 1),), ())

    async def holds(*compares: Compare) -> bool:
        return (await done(store, Txn(compares, ()))).succeeded

    for condition in (unchanged("m/a", put.revision), none_newer("m/", put.revision), none_newer("r/", 0)):
        assert await holds(condition)
    assert await holds(all_above("m/", "0005"), Compare("m/a", Target.VALUE, Relation.EQUAL, "0005 x"))
    for condition in (unchanged("m/a", put.revision + 1), none_newer("m/", put.revision - 1), all_above("m/", "0006")):
        assert not await holds(condition)
    await done(store, Txn((), (Delete("m/", prefix=True),)))
    assert (await done(store, Txn((), (Range("", prefix=True),)))).ranges == ((KeyValue("c", "1", put.revision, 1),),)


async def test_leases(store: Store) -> None:
    granted = await store.ask(Grant(59.5))
    assert isinstance(granted, LeaseDone)
    await done(store, Txn((), (Put("k", "v", granted.lease),)))
    for request in (KeepAlive(granted.lease), Revoke(granted.lease)):
        assert await store.ask(request) == granted
    assert not (await done(store, Txn((), (Range("", prefix=True),)))).ranges[0]
    for gone in (KeepAlive(granted.lease), Revoke(granted.lease), Txn((), (Put("k", "v", granted.lease),))):
        assert await store.ask(gone) == LeaseGone()


async def test_many_keys_are_read_as_of_one_revision(
    store: Store, changing: Changing, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinfs.cluster.store.PAGE_KEYS", 3)
    puts = [await done(store, Txn((), (Put(f"k/{number}", "v"),))) for number in range(7)]
    changing.between = prefix + b"k/6"
    read = await done(store, Txn((), (Range("k/", prefix=True),)))
    assert [item.key for item in read.ranges[0]] == [f"k/{number}" for number in range(7)]
    assert read.revision == puts[-1].revision
    assert len((await done(store, Txn((), (Range("k/", prefix=True),)))).ranges[0]) == 6


async def test_a_read_of_many_keys_fails_if_etcd_is_compacted_meanwhile(
    store: Store, changing: Changing, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinfs.cluster.store.PAGE_KEYS", 1)
    for number in range(2):
        await done(store, Txn((), (Put(f"k/{number}", "v"),)))
    changing.between, changing.compacts = prefix + b"k/1", True
    answer = await store.ask(Txn((), (Range("k/", prefix=True),)))
    assert isinstance(answer, Refused)
    assert "compacted" in answer.why


async def test_a_watch_brings_each_revision_by_itself(store: Store, node: Node, prefix: bytes) -> None:
    first = await done(store, Txn((), (Put("a", "1"), Put("b", "2"))))
    second = await done(store, Txn((), (Delete("a"),)))
    node.put(prefix + b"\xff", b"\xfe")
    batches: list[Batch] = []
    with trio.fail_after(LIMIT_S), trio.CancelScope() as scope:

        def take(batch: Batch) -> None:
            batches.append(batch)
            if len(batches) == 3:
                scope.cancel()

        await store.follow(first.revision, take)
    assert batches == [
        Batch(first.revision, (KeyValue("a", "1", first.revision, 1), KeyValue("b", "2", first.revision, 1))),
        Batch(second.revision, (Deleted("a", second.revision),)),
        Batch(second.revision + 1, (KeyValue("\ufffd", "\ufffd", second.revision + 1, 1),)),
    ]
    assert store.interrupted_because


async def test_a_watch_of_what_is_compacted_is_lost(store: Store, node: Node) -> None:
    first = await done(store, Txn((), (Put("a", "1"),)))
    node.compact(node.put(b"/other", b""))
    with trio.fail_after(LIMIT_S):
        ended = await store.follow(first.revision, lambda _: None)
    assert isinstance(ended, Refused)
    assert store.counters["watches lost"] == 1


async def test_one_of_several_calls_that_meet_a_restored_etcd_makes_a_new_client(prefix: bytes) -> None:
    clients: list[Useless] = []

    class Useless(Etcd):
        def __init__(self) -> None:
            clients.append(self)
            self.is_closed = False

        async def lease_revoke(self, lease: int) -> Outcome[None]:
            await trio.lowlevel.checkpoint()
            return Restored("the revision went back") if self is clients[0] else Unreachable("nowhere")

        async def aclose(self) -> None:
            self.is_closed = True

    store = Store(Useless, prefix.decode())
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(store.ask, Revoke(1))
    assert [client.is_closed for client in clients] == [True, False]
    assert store.counters["restored"] == 1
    assert await store.ask(Revoke(1)) == Refused("nowhere")
