"""Reserved ranges, their order, and what breakers that gave up leave behind (SPEC 3.1, 3.7)."""

import errno
from collections.abc import Callable
from typing import Final

from pinfs.core.deadlines import Deadlines
from pinfs.core.files import Files, FileState
from pinfs.core.pins import Mode, Pin, PinSpec
from pinfs.core.removals import Orphan, Removal, Reservation

MAX_ORPHANS_PER_FILE: Final = 64
"""With more, they become one that spans them all: reserving a little more beats remembering without end."""


def _ignore(orphan: Orphan) -> None:
    """No callback is set."""


class Reservations:
    """Keeps new pins out of ranges, and knows which removal comes before which.

    `on_orphan` is called with each orphan that is left, and again when its cool-down begins; `on_orphan_gone` with each
    that is over.
    """

    def __init__(self, files: Files, deadlines: Deadlines) -> None:
        self.on_orphan: Callable[[Orphan], None] = _ignore
        self.on_orphan_gone: Callable[[Orphan], None] = _ignore
        self._files = files
        self._deadlines = deadlines
        self._last_order = 0

    def add(self, reservation: Reservation) -> None:
        """From now on it is in force."""
        self._last_order += 1
        reservation.order = self._last_order
        file = self._files.of(reservation.inode)
        file.reserve(reservation)

    def remove(self, reservation: Reservation) -> None:
        file = self._files[reservation.inode]
        file.unreserve(reservation)
        reservation.order = 0
        if isinstance(reservation, Orphan):
            self._orphan_removed(reservation, file)
        self._files.drop_if_empty(reservation.inode)

    def _orphan_removed(self, orphan: Orphan, file: FileState) -> None:
        self._deadlines.drop(orphan)
        orphan.unwatch()
        file.orphans = tuple(other for other in file.orphans if other is not orphan)
        self.on_orphan_gone(orphan)

    def latest_before(self, removal: Removal) -> Removal | None:
        """The latest of the unfinished removals that came before this one and share bytes with it.

        The latest, not the first: so waiting removals form a chain, and the end of one wakes one.
        """
        file = self._files.get(removal.inode)
        if file is None or file.reserved is None:
            return None
        latest = None
        for reservation in file.reserved.overlapping(removal.start, removal.end):
            if not isinstance(reservation, Removal) or (removal.order and reservation.order >= removal.order):
                continue
            if latest is None or reservation.order > latest.order:
                latest = reservation
        return latest

    def leave_orphan(self, removal: Removal) -> Orphan:
        """Keep the range of a removal that gave up, for its process; orphans that overlap it become one with it."""
        file = self._files[removal.inode]
        orphan = Orphan(removal.inode, removal.start, removal.end, removal.request.process)
        crowded = len(file.orphans) >= MAX_ORPHANS_PER_FILE
        merged = [
            other for other in file.orphans if crowded or (other.start < removal.end and removal.start < other.end)
        ]
        for other in merged:
            orphan.start, orphan.end = min(orphan.start, other.start), max(orphan.end, other.end)
            if other.process != removal.request.process:
                orphan.process = None
        self.restore_orphan(orphan)
        self.on_orphan(orphan)
        for other in merged:
            self.remove(other)
        return orphan

    def restore_orphan(self, orphan: Orphan) -> None:
        """From now on it is in force."""
        self.add(orphan)
        self._files[orphan.inode].orphans += (orphan,)

    def cool_down(self, orphan: Orphan, deadline: float) -> None:
        """No pin in it is breaking any more: it is over at `deadline`."""
        self._deadlines.set(orphan, deadline)
        self.on_orphan(orphan)

    def drop_orphans(self, removal: Removal) -> None:
        """A removal has had the turn that these orphans kept; no pin is left there to break."""
        for orphan in self._files[removal.inode].orphans:
            if removal.start <= orphan.start and orphan.end <= removal.end:
                self.remove(orphan)


def check_not_reserved(file: FileState, spec: PinSpec, old: Pin | None) -> None:
    """EAGAIN for bytes that a removal takes away (SPEC 3.1); those that the old pin holds already are not new."""
    if not file.is_reserved(spec.start, spec.end):
        return
    if old is None:
        new, hardens = [(spec.start, spec.end)], False
    else:
        new = [(spec.start, min(spec.end, old.start)), (max(spec.start, old.end), spec.end)]
        hardens = old.breaking is not None and (old.mode, spec.mode) == (Mode.LEASE, Mode.DENY)
    if hardens or any(file.is_reserved(start, end) for start, end in new):
        raise OSError(errno.EAGAIN, "a removal of this range is under way")
