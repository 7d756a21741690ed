"""Changes as they are made, across connections and nodes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NoReturn

import trio

from pinfs.cluster.etcd import calls
from pinfs.cluster.etcd.calls import Event, Found, GarbledError, Json, Keys
from pinfs.cluster.etcd.connection import Connection, ConnectionLostError, TooLargeError
from pinfs.cluster.etcd.endpoints import Endpoint
from pinfs.cluster.etcd.errors import Failure, cancellation, failure, failure_in
from pinfs.cluster.etcd.history import History
from pinfs.cluster.etcd.login import Login, authorization
from pinfs.cluster.etcd.outcomes import Outcome, Refused, Restored
from pinfs.cluster.etcd.transport import Transport

log = logging.getLogger("pinfs.cluster.etcd")

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
MAX_ERROR_BYTES: Final = 65536
HAS_LEADER: Final = ("Grpc-Metadata-hasleader", "true")
"""A node that has lost the majority ends the watch. Without this it would stay open and silent."""


class WatchError(Exception):
    """The watch has ended for good; the message says why."""


class CompactedError(WatchError):
    """Changes have been dropped that the watch had not seen. `revision` is the oldest that etcd still has."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"etcd has dropped the changes before revision {revision}")
        self.revision = revision


class RestoredError(WatchError):
    """The store has another history now: see outcomes.Restored."""


class DeniedError(WatchError):
    """etcd refuses the watch: user, password, or what the user may read."""


@dataclass(frozen=True, slots=True)
class Batch:
    """All changes up to `revision` that came after those of the batch before; there may be none."""

    revision: int
    events: tuple[Event, ...]


class _Interrupted(Exception):
    """This connection brings no more; another one goes on."""


