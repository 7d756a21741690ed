"""A watch over connections that end, against nodes in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from cluster import fake
from cluster.fake import FakeEtcd, chunked, done, error, http, line, silent
from pinfs.cluster.etcd import (
    Batch,
    CompactedError,
    Credentials,
    DeniedError,
    Etcd,
    Limits,
    RestoredError,
    Watch,
    WatchError,
    below,
    parse_endpoints,
)

CREATED = line(created=True)
LIMITS = Limits(call_s=3, attempt_s=1, silence_s=10, line_bytes=3000)
USER = Credentials("root", "secret")


def event(revision: int, key: str = "YQ==", **fields: Any) -> dict[str, Any]:
    return {"kv": {"key": key, "mod_revision": str(revision)}, **fields}


def changes(*revisions: int) -> bytes:
    return line(events=[event(revision) for revision in revisions])


class Watched:
    """Answers each watch with the next of `streams`, and then ends or keeps the connection."""

    def __init__(self, nursery: trio.Nursery, *streams: bytes, ends: bool = True) -> None:
        self.node = FakeEtcd(nursery, self._answer)
        self._streams = list(streams)
        self._ends = ends
        self.logins = 0

    @property
    def watches(self) -> list[fake.Asked]:
        return [asked for asked in self.node.asked if asked.path == "/v3/watch"]

    @property
    def from_revisions(self) -> list[int]:
        return [int(asked.body["create_request"]["start_revision"]) for asked in self.watches]

    async def _answer(self, asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        if asked.path == "/v3/auth/authenticate":
            self.logins += 1
            await stream.send_all(done(token=f"token{self.logins}"))
        elif asked.path == "/v3/kv/range":
            await stream.send_all(http({"header": {"cluster_id": "14", "revision": "5"}}))
        else:
            await stream.send_all(self._streams.pop(0))
            if self._ends or self._streams:
                raise EOFError
            await trio.sleep_forever()

    @asynccontextmanager
    async def watch(
        self, hosts: str = "a", credentials: Credentials | None = None, from_revision: int = 1
    ) -> AsyncIterator[Watch]:
        endpoints = parse_endpoints(hosts)
        async with Etcd(endpoints, credentials=credentials, limits=LIMITS, connect=self.node.connect) as etcd:
            async with etcd.watch(below(b"/"), from_revision) as watch:
                yield watch
        self.node._nursery.cancel_scope.cancel()


async def taken(watch: Watch, count: int) -> list[int]:
    """The revisions of so many events."""
    revisions: list[int] = []
    while len(revisions) < count:
        batch = await anext(watch)
        revisions.extend(event.item.mod_revision for event in batch.events)
        assert batch.revision >= max(revisions, default=0)
    return revisions


async def test_changes_come_in_batches(nursery: trio.Nursery) -> None:
    put = {"kv": {"key": "YQ==", "value": "Yg==", "create_revision": "3", "mod_revision": "3", "version": "1"}}
    stream = chunked(CREATED, line(events=[put, event(3, "Yw==", type="DELETE")]), line(), end=False)
    watched = Watched(nursery, stream, ends=False)
    async with watched.watch() as watch:
        batch = await anext(watch)
        assert batch.revision == 3
        assert [(one.is_delete, one.item.key, one.item.value) for one in batch.events] == [
            (False, b"a", b"b"),
            (True, b"c", b""),
        ]
        assert await anext(watch) == Batch(5, ())
        assert not watch.interrupted_because
    assert watched.watches[0].body["create_request"] == {
        "key": "Lw==",
        "range_end": "MA==",
        "start_revision": "1",
        "progress_notify": True,
    }
    assert watched.watches[0].headers["grpc-metadata-hasleader"] == "true"


async def test_it_goes_on_at_any_byte_without_a_gap_or_a_double(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    everything = chunked(CREATED, changes(2), changes(3, 3), line(), changes(6), end=False)
    for end in range(len(everything)):
        watched = Watched(nursery, everything[:end], chunked(CREATED, changes(2, 3, 3), changes(6), end=False))
        async with Etcd(parse_endpoints("a,b"), limits=LIMITS, connect=watched.node.connect) as etcd:
            async with etcd.watch(below(b"/"), 1) as watch:
                assert await taken(watch, 4) == [2, 3, 3, 6]
    nursery.cancel_scope.cancel()


async def test_it_resumes_after_what_it_has_seen_and_after_progress(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    watched = Watched(
        nursery,
        chunked(CREATED, changes(2), end=False),
        chunked(CREATED, line(), end=False),
        chunked(CREATED, changes(7)),
        ends=False,
    )
    async with watched.watch("a,b,c") as watch:
        assert await taken(watch, 2) == [2, 7]
    assert watched.from_revisions == [1, 3, 6]
    assert [asked.endpoint.host for asked in watched.watches] == ["a", "b", "c"]


async def test_what_was_taken_already_does_not_come_again(nursery: trio.Nursery) -> None:
    watched = Watched(nursery, chunked(CREATED, changes(4), changes(2, 3), changes(3, 4, 5), end=False), ends=False)
    async with watched.watch(from_revision=3) as watch:
        assert await taken(watch, 2) == [4, 5]


async def test_a_consumer_that_is_cancelled_loses_nothing(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def trickle(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        for byte in chunked(CREATED, changes(2), changes(3), end=False):
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.001)
        await trio.sleep_forever()

    node = FakeEtcd(nursery, trickle)
    revisions: list[int] = []
    async with Etcd(parse_endpoints("a"), limits=LIMITS, connect=node.connect) as etcd:
        async with etcd.watch(below(b"/"), 1) as watch:
            await anext(watch)
            while not revisions:
                with trio.move_on_after(0.01):
                    revisions += [event.item.mod_revision for event in (await anext(watch)).events]
    assert revisions == [3]
    assert node.connections == 1
    nursery.cancel_scope.cancel()


async def test_what_was_compacted_ends_it_with_the_revision(nursery: trio.Nursery) -> None:
    watched = Watched(nursery, chunked(CREATED, line(canceled=True, compact_revision="9")))
    async with watched.watch() as watch:
        with pytest.raises(CompactedError) as raised:
            await anext(watch)
    assert raised.value.revision == 9


async def test_a_line_above_the_limit_ends_it(nursery: trio.Nursery) -> None:
    watched = Watched(nursery, chunked(CREATED, b"x" * 4000, end=False), ends=False)
    async with watched.watch() as watch:
        with pytest.raises(WatchError, match="3000 bytes"):
            await anext(watch)


@pytest.mark.parametrize(
    "stream",
    [
        error(503, 14, "etcdserver: no leader"),
        http(b"<html>", 502),
        chunked(CREATED, b'{"error": {"grpc_code": 14, "http_code": 503, "message": "no leader"}}\n'),
        chunked(CREATED, b"garbage\n"),
        chunked(CREATED, line(canceled=True, cancel_reason="etcdserver: server stopped")),
        chunked(changes(2), end=False),
        chunked(line(created=True, events=[event(2)]), end=False),
        chunked(CREATED, b'{"result": 5}\n'),
        chunked(CREATED, b'{"result": {"header": {"cluster_id": "14"}, "events": [{"kv": 7}]}}\n'),
        b"SSH-2.0\r\n\r\n",
    ],
)
async def test_what_a_node_cannot_do_another_one_does(
    stream: bytes, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    watched = Watched(nursery, stream, chunked(CREATED, changes(2), end=False), ends=False)
    async with watched.watch("a,b") as watch:
        assert await taken(watch, 1) == [2]
    assert [asked.endpoint.host for asked in watched.watches] == ["a", "b"]


async def test_a_silent_node_is_left_for_another(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    async def answering(asked: fake.Asked, stream: trio.abc.SendStream) -> None:
        if asked.endpoint.host == "a":
            await stream.send_all(chunked(CREATED, changes(2), end=False))
        elif asked.endpoint.host == "c":
            await stream.send_all(chunked(CREATED, changes(3), end=False))
        await trio.sleep_forever()

    node = FakeEtcd(nursery, answering)
    async with Etcd(parse_endpoints("a,b,c"), limits=LIMITS, connect=node.connect) as etcd:
        async with etcd.watch(below(b"/"), 1) as watch:
            began = trio.current_time()
            assert await taken(watch, 2) == [2, 3]
            # 10 s of silence of a, a second for b to say that the watch stands
            assert trio.current_time() - began == pytest.approx(11, abs=0.2)
    nursery.cancel_scope.cancel()


async def test_it_waits_for_nodes_to_come_back_without_hurry(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    watched = Watched(nursery, chunked(CREATED, changes(2), end=False), ends=False)
    watched.node.refusing = {"a", "b"}
    tries = 0
    connect = watched.node.connect

    async def counted(endpoint: Any, tls: object) -> Any:
        nonlocal tries
        tries += 1
        return await connect(endpoint, tls)

    async with Etcd(parse_endpoints("a,b"), limits=LIMITS, connect=counted) as etcd:
        async with etcd.watch(below(b"/"), 1) as watch:
            with trio.move_on_after(600):
                await anext(watch)
            assert "refused" in watch.interrupted_because
            assert 500 < tries < 700
            watched.node.refusing = set()
            assert await taken(watch, 1) == [2]
            assert not watch.interrupted_because
    nursery.cancel_scope.cancel()


DENIED_34 = chunked(line(created=True, canceled=True, cancel_reason="etcdserver: permission denied"), end=False)


DENIED_35 = chunked(
    line(
        created=True,
        canceled=True,
        cancel_reason="rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
    ),
    end=False,
)


@pytest.mark.parametrize("denied", [DENIED_34, DENIED_35, error(401, 16, "etcdserver: invalid auth token")])
async def test_a_token_that_has_ended_is_replaced(
    denied: bytes, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    watched = Watched(nursery, denied, chunked(CREATED, changes(2), end=False), ends=False)
    async with watched.watch("a,b", USER) as watch:
        assert await taken(watch, 1) == [2]
    assert watched.logins == 2
    assert [asked.headers["authorization"] for asked in watched.watches] == ["token1", "token2"]


async def test_what_a_user_may_not_read_ends_it(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    for credentials, logins in ((USER, 2), (None, 0)):
        watched = Watched(nursery, DENIED_34, DENIED_34)
        async with Etcd(
            parse_endpoints("a"), credentials=credentials, limits=LIMITS, connect=watched.node.connect
        ) as etcd:
            async with etcd.watch(below(b"/"), 1) as watch:
                with pytest.raises(DeniedError, match="permission denied"):
                    await anext(watch)
        assert watched.logins == logins
    nursery.cancel_scope.cancel()


async def test_a_restored_store_ends_it(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    other = json.dumps({"result": {"header": {"cluster_id": "15", "revision": "5"}, "created": True}}).encode() + b"\n"
    for second in (other, CREATED):  # another cluster id; a revision before that of the changes seen
        later = json.dumps({"result": {"header": {"cluster_id": "14", "revision": "8"}, "events": [event(8)]}}).encode()
        watched = Watched(nursery, chunked(CREATED, later + b"\n", end=False), chunked(second, end=False), ends=True)
        async with Etcd(parse_endpoints("a"), limits=LIMITS, connect=watched.node.connect) as etcd:
            async with etcd.watch(below(b"/"), 1) as watch:
                assert await taken(watch, 1) == [8]
                with pytest.raises(RestoredError):
                    await anext(watch)
    nursery.cancel_scope.cancel()


async def test_a_silent_login_does_not_end_it(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    node = FakeEtcd(nursery, silent)
    async with Etcd(parse_endpoints("a"), credentials=USER, limits=LIMITS, connect=node.connect) as etcd:
        async with etcd.watch(below(b"/"), 1) as watch:
            with trio.move_on_after(30) as scope:
                await anext(watch)
            assert scope.cancelled_caught
            assert "login" in watch.interrupted_because
    nursery.cancel_scope.cancel()
