"""Who hears what: events of pins, as lines, to the processes that hold them and to whoever traces."""

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import trio

from pinfs.core.breaks import Removal
from pinfs.core.pins import Event, Pin
from pinfs.core.ranges import END
from pinfs.fs.describe import unix_time
from pinfs.runtime.stats import Stats

log = logging.getLogger("pinfs.events")

MAX_QUEUED: Final = 16384  # lines that a reader may be behind
Json = dict[str, Any]


def to_line(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(", ", ": ")).encode() + b"\n"


class Queue:
    """Lines on their way to one reader; when it is too slow, the oldest go and it is told how many."""

    def __init__(self, on_news: Callable[[], None], stats: Stats) -> None:
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._on_news = on_news
        self._stats = stats

    def __bool__(self) -> bool:
        return bool(self._lines or self._lost)

    def put(self, line: bytes) -> None:
        if len(self._lines) >= MAX_QUEUED:
            self._lines.popleft()
            self._lost += 1
            self._stats.events_lost += 1
        self._lines.append(line)
        self._on_news()

    def take(self, size: int) -> bytes | None:
        """As many whole lines as fit into `size` bytes; None: not even the first one fits."""
        if self._lost:
            self._lines.appendleft(to_line({"v": 1, "event": "overflow", "lost": self._lost}))
            self._lost = 0
        taken: list[bytes] = []
        room = size
        while self._lines and len(self._lines[0]) <= room:
            room -= len(self._lines[0])
            taken.append(self._lines.popleft())
        if not taken and self._lines:
            return None
        return b"".join(taken)


@dataclass(slots=True)
class ReadLimit:
    """How many reads of streams may wait at a time, and for how long.

    Finite where an interrupt of the reader does not reach the daemon, and each wait takes one of pyfuse3's tasks.
    """

    seconds: float = math.inf
    readers: float = math.inf
    waiting: int = 0


class EventHub:
    """Numbers events for each stream and gives them to the channels that are open."""

    def __init__(self, stats: Stats) -> None:
        self.read_limit = ReadLimit()
        self.path_of: Callable[[int], str | None] = lambda inode: None
        self._stats = stats
        self._channels: dict[Hashable, list[Queue]] = {}
        self._traces: list[Queue] = []
        self._last_seq: WeakKeyDictionary[Hashable, int] = WeakKeyDictionary()  # the dead are not kept for a number
        self._trace_seq = 0
        self._breaks: dict[Hashable, dict[Pin, tuple[int, Event]]] = {}
        """Under way, with their numbers, for channels that open later. A line is written only for who reads it: the
        holder of a breaking pin has its signal already, and the daemon should get out of its way."""
        self.on_subscribers: Callable[[bool], None] = lambda there_is: None
        """Called when the first stream is opened, and when the last one is closed."""

    # Channels

    def open_channel(self, process: Hashable, on_news: Callable[[], None]) -> Queue:
        """A stream of the events of one process, beginning with the breaks under way."""
        queue = Queue(on_news, self._stats)
        for pin, (seq, event) in self._breaks.get(process, {}).items():
            if pin.breaking is not None:
                queue.put(self._line(seq, event, traced=False))
        self._channels.setdefault(process, []).append(queue)
        self._report_subscribers()
        return queue

    def open_trace(self, on_news: Callable[[], None]) -> Queue:
        """A stream of all events."""
        queue = Queue(on_news, self._stats)
        self._traces.append(queue)
        self._report_subscribers()
        return queue

    def close_channel(self, process: Hashable, queue: Queue) -> None:
        queues = self._channels[process]
        queues.remove(queue)
        if not queues:
            del self._channels[process]
        self._report_subscribers()

    def close_trace(self, queue: Queue) -> None:
        self._traces.remove(queue)
        self._report_subscribers()

    def _report_subscribers(self) -> None:
        self.on_subscribers(bool(self._channels or self._traces))

    # Events

    def publish(self, event: Event) -> None:
        """What the guard tells, in its order."""
        pin = event.pin
        if pin is not None and event.kind in HOLDER_EVENTS and pin.process is not None:
            self._tell_holder(event, pin, pin.process)
        if self._traces:
            self._trace_seq += 1
            line = self._line(self._trace_seq, event, traced=True)
            for queue in self._traces:
                queue.put(line)

    def _tell_holder(self, event: Event, pin: Pin, process: Hashable) -> None:
        if self._breaks:
            self._drop_break(process, pin)
        queues = self._channels.get(process)
        if event.kind != "break" and queues is None:
            return  # nobody will ever see its number
        seq = self._last_seq[process] = self._last_seq.get(process, 0) + 1
        if event.kind == "break":
            self._breaks.setdefault(process, {})[pin] = seq, event
        if queues:
            line = self._line(seq, event, traced=False)
            for queue in queues:
                queue.put(line)

    def _drop_break(self, process: Hashable, pin: Pin) -> None:
        breaks = self._breaks.get(process)
        if breaks is not None and breaks.pop(pin, None) is not None and not breaks:
            del self._breaks[process]

    def _line(self, seq: int, event: Event, *, traced: bool) -> bytes:
        body: Json = {"v": 1, "seq": seq, "event": event.kind}
        if event.pin is not None:
            body |= self._pin_part(event.pin, traced)
        if isinstance(event.removal, Removal):
            removal = event.removal
            body |= {"op": removal.op, "from": removal.start, "to": None if removal.end >= END else removal.end}
            if traced:
                body["breaker"] = {"pid": removal.pid, "uid": removal.uid}
                body.setdefault("inode", removal.inode)
                body.setdefault("path", self.path_of(removal.inode))
        if event.by is not None:
            body["by"] = event.by
        if event.why is not None:
            body["why"] = event.why
        return to_line(body)

    def _pin_part(self, pin: Pin, traced: bool) -> Json:
        part: Json = {
            "pin": pin.id,
            "name": None if pin.name is None else pin.name.decode(errors="replace"),
            "inode": pin.inode,
            "path": self.path_of(pin.inode),
            "start": pin.start,
            "length": pin.length,
            "mode": pin.mode.value,
        }
        if pin.deadline is not None:
            part["deadline"] = unix_time(pin.deadline)
            part["remaining_s"] = round(max(0.0, pin.deadline - trio.current_time()), 3)
        if traced:
            part |= {"pid": getattr(pin.process, "pid", None), "uid": pin.uid}
        return part


HOLDER_EVENTS: Final = frozenset({"break", "withdrawn", "released", "revoked"})
