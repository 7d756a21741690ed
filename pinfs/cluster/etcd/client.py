"""The client: typed calls, and what becomes of them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TypeVar

import trio

from pinfs.cluster.etcd import calls
from pinfs.cluster.etcd.calls import (
    Call,
    Compare,
    Delete,
    Deleted,
    Found,
    GarbledError,
    Grant,
    Keys,
    LeaseLife,
    Operation,
    Put,
    Range,
    Status,
    Stored,
    TxnResult,
)
from pinfs.cluster.etcd.connection import connect
from pinfs.cluster.etcd.endpoints import Endpoint
from pinfs.cluster.etcd.errors import Failure, failure
from pinfs.cluster.etcd.history import History
from pinfs.cluster.etcd.login import Credentials, Login, authorization
from pinfs.cluster.etcd.outcomes import Done, Outcome, Refused, Restored, Unknown, Unreachable
from pinfs.cluster.etcd.transport import Answer, Connect, Limits, Lost, NotSent, Request, Result, TooLarge, Transport
from pinfs.cluster.etcd.watch import Watch

T = TypeVar("T")


def tls_context(ca: str, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """For https: whom to trust, and who this host is. Paths of PEM files.

    Raises OSError for what cannot be read (ssl.SSLError, an OSError, for what is no certificate). While etcd's
    authentication is on, the certificate must have no CommonName, or etcd's gateway refuses every call.
    """
    context = ssl.create_default_context(cafile=ca)
    if certificate:
        context.load_cert_chain(certificate, key or None)
    return context


class Etcd:
    """etcd's JSON gateway (/v3). `async with Etcd(...)` closes its connections at the end.

    Each call returns its outcome within `Limits.call_s` and raises nothing. A change is sent once at most; a caller
    that cancels one does not learn what became of it. The constructor raises EndpointError without endpoints, and with
    certificates for http. Without `tls`, https trusts the CAs of the system.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        tls: ssl.SSLContext | None = None,
        credentials: Credentials | None = None,
        limits: Limits | None = None,
        connect: Connect = connect,
    ) -> None:
        self._limits = limits or Limits()
        self._transport = Transport(endpoints, tls, self._limits, connect)
        self._login = Login(self._transport, credentials)
        self._history = History()

    async def __aenter__(self) -> Etcd:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()

    def endpoints(self) -> list[Endpoint]:
        """In the order in which they are asked at present."""
        return self._transport.endpoints.in_order(trio.current_time())

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> Outcome[Stored]:
        """Refused with NOT_FOUND if there is no such lease (any more)."""
        return await self._call(calls.put(Put(key, value, lease)))

    async def range(self, request: Range) -> Outcome[Found]:
        """Linearizable: what is found was the newest state at some moment of the call. Refused with OUT_OF_RANGE if
        `request.revision` has been compacted."""
        return await self._call(calls.range_(request))

    async def delete(self, keys: Keys) -> Outcome[Deleted]:
        return await self._call(calls.delete(Delete(keys)))

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Outcome[TxnResult]:
        """`then` if all of `compares` hold, else `otherwise`, in one step. One without Put and Delete is a read: its
        outcome is never Unknown."""
        return await self._call(calls.txn(compares, then, otherwise))

    async def lease_grant(self, ttl_s: int, lease: int = 0) -> Outcome[Grant]:
        """A lease that ends `ttl_s` seconds after its last keepalive, or later. `lease` is its id if the caller
        wants to know it even where the outcome is Unknown; 0: etcd chooses."""
        return await self._call(calls.lease_grant(ttl_s, lease))

    async def lease_keepalive(self, lease: int) -> Outcome[int]:
        """The seconds that the lease lasts from now; 0: it has ended. It may be sent twice, and an older one may
        arrive late: count from the moment before the call."""
        return await self._call(calls.lease_keepalive(lease))

    async def lease_revoke(self, lease: int) -> Outcome[None]:
        """Ends a lease, and its keys with it. Refused with NOT_FOUND if it has ended."""
        return await self._call(calls.lease_revoke(lease))

    async def lease_time_to_live(self, lease: int) -> Outcome[LeaseLife | None]:
        """None: the lease has ended."""
        return await self._call(calls.lease_time_to_live(lease))

    async def status(self) -> Outcome[Status]:
        """Of the node that calls go to at present."""
        return await self._call(calls.status())

    async def login(self) -> Outcome[None]:
        """Checks user and password. Calls do that by themselves; at the start it tells a wrong password from other
        errors. Done at once without credentials, with revision and cluster id 0."""
        token = await self._login.token(trio.current_time() + self._limits.call_s)
        return Done(None, 0, 0) if isinstance(token, str) else token

    def watch(self, keys: Keys, from_revision: int) -> Watch:
        """Changes of `keys` from a revision on, in order, each once: see Watch."""
        newest = partial(self.range, Range(keys, count_only=True))
        return Watch(self._transport, self._login, self._history, keys, from_revision, newest)

    async def _call(self, call: Call[T]) -> Outcome[T]:
        if self._history.broken_because:
            await trio.lowlevel.checkpoint()
            return Restored(self._history.broken_because)
        deadline = trio.current_time() + self._limits.call_s
        at_least = self._history.revision if call.is_newest else 0
        stale = ""
        while True:
            token = await self._login.token(deadline, stale)
            if not isinstance(token, str):
                return token
            request = Request(call.path, calls.encode(call.body), not call.changes, authorization(token))
            result = await self._transport.post(request, deadline)
            outcome = self._outcome(call, result, at_least)
            if not isinstance(outcome, Failure):
                return outcome
            if stale or not self._login.is_wanted:
                return Refused(outcome.reason, outcome.code)
            stale = token

    def _outcome(self, call: Call[T], result: Result, at_least: int) -> Outcome[T] | Failure:
        """A Failure is one that another login may cure."""
        match result:
            case NotSent(reason):
                return Unreachable(reason)
            case Lost(reason):
                return Unknown(reason) if call.changes else Unreachable(reason)
            case TooLarge(reason):
                return Unknown(reason) if call.changes else Refused(reason)
            case Answer(200, body):
                return self._done(call, body, at_least)
            case Answer(status, body):
                failed = failure(status, body)
                if failed.wants_login:
                    return failed
                if failed.is_definite:
                    return Refused(failed.reason, failed.code)
                return Unknown(failed.reason) if call.changes else Unreachable(failed.reason)

    def _done(self, call: Call[T], body: bytes, at_least: int) -> Outcome[T]:
        try:
            value, header = calls.read(body, call.read)
        except GarbledError as e:
            return Unknown(str(e)) if call.changes else Unreachable(str(e))
        if reason := self._history.note(header, at_least):
            return Restored(reason)
        return Done(value, header.revision, header.cluster_id)
