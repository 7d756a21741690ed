"""Protocols that look right and are not, each a small change of `Member`: the checker has to tell them from it."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from pinfs.cluster.keys import PinKey, RemovalValue, overlap
from pinfs.cluster.messages import Batch, Compare, Request
from pinfs.cluster.pinning import OwnPin
from pinfs.cluster.protocol import ANY_FILE, Member, OwnRemoval
from pinfs.cluster.tasks import Until
from pinfs.cluster.view import Mark


class Unwaiting(Member):
    """Marks files, and does not wait until the others have promised to ask."""

    def _is_promised(self, mark: Mark) -> bool:
        return True

    def _promise_guards(self, mark: Mark) -> tuple[Compare, ...]:
        return ()


class WatchCache(Unwaiting):
    """A removal looks for pins in what the watch has told, as any cache of etcd would."""

    def _must_ask(self, file: str, value: RemovalValue) -> bool:
        return any(overlap(pin, value) for pin in self._view.pins.get(file, {}).values())


class EarlyPromise(Member):
    """Promises while removals that have not asked are under way."""

    def _promise(self) -> int:
        return self._view.count


class Uncounted(Member):
    """Takes the watch for complete: a lost mark does not show."""

    def _follows(self, batch: Batch) -> bool:
        return True

    def _has_missed_marks(self) -> bool:
        return False


class Unfenced(Member):
    """Goes on when it has not heard from etcd for long."""

    def _fence_of(self, sent: float) -> float:
        return math.inf


class TrustsTheWatch(Member):
    """Registers a pin if no removal is newer than what the watch has told."""

    def _removals_known(self, own: OwnPin) -> int:
        removals = self._view.removals.get(own.key.file, {}).values()
        return 0 if any(overlap(own.value, value) for value in removals) else self._view.revision


class Unconfirmed(Member):
    """Cuts when the watch shows none of the pins any more that were in the way."""

    def _left(
        self, own: OwnRemoval, way: list[PinKey], deadline: float
    ) -> Generator[Request | Until, Any, list[PinKey]]:
        yield Until(lambda: True)
        known = self._view.pins.get(own.file, {})
        return [key for key in way if key in known]


class Unsettled(Member):
    """A daemon that takes over does not wait for what the one before has begun."""

    def _settled_at(self, is_settled: bool) -> float:
        return -math.inf


class MindsKnownFiles(Member):
    """Promises while a removal is under way whose file is not known."""

    def _promise(self) -> int:
        all_of_them = self._removals
        self._removals = {number: own for number, own in all_of_them.items() if own.file != ANY_FILE}
        try:
            return super()._promise()
        finally:
            self._removals = all_of_them
