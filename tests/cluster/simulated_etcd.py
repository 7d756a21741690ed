"""etcd as the protocol may rely on it: one history of revisions, transactions, leases, and watches in order.

Its clock is true time. It ends leases up to a second late, and early where the world has it do so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pinfs.cluster.messages import (
    Answer,
    Batch,
    Compare,
    Delete,
    Deleted,
    Done,
    Event,
    Grant,
    KeepAlive,
    KeyValue,
    LeaseDone,
    LeaseGone,
    Put,
    Range,
    Relation,
    Request,
    Revoke,
    Target,
    Txn,
)

CLUSTER_ID = 4711


@dataclass
class Stored:
    value: str
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass
class Lease:
    ttl_s: float
    ends_at: float
    keys: set[str] = field(default_factory=set)


@dataclass
class Snapshot:
    revision: int
    keys: dict[str, Stored]
    leases: dict[int, Lease]


class SimulatedEtcd:
    """`on_batch` hears of each revision."""

    def __init__(self) -> None:
        self.revision = 1
        self.keys: dict[str, Stored] = {}
        self.leases: dict[int, Lease] = {}
        self.log: list[Batch] = []
        self.on_batch: Callable[[Batch], None] = lambda _: None
        self._last_lease = 0

    def handle(self, request: Request, now: float) -> Answer:
        match request:
            case Txn():
                return self._txn(request)
            case Grant(ttl_s):
                self._last_lease += 1
                self.leases[self._last_lease] = Lease(ttl_s, now + ttl_s)
                return LeaseDone(self._last_lease)
            case KeepAlive(lease):
                if lease not in self.leases:
                    return LeaseGone()
                self.leases[lease].ends_at = now + self.leases[lease].ttl_s
                return LeaseDone(lease)
            case Revoke(lease):
                return LeaseDone(lease) if self.revoke(lease) else LeaseGone()

    def revoke(self, lease: int) -> bool:
        """Also what its lessor does by itself."""
        if lease not in self.leases:
            return False
        keys = sorted(self.leases.pop(lease).keys)
        if keys:
            self.revision += 1
            for key in keys:
                del self.keys[key]
            self._emit([Deleted(key, self.revision) for key in keys])
        return True

    def expired(self, now: float) -> list[int]:
        """Leases whose time is over."""
        return [number for number, lease in self.leases.items() if lease.ends_at <= now]

    def snapshot(self) -> Snapshot:
        return copy.deepcopy(Snapshot(self.revision, self.keys, self.leases))

    def restore(self, snapshot: Snapshot) -> None:
        """What came after it never happened. Leases begin anew; their numbers are random in earnest, and never
        return."""
        self.revision, self.keys, self.leases = snapshot.revision, snapshot.keys, snapshot.leases
        self.log = [batch for batch in self.log if batch.revision <= self.revision]

    def since(self, revision: int) -> Iterator[Batch]:
        return (batch for batch in self.log if batch.revision >= revision)

    def _found(self, key: str, prefix: bool) -> list[str]:
        if prefix:
            return sorted(name for name in self.keys if name.startswith(key))
        return [key] if key in self.keys else []

    def _holds(self, compare: Compare) -> bool:
        found = self._found(compare.key, compare.prefix)
        if not found:
            return compare.target is not Target.VALUE and _related(0, compare)
        return all(_related(self._target(key, compare.target), compare) for key in found)

    def _target(self, key: str, target: Target) -> int | str:
        stored = self.keys[key]
        match target:
            case Target.CREATE:
                return stored.create_revision
            case Target.MOD:
                return stored.mod_revision
            case Target.VALUE:
                return stored.value

    def _txn(self, txn: Txn) -> Answer:
        succeeded = all(map(self._holds, txn.compares))
        operations = txn.then if succeeded else txn.otherwise
        if any(isinstance(op, Put) and op.lease and op.lease not in self.leases for op in operations):
            return LeaseGone()
        revision = self.revision + 1
        events: list[Event] = []
        ranges = []
        for op in operations:
            match op:
                case Put():
                    self._put(op, revision)
                    events.append(self._shown(op.key))
                case Delete():
                    for key in self._found(op.key, op.prefix):
                        self._detach(key)
                        del self.keys[key]
                        events.append(Deleted(key, revision))
                case Range():
                    ranges.append(tuple(self._shown(key) for key in self._found(op.key, op.prefix)))
        if events:
            self.revision = revision
            self._emit(events)
        return Done(succeeded, self.revision, CLUSTER_ID, tuple(ranges))

    def _put(self, op: Put, revision: int) -> None:
        self._detach(op.key)
        before = self.keys.get(op.key)
        created, version = (before.create_revision, before.version + 1) if before else (revision, 1)
        self.keys[op.key] = Stored(op.value, created, revision, version, op.lease)
        if op.lease:
            self.leases[op.lease].keys.add(op.key)

    def _detach(self, key: str) -> None:
        stored = self.keys.get(key)
        if stored and stored.lease in self.leases:
            self.leases[stored.lease].keys.discard(key)

    def _shown(self, key: str) -> KeyValue:
        stored = self.keys[key]
        return KeyValue(key, stored.value, stored.mod_revision, stored.version)

    def _emit(self, events: list[Event]) -> None:
        batch = Batch(self.revision, tuple(events))
        self.log.append(batch)
        self.on_batch(batch)


def _related(found: int | str, compare: Compare) -> bool:
    operand = compare.operand
    assert type(found) is type(operand)
    match compare.relation:
        case Relation.EQUAL:
            return found == operand
        case Relation.GREATER:
            return found > operand  # type: ignore[operator]
        case Relation.LESS:
            return found < operand  # type: ignore[operator]
