"""What becomes of calls: against a node in memory, with time for free."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from cluster import fake
from cluster.fake import FakeEtcd, chunked, done, error, http, sending, silent
from pinfs.cluster.etcd import (
    Code,
    Compare,
    Credentials,
    Delete,
    Deleted,
    Done,
    Etcd,
    Found,
    Item,
    Limits,
    Put,
    Range,
    Refused,
    Restored,
    Stored,
    TxnResult,
    Unknown,
    Unreachable,
    below,
    one,
    parse_endpoints,
)

LIMITS = Limits(call_s=3, attempt_s=1, bad_for_s=5, answer_bytes=2000)
USER = Credentials("root", "secret")
KEY = one(b"k")

READS: dict[str, Callable[[Etcd], Awaitable[Any]]] = {
    "range": lambda etcd: etcd.range(Range(KEY)),
    "txn": lambda etcd: etcd.txn([Compare(KEY, "create", "=", 0)], [Range(KEY)], [Range(KEY)]),
    "keepalive": lambda etcd: etcd.lease_keepalive(1),
    "time_to_live": lambda etcd: etcd.lease_time_to_live(1),
    "status": lambda etcd: etcd.status(),
}
CHANGES: dict[str, Callable[[Etcd], Awaitable[Any]]] = {
    "put": lambda etcd: etcd.put(b"k", b"v"),
    "delete": lambda etcd: etcd.delete(KEY),
    "txn": lambda etcd: etcd.txn([], [Range(KEY)], [Put(b"k", b"v")]),
    "grant": lambda etcd: etcd.lease_grant(5),
    "revoke": lambda etcd: etcd.lease_revoke(1),
}
each_read = pytest.mark.parametrize("ask", READS.values(), ids=READS)
each_change = pytest.mark.parametrize("ask", CHANGES.values(), ids=CHANGES)


def client(node: FakeEtcd, hosts: str = "a", credentials: Credentials | None = None, limits: Limits = LIMITS) -> Etcd:
    return Etcd(parse_endpoints(hosts), credentials=credentials, limits=limits, connect=node.connect)


async def test_a_put_and_what_it_says(nursery: trio.Nursery) -> None:
    node = FakeEtcd(nursery, sending(done()))
    async with client(node) as etcd:
        assert await etcd.put(b"\xff", b"v", lease=2**62) == Done(Stored(), 5, 14)
    assert node.asked[0].path == "/v3/kv/put"
    assert node.asked[0].body == {"key": "/w==", "value": "dg==", "lease": str(2**62)}
    assert node.asked[0].headers["host"] == "a:2379"


async def test_a_transaction_and_what_it_says(nursery: trio.Nursery) -> None:
    item = {"key": "aw==", "value": "dg==", "create_revision": "2", "mod_revision": "3", "version": "2", "lease": "9"}
    responses = [
        {"response_put": {}},
        {"response_range": {"kvs": [item], "count": "7"}},
        {"response_delete_range": {"deleted": "4"}},
    ]
    node = FakeEtcd(nursery, sending(done(succeeded=True, responses=responses)))
    compares = [
        Compare(below(b"p/"), "create", "=", 0),
        Compare(KEY, "mod", "<", 4),
        Compare(KEY, "version", "!=", 2),
        Compare(below(b"m/"), "value", ">", b"1"),
    ]
    async with client(node) as etcd:
        outcome = await etcd.txn(compares, [Put(b"k", b"v"), Range(KEY, limit=1), Delete(below(b"p/"))])
    assert outcome == Done(TxnResult(True, (Stored(), Found((Item(b"k", b"v", 2, 3, 2, 9),), 7), Deleted(4))), 5, 14)
    assert node.asked[0].body["compare"] == [
        {"key": "cC8=", "range_end": "cDA=", "target": "CREATE", "result": "EQUAL", "create_revision": "0"},
        {"key": "aw==", "target": "MOD", "result": "LESS", "mod_revision": "4"},
        {"key": "aw==", "target": "VERSION", "result": "NOT_EQUAL", "version": "2"},
        {"key": "bS8=", "range_end": "bTA=", "target": "VALUE", "result": "GREATER", "value": "MQ=="},
    ]


def test_all_keys_with_a_prefix() -> None:
    assert (below(b"a/").first, below(b"a/").end) == (b"a/", b"a0")
    assert (below(b"a\xff\xff").first, below(b"a\xff\xff").end) == (b"a\xff\xff", b"b")
    assert (below(b"").first, below(b"").end) == (b"\0", b"\0")
    assert (below(b"\xff").first, below(b"\xff").end) == (b"\xff", b"\0")


@each_change
async def test_a_change_whose_answer_is_lost_is_unknown_and_sent_once(
    ask: Callable[[Etcd], Awaitable[Any]], nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def lose(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        raise EOFError

    for answering in (lose, silent, sending(done()[:-1]), sending(http(b"")), sending(http(b"[]")), sending(http({}))):
        node = FakeEtcd(nursery, answering)
        async with client(node, "a,b") as etcd:
            assert isinstance(outcome := await ask(etcd), Unknown), outcome
            assert outcome.reason
        assert len(node.asked) == 1
    nursery.cancel_scope.cancel()


@each_read
async def test_a_read_goes_on_to_the_next_endpoint(
    ask: Callable[[Etcd], Awaitable[Any]], nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def only_b_answers(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        if asked.endpoint.host != "b":
            await trio.sleep_forever()
        await stream.send_all(done(version="3.4.23", TTL="5", grantedTTL="5"))

    node = FakeEtcd(nursery, only_b_answers)
    async with client(node, "a,b") as etcd:
        assert isinstance(outcome := await ask(etcd), Done), outcome
        assert [asked.endpoint.host for asked in node.asked] == ["a", "b"]
        assert isinstance(await ask(etcd), Done)
        assert node.asked[-1].endpoint.host == "b"
    nursery.cancel_scope.cancel()


@each_read
async def test_a_read_that_nobody_answers_is_unreachable(
    ask: Callable[[Etcd], Awaitable[Any]], nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    node = FakeEtcd(nursery, silent)
    async with client(node, "a,b") as etcd:
        began = trio.current_time()
        assert isinstance(await ask(etcd), Unreachable)
        assert trio.current_time() - began == pytest.approx(2)
    nursery.cancel_scope.cancel()


async def test_a_change_goes_on_to_the_next_endpoint_while_it_is_not_sent(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    node = FakeEtcd(nursery, sending(done()))
    node.refusing, node.hanging = {"a"}, {"b"}
    async with client(node, "a,b,c") as etcd:
        began = trio.current_time()
        assert isinstance(await etcd.put(b"k", b"v"), Done)
        assert trio.current_time() - began == pytest.approx(1)
        node.refusing |= {"b", "c"}
        node.is_quiet = False
        assert isinstance(outcome := await etcd.put(b"k", b"v"), Unreachable)
        assert "refused" in outcome.reason


@pytest.mark.parametrize("ask", [*CHANGES.values(), *READS.values()])
async def test_no_call_waits_longer_than_its_limit(
    ask: Callable[[Etcd], Awaitable[Any]], nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def trickle(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        for byte in done():
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.9)

    node = FakeEtcd(nursery, trickle)
    async with client(node, "a,b,c,d,e", USER) as etcd:
        began = trio.current_time()
        assert isinstance(await ask(etcd), Unknown | Unreachable)
        assert trio.current_time() - began <= LIMITS.call_s + 0.001
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "of_change", "of_read"),
    [
        (error(400, 3, "etcdserver: key is not provided"), Refused, Refused),
        (error(404, 5, "etcdserver: requested lease not found"), Refused, Refused),
        (error(403, 7, "etcdserver: permission denied"), Refused, Refused),
        (error(429, 8, "etcdserver: too many requests"), Refused, Refused),
        (error(429, 8, "etcdserver: mvcc: database space exceeded"), Unknown, Unreachable),
        (error(503, 14, "etcdserver: request timed out"), Unknown, Unreachable),
        (error(500, 2, "raft: proposal dropped"), Unknown, Unreachable),
        (error(504, 4, "context deadline exceeded"), Unknown, Unreachable),
        (http(b"<html>Bad Gateway</html>", 502), Unknown, Unreachable),
        (http(b"no", 404), Unknown, Unreachable),
        (http(b"x" * 3000), Unknown, Refused),
        (chunked(*[b"x" * 500] * 5), Unknown, Refused),
    ],
)
async def test_what_errors_mean(answer: bytes, of_change: type, of_read: type, nursery: trio.Nursery) -> None:
    node = FakeEtcd(nursery, sending(answer))
    for ask in CHANGES.values():
        async with client(node) as etcd:
            assert isinstance(outcome := await ask(etcd), of_change), outcome
    for ask in READS.values():
        async with client(node) as etcd:
            assert isinstance(outcome := await ask(etcd), of_read), outcome


async def test_a_refusal_has_etcds_words(nursery: trio.Nursery) -> None:
    node = FakeEtcd(nursery, sending(error(404, 5, "etcdserver: requested lease not found")))
    async with client(node) as etcd:
        outcome = await etcd.put(b"k", b"v", 5)
    assert outcome == Refused("etcdserver: requested lease not found", Code.NOT_FOUND)


async def test_connections_are_used_again(nursery: trio.Nursery) -> None:
    node = FakeEtcd(nursery, sending(done()))
    async with client(node) as etcd:
        for _ in range(5):
            await etcd.put(b"k", b"v")
        assert (node.connections, [asked.number for asked in node.asked]) == (1, [0, 1, 2, 3, 4])
        node.is_quiet = False  # as when the node has closed it meanwhile
        await etcd.put(b"k", b"v")
        assert node.connections == 2


async def test_calls_that_overlap_have_connections_of_their_own_up_to_a_limit(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        await trio.sleep(0.5)
        await stream.send_all(done())

    node = FakeEtcd(nursery, slow)
    async with client(node, limits=Limits(calls=3, call_s=1.2)) as etcd:
        outcomes: list[Any] = []

        async def put() -> None:
            outcomes.append(await etcd.put(b"k", b"v"))

        async with trio.open_nursery() as calls:
            for _ in range(12):
                calls.start_soon(put)
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds.count(Done) == 6  # two turns of three
        assert kinds.count(Unknown) == 3  # cut short in the third
        assert kinds.count(Unreachable) == 3  # never had a turn
        assert len(node.asked) == 9


async def test_a_caller_that_is_cancelled_leaves_no_connection_to_the_next(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    node = FakeEtcd(nursery, silent)
    async with client(node) as etcd:
        with trio.move_on_after(0.1) as scope:
            await etcd.put(b"k", b"v")
        assert scope.cancelled_caught
        node.answering = sending(done())
        assert isinstance(await etcd.put(b"k", b"v"), Done)
        assert node.connections == 2
    nursery.cancel_scope.cancel()


async def test_a_call_that_outlives_its_client_keeps_no_connection(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    ended = trio.Event()

    async def slow(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        await trio.sleep(0.5)
        await stream.send_all(done())

    node = FakeEtcd(nursery, slow)
    etcd = client(node)

    async def put() -> None:
        assert isinstance(await etcd.put(b"k", b"v"), Done)
        ended.set()

    nursery.start_soon(put)
    await trio.sleep(0.1)
    await etcd.aclose()
    await ended.wait()
    with trio.fail_after(1):
        while node.open:
            await trio.sleep(0.01)


def _with_login(*answers: bytes) -> tuple[fake.Answering, list[str]]:
    """Each login gives another token; other calls are answered one after the other."""
    tokens: list[str] = []
    answer = sending(*answers)

    async def answering(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        if asked.path != "/v3/auth/authenticate":
            await answer(asked, stream)
            return
        await trio.sleep(0.1)
        tokens.append(f"token{len(tokens)}")
        await stream.send_all(done(token=tokens[-1]))

    return answering, tokens


STALE = error(401, 16, "etcdserver: invalid auth token")


async def test_calls_at_the_same_time_share_one_login(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    answering, tokens = _with_login(done())
    node = FakeEtcd(nursery, answering)
    async with client(node, credentials=USER) as etcd, trio.open_nursery() as calls:
        for _ in range(9):
            calls.start_soon(etcd.put, b"k", b"v")
    assert tokens == ["token0"]
    assert {asked.headers.get("authorization") for asked in node.asked[1:]} == {"token0"}


@pytest.mark.parametrize(
    "stale",
    [
        STALE,
        error(400, 3, "etcdserver: revision of auth store is old"),
        error(400, 3, "etcdserver: user name is empty"),
    ],
)
async def test_a_token_that_has_ended_is_replaced_and_the_change_made(
    stale: bytes, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    answering, tokens = _with_login(stale, done())
    node = FakeEtcd(nursery, answering)
    async with client(node, credentials=USER) as etcd:
        assert isinstance(await etcd.put(b"k", b"v"), Done)
        assert tokens == ["token0", "token1"]
        assert node.asked[-1].headers["authorization"] == "token1"


async def test_a_second_refusal_of_the_login_ends_the_call(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    answering, tokens = _with_login(STALE)
    async with client(FakeEtcd(nursery, answering), credentials=USER) as etcd:
        assert await etcd.put(b"k", b"v") == Refused("etcdserver: invalid auth token", Code.UNAUTHENTICATED)
        assert len(tokens) == 2


async def test_a_wrong_password_is_refused_in_words(nursery: trio.Nursery) -> None:
    wrong = error(400, 3, "etcdserver: authentication failed, invalid user ID or password")
    async with client(FakeEtcd(nursery, sending(wrong)), credentials=USER) as etcd:
        for outcome in (await etcd.login(), await etcd.put(b"k", b"v")):
            assert isinstance(outcome, Refused)
            assert "invalid user ID or password" in outcome.reason
    assert "secret" not in repr(USER)


async def test_the_trap_of_the_common_name_is_said_in_words(nursery: trio.Nursery) -> None:
    text = b"CommonName of client sending a request against gateway will be ignored and not used as expected\n"
    async with client(FakeEtcd(nursery, sending(http(text, 400)))) as etcd:
        outcome = await etcd.put(b"k", b"v")
    assert isinstance(outcome, Refused)
    assert "certificate without one" in outcome.reason


def _header(cluster: int, revision: int) -> bytes:
    return http({"header": {"cluster_id": str(cluster), "revision": str(revision)}})


@pytest.mark.parametrize(
    ("second", "words"), [(_header(15, 6), "cluster id was e and is f"), (_header(14, 4), "went back from 5 to 4")]
)
async def test_a_restored_store_is_reported_and_then_left_alone(
    second: bytes, words: str, nursery: trio.Nursery
) -> None:
    node = FakeEtcd(nursery, sending(_header(14, 5), second, _header(14, 5)))
    async with client(node) as etcd:
        assert isinstance(await etcd.put(b"k", b"v"), Done)
        for _ in range(2):
            outcome = await etcd.put(b"k", b"v")
            assert isinstance(outcome, Restored)
            assert words in outcome.reason
        with trio.move_on_after(0) as scope:
            while True:  # a caller that does not give up does not stop all others
                await etcd.put(b"k", b"v")
        assert scope.cancelled_caught
    assert len(node.asked) == 2


async def test_an_older_revision_of_a_call_that_overlapped_is_no_restore(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def answering(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        if asked.path == "/v3/kv/put":
            await trio.sleep(0.5)
        await stream.send_all(_header(14, 4 if asked.path in ("/v3/kv/put", "/v3/lease/keepalive") else 5))

    async with client(FakeEtcd(nursery, answering)) as etcd:
        async with trio.open_nursery() as calls:
            calls.start_soon(etcd.put, b"k", b"v")
            await trio.sleep(0.1)
            assert isinstance(await etcd.range(Range(KEY)), Done)
        assert isinstance(await etcd.range(Range(KEY)), Done)
        assert isinstance(await etcd.lease_keepalive(1), Done)  # of a node that lags
