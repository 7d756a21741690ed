"""User and password, and the token that etcd gives for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from pinfs.cluster.etcd import calls
from pinfs.cluster.etcd.calls import GarbledError
from pinfs.cluster.etcd.connection import Headers
from pinfs.cluster.etcd.errors import failure
from pinfs.cluster.etcd.outcomes import Refused, Unreachable
from pinfs.cluster.etcd.transport import Answer, Request, Transport


@dataclass(frozen=True, slots=True)
class Credentials:
    user: str
    password: str = field(repr=False)


class Login:
    """The token of a client. A login costs etcd a tenth of a second of processor time (bcrypt): so there is one at a
    time, and callers that wait for it take its token."""

    def __init__(self, transport: Transport, credentials: Credentials | None) -> None:
        self._transport = transport
        self._credentials = credentials
        self._lock = trio.Lock()
        self._token = ""

    @property
    def is_wanted(self) -> bool:
        """Whether there are credentials."""
        return self._credentials is not None

    async def token(self, deadline: float, stale: str = "") -> str | Refused | Unreachable:
        """A token by `deadline` (of trio's clock), another one than `stale`; "" without credentials."""
        if self._credentials is None:
            return ""
        if self._token != stale:
            return self._token
        try:
            with trio.fail_at(deadline):
                await self._lock.acquire()
        except trio.TooSlowError:
            return Unreachable("another call waits for the login")
        try:
            if self._token != stale:
                return self._token
            return await self._log_in(self._credentials, deadline)
        finally:
            self._lock.release()

    async def _log_in(self, credentials: Credentials, deadline: float) -> str | Refused | Unreachable:
        call = calls.authenticate(credentials.user, credentials.password)
        result = await self._transport.post(Request(call.path, calls.encode(call.body), repeatable=True), deadline)
        if not isinstance(result, Answer):
            return Unreachable(f"login: {result.reason}")
        if result.status != 200:
            failed = failure(result.status, result.body)
            kind = Refused(f"login: {failed.reason}", failed.code)
            return kind if failed.is_definite else Unreachable(kind.reason)
        try:
            self._token = calls.checked(calls.decode(result.body), call.read)
        except GarbledError as e:
            return Unreachable(f"login: {e}")
        return self._token


def authorization(token: str) -> Headers:
    return (("Authorization", token),) if token else ()
