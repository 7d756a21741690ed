"""A node that answers what a test wants, on streams in memory: byte for byte, or not at all."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import h11
import trio
import trio.testing

from pinfs.cluster.etcd import Endpoint
from pinfs.cluster.etcd.connection import Connection, ConnectionLostError

HEADER = {"cluster_id": "14", "member_id": "7", "revision": "5"}


@dataclass(frozen=True)
class Asked:
    """A request as it came in. `number` counts those on the same connection."""

    endpoint: Endpoint
    path: str
    body: Any
    headers: dict[str, str]
    number: int


Answering = Callable[[Asked, trio.abc.SendStream], Awaitable[None]]


class FakeEtcd:
    """`connect` is the client's way to it. `answering` writes an answer; EOFError ends the connection."""

    def __init__(self, nursery: trio.Nursery, answering: Answering) -> None:
        self._nursery = nursery
        self.answering = answering
        self.asked: list[Asked] = []
        self.connections = 0
        self.open = 0
        self.refusing: set[str] = set()
        self.hanging: set[str] = set()
        self.is_quiet = True

    async def connect(self, endpoint: Endpoint, tls: object) -> Connection:
        if endpoint.host in self.hanging:
            await trio.sleep_forever()
        if endpoint.host in self.refusing:
            raise ConnectionLostError("connection refused")
        self.connections += 1
        self.open += 1
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, endpoint, theirs)
        return Connection(ours, endpoint.authority, lambda: self.is_quiet)

    async def _serve(self, endpoint: Endpoint, stream: trio.StapledStream[Any, Any]) -> None:
        try:
            number = 0
            while asked := await _request(endpoint, stream, number):
                self.asked.append(asked)
                await self.answering(asked, stream)
                number += 1
        except (EOFError, trio.BrokenResourceError):
            pass
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)


async def _request(endpoint: Endpoint, stream: trio.abc.ReceiveStream, number: int) -> Asked | None:
    http = h11.Connection(h11.SERVER)
    body = bytearray()
    path, headers = "", {}
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            assert event.method == b"POST"
            path = event.target.decode()
            headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Asked(endpoint, path, json.loads(body), headers, number)
        else:
            return None


def http(body: Any, status: int = 200, extra: str = "") -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n{extra}\r\n".encode() + text


def chunked(*parts: bytes, end: bool = True) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + (b"0\r\n\r\n" if end else b"")


def line(**result: Any) -> bytes:
    return json.dumps({"result": {"header": HEADER, **result}}).encode() + b"\n"


def done(**fields: Any) -> bytes:
    """The answer to a call that etcd has done."""
    return http({"header": HEADER, **fields})


def error(status: int, code: int, message: str) -> bytes:
    return http({"error": message, "message": message, "code": code}, status)


def sending(*answers: bytes) -> Answering:
    """One after the other, the last one again and again."""
    left = list(answers)

    async def answer(asked: Asked, stream: trio.abc.SendStream) -> None:
        await stream.send_all(left.pop(0) if len(left) > 1 else left[0])

    return answer


async def silent(asked: Asked, stream: trio.abc.SendStream) -> None:
    await trio.sleep_forever()
