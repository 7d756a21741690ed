"""Events of pins, as lines: to the processes that hold the pins, and to tracing readers (SPEC 7)."""

import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from pinfs.core.events import BookEvent
from pinfs.core.owners import ProcessId
from pinfs.core.pins import Pin
from pinfs.core.ranges import END
from pinfs.core.removals import RemovalRequest
from pinfs.fs.describe import shown_path, unix_time
from pinfs.fs.linerecords import LineRecords, overflow_line
from pinfs.runtime.stats import Stats

if TYPE_CHECKING:
    from pinfs.fs.streamrecords import StreamRecords

MAX_QUEUED: Final = 16384  # lines that a reader may be behind,
MAX_QUEUED_BYTES: Final = 4 << 20  # and bytes
HOLDER_EVENTS: Final = frozenset({"break", "withdrawn", "released", "revoked"})
Json = dict[str, Any]


def to_line(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(", ", ": ")).encode() + b"\n"


def _ignore() -> None:
    """No reader waits."""


class EventQueue:
    """Lines on their way to one reader. When the reader is too slow, the oldest go and it is told how many.

    `on_news` is called with each line that is added.
    """

    def __init__(self, stats: Stats) -> None:
        self.on_news: Callable[[], None] = _ignore
        self._records: LineRecords | None = None
        """Writes the lines down; None: the mount does not outlive the daemon."""
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._lost = 0
        self._stats = stats

    def __bool__(self) -> bool:
        return bool(self._lines or self._lost)

    def put(self, line: bytes, seq: int) -> None:
        """Add the line with this number."""
        while self._lines and (len(self._lines) >= MAX_QUEUED or self._bytes + len(line) > MAX_QUEUED_BYTES):
            self._bytes -= len(self._lines.popleft())
            self._lost += 1
            self._stats.events_lost += 1
            if self._records is not None:
                self._records.dropped(overflow_line(self._lost))
        self._lines.append(line)
        self._bytes += len(line)
        if self._records is not None:
            self._records.added(line, seq)
        self.on_news()

    def take(self, size: int, unique: int = 0) -> bytes | None:
        """As many whole lines as fit into `size` bytes, for the request `unique`; None: not even the first one fits."""
        if self._lost:
            self._queue_loss()
        taken: list[bytes] = []
        room = size
        while self._lines and len(self._lines[0]) <= room:
            room -= len(self._lines[0])
            taken.append(self._lines.popleft())
        self._bytes -= size - room
        if not taken and self._lines:
            return None
        if self._records is not None and taken:
            self._records.taken(len(taken), unique)
        return b"".join(taken)

    def _queue_loss(self) -> None:
        overflow = overflow_line(self._lost)
        self._lines.appendleft(overflow)
        self._bytes += len(overflow)
        self._lost = 0
        if self._records is not None:
            self._records.loss_queued()

    def write_down(self, records: LineRecords) -> None:
        """From now on the lines that wait are in the journal as well."""
        self._records = records
        for line in self._lines:
            records.added(line, 0)

    def restore(self, records: LineRecords, lines: list[bytes]) -> None:
        """Lines that the journal has already."""
        self._records = records
        self._lines.extend(lines)
        self._bytes += sum(map(len, lines))


@dataclass(slots=True)
class ReadLimit:
    """How many reads of streams may wait at a time, and for how long.

    Finite where an interrupt of the reader does not reach the daemon, and each wait takes one of pyfuse3's tasks.
    """

    seconds: float = math.inf
    readers: float = math.inf
    waiting: int = 0


