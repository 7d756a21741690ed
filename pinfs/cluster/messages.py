"""What a member asks of etcd, and what comes back: values, which know nothing of how they travel.

The words are those of etcd's API (api/etcdserverpb/rpc.proto). All reads are linearizable; a serializable one may be
stale, and is never asked for.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class Target(Enum):
    """What of a key a compare looks at."""

    CREATE = "create"
    MOD = "mod"
    VALUE = "value"


class Relation(Enum):
    EQUAL = "equal"
    GREATER = "greater"
    LESS = "less"


@dataclass(frozen=True, slots=True)
class Compare:
    """`prefix`: it must hold for every key that begins with `key`. Where there is none, numbers are 0, and no VALUE
    compares (applyCompare of etcd's apply.go)."""

    key: str
    target: Target
    relation: Relation
    operand: int | str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """`lease` 0: none; the key outlives its writer."""

    key: str
    value: str
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    key: str
    prefix: bool = False


Operation: TypeAlias = Put | Delete | Range


@dataclass(frozen=True, slots=True)
class Txn:
    """`then` is done if all compares hold, else `otherwise`, at one revision."""

    compares: tuple[Compare, ...]
    then: tuple[Operation, ...]
    otherwise: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """A new lease, for `ttl_s` seconds from its last keepalive."""

    ttl_s: float


@dataclass(frozen=True, slots=True)
class KeepAlive:
    lease: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """Ends a lease, and deletes its keys at one revision. Of one that is gone already it is done as well."""

    lease: int


Request: TypeAlias = Txn | Grant | KeepAlive | Revoke


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key that is there. `version`: how often it has been put since it was created."""

    key: str
    value: str
    mod_revision: int
    version: int


@dataclass(frozen=True, slots=True)
class Deleted:
    key: str
    mod_revision: int


Event: TypeAlias = KeyValue | Deleted


@dataclass(frozen=True, slots=True)
class Done:
    """A transaction was done. `ranges`: what each Range of the branch that was taken found, in their order."""

    succeeded: bool
    revision: int
    cluster_id: int
    ranges: tuple[tuple[KeyValue, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseDone:
    """A lease was granted, kept alive, or revoked."""

    lease: int


@dataclass(frozen=True, slots=True)
class LeaseGone:
    """Nothing was done, as the lease does not exist (any more)."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was done, nor will be: etcd said so (`why`), or the request never left this host."""

    why: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer came in time: the request may have been done, may be done later, or never."""


Answer: TypeAlias = Done | LeaseDone | LeaseGone | Refused | Unknown


@dataclass(frozen=True, slots=True)
class Batch:
    """What a watch delivers: all events of one revision, or none (then it says that nothing happened up to here)."""

    revision: int
    events: tuple[Event, ...]


def exists(key: str) -> Compare:
    return Compare(key, Target.CREATE, Relation.GREATER, 0)


def absent(key: str) -> Compare:
    return Compare(key, Target.CREATE, Relation.EQUAL, 0)


def unchanged(key: str, mod_revision: int) -> Compare:
    """The key was last put at this revision."""
    return Compare(key, Target.MOD, Relation.EQUAL, mod_revision)


def none_newer(prefix: str, revision: int) -> Compare:
    """No key of the prefix was put after this revision; after 0: there is no key."""
    return Compare(prefix, Target.MOD, Relation.LESS, revision + 1, prefix=True)


def all_above(prefix: str, text: str) -> Compare:
    """The values of all keys of the prefix are greater, as bytes."""
    return Compare(prefix, Target.VALUE, Relation.GREATER, text, prefix=True)
