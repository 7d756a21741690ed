"""Holders that let a deadline pass, and are not notified again for a while (SPEC 3.8).

The kernel queues truncates of one file out of the daemon's sight. Without this rule a crowd of them would take a
deadline each, one after the other.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from pinfs.core.owners import Owner
from pinfs.core.pins import Pin

SWEPT_ABOVE: Final = 64


def _ignore(owner: Owner, until: float | None) -> None:
    """No callback is set."""


class SilentHolders:
    """Owners of pins with the time, in seconds, until which each is not notified again.

    `on_change` hears of each time that is set, and (None) of each owner that is not silent any more.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[Owner, float | None], None] = _ignore
        self._until: dict[Owner, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, owner: Owner, until: float, now: float) -> None:
        """A deadline has passed without an answer; an earlier one may ask for a longer time."""
        if until <= now:
            return
        if len(self._until) >= SWEPT_ABOVE:
            self.sweep(now)
        self._until[owner] = max(until, self._until.get(owner, until))
        self.on_change(owner, self._until[owner])

    def restore(self, owner: Owner, until: float) -> None:
        """An owner that was silent before this table was made."""
        self._until[owner] = until

    def sweep(self, now: float) -> None:
        """Drop those whose time is over."""
        for owner in [owner for owner, end in self._until.items() if end <= now]:
            self.forget(owner)

    def forget(self, owner: Owner) -> None:
        """The owner has ended."""
        if self._until.pop(owner, None) is not None:
            self.on_change(owner, None)

    def has(self, owner: Owner, now: float) -> bool:
        return bool(self._until) and self._until.get(owner, now) > now

    def first(self, pins: Iterable[Pin], scan: int, now: float) -> Pin | None:
        """The first of at most `scan` pins whose owner is silent."""
        if not self._until:
            return None
        return next((pin for pin in islice(pins, scan) if self.has(pin.owner, now)), None)
