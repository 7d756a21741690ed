"""One HTTP/1.1 connection to an etcd node: h11 on a trio stream."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

import h11
import trio

from pinfs.cluster.etcd.endpoints import Endpoint

READ_BYTES: Final = 65536
MAX_HEAD_BYTES: Final = 32768
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 5, 2, 3
"""A node whose machine is gone is noticed after some ten seconds, on a watch that waits for nothing but changes too."""

CERTIFICATE_HINT: Final = " (as etcd ends a connection whose client certificate is missing, or not of its CA)"
"""With TLS 1.3 the client has sent its request before it could hear of that, and may see no more than a reset."""

Headers = tuple[tuple[str, str], ...]


class ConnectionLostError(Exception):
    """The connection could not be made, ended, or carried something else than HTTP; the message says what."""


class TooLargeError(Exception):
    """An answer, or a line of one, is larger than its limit."""


class Connection:
    """Requests one after the other. Every method but the constructor raises ConnectionLostError.

    `is_quiet` says whether nothing has come in since the last answer; what has is the end of an idle connection, as a
    rule. `hint` is added to the words of what ends the connection before its first answer.
    """

    def __init__(self, stream: trio.abc.Stream, authority: str, is_quiet: Callable[[], bool], hint: str = "") -> None:
        self._stream = stream
        self._authority = authority
        self._is_quiet = is_quiet
        self._hint = hint
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def send(self, path: str, body: bytes, headers: Headers = ()) -> None:
        """A POST of JSON."""
        own = (
            ("Host", self._authority),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
        )
        events: tuple[h11.Event, ...] = (
            h11.Request(method="POST", target=path, headers=[*own, *headers]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        try:
            await self._stream.send_all(b"".join(self._http.send(event) or b"" for event in events))
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError, OSError) as e:
            raise self._lost(e) from e

    async def receive_status(self) -> int:
        """The status of the answer whose beginning comes next."""
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                self._hint = ""
                return event.status_code
            if not isinstance(event, h11.InformationalResponse):
                raise ConnectionLostError(f"not an answer: {event}")

    async def receive_some(self) -> bytes:
        """The next bytes of the body, as they come; b"" after the last of them."""
        while True:
            event = await self._next_event()
            if isinstance(event, h11.EndOfMessage):
                return b""
            if not isinstance(event, h11.Data):
                raise ConnectionLostError(f"not the body of an answer: {event}")
            if event.data:
                return bytes(event.data)

    async def receive_body(self, max_bytes: int) -> bytes:
        """The whole body. Raises TooLargeError."""
        body = bytearray()
        while some := await self.receive_some():
            body += some
            if len(body) > max_bytes:
                raise TooLargeError(f"the answer is larger than {max_bytes} bytes")
        return bytes(body)

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                some = bytes(await self._stream.receive_some(READ_BYTES))
                if not some and self._http.their_state is h11.SEND_RESPONSE:
                    raise ConnectionLostError(f"the connection was closed before an answer{self._hint}")
                self._http.receive_data(some)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError, OSError) as e:
            raise self._lost(e) from e
        return event

    def _lost(self, exc: Exception) -> ConnectionLostError:
        return ConnectionLostError(f"{_words(exc)}{self._hint}")

    def begin_next(self) -> bool:
        """Whether another request may follow the last one, whose answer is complete."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return self.is_usable()

    def is_usable(self) -> bool:
        """Whether an idle connection is still open, as far as this host knows."""
        return not self._http.trailing_data[0] and self._is_quiet()

    async def aclose(self) -> None:
        """At once, without the farewell of TLS."""
        await trio.aclose_forcefully(self._stream)


async def connect(endpoint: Endpoint, tls: ssl.SSLContext | None) -> Connection:
    """Raises ConnectionLostError. `tls` is for https."""
    try:
        plain = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except OSError as e:
        raise ConnectionLostError(_words(e)) from e
    _notice_dead_peers(plain.socket)
    is_quiet = _quiet_check(plain.socket)
    if tls is None:
        return Connection(plain, endpoint.authority, is_quiet)
    stream = trio.SSLStream(plain, tls, server_hostname=endpoint.host, https_compatible=True)
    try:
        await stream.do_handshake()
    except (trio.BrokenResourceError, OSError) as e:
        await trio.aclose_forcefully(plain)
        raise ConnectionLostError(_words(e)) from e
    except BaseException:
        await trio.aclose_forcefully(plain)
        raise
    return Connection(stream, endpoint.authority, is_quiet, CERTIFICATE_HINT)


def _notice_dead_peers(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def _quiet_check(sock: trio.socket.SocketType) -> Callable[[], bool]:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
    return lambda: not poll.poll(0)


def _words(exc: BaseException) -> str:
    """What an operator can use: trio and ssl put the cause behind the exception that they raise."""
    causes: list[str] = []
    one: BaseException | None = exc
    while one is not None:
        if isinstance(one, ExceptionGroup):  # trio tried several addresses
            causes.extend(str(inner) for inner in one.exceptions)
        elif str(one):
            causes.append(str(one))
        one = one.__cause__
    return "; ".join(dict.fromkeys(causes)) or type(exc).__name__
