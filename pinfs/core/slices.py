"""What is done in slices where very many pins are concerned, so that nothing else on the mount waits for a million
pins.

Each class keeps one kind of unfinished work, and does one slice of it at a time (`step`). The rules themselves are the
book's: it hands them in as functions. With few pins all of this is over within the call that began it.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from pinfs.core.breaks import Breaks
from pinfs.core.files import Files
from pinfs.core.owners import Owner
from pinfs.core.pins import BEFORE_ALL, Pin, SortKey
from pinfs.core.removals import Removal, Reservation, Turn, is_inside, share_bytes
from pinfs.core.table import PinTable

MAX_NOTIFYING_LEFT: Final = 64
"""How many breakers of one file may have given up and still have holders notified. With more, those of the last ones
are not notified further: a breaker that tries again does that."""


@dataclass(frozen=True, slots=True)
class SliceLimits:
    """How much one call does before others have their turn."""

    pins: int = 128
    """Pins that are notified or dropped, or breaks that end, in one slice: some 1 ms."""
    own_scan: int = 2048
    """Pins that are looked at in search of one of the breaker's own, before any holder is notified. Where the breaker
    has more than these and more are in its way, one of them may be found only when its turn comes to be notified."""
    silent_scan: int = 2048
    """Pins in the way that are looked at in search of one whose holder is silent, before any holder is notified. One
    that stands behind them is found when its turn comes to be notified."""
    deny_scan: int = 64
    """Pins of the breaker itself that are passed over in search of another holder's, on which only the errno
    depends."""


class Notifying:
    """Holders are notified one slice after the other.

    The break of a pin begins when its holder is notified, and so does the time that it has. A pin that moves before
    that is notified first: nothing but the clock can tell.
    """

    def __init__(
        self,
        files: Files,
        limits: SliceLimits,
        notify: Callable[[Pin, Removal, float], None],
        more_to_do: Callable[[float], None],
    ) -> None:
        self.notified_up_to: dict[Removal, SortKey] = {}
        """Removals whose holders have not all been notified, each with the last pin that has been. Some have given up
        meanwhile: their orphan waits for the same pins."""
        self._files = files
        self._size = limits.pins
        self._notify = notify
        self._more_to_do = more_to_do

    def begin(self, removal: Removal, now: float) -> None:
        """Notify the first slice of the holders in the way of a removal."""
        self.notified_up_to[removal] = BEFORE_ALL
        self.go_on(removal, now)

    def drop(self, removal: Removal) -> None:
        """The rest need not be notified."""
        self.notified_up_to.pop(removal, None)

    def go_on(self, removal: Removal, now: float) -> list[Pin]:
        """Notify the next slice of a removal's holders; the rest when all other removals have had their turn."""
        key, file = self.notified_up_to.pop(removal), self._files.get(removal.inode)
        if file is None:
            return []
        start, end = removal.start, removal.end
        if key is BEFORE_ALL:
            pins = file.some(start, end, self._size + 1)
        else:
            pins = list(islice(file.overlapping_after(start, end, key), self._size + 1))
        if len(pins) > self._size:
            pins.pop()
            self.notified_up_to[removal] = pins[-1].sort_key
            self._more_to_do(now)
        for pin in pins:
            if pin.breaking is None:
                self._notify(pin, removal, now)
        return pins

    def before_move(self, pin: Pin, now: float) -> None:
        """A pin that is not breaking gets another range or mode. It may not move as if no breaker waited for it, nor to
        where no breaker would look for it any more."""
        for removal, notified_up_to in list(self.notified_up_to.items()):
            if pin.sort_key > notified_up_to and share_bytes(pin, removal):
                self._notify(pin, removal, now)

    def inside(self, waiter: Reservation) -> Removal | None:
        """A removal of bytes in this range whose holders have not all been notified."""
        for removal in self.notified_up_to:
            if is_inside(removal, waiter):
                return removal
        return None

    def is_crowded(self, inode: int) -> bool:
        """Have too many breakers of this inode given up?"""
        left = sum(r.inode == inode and r.turn is not Turn.WAITING for r in self.notified_up_to)
        return left >= MAX_NOTIFYING_LEFT


@dataclass(slots=True, eq=False)
class Withdrawal:
    """Of the breaks in [start, end), those that no breaker waits for any more end. `after`: how far that has come."""

    inode: int
    start: int
    end: int
    after: tuple[int, int] = (-1, 0)


