"""What goes wrong half-way leaves no descriptor, thread, pin or lock behind."""

import errno
import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from client.test_client_trio import FakePin

import pinfs
from pinfs.client import callbacks, ioctl
from pinfs.client import pin as plain
from pinfs.client import trio as pinfs_trio
from pinfs.client.callbacks import BreakCallbacks, Watch, Workers
from pinfs.client.channel import EventChannel
from pinfs.client.handlepin import HandlePin
from pinfs.client.inode import inode_of
from pinfs.client.model import Event
from pinfs.client.relay import Relay
from pinfs.client.xattrs import RequestedPin

LIMIT_S = 20


def descriptors() -> list[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


def join(name: str) -> None:
    """Wait until the threads of a name have ended."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(LIMIT_S)


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a limit of threads is reached (pthread_create(3), EAGAIN)."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def no_eventfds(monkeypatch: pytest.MonkeyPatch) -> None:
    def eventfd(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "eventfd", eventfd)


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.pinfs` of plain files."""
    (tmp_path / "events").write_bytes(b"")
    monkeypatch.setattr("pinfs.client.channel.control_file", lambda _mount, name: tmp_path / name)
    return tmp_path


@pytest.fixture(params=[True, False], ids=["eventfd", "relay"])
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a channel hears of events."""
    if not request.param:
        monkeypatch.setattr("pinfs.client.channel._takes_eventfd", lambda fd, eventfd: False)
    return "eventfd" if request.param else "relay"


def test_a_channel_that_cannot_be_had_leaves_nothing_open(control: Path, monkeypatch, told: str) -> None:
    before = descriptors()
    with monkeypatch.context() as patch:
        no_eventfds(patch)
        with pytest.raises(OSError, match="Too many"):
            EventChannel(control)
    assert descriptors() == before


def test_events_that_are_never_read_leave_nothing_open(control: Path, told: str) -> None:
    before = descriptors()
    pinfs.events(control)
    assert descriptors() == before


def test_a_relay_without_its_thread_leaves_nothing_open(monkeypatch) -> None:
    reading, writing = os.pipe()
    before = descriptors()
    relay = Relay(reading)
    with monkeypatch.context() as patch:
        no_threads(patch)
        with pytest.raises(RuntimeError):
            relay.fileno()
    assert descriptors() == before
    assert relay.fileno() >= 0  # the next call starts it
    os.close(writing)
    relay.close()
    join("pinfs-relay")


# ---- callbacks


def test_a_mount_without_its_thread_is_forgotten(control: Path, monkeypatch) -> None:
    inode = inode_of(control / "events")
    watch = Watch(print, print, print)  # type: ignore[arg-type]
    before = descriptors()
    with monkeypatch.context() as patch:
        no_threads(patch)
        with pytest.raises(RuntimeError):
            callbacks.join(inode, "x", watch)
    assert descriptors() == before
    assert not callbacks._by_device


@pytest.fixture
def breaks() -> Iterator[BreakCallbacks]:
    mount, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mount, EventChannel.over(client.detach()) as channel:
        yield BreakCallbacks(channel)


def watched(breaks: BreakCallbacks, on_break: Callable[[Event], object]) -> threading.Event:
    released = threading.Event()
    breaks.watch((1, "x"), Watch(on_break, released.set, lambda: pytest.fail("not asked")))
    return released


BREAK = Event("break", pin=1, inode=1, name="x")


def test_a_break_without_a_thread_to_answer_it_is_answered_at_the_next(breaks, monkeypatch, caplog) -> None:
    released = watched(breaks, lambda event: None)
    with monkeypatch.context() as patch:
        no_threads(patch)
        breaks.handle(BREAK)
    assert "cannot be answered, the deadline decides: can't start new thread" in caplog.text
    assert not released.is_set()
    breaks.handle(BREAK)
    assert released.wait(LIMIT_S)


def test_work_waits_for_a_running_thread_where_no_other_can_be_started(monkeypatch) -> None:
    workers, go_on, done = Workers(), threading.Event(), threading.Event()
    workers.submit(lambda: go_on.wait(LIMIT_S))
    with monkeypatch.context() as patch:
        no_threads(patch)
        workers.submit(done.set)
    assert not done.is_set()
    go_on.set()
    assert done.wait(LIMIT_S)


def test_callbacks_that_end_their_threads_use_up_no_workers(caplog) -> None:
    """sys.exit() in a thread raises SystemExit, which is no Exception."""
    workers, done = Workers(limit=2), threading.Event()
    for _ in range(5):
        watch = Watch(lambda event: exit(1), lambda: pytest.fail("released"), lambda: pytest.fail("asked"))
        workers.submit(partial(watch.answer, BREAK))
    workers.submit(done.set)
    assert done.wait(LIMIT_S)
    join("pinfs-break")
    assert caplog.text.count("the answer to a break failed") == 5


def test_a_line_that_is_no_event_ends_the_thread_with_a_warning(caplog) -> None:
    mount, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    breaks = BreakCallbacks(EventChannel.over(client.detach()))
    watched(breaks, print)
    with mount:
        mount.send(b"what?\n")
        breaks._run()
    assert "no more breaks will be reported" in caplog.text
    assert breaks.channel.fileno() == -1


# ---- pins of handles


class FakeIoctls:
    """The pins of a handle, without a mount."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pins: list[int] = []
        for name in ("pin", "unpin"):
            monkeypatch.setattr(ioctl, name, getattr(self, name))

    def pin(self, fd: int, request: object) -> int:
        self.pins.append(len(self.pins) + 1)
        return self.pins[-1]

    def unpin(self, fd: int, pin_id: int) -> None:
        self.pins.remove(pin_id)


@pytest.fixture
def ioctls(control: Path, monkeypatch: pytest.MonkeyPatch) -> FakeIoctls:
    return FakeIoctls(monkeypatch)


@pytest.fixture
def handle() -> Iterator[int]:
    """Something that can be polled."""
    one, other = socket.socketpair()
    with one, other:
        yield one.fileno()


@pytest.mark.parametrize("out_of", [no_threads, no_eventfds])
def test_a_pin_that_cannot_be_listened_to_is_none(ioctls, handle, monkeypatch, out_of, told) -> None:
    before = descriptors()
    with monkeypatch.context() as patch:
        out_of(patch)
        with pytest.raises((RuntimeError, OSError)):
            HandlePin(handle, RequestedPin(0, 0, "lease", "none"), print, owned=False)
    assert ioctls.pins == []
    assert descriptors() == before


def test_a_released_pin_leaves_nothing_open(ioctls, handle) -> None:
    before = descriptors()
    pin = HandlePin(handle, RequestedPin(0, 0, "lease", "none"), print, owned=False)
    pin.release()
    join("pinfs-handle")
    assert ioctls.pins == []
    assert descriptors() == before


def test_a_release_closes_no_descriptor_of_another_file(ioctls, tmp_path) -> None:
    """The pin's own descriptor was closed (closefrom(2)...), and its number given to another file."""
    (tmp_path / "one").write_bytes(b"")
    (tmp_path / "two").write_bytes(b"")
    fd = os.open(tmp_path / "one", os.O_RDWR)
    pin = HandlePin(fd, RequestedPin(0, 0, "deny", "none"), None, owned=True)
    os.close(fd)
    assert os.open(tmp_path / "two", os.O_RDWR) == fd
    pin.release()
    os.close(fd)  # EBADF, if the release had closed it
    assert ioctls.pins == [1]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_closes_what_listens(ioctls, handle) -> None:
    before = len(descriptors())
    pin = HandlePin(handle, RequestedPin(0, 0, "lease", "none"), print, owned=False)
    assert in_child(lambda: len(descriptors()) == before)
    pin.release()
    join("pinfs-handle")


# ---- fork


def in_child(works: Callable[[], bool]) -> bool:
    """Whether `works` is true in a forked child, which gets `LIMIT_S` for it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        alarm = threading.Timer(LIMIT_S, os._exit, [1])
        alarm.daemon = True
        alarm.start()
        os.close(writing)
        os._exit(0 if works() else 1)
    os.close(writing)
    os.close(reading)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("lock", ["_lock", "_changing"])
def test_a_child_waits_for_no_lock_of_its_parents_threads(lock: str) -> None:
    pin = FakePin()

    def releases() -> bool:
        pin.release()
        with pytest.raises(OSError, match="has been released"):
            pin.resize(0, 1)
        return True

    with getattr(pin, lock):  # as another thread may, at the moment of the fork
        assert in_child(releases)
    assert pin.active


# ---- trio


class Unflushable(FakePin):
    def _release(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


async def test_a_release_that_fails_closes_the_channel(control: Path, monkeypatch) -> None:
    monkeypatch.setattr(pinfs_trio, "is_pinfs", lambda inode: True)
    monkeypatch.setattr(plain, "pin", lambda *_, **__: Unflushable())
    before = descriptors()
    with pytest.raises(OSError, match="Input/output"):
        async with pinfs_trio.pin(control / "events", mode="lease"):
            await trio.lowlevel.checkpoint()
    assert descriptors() == before


def test_the_public_names_are_where_they_were() -> None:
    from pinfs.client.pin import HandlePin, NoPin, Pin, ProcessPin, pin, pins

    assert (pinfs.Pin, pinfs.pin, pinfs.pins) == (Pin, pin, pins)
    assert all(issubclass(kind, Pin) for kind in (HandlePin, NoPin, ProcessPin))
