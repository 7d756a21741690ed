"""What etcd is asked and what it answers: values, and their JSON as etcd's gateway has it (/v3, etcd 3.4 and later).

64-bit numbers are strings there, keys and values base64, and fields that are zero or empty are left out.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from pinfs.cluster.etcd.history import Header

T = TypeVar("T")
Json: TypeAlias = dict[str, Any]
Relation: TypeAlias = Literal["=", "!=", "<", ">"]
_RELATIONS: Final = {"=": "EQUAL", "!=": "NOT_EQUAL", "<": "LESS", ">": "GREATER"}


class GarbledError(Exception):
    """An answer that is not what etcd's gateway answers."""


@dataclass(frozen=True, slots=True)
class Keys:
    """One key, or those from `first` to before `end` (b"\\0": to the last key there is)."""

    first: bytes
    end: bytes = b""


def one(key: bytes) -> Keys:
    return Keys(key)


def below(prefix: bytes) -> Keys:
    """All keys that begin with `prefix`."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return Keys(prefix or b"\0", b"\0")
    return Keys(prefix, stem[:-1] + bytes([stem[-1] + 1]))


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction. Of a range it holds if it holds for each key in it.

    `of` is what to compare: the revision of creation or of the last change, the number of changes since the creation,
    or the value. Without any key, single or in the range, the numbers are 0, and a comparison of the value fails.
    """

    keys: Keys
    of: Literal["create", "mod", "version", "value"]
    relation: Relation
    operand: int | bytes

    def to_json(self) -> Json:
        target = self.of.upper()
        field = {"create": "create_revision", "mod": "mod_revision"}.get(self.of, self.of)
        operand = _text(self.operand) if isinstance(self.operand, bytes) else str(self.operand)
        return {**_range(self.keys), "target": target, "result": _RELATIONS[self.relation], field: operand}


@dataclass(frozen=True, slots=True)
class Put:
    """`lease`: the key goes with it; 0 is none."""

    key: bytes
    value: bytes
    lease: int = 0

    def to_json(self) -> Json:
        return {"key": _text(self.key), "value": _text(self.value), "lease": str(self.lease)}


@dataclass(frozen=True, slots=True)
class Range:
    """What is stored now, by key. `limit` 0 is none; `revision` 0 is the newest, another one an older state."""

    keys: Keys
    limit: int = 0
    revision: int = 0
    count_only: bool = False

    def to_json(self) -> Json:
        return {
            **_range(self.keys),
            "limit": str(self.limit),
            "revision": str(self.revision),
            "count_only": self.count_only,
        }


@dataclass(frozen=True, slots=True)
class Delete:
    keys: Keys

    def to_json(self) -> Json:
        return _range(self.keys)


Operation: TypeAlias = Put | Range | Delete


