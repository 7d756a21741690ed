"""The removals that wait for holders, as `.pinfs/status` lists them (docs/interfaces.md)."""

from collections.abc import Callable
from typing import Any, Final

import trio

from pinfs.core.book import PinBook
from pinfs.core.ranges import END
from pinfs.core.removals import Removal
from pinfs.fs.describe import unix_time
from pinfs.linux.proc import read_comm

MAX_BREAKERS: Final = 64
"""Removals in one answer. `waiting` of the status counts them all."""
MAX_WAITS_FOR: Final = 16
"""Pins of each."""


class Breakers:
    """The removals that wait, the one that came first at the beginning."""

    def __init__(self, book: PinBook, is_admin: Callable[[int], bool]) -> None:
        self._book = book
        self._is_admin = is_admin

    def shown(self, uid: int) -> list[dict[str, Any]]:
        """For `.pinfs/status`. Processes are shown to root and the breaker's user (SPEC 4)."""
        waiting = self._book.first_waiting(MAX_BREAKERS)
        return [self._shown(removal, self._is_admin(uid) or uid == removal.request.uid) for removal in waiting]

    def _shown(self, removal: Removal, with_process: bool) -> dict[str, Any]:
        request = removal.request
        file = self._book.files.get(removal.inode)
        found = [] if file is None else file.some(removal.start, removal.end, MAX_WAITS_FOR + 1)
        pins = [pin for pin in found[:MAX_WAITS_FOR] if not request.owns(pin)]
        deadlines = [pin.deadline for pin in pins if pin.deadline is not None]
        until = max(deadlines, default=None)
        shown: dict[str, Any] = {
            "op": request.op,
            "path": request.path,
            "inode": removal.inode,
            "from": removal.start,
            "to": None if removal.end >= END else removal.end,
            "waits_for": [pin.id for pin in pins],
            "more": len(found) > MAX_WAITS_FOR,
            "deadline": None if until is None else unix_time(until),
            "remaining_s": None if until is None else round(max(0.0, until - trio.current_time()), 3),
        }
        if request.host is not None:
            return shown | {"host": request.host}
        if with_process:
            return shown | {"pid": request.pid, "uid": request.uid, "comm": read_comm(request.pid)}
        return shown