class _Stream:
    """The watch on one connection: lines of JSON."""

    def __init__(self, connection: Connection, endpoint: Endpoint, max_line: int) -> None:
        self.connection = connection
        self.endpoint = endpoint
        self._max_line = max_line
        self._buffer = bytearray()
        self._searched = 0

    async def line(self) -> Json:
        """Raises ConnectionLostError, GarbledError, TooLargeError. A cancelled call loses nothing."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > self._max_line:
                raise TooLargeError(f"a line of the watch is larger than {self._max_line} bytes")
            some = await self.connection.receive_some()
            if not some:
                raise ConnectionLostError("etcd has ended the watch")
            self._buffer += some
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return calls.decode(line)


class Watch:
    """`async with client.watch(keys, revision) as watch: async for batch in watch: ...`

    Iterating waits without a limit, over nodes that die and come back: what ends it are WatchErrors only. Each change
    comes once, in the order of revisions, and the changes of one revision come together. Batches may come late, and
    none comes while no node with a majority can be reached (`interrupted_because` says so): a caller that must know
    the newest state asks for it with a call. `newest` is such a call.
    """

    def __init__(
        self,
        transport: Transport,
        login: Login,
        history: History,
        keys: Keys,
        from_revision: int,
        newest: Callable[[], Awaitable[Outcome[Found]]],
    ) -> None:
        self._transport = transport
        self._login = login
        self._history = history
        self._keys = keys
        self._next = from_revision
        self._newest = newest
        self._stream: _Stream | None = None
        self._endpoint: Endpoint | None = None
        self._tried: set[Endpoint] = set()
        self._pause_s = 0.0
        self._token = ""
        self._stale = ""
        self._is_renewed = False
        self.interrupted_because = "it has not begun"

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.connection.aclose()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Batch:
        """Raises CompactedError, RestoredError, DeniedError, or WatchError for a line above the limit."""
        while True:
            try:
                if self._stream is None:
                    await self._begin()
                elif (batch := await self._next_batch(self._stream)) is not None:
                    return batch
            except (ConnectionLostError, GarbledError, _Interrupted) as e:
                await self._interrupt(str(e))
            except TooLargeError as e:
                await self.aclose()
                raise WatchError(str(e)) from e
            except WatchError:
                await self.aclose()
                raise

    async def _interrupt(self, reason: str) -> None:
        if not self.interrupted_because:
            log.info("the watch is interrupted: %s", reason)
        self.interrupted_because = reason
        await self.aclose()
        if self._endpoint is not None:
            self._transport.endpoints.failed(self._endpoint, trio.current_time())
        await trio.sleep(self._pause_s)
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))

    async def _begin(self) -> None:
        """Opens the stream, and waits until etcd says that the watch stands."""
        limits = self._transport.limits
        token = await self._login.token(trio.current_time() + limits.call_s, self._stale)
        if isinstance(token, Refused):
            raise DeniedError(token.reason)
        if not isinstance(token, str):
            raise _Interrupted(token.reason)
        self._token = token
        self._endpoint = endpoint = self._next_endpoint()
        connection: Connection | None = None
        try:
            with trio.fail_after(limits.attempt_s):
                connection = await self._transport.open(endpoint)
                stream = _Stream(connection, endpoint, limits.line_bytes)
                created = await self._ask(stream)
            await self._check(created)
            self._stream, connection = stream, None
        except trio.TooSlowError:
            raise _Interrupted(f"{endpoint}: the watch did not begin within the time limit") from None
        finally:
            if connection is not None:
                await connection.aclose()
        self.interrupted_because = ""
        self._is_renewed = False

    def _next_endpoint(self) -> Endpoint:
        """One that was not tried since the last batch, if there is one: each was left for a reason."""
        endpoints = self._transport.endpoints.in_order(trio.current_time())
        if self._tried.issuperset(endpoints):
            self._tried.clear()
        endpoint = next(endpoint for endpoint in endpoints if endpoint not in self._tried)
        self._tried.add(endpoint)
        return endpoint

    async def _ask(self, stream: _Stream) -> Json:
        body = calls.encode(calls.watch_body(self._keys, self._next))
        await stream.connection.send("/v3/watch", body, (HAS_LEADER, *authorization(self._token)))
        if (status := await stream.connection.receive_status()) != 200:
            self._fail(failure(status, await stream.connection.receive_body(MAX_ERROR_BYTES)))
        return await self._result(stream)

    async def _check(self, created: Json) -> None:
        """A node that has not come to the revision that the watch waits for lags, or the store was restored."""
        self._look_at(created)
        if not created.get("created") or "events" in created:
            raise GarbledError(f"the watch begins with {str(created)[:60]}")
        header = calls.checked(created, calls.header)
        if header.revision >= self._next - 1:
            return
        if isinstance(outcome := await self._newest(), Restored):
            raise RestoredError(outcome.reason)
        log.debug("%s is at revision %d, before %d: %s", self._endpoint, header.revision, self._next, outcome)

    async def _next_batch(self, stream: _Stream) -> Batch | None:
        with trio.move_on_after(self._transport.limits.silence_s):
            result = await self._result(stream)
            self._look_at(result)
            batch = calls.checked(result, self._batch)
            self._pause_s = 0.0
            self._tried = {stream.endpoint}
            return batch
        await self.aclose()  # the next endpoint goes on; this one may be well
        return None

    async def _result(self, stream: _Stream) -> Json:
        line = await stream.line()
        if "error" in line:
            self._fail(failure_in(line))
        return calls.checked(line, lambda line: dict(line["result"]))

    def _look_at(self, result: Json) -> None:
        """Raises what ends the watch, or this stream of it."""
        if reason := self._history.note(calls.checked(result, calls.header)):
            raise RestoredError(reason)
        if oldest := calls.checked(result, lambda result: int(result.get("compact_revision", 0))):
            raise CompactedError(oldest)
        if result.get("canceled"):
            self._fail(cancellation(str(result.get("cancel_reason", ""))))

    def _fail(self, failed: Failure) -> NoReturn:
        if failed.wants_login or failed.is_definite:
            self._deny(failed.reason)
        raise _Interrupted(failed.reason)

    def _deny(self, reason: str) -> NoReturn:
        """Another login may cure it, once."""
        if self._is_renewed or not self._login.is_wanted:
            raise DeniedError(reason)
        self._stale = self._token
        self._is_renewed = True
        self._tried.clear()  # the node is not the reason
        self._endpoint = None
        raise _Interrupted(reason)

    def _batch(self, result: Json) -> Batch | None:
        """None: there is nothing new in it. A batch without events says that there were none up to its revision."""
        events = tuple(
            event for event in map(calls.event, result.get("events", [])) if event.item.mod_revision >= self._next
        )
        if events:
            revision = events[-1].item.mod_revision
        elif "events" not in result and not result.get("created"):
            revision = calls.header(result).revision
        else:
            return None
        self._next = max(self._next, revision + 1)
        return Batch(revision, events)
