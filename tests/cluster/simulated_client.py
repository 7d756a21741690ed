"""The client of etcd over a simulated etcd, in trio's time: for what a real etcd does only when it likes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import trio

from cluster.simulated_etcd import CLUSTER_ID, SimulatedEtcd
from pinfs.cluster import etcd, messages
from pinfs.cluster.etcd import Code, Done, Found, Grant, Item, Keys, Outcome, Restored, TxnResult, Unreachable
from pinfs.cluster.messages import Batch, LeaseDone, Relation, Target, Txn

LAG_S = 0.001
T = TypeVar("T")
GONE = etcd.Refused("etcdserver: requested lease not found", Code.NOT_FOUND)
_RELATIONS = {"=": Relation.EQUAL, ">": Relation.GREATER, "<": Relation.LESS}


class Network:
    """What all clients share, with one cluster below `/p/`. `is_cut`: nothing gets through. `answer_lag_s`: of
    transactions that put such keys. `refuses_watches`: with this error."""

    def __init__(self) -> None:
        self.etcd = SimulatedEtcd()
        self.etcd.on_batch = self._on_batch
        self.is_cut = False
        self.refuses_watches = ""
        self.answer_lag_s: dict[str, float] = {}
        self.clients: list[SimulatedClient] = []
        self.calls: list[str] = []
        self.watches: list[SimulatedWatch] = []

    def connect(self) -> SimulatedClient:
        self.clients.append(SimulatedClient(self))
        return self.clients[-1]

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.etcd.keys if key.startswith(f"/p/{prefix}")]

    async def until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(600):
            while not holds():
                await trio.sleep(0.01)  # no time passes: the clock jumps

    def restore(self, noticed_by: str) -> None:
        """As if from a snapshot of this moment: "calls" or "watches" of clients of before meet another history."""
        for client in self.clients:
            client.is_useless = noticed_by == "calls"
        for watch in self.watches if noticed_by == "watches" else ():
            watch.send.close()

    def lag_s(self, request: messages.Request) -> float:
        if not isinstance(request, Txn):
            return LAG_S
        puts = [op.key for op in request.then if isinstance(op, messages.Put)]
        return max(
            (lag for prefix, lag in self.answer_lag_s.items() for key in puts if key.startswith(f"/p/{prefix}")),
            default=LAG_S,
        )

    def _on_batch(self, batch: Batch) -> None:
        for watch in self.watches:
            watch.push(batch)


class SimulatedClient(etcd.Etcd):
    def __init__(self, network: Network) -> None:
        self._network = network
        self.is_useless = False
        self.is_closed = False

    def endpoints(self) -> list[etcd.Endpoint]:
        return [etcd.Endpoint("http", "simulated", 2379)]

    async def aclose(self) -> None:
        self.is_closed = True

    async def txn(
        self,
        compares: Sequence[etcd.Compare],
        then: Sequence[etcd.Operation],
        otherwise: Sequence[etcd.Operation] = (),
    ) -> Outcome[TxnResult]:
        branches = [tuple(_operation(op) for op in branch) for branch in (then, otherwise)]
        request = Txn(tuple(map(_compare, compares)), *branches)
        answer = await self._handle(request, messages.Done)
        if not isinstance(answer, messages.Done):
            return answer
        ranges = iter(answer.ranges)
        taken = branches[0 if answer.succeeded else 1]
        results = [_found(next(ranges)) if isinstance(op, messages.Range) else etcd.Stored() for op in taken]
        return Done(TxnResult(answer.succeeded, tuple(results)), answer.revision, CLUSTER_ID)

    async def range(self, request: etcd.Range) -> Outcome[Found]:
        assert not request.revision, "one page is enough here"
        answer = await self._handle(Txn((), (messages.Range(*_key(request.keys)),)), messages.Done)
        if not isinstance(answer, messages.Done):
            return answer
        return Done(_found(answer.ranges[0]), answer.revision, CLUSTER_ID)

    async def lease_grant(self, ttl_s: int, lease: int = 0) -> Outcome[Grant]:
        answer = await self._handle(messages.Grant(ttl_s), LeaseDone)
        return Done(Grant(answer.lease, ttl_s), 0, CLUSTER_ID) if isinstance(answer, LeaseDone) else answer

    async def lease_keepalive(self, lease: int) -> Outcome[int]:
        answer = await self._handle(messages.KeepAlive(lease), LeaseDone)
        if answer is GONE:
            return Done(0, 0, CLUSTER_ID)
        return Done(1, 0, CLUSTER_ID) if isinstance(answer, LeaseDone) else answer

    async def lease_revoke(self, lease: int) -> Outcome[None]:
        answer = await self._handle(messages.Revoke(lease), LeaseDone)
        return Done(None, 0, CLUSTER_ID) if isinstance(answer, LeaseDone) else answer

    def watch(self, keys: Keys, from_revision: int) -> SimulatedWatch:  # type: ignore[override]
        return SimulatedWatch(self._network, from_revision)

    async def _handle(self, request: messages.Request, kind: type[T]) -> T | etcd.Refused | Unreachable | Restored:
        self._network.calls.append(type(request).__name__)
        await trio.sleep(LAG_S)
        if self.is_useless:
            return Restored("the revision went back")
        if self._network.is_cut:
            await trio.sleep(1)
            return Unreachable("cut")
        answer = self._network.etcd.handle(request, trio.current_time())
        if isinstance(answer, messages.LeaseGone):
            return GONE
        assert isinstance(answer, kind)
        await trio.sleep(self._network.lag_s(request))
        return answer


class SimulatedWatch:
    interrupted_because = ""

    def __init__(self, network: Network, from_revision: int) -> None:
        self.send, self._receive = trio.open_memory_channel[Batch](math.inf)
        self._network = network
        for batch in network.etcd.since(from_revision):
            self.push(batch)
        network.watches.append(self)

    def push(self, batch: Batch) -> None:
        self.send.send_nowait(batch)

    async def __aenter__(self) -> SimulatedWatch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._network.watches.remove(self)

    def __aiter__(self) -> SimulatedWatch:
        return self

    async def __anext__(self) -> etcd.Batch:
        if self._network.refuses_watches:
            raise etcd.DeniedError(self._network.refuses_watches)
        try:
            batch = await self._receive.receive()
        except trio.EndOfChannel:
            raise etcd.RestoredError("the revision went back") from None
        await trio.sleep(LAG_S)
        return etcd.Batch(batch.revision, tuple(map(_event, batch.events)))


def _key(keys: Keys) -> tuple[str, bool]:
    return keys.first.decode(), bool(keys.end)


def _compare(compare: etcd.Compare) -> messages.Compare:
    key, prefix = _key(compare.keys)
    operand = compare.operand.decode() if isinstance(compare.operand, bytes) else compare.operand
    return messages.Compare(key, Target(compare.of), _RELATIONS[compare.relation], operand, prefix)


def _operation(operation: etcd.Operation) -> messages.Operation:
    match operation:
        case etcd.Put(key, value, lease):
            return messages.Put(key.decode(), value.decode(), lease)
        case etcd.Range(keys):
            return messages.Range(*_key(keys))
        case etcd.Delete(keys):
            return messages.Delete(*_key(keys))


def _item(found: messages.KeyValue) -> Item:
    return Item(found.key.encode(), found.value.encode(), 0, found.mod_revision, found.version, 0)


def _found(found: tuple[messages.KeyValue, ...]) -> Found:
    return Found(tuple(map(_item, found)), len(found))


def _event(event: messages.Event) -> etcd.Event:
    if isinstance(event, messages.Deleted):
        return etcd.Event(True, Item(event.key.encode(), b"", 0, event.mod_revision, 0, 0))
    return etcd.Event(False, _item(event))