@dataclass(frozen=True, slots=True)
class Item:
    """A key with its value. Of a deleted key only `key` and `mod_revision` are set."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of a Put."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a Range. `count` is how many keys there are, also those above the limit."""

    items: tuple[Item, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Deleted:
    count: int


OperationResult: TypeAlias = Stored | Found | Deleted


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`results` has one for each operation of the branch that was taken."""

    succeeded: bool
    results: tuple[OperationResult, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    lease: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class LeaseLife:
    """What is left of a lease, what it was granted, and the keys that go with it."""

    ttl_s: int
    granted_ttl_s: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """Of one node. `leader` is 0 where it knows none; `errors` are alarms, as that of a full quota."""

    version: str
    member: int
    leader: int
    db_bytes: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    is_delete: bool
    item: Item


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request and how its answer is read. `changes`: whether it changes the store. `is_newest`: whether etcd answers
    with the newest revision that there is, and not with that of a node that may lag."""

    path: str
    body: Json
    read: Callable[[Json], T]
    changes: bool = True
    is_newest: bool = True


def put(request: Put) -> Call[Stored]:
    return Call("/v3/kv/put", request.to_json(), lambda _: Stored())


def range_(request: Range) -> Call[Found]:
    return Call("/v3/kv/range", request.to_json(), _found, changes=False)


def delete(request: Delete) -> Call[Deleted]:
    return Call("/v3/kv/deleterange", request.to_json(), _deleted)


def txn(compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> Call[TxnResult]:
    body = {
        "compare": [compare.to_json() for compare in compares],
        "success": [_operation(operation) for operation in then],
        "failure": [_operation(operation) for operation in otherwise],
    }
    changes = any(not isinstance(operation, Range) for operation in (*then, *otherwise))
    return Call("/v3/kv/txn", body, _txn_result, changes=changes)


def lease_grant(ttl_s: int, lease: int) -> Call[Grant]:
    body = {"TTL": str(ttl_s), "ID": str(lease)}
    return Call("/v3/lease/grant", body, lambda answer: Grant(int(answer["ID"]), int(answer["TTL"])))


def lease_keepalive(lease: int) -> Call[int]:
    """Answered by any node, with its own revision."""

    def read(answer: Json) -> int:
        return int(answer.get("TTL", 0))

    return Call("/v3/lease/keepalive", {"ID": str(lease)}, read, changes=False, is_newest=False)


def lease_revoke(lease: int) -> Call[None]:
    return Call("/v3/lease/revoke", {"ID": str(lease)}, lambda _: None)


def lease_time_to_live(lease: int) -> Call[LeaseLife | None]:
    def read(answer: Json) -> LeaseLife | None:
        if (ttl_s := int(answer.get("TTL", 0))) < 0:
            return None
        return LeaseLife(ttl_s, int(answer["grantedTTL"]), tuple(map(_bytes, answer.get("keys", []))))

    body = {"ID": str(lease), "keys": True}
    return Call("/v3/lease/timetolive", body, read, changes=False, is_newest=False)


def status() -> Call[Status]:
    def read(answer: Json) -> Status:
        return Status(
            str(answer["version"]),
            int(answer["header"]["member_id"]),
            int(answer.get("leader", 0)),
            int(answer.get("dbSize", 0)),
            tuple(map(str, answer.get("errors", []))),
        )

    return Call("/v3/maintenance/status", {}, read, changes=False, is_newest=False)


def authenticate(user: str, password: str) -> Call[str]:
    body = {"name": user, "password": password}
    return Call("/v3/auth/authenticate", body, lambda answer: str(answer["token"]), changes=False, is_newest=False)


def watch_body(keys: Keys, from_revision: int) -> Json:
    return {"create_request": {**_range(keys), "start_revision": str(from_revision), "progress_notify": True}}


def encode(body: Json) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def decode(body: bytes) -> Json:
    """Raises GarbledError."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise GarbledError(f"not JSON: {body[:60]!r}") from None
    if not isinstance(answer, dict):
        raise GarbledError(f"not an object: {body[:60]!r}")
    return answer


def read(body: bytes, read_value: Callable[[Json], T]) -> tuple[T, Header]:
    """The value and the header of an answer with status 200. Raises GarbledError."""
    answer = decode(body)
    if isinstance(answer.get("result"), dict):  # of methods that stream, as keepalive
        answer = answer["result"]
    return checked(answer, lambda answer: (read_value(answer), header(answer)))


def checked(answer: Json, read_value: Callable[[Json], T]) -> T:
    """What `read_value` makes of an answer. Raises GarbledError."""
    try:
        return read_value(answer)
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error) as e:
        raise GarbledError(f"unexpected answer ({e!r}): {str(answer)[:60]}") from None


def header(answer: Json) -> Header:
    return Header(int(answer["header"]["cluster_id"]), int(answer["header"].get("revision", 0)))


def event(raw: Json) -> Event:
    return Event(raw.get("type") == "DELETE", _item(raw["kv"]))


def _range(keys: Keys) -> Json:
    return {"key": _text(keys.first)} | ({"range_end": _text(keys.end)} if keys.end else {})


def _operation(operation: Operation) -> Json:
    kind = {Put: "request_put", Range: "request_range", Delete: "request_delete_range"}[type(operation)]
    return {kind: operation.to_json()}


def _txn_result(answer: Json) -> TxnResult:
    results = tuple(map(_operation_result, answer.get("responses", [])))
    return TxnResult(bool(answer.get("succeeded", False)), results)


def _operation_result(answer: Json) -> OperationResult:
    if "response_range" in answer:
        return _found(answer["response_range"])
    if "response_delete_range" in answer:
        return _deleted(answer["response_delete_range"])
    answer["response_put"]
    return Stored()


def _found(answer: Json) -> Found:
    return Found(tuple(map(_item, answer.get("kvs", []))), int(answer.get("count", 0)))


def _deleted(answer: Json) -> Deleted:
    return Deleted(int(answer.get("deleted", 0)))


def _item(raw: Json) -> Item:
    numbers = (int(raw.get(name, 0)) for name in ("create_revision", "mod_revision", "version", "lease"))
    return Item(_bytes(raw.get("key", "")), _bytes(raw.get("value", "")), *numbers)


def _text(value: bytes) -> str:
    return b64encode(value).decode()


def _bytes(text: str) -> bytes:
    return b64decode(text, validate=True)
