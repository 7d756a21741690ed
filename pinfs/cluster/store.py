"""etcd as a member asks it: the member's requests in the client's words, and the client's answers in the member's.

The two keep their own words. The member's keys are text below the prefix of a cluster, and the checker runs it over a
simulated etcd which knows no more than that; the client's are bytes and ranges, as etcd's API has them, and its
outcomes say more than a protocol may depend on.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Final, Literal, assert_never

from pinfs.cluster import etcd
from pinfs.cluster.etcd import Etcd, Keys, Restored, below, one
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
    Operation,
    Put,
    Range,
    Refused,
    Relation,
    Request,
    Revoke,
    Target,
    Txn,
    Unknown,
)

log = logging.getLogger("pinfs.cluster")

PAGE_KEYS: Final = 500
"""Of one answer to a read of many keys: 0.4 MB of JSON, which keep the loop busy for some 10 ms."""
_OF: Final[dict[Target, Literal["create", "mod", "value"]]] = {
    Target.CREATE: "create",
    Target.MOD: "mod",
    Target.VALUE: "value",
}
_RELATION: Final[dict[Relation, Literal["=", ">", "<"]]] = {
    Relation.EQUAL: "=",
    Relation.GREATER: ">",
    Relation.LESS: "<",
}


class Store:
    """The keys below a prefix. A client that has met a restored etcd is useless: then `connect` makes another one.

    `counters`: calls, and what became of them. `interrupted_because`: why the watch brings nothing at present; "" if it
    does.
    """

    def __init__(self, connect: Callable[[], Etcd], prefix: str) -> None:
        self._connect = connect
        self._client = connect()
        self._prefix = prefix.encode()
        self._watch: etcd.Watch | None = None
        self.counters: Counter[str] = Counter()

    @property
    def interrupted_because(self) -> str:
        return "there is no watch" if self._watch is None else self._watch.interrupted_because

    @property
    def endpoints(self) -> list[str]:
        """The one that is asked first at the beginning."""
        return [str(endpoint) for endpoint in self._client.endpoints()]

    async def aclose(self) -> None:
        await self._client.aclose()

    async def ask(self, request: Request) -> Answer | Restored:
        """Ends within the client's limit (of each page, for a read of many keys) and raises nothing. Restored: what
        was known of the store does not hold, and the request may have been done."""
        client = self._client
        self.counters["calls"] += 1
        answer = await self._asked(client, request)
        match answer:
            case Restored(reason):
                await self._renew(client, reason)
            case Unknown() | Refused():
                log.debug("%s: %s", type(request).__name__, answer)
        return answer

    async def follow(self, from_revision: int, take: Callable[[Batch], None]) -> Restored | Refused:
        """Hands each revision to `take`, until the watch cannot go on; says why."""
        client = self._client
        async with client.watch(below(self._prefix), from_revision) as watch:
            self._watch = watch
            try:
                async for batch in watch:
                    for revision in self._revisions(batch):
                        take(revision)
                raise AssertionError("a watch does not end by itself")
            except etcd.RestoredError as error:
                await self._renew(client, str(error))
                return Restored(str(error))
            except etcd.WatchError as error:
                self.counters["watches lost"] += 1
                return Refused(str(error))
            finally:
                if self._watch is watch:
                    self._watch = None

    async def _renew(self, client: Etcd, reason: str) -> None:
        """Once for each client: several calls may meet the restored store."""
        if client is self._client:
            self.counters["restored"] += 1
            log.warning("etcd was restored, or is another one: %s", reason)
            self._client = self._connect()
            await client.aclose()

    async def _asked(self, client: Etcd, request: Request) -> Answer | Restored:
        match request:
            case Txn((), (Range(prefix, True),)):
                return await self._read(client, prefix)
            case Txn(compares, then, otherwise):
                done = await client.txn(
                    [self._compare(compare) for compare in compares],
                    [self._operation(operation) for operation in then],
                    [self._operation(operation) for operation in otherwise],
                )
                if isinstance(done, etcd.Done):
                    ranges = [result for result in done.value.results if isinstance(result, etcd.Found)]
                    found = tuple(tuple(map(self._key_value, result.items)) for result in ranges)
                    return Done(done.value.succeeded, done.revision, done.cluster_id, found)
                return self._not_done(done)
            case Grant(ttl_s):
                granted = await client.lease_grant(math.ceil(ttl_s))
                return LeaseDone(granted.value.lease) if isinstance(granted, etcd.Done) else self._not_done(granted)
            case KeepAlive(lease):
                kept = await client.lease_keepalive(lease)
                if isinstance(kept, etcd.Done):
                    return LeaseDone(lease) if kept.value else LeaseGone()
                return self._not_done(kept)
            case Revoke(lease):
                revoked = await client.lease_revoke(lease)
                return LeaseDone(lease) if isinstance(revoked, etcd.Done) else self._not_done(revoked)
            case _:
                assert_never(request)

    def _not_done(
        self, outcome: etcd.Refused | etcd.Unknown | etcd.Unreachable | Restored
    ) -> LeaseGone | Refused | Unknown | Restored:
        match outcome:
            case etcd.Refused(_, etcd.Code.NOT_FOUND):  # of the calls here, only those with a lease are answered so
                return LeaseGone()
            case etcd.Refused(reason):
                self.counters["refused"] += 1
                return Refused(reason)
            case etcd.Unreachable(reason):
                self.counters["unanswered"] += 1
                return Refused(reason)
            case etcd.Unknown():
                self.counters["unanswered"] += 1
                return Unknown()
            case Restored():
                return outcome

    async def _read(self, client: Etcd, prefix: str) -> Answer | Restored:
        """All keys of a prefix as of one revision, however many: an answer of etcd's gateway has a limit. One of the
        pages is refused if etcd has compacted meanwhile."""
        left = self._keys(prefix, prefix=True)
        items: list[KeyValue] = []
        revision = 0
        while True:
            page = await client.range(etcd.Range(left, PAGE_KEYS, revision))
            if not isinstance(page, etcd.Done):
                return self._not_done(page)
            revision = revision or page.revision
            items += map(self._key_value, page.value.items)
            if page.value.count <= len(page.value.items):
                return Done(True, revision, page.cluster_id, (tuple(items),))
            left = Keys(page.value.items[-1].key + b"\0", left.end)

    def _keys(self, key: str, prefix: bool) -> Keys:
        return (below if prefix else one)(self._prefix + key.encode())

    def _compare(self, compare: Compare) -> etcd.Compare:
        operand = compare.operand.encode() if isinstance(compare.operand, str) else compare.operand
        keys = self._keys(compare.key, compare.prefix)
        return etcd.Compare(keys, _OF[compare.target], _RELATION[compare.relation], operand)

    def _operation(self, operation: Operation) -> etcd.Operation:
        match operation:
            case Put(key, value, lease):
                return etcd.Put(self._prefix + key.encode(), value.encode(), lease)
            case Delete(key, prefix):
                return etcd.Delete(self._keys(key, prefix))
            case Range(key, prefix):
                return etcd.Range(self._keys(key, prefix))

    def _key_value(self, item: etcd.Item) -> KeyValue:
        return KeyValue(self._text(item.key), _text(item.value), item.mod_revision, item.version)

    def _text(self, key: bytes) -> str:
        return _text(key.removeprefix(self._prefix))

    def _revisions(self, batch: etcd.Batch) -> Iterator[Batch]:
        """The client's batch may have several revisions, the member's has one."""
        for revision, events in groupby(batch.events, lambda event: event.item.mod_revision):
            yield Batch(revision, tuple(map(self._event, events)))
        if not batch.events:
            yield Batch(batch.revision, ())

    def _event(self, event: etcd.Event) -> Event:
        if event.is_delete:
            return Deleted(self._text(event.item.key), event.item.mod_revision)
        return self._key_value(event.item)


def _text(value: bytes) -> str:
    """What no daemon of this version has written becomes what the member cannot read, and ends it."""
    return value.decode(errors="replace")
