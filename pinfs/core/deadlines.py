"""Deadlines in the order of time."""

import math
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from pinfs.core.pins import Break
from pinfs.core.removals import Orphan

Timed: TypeAlias = Break | Orphan


class Deadlines:
    """What has a deadline, in seconds. An item that is moved or dropped leaves its old entry, to be skipped in its
    time.

    `on_set` hears of each new deadline. One call looks at `slice_size` entries at most.
    """

    def __init__(self, slice_size: int) -> None:
        self.on_set: Callable[[float], None] | None = None
        self._slice_size = slice_size
        self._heap: list[tuple[float, int, Timed]] = []
        self._count = 0
        self._stale = 0
        """Entries to be skipped."""

    def __len__(self) -> int:
        """How many entries it holds, skipped ones too."""
        return len(self._heap)

    def set(self, item: Timed, deadline: float) -> None:
        """Costs O(log n)."""
        self.drop(item)
        item.deadline = deadline
        self._count += 1
        heappush(self._heap, (deadline, self._count, item))
        if self._stale > len(self._heap) // 2 + 64:
            self._sweep()
        self.announce(deadline)

    def announce(self, deadline: float) -> None:
        """There is something to do at this time, which need not be an item's deadline."""
        if self.on_set is not None:
            self.on_set(deadline)

    def drop(self, item: Timed) -> None:
        """It has no deadline any more."""
        if item.deadline is not None:
            item.deadline = None
            self._stale += 1

    def next(self) -> float | None:
        """The earliest deadline, None if there is none; minus infinity: another call has to find out, because very many
        entries are to be skipped."""
        for _ in range(self._slice_size + 1):
            if not self._heap:
                return None
            deadline, _, item = self._heap[0]
            if item.deadline == deadline:
                return deadline
            heappop(self._heap)
            self._stale -= 1
        return -math.inf

    def due(self, now: float) -> Iterator[Timed]:
        """Take out some of what is due, earliest first. The caller must `set` or `drop` each of them."""
        for _ in range(self._slice_size):
            if not self._heap or self._heap[0][0] > now:
                return
            deadline, _, item = heappop(self._heap)
            self._stale -= 1  # no entry of it is left to be skipped
            if item.deadline == deadline:
                yield item

    def _sweep(self) -> None:
        """Answered breaks would otherwise stay until their deadline: a quick pair of programs could fill the memory."""
        self._heap = [entry for entry in self._heap if entry[2].deadline == entry[0]]
        heapify(self._heap)
        self._stale = 0
