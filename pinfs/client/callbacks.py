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
    """A pin whose holder has a callback. `release` and `query` are the pin's own."""

    on_break: Callback
    release: Callable[[], None]
    query: Callable[[], PinInfo]
    running: bool = False

    def answer(self, event: Event) -> None:
        """Call the holder, and release what it has let go of.

        A callback that fails, or ends its thread by SystemExit, has not let go: the memory may still be in use, so the
        pin stays and the deadline decides.
        """
        try:
            self.on_break(event)
            self.release()
        except BaseException:
            log.exception("pin %s: the answer to a break failed; the pin stays, and the deadline decides", event.pin)
        finally:
            self.running = False


class Workers:
    """Threads that end when there is nothing to do, at most `limit` at a time; further work waits for one of them."""

    def __init__(self, limit: int = CALLBACKS) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._running = 0

    def submit(self, work: Callable[[], object]) -> None:
        """Have `work`, which does not raise, done by a thread. Raises RuntimeError where no thread can be started and
        none is running that could do it later."""
        with self._lock:
            self._waiting.append(work)
            if self._running == self._limit:
                return
            try:
                threading.Thread(target=self._run, name="pinfs-break", daemon=True).start()
            except RuntimeError:
                if self._running == 0:
                    self._waiting.remove(work)
                    raise
            else:
                self._running += 1

    def _run(self) -> None:
        while work := self._next():
            work()

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._running -= 1
            return None


class BreakCallbacks:
    """Reads the channel of one mount for all pins of this process that have callbacks."""

    def __init__(self, channel: EventChannel) -> None:
        self.channel = channel
        self._lock = threading.Lock()
        self._watches: dict[Key, Watch] = {}
        self._workers = Workers()

    def start(self) -> None:
        """Raises RuntimeError where no thread can be started."""
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
        except Exception as error:
            log.warning("no more breaks will be reported: %s", error)
        finally:
            _retire(self)
            self.channel.close()

    def handle(self, event: Event) -> None:
        if event.event == "break":
            self._begin(self._watches.get((event.inode, event.name)), event)
        elif event.event == "overflow":
            self._query_all()
        elif event.event == "revoked":
            log.warning("pin %s was revoked by %s: its bytes may be gone", event.pin, event.by)

    def _begin(self, watch: Watch | None, event: Event) -> None:
        """A pin that breaks again while its callback still runs is released when that one returns."""
        with self._lock:
            if watch is None or watch.running:
                return
            watch.running = True
        try:
            self._workers.submit(lambda: watch.answer(event))
        except RuntimeError as error:
            watch.running = False
            log.error("pin %s: its break cannot be answered, the deadline decides: %s", event.pin, error)

    def _query_all(self) -> None:
        """Events were lost, breaks may be among them: ask the mount about each pin."""
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            with contextlib.suppress(OSError):
                info = watch.query()
                if info.state == "breaking":
                    self._begin(watch, break_of(info))


_lock = threading.Lock()
_by_device: dict[int, BreakCallbacks] = {}


def join(inode: Inode, name: str, watch: Watch) -> None:
    """Have the callback of a pin-to-be called.

    Raises OSError where the mount's channel cannot be opened, RuntimeError where no thread can be started.
    """
    with _lock:
        running = _by_device.get(inode.dev)
        if running is not None:
            running.watch((inode.ino, name), watch)
            return
        fresh = BreakCallbacks(EventChannel(inode))
        fresh.watch((inode.ino, name), watch)
        try:
            fresh.start()
        except BaseException:
            fresh.channel.close()
            raise
        _by_device[inode.dev] = fresh


def leave(inode: Inode, name: str, watch: Watch) -> None:
    """The last pin that leaves closes the channel, so that the mount is not busy with it."""
    with _lock:
        running = _by_device.get(inode.dev)
        if running is not None and running.unwatch((inode.ino, name), watch):
            del _by_device[inode.dev]
            running.channel.wake()


def _retire(ended: BreakCallbacks) -> None:
    """A mount that is gone makes room for the next one with its device number."""
    with _lock:
        for dev in [dev for dev, running in _by_device.items() if running is ended]:
            del _by_device[dev]


def _forget() -> None:
    """A forked child has none of the pins and none of the threads; it closes its copies of the channels."""
    global _lock
    _lock = threading.Lock()
    for running in _by_device.values():
        with contextlib.suppress(OSError):  # the thread that was closing it is not in the child
            running.channel.close()
    _by_device.clear()


os.register_at_fork(after_in_child=_forget)
