"""The lines that wait for one reader of events, written down (SPEC 13)."""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from pinfs.journal import records

if TYPE_CHECKING:
    from pinfs.fs.streamrecords import StreamRecords


class Line(NamedTuple):
    """A line in the journal. `slot` 0: it is not there. `size`: bytes."""

    serial: int
    slot: int
    size: int


class LineRecords:
    """Keeps the journal in step with the queue of one open event file, `fh`.

    What a read takes stays in the journal until the next read takes something. A reader that gets nothing after the
    daemon was killed asks again with the same number, and `again` has its lines.
    """

    def __init__(self, streams: "StreamRecords", fh: int) -> None:
        self.slot = 0
        """The record of the handle."""
        self._streams = streams
        self._fh = fh
        self._waiting: deque[Line] = deque()
        """As many as the queue has lines."""
        self._taken: list[Line] = []
        self._lost: Line | None = None
        """Stands for the lines before the first one, which are lost."""
        self._unwritten = 0
        """Lines at the end of the queue that are not written down, but for their number."""
        self._again = (0, b"")

    def added(self, line: bytes, seq: int) -> None:
        """A line with its number waits for the reader."""
        streams = self._streams
        if streams.has_room_for(line):
            self._unwritten = 0
            serial = streams.recorder.serial()
            self._waiting.append(Line(serial, streams.put_line(serial, self._fh, seq, line), len(line)))
        else:
            self._not_written()

    def _not_written(self) -> None:
        """Of lines that find no room in the journal only their number is there."""
        self._unwritten += 1
        overflow = overflow_line(self._unwritten)
        if self._unwritten == 1 or len(self._waiting) < self._unwritten - 1:
            serial, old = self._streams.recorder.serial(), 0
            self._waiting.append(Line(serial, self._streams.put_line(serial, self._fh, 0, overflow), len(overflow)))
            return
        at = 1 - self._unwritten
        serial, old, size = self._waiting[at]
        self._streams.line_bytes -= size
        slot = self._streams.put_line(serial, self._fh, 0, overflow, old)
        self._waiting[at] = Line(serial, slot, len(overflow))
        self._waiting.append(Line(serial, 0, 0))

    def dropped(self, overflow: bytes) -> None:
        """The queue has lost its first line; `overflow`: what tells the reader how many."""
        first, old = self._waiting.popleft(), self._lost
        serial = (old or first).serial
        slot = self._streams.put_line(serial, self._fh, 0, overflow, 0 if old is None else old.slot)
        self._lost = Line(serial, slot, len(overflow))
        self._streams.line_bytes -= 0 if old is None else old.size
        self._free([first])

    def loss_queued(self) -> None:
        """The queue's first line tells of those that are lost."""
        if self._lost is not None:
            self._waiting.appendleft(self._lost)
            self._lost = None

    def taken(self, count: int, unique: int) -> None:
        """The request `unique` is given the first lines."""
        streams, slot = self._streams, self.slot
        self._free(self._taken)
        streams.set_word(slot, records.TAKEN_BY_WORD, unique)
        self._taken = [self._waiting.popleft() for _ in range(count)]
        streams.set_word(slot, records.TAKEN_TO_WORD, self._taken[-1].serial)

    def again(self, unique: int) -> bytes:
        """What the same request was given by the daemon before, whose reply may not have been written; empty: nothing.

        Requests that were not answered come first, by their numbers: with a later one, that one has been answered.
        """
        taken_by, text = self._again
        if unique >= taken_by:
            self._again = (0, b"")
        return text if unique == taken_by else b""

    def restore(self, waiting: Iterable[Line], taken: Iterable[Line], taken_by: int, text: bytes) -> None:
        """What the daemon before has written. `text`: of the lines that `taken_by` was given."""
        self._waiting.extend(waiting)
        self._taken.extend(taken)
        if text:
            self._again = (taken_by, text)
        self._streams.line_bytes += sum(line.size for line in (*self._waiting, *self._taken))

    def closed(self) -> None:
        """The reader has gone."""
        self.loss_queued()
        self._free([*self._waiting, *self._taken])
        self._waiting.clear()
        self._taken.clear()

    def _free(self, lines: Iterable[Line]) -> None:
        for _, slot, size in lines:
            self._streams.line_bytes -= size
            self._streams.free(slot)


def overflow_line(lost: int) -> bytes:
    """Tells a reader how many lines it has not got."""
    return b'{"v": 1, "event": "overflow", "lost": %d}\n' % lost
