"""From events to callbacks, with a socket pair for the channel and no mount."""

import json
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from pinfs.client import callbacks
from pinfs.client.callbacks import BreakCallbacks, Watch, Workers
from pinfs.client.channel import EventChannel
from pinfs.client.model import Event, PinInfo

LIMIT_S = 20  # when a test counts as hung; no test waits for it


class Holder:
    """A pin that a test watches."""

    def __init__(self, number: int, on_break: Callable[[Event], object] | None = None) -> None:
        self.number = number
        self.key = (100 + number, f"pin{number}")
        self.called: queue.Queue[Event] = queue.Queue()
        self.released = threading.Event()
        self.state: Literal["held", "breaking", "gone"] = "held"
        self._on_break = on_break or (lambda event: None)
        self.watch = Watch(self._call, self.released.set, self._info)

    def _call(self, event: Event) -> None:
        self.called.put(event)
        self._on_break(event)

    def _info(self) -> PinInfo:
        return PinInfo(self.number, 0, 10, "lease", self.state, inode=self.key[0], name=self.key[1])

    def break_line(self) -> dict[str, object]:
        return {"event": "break", "pin": self.number, "inode": self.key[0], "name": self.key[1]}


class FakeMount:
    def __init__(self) -> None:
        self.socket, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.setblocking(False)
        self.callbacks = BreakCallbacks(EventChannel.over(client.detach()))
        self.add(Holder(0))

    def add(self, holder: Holder) -> Holder:
        self.callbacks.watch(holder.key, holder.watch)
        return holder

    def send(self, *events: dict[str, object]) -> None:
        self.socket.send("".join(json.dumps({"v": 1, "seq": 1} | event) + "\n" for event in events).encode())


@pytest.fixture
def fake() -> Iterator[FakeMount]:
    fake = FakeMount()
    thread = threading.Thread(target=fake.callbacks._run)
    thread.start()
    yield fake
    with callbacks._lock:  # as leave() does: the thread closes the channel under the same lock
        fake.callbacks._watches.clear()
        fake.callbacks.channel.wake()
    thread.join()
    fake.socket.close()
    assert fake.callbacks.channel.fileno() == -1


def test_a_callback_that_returns_releases(fake) -> None:
    holder = fake.add(Holder(1))
    fake.send(holder.break_line())
    assert holder.called.get(timeout=LIMIT_S).pin == 1
    assert holder.released.wait(LIMIT_S)


def test_nothing_is_released_before_the_callback_returns(fake) -> None:
    seen: list[bool] = []
    holder = fake.add(Holder(1, lambda event: seen.append(holder.released.is_set())))
    fake.send(holder.break_line())
    assert holder.released.wait(LIMIT_S)
    assert seen == [False]


def test_a_slow_callback_delays_no_other(fake) -> None:
    go_on = threading.Event()
    slow = fake.add(Holder(1, lambda event: go_on.wait(LIMIT_S)))
    quick = fake.add(Holder(2))
    fake.send(slow.break_line(), quick.break_line())
    assert quick.released.wait(LIMIT_S)
    assert not slow.released.is_set()
    go_on.set()
    assert slow.released.wait(LIMIT_S)


def fail(event: Event) -> None:
    raise RuntimeError("cannot let go")


def test_a_callback_that_fails_keeps_the_pin(fake, caplog) -> None:
    holder = fake.add(Holder(1, fail))
    with caplog.at_level(logging.ERROR, "pinfs.client"):
        holder.watch.answer(Event("break", pin=1))
    assert not holder.released.is_set()
    assert "cannot let go" in caplog.text
    assert "deadline decides" in caplog.text


def test_a_callback_that_failed_is_called_at_the_next_break(fake, caplog) -> None:
    holder = Holder(1, fail)
    holder.watch.answer(Event("break", pin=1))
    fake.add(holder)
    fake.send(holder.break_line())
    holder.called.get(timeout=LIMIT_S)
    assert holder.called.get(timeout=LIMIT_S)


def test_a_running_callback_is_not_called_again(fake) -> None:
    go_on = threading.Event()
    holder = fake.add(Holder(1, lambda event: go_on.wait(LIMIT_S)))
    other = fake.add(Holder(2))
    fake.send(holder.break_line(), holder.break_line(), other.break_line())
    assert other.released.wait(LIMIT_S)  # so both lines before have been seen
    go_on.set()
    assert holder.released.wait(LIMIT_S)
    assert holder.called.qsize() == 1


def test_events_of_pins_without_callback_are_passed_over(fake) -> None:
    holder = fake.add(Holder(1))
    fake.send(Holder(9).break_line(), {"event": "released", "pin": 3, "by": "holder"}, holder.break_line())
    assert holder.released.wait(LIMIT_S)


def test_lost_events_are_looked_for(fake) -> None:
    breaking, held = fake.add(Holder(1)), fake.add(Holder(2))
    breaking.state = "breaking"
    fake.send({"event": "overflow", "lost": 5})
    assert breaking.released.wait(LIMIT_S)
    assert held.called.empty()


def test_a_revoked_pin_is_reported(fake, caplog) -> None:
    with caplog.at_level(logging.WARNING, "pinfs.client"):
        fake.callbacks.handle(Event("revoked", pin=5, by="policy"))
    assert "pin 5 was revoked by policy" in caplog.text


def test_a_pin_registered_anew_keeps_its_watch(fake) -> None:
    first, second = Holder(1), Holder(1)
    fake.add(first)
    fake.add(second)
    assert not fake.callbacks.unwatch(first.key, first.watch)
    fake.send(second.break_line())
    assert second.released.wait(LIMIT_S)
    assert first.called.empty()


def test_a_mount_that_goes_ends_the_thread(caplog) -> None:
    fake = FakeMount()
    fake.socket.close()
    with caplog.at_level(logging.WARNING, "pinfs.client"):
        fake.callbacks._run()
    assert "no more breaks" in caplog.text
    assert fake.callbacks.channel.fileno() == -1


def test_workers_have_a_limit_and_do_all() -> None:
    workers = Workers(limit=3)
    lock, running, most, done = threading.Lock(), [0], [0], threading.Semaphore(0)

    def work() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1
        done.release()

    for _ in range(200):
        workers.submit(work)
    assert all(done.acquire(timeout=LIMIT_S) for _ in range(200))
    assert most[0] <= 3


def test_workers_do_not_wait_for_each_other() -> None:
    workers, all_here = Workers(limit=3), threading.Barrier(4)
    for _ in range(3):
        workers.submit(lambda: all_here.wait(LIMIT_S))
    all_here.wait(LIMIT_S)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later: workers may still be ending
def test_a_forked_child_has_no_callbacks(monkeypatch) -> None:
    fake = FakeMount()
    monkeypatch.setitem(callbacks._by_device, 12345, fake.callbacks)
    answer, told = os.pipe()
    with callbacks._lock:  # as another thread may, at the moment of the fork
        child = os.fork()
    if child == 0:
        free = callbacks._lock.acquire(blocking=False)
        closed = fake.callbacks.channel.fileno() == -1
        os.write(told, b"ok" if free and closed and not callbacks._by_device else b"no")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(answer, 10) == b"ok"
    assert fake.callbacks.channel.fileno() >= 0
    for fd in (answer, told):
        os.close(fd)
    fake.callbacks.channel.close()
    fake.socket.close()
