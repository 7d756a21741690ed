"""An open `.pinfs/pins`: every pin, a line each, made as they are read."""

import errno
import os
from bisect import bisect_right
from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from pinfs.fs.control import ControlHandle
from pinfs.fs.handles import FOPEN_DIRECT_IO, FOPEN_NONSEEKABLE
from pinfs.fs.inode import Inode
from pinfs.journal.records import HandleKind

MAX_READ: Final = 64 << 10  # bytes in one read, a millisecond: longer ones would hold up all other requests
_HEAD: Final = Struct("<QQQQQQ")


class Place(NamedTuple):
    """Where a reader is: `at` bytes were read, the lines of pins up to the id `shown` are made, and of the last one
    `rest` is left."""

    at: int
    shown: int
    rest: bytes


class PinLister(NamedTuple):
    """Where a list takes its lines from. `on_close` is called when the reader has gone."""

    ids: Callable[[], list[int]]
    lines: Callable[[], Callable[[int], bytes]]
    """Begins a read. What it returns makes the line of a pin; empty: the pin is no more."""
    on_close: Callable[[], None]


class PinList(ControlHandle):
    """The pins that there are at the first read, by rising ids; those that end before their turn are left out.

    The place before the last read is kept: a read of the same bytes means that the daemon ended before it had answered.
    """

    __slots__ = ("_before", "_ids", "_lister", "_now", "_up_to")
    record_kind = HandleKind.PINS
    fopen_flags = FOPEN_DIRECT_IO | FOPEN_NONSEEKABLE

    def __init__(self, inode: Inode, flags: int, lister: PinLister) -> None:
        super().__init__(inode, flags)
        self._lister = lister
        self._ids: list[int] | None = None
        self._up_to = 0
        """The highest of the ids; 0: there was no read."""
        self._before = self._now = Place(0, 0, b"")

    async def read(self, offset: int, size: int, unique: int = 0) -> bytes:
        """ESPIPE: not where the last read ended."""
        if offset == self._before.at:
            self._now = self._before
        if offset != self._now.at:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        text, self._before, self._now = self._next(self._now, min(size, MAX_READ))
        if self.records is not None:
            self.records.changed(self)
        return text

    def _next(self, place: Place, size: int) -> tuple[bytes, Place, Place]:
        """The bytes that follow, where they begin, and where they end."""
        ids, line = self._all_ids(), self._lister.lines()
        parts, room, shown = [place.rest], size - len(place.rest), place.shown
        index = bisect_right(ids, shown)
        while room > 0 and index < len(ids):
            shown = ids[index]
            index += 1
            parts.append(line(shown))
            room -= len(parts[-1])
        text = b"".join(parts)
        return text[:size], place, Place(place.at + min(len(text), size), shown, text[size:])

    def _all_ids(self) -> list[int]:
        if self._ids is None:
            ids = sorted(self._lister.ids())
            if self._up_to:
                del ids[bisect_right(ids, self._up_to) :]
            self._ids = ids
            self._up_to = self._up_to or max(ids, default=1)
        return self._ids

    def close(self) -> None:
        self._lister.on_close()

    def recorded(self) -> bytes:
        before, now = self._before, self._now
        head = _HEAD.pack(before.at, before.shown, len(before.rest), now.at, now.shown, self._up_to)
        return head + before.rest + now.rest

    def restore(self, recorded: bytes) -> None:
        """Go on where the reader of the daemon before was."""
        at_before, shown_before, size, at, shown, self._up_to = _HEAD.unpack_from(recorded)
        rests = recorded[_HEAD.size :]
        self._before, self._now = Place(at_before, shown_before, rests[:size]), Place(at, shown, rests[size:])
