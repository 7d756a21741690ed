"""From events to callbacks: one thread for each mount reads the channel, callbacks run in threads of their own.

A callback that takes its time delays no other pin's callback, up to `CALLBACKS` of them at a time. All threads are
daemon threads: they do not keep a program from ending, and a program that has ended holds nothing.
"""

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pinfs.client.channel import EventChannel
from pinfs.client.inode import Inode
from pinfs.client.model import Event, PinInfo, break_of

log = logging.getLogger("pinfs.client")

CALLBACKS = 64
Key = tuple[int | None, str | None]  # inode and name: known before the pin is registered, so no event comes too early
Callback = Callable[[Event], object]


@dataclass
class Watch:
    """A pin whose holder wants to be called. `release` and `query` are the pin's own."""

    on_break: Callback
    release: Callable[[], None]
    query: Callable[[], PinInfo]
    running: bool = False

    def answer(self, event: Event) -> None:
        """Call the holder, and release what it has let go of.

        A callback that fails has not let go: the memory may still be in use, so the pin stays and the deadline decides.
        """
        try:
            self.on_break(event)
            self.release()
        except Exception:
            log.exception("pin %s: the answer to a break failed; the pin stays, and the deadline decides", event.pin)
        finally:
            self.running = False


class Workers:
    """Threads that end when there is nothing to do, at most `limit` at a time; what is above it waits its turn."""

    def __init__(self, limit: int = CALLBACKS) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._running = 0

    def submit(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.append(work)
            if self._running == self._limit:
                return
            self._running += 1
        threading.Thread(target=self._run, name="pinfs-break", daemon=True).start()

    def _run(self) -> None:
        while work := self._next():
            work()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._running -= 1
            return None


class Dispatcher:
    """Reads the channel of one mount for all pins of this process that have callbacks."""

    def __init__(self, channel: EventChannel) -> None:
        self.channel = channel
        self._lock = threading.Lock()
        self._watches: dict[Key, Watch] = {}
        self._workers = Workers()

    def start(self) -> None:
        threading.Thread(target=self._run, name="pinfs-events", daemon=True).start()

    def watch(self, key: Key, watch: Watch) -> None:
        with self._lock:
            self._watches[key] = watch

    def unwatch(self, key: Key, watch: Watch) -> bool:
        """Whether that was the last one. (A pin registered again under its name has a watch of its own by now.)"""
        with self._lock:
            if self._watches.get(key) is watch:
                del self._watches[key]
            return not self._watches

    def _run(self) -> None:
        try:
            while self._watches:
                for event in self.channel.read():
                    self.handle(event)
        except OSError as exc:
            log.warning("no more breaks can be heard of: %s", exc)
        finally:
            _retire(self)
            self.channel.close()

    def handle(self, event: Event) -> None:
        if event.event == "break":
            self._begin(self._watches.get((event.inode, event.name)), event)
        elif event.event == "overflow":
            self._look_at_all()
        elif event.event == "revoked":
            log.warning("pin %s was revoked by %s: its bytes may be gone", event.pin, event.by)

    def _begin(self, watch: Watch | None, event: Event) -> None:
        """A pin that breaks again while its callback still runs is released when that one returns."""
        with self._lock:
            if watch is None or watch.running:
                return
            watch.running = True
        self._workers.submit(lambda: watch.answer(event))

    def _look_at_all(self) -> None:
        """Events were lost, breaks may be among them: ask each pin."""
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            with contextlib.suppress(OSError):
                info = watch.query()
                if info.state == "breaking":
                    self._begin(watch, break_of(info))


_lock = threading.Lock()
_dispatchers: dict[int, Dispatcher] = {}


def join(inode: Inode, name: str, watch: Watch) -> None:
    """Have the callback of a pin-to-be called. Raises OSError where the mount's channel cannot be opened."""
    with _lock:
        dispatcher = _dispatchers.get(inode.dev)
        if dispatcher is None:
            dispatcher = Dispatcher(EventChannel(inode))
        dispatcher.watch((inode.ino, name), watch)
        if inode.dev not in _dispatchers:
            _dispatchers[inode.dev] = dispatcher
            dispatcher.start()


def leave(inode: Inode, name: str, watch: Watch) -> None:
    """The last pin that leaves closes the channel, so that the mount is not busy with it."""
    with _lock:
        dispatcher = _dispatchers.get(inode.dev)
        if dispatcher is not None and dispatcher.unwatch((inode.ino, name), watch):
            del _dispatchers[inode.dev]
            dispatcher.channel.wake()


def _retire(dispatcher: Dispatcher) -> None:
    """A dispatcher whose mount has gone makes room for the next."""
    with _lock:
        for dev in [dev for dev, other in _dispatchers.items() if other is dispatcher]:
            del _dispatchers[dev]


def _forget() -> None:
    """A forked child has none of the pins and none of the threads; it closes its copies of the channels."""
    global _lock
    _lock = threading.Lock()
    for dispatcher in _dispatchers.values():
        dispatcher.channel.close()
    _dispatchers.clear()


os.register_at_fork(after_in_child=_forget)
