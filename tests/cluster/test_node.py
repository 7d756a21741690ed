"""The client and one real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
import trio

from cluster.conftest import StartNodes
from cluster.nodes import Node, b64, wait_until
from cluster.proxy import Proxy
from pinfs.cluster.etcd import (
    Code,
    CompactedError,
    Compare,
    Credentials,
    Delete,
    Deleted,
    DeniedError,
    Done,
    Etcd,
    Found,
    Limits,
    Outcome,
    Put,
    Range,
    Refused,
    Restored,
    Stored,
    TxnResult,
    Unknown,
    Unreachable,
    Watch,
    below,
    one,
)

PATIENT = Limits(call_s=20, attempt_s=20)
"""For what must work however busy the machine is."""
LIMIT_S = 60
T = TypeVar("T")


def value_of(outcome: Outcome[T]) -> T:
    assert isinstance(outcome, Done), outcome
    return outcome.value


async def test_keys_are_put_found_and_deleted(client: Etcd, prefix: bytes) -> None:
    key = prefix + b"\xff\0"
    put = await client.put(key, b"\0v")
    assert isinstance(put, Done)
    found = await client.range(Range(below(prefix)))
    assert isinstance(found, Done)
    [item] = found.value.items
    assert (item.key, item.value, item.version, item.lease) == (key, b"\0v", 1, 0)
    assert item.create_revision == item.mod_revision == put.revision == found.revision
    assert found.cluster_id == put.cluster_id != 0
    assert value_of(await client.delete(below(prefix))) == Deleted(1)
    assert value_of(await client.range(Range(below(prefix)))) == Found((), 0)


async def test_a_range_may_be_limited_counted_and_of_an_older_revision(client: Etcd, node: Node, prefix: bytes) -> None:
    revisions = [node.put(prefix + b"%d" % n, b"") for n in range(5)]
    limited = value_of(await client.range(Range(below(prefix), limit=2)))
    assert ([item.key[-1:] for item in limited.items], limited.count) == ([b"0", b"1"], 5)
    assert value_of(await client.range(Range(below(prefix), count_only=True))) == Found((), 5)
    assert value_of(await client.range(Range(below(prefix), revision=revisions[2]))).count == 3


async def test_compares_over_keys_and_ranges(client: Etcd, prefix: bytes) -> None:
    """Each holds before or after a change, and not the other way round."""
    key, marks = one(prefix + b"k"), below(prefix + b"m/")
    empty = Compare(marks, "create", "=", 0)
    absent = Compare(key, "version", "=", 0)

    async def holds(*compares: Compare) -> bool:
        return value_of(await client.txn(compares, [], [])).succeeded

    assert await holds(empty, absent)
    first = await client.put(prefix + b"m/a", b"0005")
    assert isinstance(first, Done)
    await client.put(prefix + b"m/b", b"0007")
    await client.put(key.first, b"v")
    assert not await holds(empty)
    assert not await holds(absent)
    assert await holds(Compare(key, "version", "=", 1), Compare(key, "value", "=", b"v"))
    assert await holds(Compare(marks, "value", ">", b"0004"))
    assert not await holds(Compare(marks, "value", ">", b"0005"))
    assert await holds(Compare(marks, "mod", "<", first.revision + 2))
    assert not await holds(Compare(marks, "mod", "<", first.revision + 1))
    for nothing in (below(prefix + b"none/"), one(prefix + b"none")):
        assert not await holds(Compare(nothing, "value", ">", b""))
        assert await holds(*(Compare(nothing, of, "=", 0) for of in ("create", "mod", "version")))


async def test_a_transaction_takes_one_branch_whole(client: Etcd, prefix: bytes) -> None:
    absent = Compare(one(prefix + b"a"), "create", "=", 0)
    then = (Put(prefix + b"a", b"1"), Put(prefix + b"b", b"2"))
    otherwise = (Range(below(prefix)), Delete(below(prefix)))
    first = await client.txn([absent], then, otherwise)
    assert isinstance(first, Done)
    assert first.value == TxnResult(True, (Stored(), Stored()))
    second = value_of(await client.txn([absent], then, otherwise))
    assert not second.succeeded
    found, deleted = second.results
    assert isinstance(found, Found)
    assert [(item.value, item.mod_revision) for item in found.items] == [(b"1", first.revision), (b"2", first.revision)]
    assert deleted == Deleted(2)


async def test_a_lease_takes_its_keys_with_it(client: Etcd, prefix: bytes) -> None:
    lease = int.from_bytes(prefix[-7:-1]) + 1
    granted = value_of(await client.lease_grant(600, lease))
    assert (granted.lease, granted.ttl_s) == (lease, 600)
    assert isinstance(twice := await client.lease_grant(600, lease), Refused)
    assert twice.code in (Code.FAILED_PRECONDITION, Code.ALREADY_EXISTS)
    await client.put(prefix + b"k", b"v", lease)
    life = value_of(await client.lease_time_to_live(lease))
    assert life is not None
    assert 0 < life.ttl_s <= 600
    assert life.keys == (prefix + b"k",)
    assert value_of(await client.lease_keepalive(lease)) == 600
    assert isinstance(await client.lease_revoke(lease), Done)
    assert value_of(await client.range(Range(below(prefix)))) == Found((), 0)


async def test_a_lease_that_has_ended(client: Etcd, prefix: bytes) -> None:
    """Its keepalive is answered like any other, with a time to live of 0."""
    granted = value_of(await client.lease_grant(600))
    lease = granted.lease
    await client.lease_revoke(lease)
    assert value_of(await client.lease_keepalive(lease)) == 0
    assert value_of(await client.lease_time_to_live(lease)) is None
    for outcome in (await client.put(prefix, b"", lease), await client.lease_revoke(lease)):
        assert outcome == Refused("etcdserver: requested lease not found", Code.NOT_FOUND)


async def test_refusals_have_words(client: Etcd) -> None:
    assert isinstance(outcome := await client.put(b"", b""), Refused)
    assert outcome == Refused("etcdserver: key is not provided", Code.INVALID_ARGUMENT)
    assert isinstance(outcome := await client.put(b"k", bytes(2_000_000)), Refused)
    assert "too large" in outcome.reason
    assert isinstance(late := await client.range(Range(one(b"k"), revision=10**9)), Refused)
    assert late.code is Code.OUT_OF_RANGE


async def test_the_status(client: Etcd, node: Node) -> None:
    status = value_of(await client.status())
    assert status.version == node.get("/version")["etcdserver"]
    assert status.leader == status.member
    assert status.errors == ()


@pytest.mark.parametrize("lost", ["requests", "answers"])
async def test_a_change_is_unknown_whether_its_request_or_its_answer_is_lost(
    lost: str, node: Node, nursery: trio.Nursery, prefix: bytes
) -> None:
    proxy = Proxy(nursery, node.client_port)
    await proxy.start()
    async with Etcd([proxy.endpoint, node.endpoint]) as client:
        assert isinstance(await client.put(prefix + b"before", b""), Done)
        proxy.lost = lost
        assert isinstance(await client.put(prefix + b"k", b"v"), Unknown)
        items = value_of(await client.range(Range(one(prefix + b"k")))).items  # by the other endpoint
        assert [(item.value, item.version) for item in items] == ([(b"v", 1)] if lost == "answers" else [])
    nursery.cancel_scope.cancel()


async def changes(watch: Watch, last: int) -> list[int]:
    """The revisions of changes up to one."""
    revisions: list[int] = []
    with trio.fail_after(LIMIT_S):
        async for batch in watch:
            revisions += [event.item.mod_revision for event in batch.events]
            if revisions and revisions[-1] >= last:
                return revisions
    raise AssertionError(revisions)


async def test_a_watch_brings_what_was_and_what_comes(client: Etcd, prefix: bytes) -> None:
    first = await client.put(prefix + b"k", b"1")
    assert isinstance(first, Done)
    async with client.watch(below(prefix), first.revision) as watch:
        assert await changes(watch, first.revision) == [first.revision]
        await client.txn([], [Put(prefix + b"a", b""), Put(prefix + b"b", b"")])
        gone = await client.delete(one(prefix + b"k"))
        assert isinstance(gone, Done)
        with trio.fail_after(LIMIT_S):
            pair, deletion = await anext(watch), await anext(watch)
        assert [event.item.key for event in pair.events] == [prefix + b"a", prefix + b"b"]
        [event] = deletion.events
        assert (event.is_delete, event.item.key, event.item.mod_revision) == (True, prefix + b"k", gone.revision)


async def test_a_watch_goes_on_over_kill_9_without_a_gap_or_a_double(
    start_nodes: StartNodes, nursery: trio.Nursery
) -> None:
    [node] = start_nodes()
    puts, taken = 0, list[int]()
    async with Etcd([node.endpoint], limits=PATIENT) as client:
        async with client.watch(below(b"/"), 1) as watch:
            for _ in range(3):
                for _ in range(10):
                    last = node.put(b"/k%d" % puts, b"")
                    puts += 1
                taken += await changes(watch, last - 5)
                node.kill()
                node.start_again()
                await trio.to_thread.run_sync(node.wait_until_healthy)
            taken += await changes(watch, last) if taken[-1] < last else []
    assert taken == list(range(2, 32))


async def test_a_watch_below_the_compaction_ends_with_its_revision(node: Node, client: Etcd, prefix: bytes) -> None:
    revisions = [node.put(prefix + b"k", b"%d" % n) for n in range(5)]
    node.compact(revisions[3])
    async with client.watch(below(prefix), revisions[1]) as watch:
        with pytest.raises(CompactedError) as raised:
            with trio.fail_after(LIMIT_S):
                await anext(watch)
    assert raised.value.revision == revisions[3]
    assert isinstance(outcome := await client.range(Range(below(prefix), revision=revisions[1])), Refused)
    assert "compacted" in outcome.reason


async def test_a_full_quota_is_unknown_because_etcd_may_have_made_the_change(start_nodes: StartNodes) -> None:
    [node] = start_nodes(options=["--quota-backend-bytes=16777216"])
    outcomes = list[Outcome[Stored]]()
    async with Etcd([node.endpoint], limits=PATIENT) as client:

        async def put(number: int) -> None:
            outcomes.append(await client.put(b"/%d" % number, bytes(1_000_000)))

        with trio.fail_after(LIMIT_S):
            while all(isinstance(outcome, Done) for outcome in outcomes):
                async with trio.open_nursery() as calls:
                    for number in range(len(outcomes), len(outcomes) + 16):
                        calls.start_soon(put, number)
        full = [outcome for outcome in outcomes if not isinstance(outcome, Done)]
        assert {*full} == {Unknown("etcdserver: mvcc: database space exceeded")}
        found = value_of(await client.range(Range(below(b"/"), count_only=True)))
        assert found.count >= len(outcomes) - len(full)
        assert any("NOSPACE" in error for error in value_of(await client.status()).errors)
        assert isinstance(await client.put(b"/more", b""), Unknown)
        assert isinstance(await client.delete(below(b"/")), Done)
    print(f"{len(full)} of {len(outcomes)} puts were answered with an error, {found.count} were made")


async def test_a_stopped_node_is_waited_for_no_longer_than_the_limit(start_nodes: StartNodes) -> None:
    [node] = start_nodes()
    async with Etcd([node.endpoint], limits=Limits(call_s=0.5, attempt_s=0.25)) as client:
        assert isinstance(await client.put(b"/k", b""), Done)
        node.suspend()
        began = trio.current_time()
        assert isinstance(await client.put(b"/k", b"late"), Unknown)
        assert isinstance(await client.range(Range(one(b"/k"))), Unreachable)
        assert trio.current_time() - began < 10
        node.resume()
        await trio.to_thread.run_sync(node.wait_until_healthy)
        assert node.value(b"/k") in (b64(b""), b64(b"late"))  # etcd itself may notice that the caller has gone


async def test_a_node_that_is_gone_is_unreachable(start_nodes: StartNodes) -> None:
    [node] = start_nodes()
    async with Etcd([node.endpoint]) as client:
        assert isinstance(await client.put(b"/k", b""), Done)
        node.kill()
        for outcome in (await client.put(b"/k", b""), await client.range(Range(one(b"/k")))):
            assert isinstance(outcome, Unreachable)
            assert "refused" in outcome.reason


async def test_another_history_is_reported(start_nodes: StartNodes) -> None:
    """Two clusters stand for one that was restored with another id."""
    [one_node], [another] = start_nodes(), start_nodes()
    async with Etcd([one_node.endpoint, another.endpoint]) as client:
        for n in range(5):
            assert isinstance(await client.put(b"/k%d" % n, b""), Done)
        one_node.kill()
        assert isinstance(outcome := await client.range(Range(one(b"/k"))), Restored)
        assert "cluster id" in outcome.reason
        assert isinstance(await client.put(b"/late", b""), Restored)
        assert another.value(b"/late") is None


async def test_a_store_that_went_back_is_reported(start_nodes: StartNodes) -> None:
    """Its data of before come back under it, as from a snapshot that was restored with the same names."""
    [node] = start_nodes()
    node.put(b"/k", b"")
    node.kill()
    node.save()
    node.start_again()
    async with Etcd([node.endpoint], limits=PATIENT) as client:
        await trio.to_thread.run_sync(node.wait_until_healthy)
        for n in range(5):
            assert isinstance(await client.put(b"/k%d" % n, b""), Done)
        node.kill()
        node.put_back()
        node.start_again()
        await trio.to_thread.run_sync(node.wait_until_healthy)
        assert isinstance(outcome := await client.range(Range(one(b"/k"))), Restored)
        assert "went back" in outcome.reason


USER = Credentials("pinfs", "secret")


def set_up_users(node: Node) -> None:
    """root, and a user who may do everything below one prefix."""
    for user, password in (("root", "root"), (USER.user, USER.password)):
        node.done("/v3/auth/user/add", {"name": user, "password": password})
    node.done("/v3/auth/role/add", {"name": "pinfs"})
    permission = {"permType": "READWRITE", "key": b64(b"/pinfs/"), "range_end": b64(b"/pinfs0")}
    node.done("/v3/auth/role/grant", {"name": "pinfs", "perm": permission})
    node.done("/v3/auth/user/grant", {"user": USER.user, "role": "pinfs"})
    node.done("/v3/auth/user/grant", {"user": "root", "role": "root"})
    node.done("/v3/auth/enable", {})


def _token_has_ended(node: Node, token: str) -> bool:
    return node.post("/v3/kv/range", {"key": b64(b"/pinfs/k")}, token)[0] == 401


async def test_user_and_password(start_nodes: StartNodes) -> None:
    [node] = start_nodes()
    async with Etcd([node.endpoint], credentials=USER, limits=PATIENT) as client:
        assert isinstance(early := await client.put(b"/pinfs/k", b""), Refused)
        assert "authentication is not enabled" in early.reason
    set_up_users(node)
    async with Etcd([node.endpoint], credentials=USER, limits=PATIENT) as client:
        assert isinstance(await client.login(), Done)
        assert isinstance(await client.put(b"/pinfs/k", b""), Done)
        lease = value_of(await client.lease_grant(60))
        assert isinstance(await client.put(b"/pinfs/k", b"", lease.lease), Done)
        for outcome in (await client.put(b"/other", b""), await client.range(Range(below(b"/")))):
            assert outcome == Refused("etcdserver: permission denied", Code.PERMISSION_DENIED)
        async with client.watch(below(b"/"), 1) as watch:
            with pytest.raises(DeniedError, match="permission denied"):
                await anext(watch)
    for credentials in (Credentials(USER.user, "wrong"), Credentials("nobody", "")):
        async with Etcd([node.endpoint], credentials=credentials, limits=PATIENT) as client:
            assert isinstance(denied := await client.login(), Refused)
            assert "authentication failed" in denied.reason or "user name is empty" in denied.reason
    async with Etcd([node.endpoint], limits=PATIENT) as client:
        assert isinstance(anonymous := await client.put(b"/pinfs/k", b""), Refused)
        assert "user name is empty" in anonymous.reason


@asynccontextmanager
async def watched_with_a_short_token(start_nodes: StartNodes) -> AsyncIterator[tuple[Node, Etcd, Watch]]:
    """A node whose tokens end after a second, a client that has logged in, and a watch that has shown its change."""
    [node] = start_nodes(options=["--auth-token-ttl=1"])
    set_up_users(node)
    async with Etcd([node.endpoint], credentials=USER, limits=PATIENT) as client:
        first = await client.put(b"/pinfs/k", b"")
        assert isinstance(first, Done)
        async with client.watch(below(b"/pinfs/"), first.revision) as watch:
            await changes(watch, first.revision)
            yield node, client, watch


async def test_a_token_that_ends_is_replaced_and_an_open_watch_lives_on(start_nodes: StartNodes) -> None:
    async with watched_with_a_short_token(start_nodes) as (node, client, watch):
        token = await client._login.token(trio.current_time() + 20)
        assert isinstance(token, str)
        # Each use of a token makes it live on.
        wait_until(lambda: _token_has_ended(node, token), "the token lives on", pause_s=3)
        second = await client.put(b"/pinfs/k", b"")
        assert isinstance(second, Done)
        assert await client._login.token(trio.current_time() + 20) != token
        assert await changes(watch, second.revision) == [second.revision]


async def test_a_watch_begins_anew_with_a_token_that_has_ended(start_nodes: StartNodes) -> None:
    async with watched_with_a_short_token(start_nodes) as (node, _, watch):
        node.kill()  # the tokens go with it
        node.start_again()
        await trio.to_thread.run_sync(node.wait_until_healthy)
        async with Etcd([node.endpoint], credentials=USER, limits=PATIENT) as other:
            second = await other.put(b"/pinfs/k", b"")
        assert isinstance(second, Done)
        assert await changes(watch, second.revision) == [second.revision]