class Withdrawals:
    """Removals were refused: their holders need not let go any more, if no other breaker waits for them.

    A removal that comes before the breaks have ended finds the pins breaking and joins, deadline and all.
    """

    def __init__(
        self, files: Files, breaks: Breaks, limits: SliceLimits, keep: Callable[[Pin, str, float], None]
    ) -> None:
        self.queue: deque[Withdrawal] = deque()
        self._files = files
        self._breaks = breaks
        self._size = limits.pins
        self._keep = keep

    def add(self, removals: Iterable[Removal]) -> None:
        """One withdrawal for each inode, of all bytes between the first and the last that the removals would take."""
        spans: dict[int, tuple[int, int]] = {}
        for removal in removals:
            start, end = spans.get(removal.inode, (removal.start, removal.end))
            spans[removal.inode] = (min(start, removal.start), max(end, removal.end))
        self.queue.extend(Withdrawal(inode, start, end) for inode, (start, end) in spans.items())

    def step(self, now: float) -> None:
        left = self._size
        while self.queue and left > 0:
            withdrawal = self.queue[0]
            pins = self._breaking_after(withdrawal, left)
            if len(pins) < left:
                self.queue.popleft()
            else:
                withdrawal.after = (pins[-1].start, pins[-1].id)
            left -= max(1, len(pins))
            for pin in pins:
                if not self._breaks.is_waited_for(pin):
                    self._keep(pin, "unwanted", now)

    def _breaking_after(self, withdrawal: Withdrawal, count: int) -> list[Pin]:
        file = self._files.get(withdrawal.inode)
        if file is None or file.breaking is None:
            return []
        return list(islice(file.breaking.overlapping(withdrawal.start, withdrawal.end, withdrawal.after), count))


class Reaping:
    """The pins of dead owners are dropped. Until then they stand in the table, but in no breaker's way."""

    def __init__(
        self, table: PinTable, breaks: Breaks, limits: SliceLimits, drop: Callable[[Pin, str, float], None]
    ) -> None:
        self.dead_owners: dict[Owner, str] = {}
        """Those that still have pins, the first to die first, each with the reason: death, close."""
        self.slice_size = limits.pins
        self._table = table
        self._breaks = breaks
        self._drop = drop

    def is_small(self, owner: Owner) -> bool:
        """Are the pins of this owner so few that they can go at once?"""
        return len(self._table.by_owner.get(owner, ())) + len(self._killed_for(owner)) <= self.slice_size

    def _killed_for(self, owner: Owner) -> dict[int, Pin]:
        """The pins for which this process was killed, also those that belong to handles, which other processes may
        share: they have had their signal."""
        return self._breaks.killed.get(owner, {})

    def at_once(self, owner: Owner, by: str, now: float) -> None:
        """Drop all pins of a dead owner."""
        for pin in [*self._killed_for(owner).values(), *self._table.of_owner(owner)]:
            if pin.id in self._table.by_id:
                self._drop(pin, by, now)

    def drop_if_dead(self, pin: Pin, now: float) -> bool:
        """Drop a pin whose owner is dead; whether it was."""
        by = self.dead_owners.get(pin.owner)
        if by is None and pin.breaking is not None and pin.breaking.killed and pin.process is not None:
            by = self.dead_owners.get(pin.process)
        if by is not None:
            self._drop(pin, by, now)
        return by is not None

    def reap_in(self, pins: Iterable[Pin], now: float) -> bool:
        """Drop those of these pins whose owners are dead. False: there are too many pins to look at in one slice."""
        some = list(islice(pins, self.slice_size + 1))
        for pin in some:
            self.drop_if_dead(pin, now)
        return len(some) <= self.slice_size

    def step(self, now: float) -> None:
        """Drop some pins of the owner that died first, beginning with those that a breaker waits for."""
        if not self.dead_owners:
            return
        owner, by = next(iter(self.dead_owners.items()))
        # The last ones of an index: a dict that loses its first takes ever longer to find the next.
        pins: dict[Any, Pin] = (
            self._killed_for(owner) or self._breaks.of_owner.get(owner) or self._table.by_owner.get(owner, {})
        )
        for _ in range(min(len(pins), self.slice_size)):
            self._drop(pins.popitem()[1], by, now)
        if not self._killed_for(owner) and owner not in self._table.by_owner:
            del self.dead_owners[owner]
