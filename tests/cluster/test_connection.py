"""HTTP on one connection: framing, limits, what comes of connections that die or carry something else."""

from __future__ import annotations

import outcome as outcomes
import pytest
import trio
import trio.testing

from cluster.fake import HEADER, chunked, done, http
from pinfs.cluster.etcd.connection import Connection, ConnectionLostError, TooLargeError

ANSWERS = {
    "length": done(kvs=[{"key": "YQ=="}], count="1"),
    "chunks": chunked(b'{"header":', b"{}", b"}"),
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" + http({"header": HEADER}),
}


async def _answer(raw: bytes, *, pieces: int | None = None, max_bytes: int = 1000) -> tuple[int, bytes]:
    """What a client makes of these bytes, after which the node closes."""
    ours, theirs = trio.testing.memory_stream_pair()
    connection = Connection(ours, "a:1", lambda: True)

    async def serve() -> None:
        await theirs.receive_some()
        step = pieces or max(1, len(raw))
        for start in range(0, len(raw), step):
            await theirs.send_all(raw[start : start + step])
            await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()

    async def ask() -> tuple[int, bytes]:
        await connection.send("/v3/kv/range", b"{}")
        return await connection.receive_status(), await connection.receive_body(max_bytes)

    outcome: outcomes.Outcome[tuple[int, bytes]]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        outcome = await outcomes.acapture(ask)
        await connection.aclose()
        nursery.cancel_scope.cancel()
    return outcome.unwrap()


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("pieces", [None, 1, 7])
async def test_an_answer_is_read_whole_however_it_arrives(kind: str, pieces: int | None) -> None:
    status, body = await _answer(ANSWERS[kind], pieces=pieces)
    assert status == 200
    assert body.startswith(b'{"header":')
    assert body.endswith(b"}")


@pytest.mark.parametrize("kind", ANSWERS)
async def test_a_connection_that_dies_at_any_byte_gives_no_answer(kind: str) -> None:
    raw = ANSWERS[kind]
    for end in range(len(raw)):
        with pytest.raises(ConnectionLostError):
            await _answer(raw[:end])


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46" * 10,
        b"\0" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    ],
)
async def test_what_is_not_http_is_a_lost_connection(raw: bytes) -> None:
    with pytest.raises(ConnectionLostError) as raised:
        await _answer(raw)
    assert str(raised.value)


@pytest.mark.parametrize("raw", [http(b"x" * 1001), chunked(*[b"x" * 100] * 11)])
async def test_an_answer_above_the_limit_is_not_read_on(raw: bytes) -> None:
    with pytest.raises(TooLargeError, match="1000 bytes"):
        await _answer(raw)
    status, body = await _answer(raw, max_bytes=1100)
    assert (status, set(body)) == (200, {ord("x")})


async def _after(raw: bytes) -> bool:
    """Whether another request may follow this answer."""
    ours, theirs = trio.testing.memory_stream_pair()
    connection = Connection(ours, "a:1", lambda: True)
    await connection.send("/v3/kv/range", b"{}")
    await theirs.send_all(raw)
    await connection.receive_status()
    await connection.receive_body(1000)
    may_follow = connection.begin_next()
    if may_follow:
        await connection.send("/v3/kv/put", b'{"a":1}')
    await connection.aclose()
    await theirs.aclose()
    return may_follow


async def test_a_connection_serves_again_after_a_complete_answer_only() -> None:
    assert await _after(done())
    assert await _after(chunked(b"{}"))
    assert not await _after(http({}, extra="Connection: close\r\n"))
    assert not await _after(done() + b"HTTP/1.1 408 Request Timeout\r\n")