class EventHub:
    """Numbers events for each stream and gives them to the channels that are open.

    A line is written only for a reader: the holder of a breaking pin has its signal already, and the daemon should get
    out of its way. The number of a break stays with the break, for channels that open later.

    `breaking_of`: the breaking pins of a process, oldest break first. `on_subscribers` is called when the first stream
    is opened, and when the last one is closed.
    """

    def __init__(self, stats: Stats) -> None:
        self.read_limit = ReadLimit()
        self.path_of: Callable[[int], str | None] = lambda inode: None
        self.breaking_of: Callable[[ProcessId], list[Pin]] = lambda process: []
        self.on_subscribers: Callable[[bool], None] = lambda there_are: None
        self._stats = stats
        self._channels: dict[ProcessId, list[EventQueue]] = {}
        self._traces: list[EventQueue] = []
        self._last_seq: dict[ProcessId, int] = {}
        """The last number of each process's stream, until `forget`."""
        self._trace_seq = 0
        self.records: StreamRecords | None = None
        """Writes down which numbers were given; None: the mount does not outlive the daemon."""

    # Channels

    def open_channel(self, process: ProcessId) -> EventQueue:
        """A stream of the events of one process, beginning with the breaks under way."""
        queue = EventQueue(self._stats)
        for pin in self.breaking_of(process):
            breaking = pin.breaking
            if breaking is not None and breaking.seq:
                event = BookEvent("break", breaking.since, pin, breaking=breaking)
                queue.put(self._line(breaking.seq, event, traced=False), 0)
        self._add_channel(process, queue)
        return queue

    def _add_channel(self, process: ProcessId, queue: EventQueue) -> None:
        self._channels.setdefault(process, []).append(queue)
        self._report_subscribers()

    def restore_channel(self, process: ProcessId) -> EventQueue:
        """The channel of a reader that goes on reading."""
        queue = EventQueue(self._stats)
        self._add_channel(process, queue)
        return queue

    def restore_numbers(self, last_seq: dict[ProcessId, int], trace_seq: int) -> None:
        """Go on after these numbers."""
        self._last_seq.update(last_seq)
        self._trace_seq = trace_seq

    def open_trace(self) -> EventQueue:
        """A stream of all events."""
        queue = EventQueue(self._stats)
        self._traces.append(queue)
        self._report_subscribers()
        return queue

    def close_channel(self, process: ProcessId, queue: EventQueue) -> None:
        queues = self._channels[process]
        queues.remove(queue)
        if not queues:
            del self._channels[process]
        self._report_subscribers()

    def close_trace(self, queue: EventQueue) -> None:
        self._traces.remove(queue)
        self._report_subscribers()

    def forget(self, process: ProcessId) -> None:
        """The process has ended, or holds nothing for long: its next event is number 1 again."""
        if self._last_seq.pop(process, None) is not None and self.records is not None:
            self.records.forget_sequence(process)

    def _report_subscribers(self) -> None:
        self.on_subscribers(bool(self._channels or self._traces))

    # Events

    def publish(self, event: BookEvent) -> None:
        """What the guard tells, in its order."""
        pin = event.pin
        if pin is not None and event.kind in HOLDER_EVENTS and pin.process is not None:
            self._tell_holder(event, pin.process)
        if self._traces:
            self._trace_seq += 1
            line = self._line(self._trace_seq, event, traced=True)
            for queue in self._traces:
                queue.put(line, self._trace_seq)
            if self.records is not None:
                self.records.trace_sequence(self._trace_seq)

    def _tell_holder(self, event: BookEvent, process: ProcessId) -> None:
        queues = self._channels.get(process)
        if event.kind != "break" and queues is None:
            return  # no reader will ever see its number
        seq = self._last_seq[process] = self._last_seq.get(process, 0) + 1
        if event.kind == "break" and event.breaking is not None:
            event.breaking.seq = seq
        if queues:
            line = self._line(seq, event, traced=False)
            for queue in queues:
                queue.put(line, seq)
        if self.records is not None:
            self.records.sequence(process, seq)

    def _line(self, seq: int, event: BookEvent, *, traced: bool) -> bytes:
        body: Json = {"v": 1, "seq": seq, "event": event.kind}
        if event.pin is not None:
            body |= self._pin_part(event.pin, traced)
        breaking, removal = event.breaking, event.removal
        if removal is not None:
            body |= _taken(removal.request.op, removal.start, removal.end, removal.request.host)
        elif event.kind == "break" and breaking is not None:
            body |= _taken(breaking.op, breaking.start, breaking.end, breaking.host)
        if traced and removal is not None:
            body["breaker"] = _breaker(removal.request)
            body.setdefault("inode", removal.inode)
            body.setdefault("path", shown_path(self.path_of(removal.inode)))
        if event.by is not None:
            body["by"] = event.by
        if event.why is not None:
            body["why"] = event.why
        if traced and event.mapped_by:
            body["mapped_by"] = [mapper._asdict() for mapper in event.mapped_by]
        return to_line(body)

    def _pin_part(self, pin: Pin, traced: bool) -> Json:
        part: Json = {
            "pin": pin.id,
            "name": None if pin.name is None else pin.name.decode(errors="replace"),
            "inode": pin.inode,
            "path": shown_path(self.path_of(pin.inode)),
            "start": pin.start,
            "length": pin.length,
            "mode": pin.mode.value,
        }
        if pin.deadline is not None:
            part["deadline"] = unix_time(pin.deadline)
            part["remaining_s"] = round(max(0.0, pin.deadline - trio.current_time()), 3)
        if traced:
            part |= {"pid": None if pin.process is None else pin.process.pid, "uid": pin.uid}
        return part


def _taken(op: str, start: int, end: int, host: str | None) -> Json:
    """The bytes that a removal takes away, and the host that it comes from, if not from this one."""
    taken: Json = {"op": op, "from": start, "to": None if end >= END else end}
    return taken if host is None else taken | {"host": host}


def _breaker(request: RemovalRequest) -> Json:
    """A process of this host; of another one only the host is known."""
    if request.host is not None:
        return {"pid": None, "uid": None, "host": request.host}
    return {"pid": request.pid, "uid": request.uid}
