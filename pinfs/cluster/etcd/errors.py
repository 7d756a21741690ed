"""What etcd's refusals mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pinfs.cluster.etcd.calls import GarbledError, decode
from pinfs.cluster.etcd.outcomes import Code

COMMON_NAME: Final = "CommonName of client"
COMMON_NAME_HINT: Final = (
    "etcd's gateway answers nobody whose certificate has a CommonName while its authentication is on: take a"
    " certificate without one (subjectAltName only), and user and password"
)
DEFINITE: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)
"""Codes that say that nothing was changed. All others (UNAVAILABLE: "request timed out") come after the request went to
the leader as well."""
DEFINITE_WORDS: Final = frozenset({"etcdserver: too many requests"})
"""The same where the code does not say it. RESOURCE_EXHAUSTED in general does not: a change that meets the quota just
when it is applied is made, and answered with "mvcc: database space exceeded" (quotaApplierV3 of etcd)."""
STALE_LOGIN: Final = frozenset(
    {
        "etcdserver: invalid auth token",
        "etcdserver: revision of auth store is old",
        "etcdserver: user name is empty",
    }
)
"""Another login cures these. Nothing was changed."""
PERMISSION_DENIED: Final = "etcdserver: permission denied"


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that is an error. `is_definite`: a change was not made."""

    reason: str
    code: Code

    @property
    def is_definite(self) -> bool:
        return self.code in DEFINITE or self.reason in DEFINITE_WORDS

    @property
    def wants_login(self) -> bool:
        return self.code is Code.UNAUTHENTICATED or self.reason in STALE_LOGIN


def failure(status: int, body: bytes) -> Failure:
    """Of an answer whose HTTP status is not 200."""
    text = body[:200].decode(errors="replace").strip()
    if status == 400 and text.startswith(COMMON_NAME):
        return Failure(f"{text} ({COMMON_NAME_HINT})", Code.INVALID_ARGUMENT)
    try:
        return failure_in(decode(body))
    except GarbledError:
        return Failure(f"HTTP status {status}: {text}", Code.NONE)


def failure_in(answer: dict[str, Any]) -> Failure:
    """Of an error in JSON: of a call that answers once, or in the middle of a stream."""
    inner = answer.get("error")
    error = inner if isinstance(inner, dict) else answer
    number = error.get("grpc_code", error.get("code"))
    code = next((code for code in Code if code == number), Code.NONE)
    return Failure(str(error.get("message") or inner or answer)[:500], code)


def cancellation(reason: str) -> Failure:
    """Of a watch. The reason is all that etcd says, with the words of gRPC around it or without; 3.4 says "permission
    denied" to a token that has ended as well.
    """
    known = next((words for words in (*STALE_LOGIN, PERMISSION_DENIED) if words in reason), None)
    code = Code.NONE if known is None else Code.PERMISSION_DENIED
    return Failure(known or reason or "etcd has cancelled the watch", code)
