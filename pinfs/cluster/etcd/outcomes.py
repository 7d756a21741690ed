"""What becomes of a call. A caller matches on the class: none of these is raised."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeAlias, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Code(IntEnum):
    """Status codes of gRPC that etcd answers with (google.golang.org/grpc/codes); NONE: the answer had none of them."""

    NONE = -1
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Done(Generic[T_co]):
    """etcd did it. `revision` is that of the store, in the answer's header."""

    value: T_co
    revision: int
    cluster_id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """etcd did not do it, will not, and says why."""

    reason: str
    code: Code = Code.NONE


@dataclass(frozen=True, slots=True)
class Unknown:
    """A change was sent and no answer says what became of it: it may have been made, or be made later. It is never
    sent again: the caller finds out what is so, or makes it not matter."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No endpoint answered within the time limit. A change was not sent."""

    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """The answer came from another history than the answers before it: another cluster id, or a revision that went
    back, as after a restore from a snapshot. Nothing that was known of the store holds. The change may have been made
    there. A client that has met this sends nothing more; its user begins anew with another one."""

    reason: str


Outcome: TypeAlias = Done[T_co] | Refused | Unknown | Unreachable | Restored
