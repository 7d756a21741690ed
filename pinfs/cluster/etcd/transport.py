"""A request to any of several endpoints: connections that are kept, fail-over, limits."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import trio

from pinfs.cluster.etcd.connection import Connection, ConnectionLostError, Headers, TooLargeError
from pinfs.cluster.etcd.endpoints import Endpoint, EndpointError, Endpoints

MAX_IDLE: Final = 8
"""Connections that are kept to one endpoint while no call uses them."""
GATEWAY_ERRORS: Final = frozenset({500, 502, 503, 504})
"""HTTP statuses that another node may answer better."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one client. Seconds of the local clock of trio, and bytes of JSON."""

    call_s: float = 3.0
    """No call waits longer, whatever it has to do: connect, log in, ask another endpoint."""
    attempt_s: float = 1.0
    """For a connection; for an answer, where another endpoint may be asked instead; for the beginning of a watch."""
    bad_for_s: float = 5.0
    """How long an endpoint that failed is asked after the others."""
    silence_s: float = 10.0
    """A watch that has brought nothing for so long begins anew on the next endpoint: its node may be stopped."""
    answer_bytes: int = 16 << 20
    line_bytes: int = 16 << 20
    calls: int = 64
    """Under way at the same time; further ones wait, within `call_s`."""


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    body: bytes
    repeatable: bool
    """Whether to send it a second time does no harm: it changes nothing, or only what it would change in any case."""
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class NotSent:
    """No byte of the request has left this host."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The request was sent, at least in part, and its answer did not come."""

    reason: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """There is an answer, above the limit."""

    reason: str


Result: TypeAlias = Answer | NotSent | Lost | TooLarge
Connect: TypeAlias = Callable[[Endpoint, ssl.SSLContext | None], Awaitable[Connection]]


class Transport:
    """Posts requests. Raises nothing of its own, but for `open`."""

    def __init__(
        self, endpoints: Sequence[Endpoint], tls: ssl.SSLContext | None, limits: Limits, connect: Connect
    ) -> None:
        self.endpoints = Endpoints(endpoints, limits.bad_for_s)
        self.limits = limits
        is_encrypted = [endpoint.is_encrypted for endpoint in endpoints]
        if tls is not None and not all(is_encrypted):
            raise EndpointError("there are certificates, but the endpoints are http: write https://")
        self._tls = tls or (ssl.create_default_context() if any(is_encrypted) else None)
        self._connect = connect
        self._idle: dict[Endpoint, list[Connection]] = {endpoint: [] for endpoint in endpoints}
        self._free = trio.Semaphore(limits.calls)
        self._is_closed = False

    async def aclose(self) -> None:
        """Closes what no call uses; what one uses closes with it."""
        self._is_closed = True
        for connections in self._idle.values():
            while connections:
                await connections.pop().aclose()

    async def post(self, request: Request, deadline: float) -> Result:
        """The answer of the first endpoint that gives one by `deadline` (of trio's clock). A request that is not
        `repeatable` is sent to one endpoint at most."""
        try:
            with trio.fail_at(deadline):
                await self._free.acquire()
        except trio.TooSlowError:
            return NotSent(f"{self.limits.calls} calls are under way already")
        try:
            return await self._over_endpoints(request, deadline)
        finally:
            self._free.release()

    async def _over_endpoints(self, request: Request, deadline: float) -> Result:
        result: Result = NotSent("no time was left to ask an endpoint")
        reasons: list[str] = []
        for endpoint in self.endpoints.in_order(trio.current_time()):
            if trio.current_time() >= deadline:
                break
            result = await self._attempt(endpoint, request, deadline)
            match result:
                case Answer(status) if status not in GATEWAY_ERRORS:
                    self.endpoints.worked(endpoint)
                    return result
                case TooLarge():
                    return result
            self.endpoints.failed(endpoint, trio.current_time())
            if not isinstance(result, Answer):
                reasons.append(result.reason)
                result = replace(result, reason="; ".join(reasons))
            if not request.repeatable and not isinstance(result, NotSent):
                return result
        return result

    async def _attempt(self, endpoint: Endpoint, request: Request, deadline: float) -> Result:
        try:
            with trio.fail_at(self._attempt_deadline(deadline)):
                connection = await self._idle_or_new(endpoint)
        except trio.TooSlowError:
            return NotSent(f"{endpoint}: no connection within the time limit")
        except ConnectionLostError as e:
            return NotSent(f"{endpoint}: {e}")
        is_kept = False
        try:
            with trio.fail_at(self._attempt_deadline(deadline) if request.repeatable else deadline):
                await connection.send(request.path, request.body, request.headers)
                status = await connection.receive_status()
                answer = Answer(status, await connection.receive_body(self.limits.answer_bytes))
            is_kept = connection.begin_next() and self._keep(endpoint, connection)
            return answer
        except trio.TooSlowError:
            return Lost(f"{endpoint}: no answer within the time limit")
        except ConnectionLostError as e:
            return Lost(f"{endpoint}: {e}")
        except TooLargeError as e:
            return TooLarge(f"{endpoint}: {e}")
        finally:
            if not is_kept:
                await connection.aclose()

    def _attempt_deadline(self, deadline: float) -> float:
        return min(deadline, trio.current_time() + self.limits.attempt_s)

    async def _idle_or_new(self, endpoint: Endpoint) -> Connection:
        idle = self._idle[endpoint]
        while idle:
            connection = idle.pop()
            if connection.is_usable():
                return connection
            await connection.aclose()
        return await self.open(endpoint)

    def _keep(self, endpoint: Endpoint, connection: Connection) -> bool:
        idle = self._idle[endpoint]
        if self._is_closed or len(idle) >= MAX_IDLE:
            return False
        idle.append(connection)
        return True

    async def open(self, endpoint: Endpoint) -> Connection:
        """A connection for the caller alone, who closes it. Raises ConnectionLostError; has no time limit."""
        return await self._connect(endpoint, self._tls if endpoint.is_encrypted else None)
