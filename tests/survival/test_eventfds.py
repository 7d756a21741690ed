"""The daemon is killed, and programs that wait by eventfds and by poll(2) do not notice (SPEC 13)."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import acts
from support.actor import Actor, Actors, eventually
from support.eventfds import EventFd, pin_by_attribute, pin_by_ioctl, pin_handle
from support.uring import READ, Ring

from .surviving import Surviving, surviving

SIZE = 8192
EITHER_WAY = pytest.mark.parametrize("pin_by", [pin_by_attribute, pin_by_ioctl], ids=["attribute", "ioctl"])


@pytest.fixture
def mount(root: None, fuse: None) -> Iterator[Surviving]:
    with surviving("tmpfs", ()) as mount:
        yield mount


@pytest.fixture
def file(mount: Surviving) -> Path:
    path = mount.path / "file"
    path.write_bytes(b"x" * SIZE)
    return path


@pytest.fixture
def holder(mount: Surviving, actors: Actors) -> Actor:
    """Ends before the mount does."""
    return actors.actor()


def killed(mount: Surviving) -> None:
    """And the next daemon has taken over."""
    before = mount.status()["takeovers"]
    mount.kill()
    eventually(lambda: mount.status()["takeovers"] > before)


def kept(pid: int) -> int:
    """How many eventfds a process has open."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(path) == "anon_inode:[eventfd]"
    return found


@EITHER_WAY
def test_pins_write_to_their_eventfds(
    mount: Surviving, file: Path, holder: Actor, actors: Actors, pin_by: Callable[..., None]
) -> None:
    """The number is closed when the next daemon begins: it has fetched nothing. Its end was not the mount's: nothing
    was added."""
    eventfd, breaker = EventFd(holder), actors.actor()
    pin_by(holder, file, eventfd.number)
    with mount.gap():
        eventfd.forget()
    killed(mount)
    assert mount.pins()[0]["eventfd"] is True
    assert eventfd.count() == 0
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    holder.kill()
    cut.result()
    eventually(lambda: kept(mount.keeper) == 0)


def test_an_upgrade_is_no_end(mount: Surviving, file: Path, holder: Actor, actors: Actors) -> None:
    eventfd, breaker = EventFd(holder), actors.actor()
    pin_by_attribute(holder, file, eventfd.number)
    mount.run(sys.executable, "-m", "pinfs.cli.main", "upgrade", str(mount.path))
    assert mount.status()["last_takeover"]["why"] == "handed over"
    assert eventfd.count() == 0
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    holder.kill()
    cut.result()


def test_the_mounts_end_is_told_by_the_next_daemon(root: None, fuse: None, actors: Actors) -> None:
    holder = actors.actor()
    eventfd = EventFd(holder)
    with surviving("tmpfs", ()) as mount:
        file = mount.path / "file"
        file.write_bytes(b"x" * SIZE)
        pin_by_attribute(holder, file, eventfd.number, "deny")
        killed(mount)
    assert eventfd.wait() == 1


def test_channels_write_to_theirs(mount: Surviving, file: Path, holder: Actor) -> None:
    eventfd = EventFd(holder)
    channel = holder(os.open, str(mount.path / ".pinfs" / "events"), os.O_RDWR | os.O_NONBLOCK)
    holder(os.write, channel, f"eventfd {eventfd.number}\n".encode())
    eventfd.forget()
    killed(mount)
    assert eventfd.count() == 0
    holder.pin(file, "p", "0:0")
    holder.release(file, "p")
    assert eventfd.wait() == 1
    assert b'"released"' in holder(os.read, channel, 1 << 16)
    holder(os.close, channel)
    eventually(lambda: kept(mount.keeper) == 0)


def test_a_break_that_begins_in_the_gap(mount: Surviving, file: Path, holder: Actor, actors: Actors) -> None:
    eventfd, breaker = EventFd(holder), actors.actor()
    pin_by_attribute(holder, file, eventfd.number)
    with mount.gap():
        cut = breaker.start(os.truncate, str(file), 0)
        eventually(lambda: breaker.state() in "SD")
    assert eventfd.wait() == 1
    holder.kill()
    cut.result()


def test_a_holder_that_ends_in_the_gap_leaves_nothing(mount: Surviving, file: Path, holder: Actor) -> None:
    eventfds = [EventFd(holder) for _ in range(3)]
    pin_by_attribute(holder, file, eventfds[0].number)
    pin_by_ioctl(holder, file, eventfds[1].number)
    channel = holder(os.open, str(mount.path / ".pinfs" / "events"), os.O_RDWR)
    holder(os.write, channel, f"eventfd {eventfds[2].number}\n".encode())
    eventually(lambda: kept(mount.keeper) == 3)
    with mount.gap():
        holder.kill()
    eventually(lambda: mount.status()["pins"] == 0)
    eventually(lambda: kept(mount.keeper) == 0)
    assert mount.status()["last_takeover"]["not_restored"] == []


def test_no_line_is_missed_in_many_deaths(mount: Surviving, file: Path, holder: Actor) -> None:
    """The reader looks only when the eventfd says so."""
    rounds = 150
    hearing = holder.start(acts.hear_releases, str(file), str(mount.path / ".pinfs" / "events"), rounds)
    while not hearing.done():
        killed(mount)
    assert hearing.result() == rounds


def test_programs_that_wait_by_poll_are_woken(mount: Surviving, file: Path, holder: Actor, actors: Actors) -> None:
    """By the next daemon, which io_uring asks first (poll=auto)."""
    reader, breaker, other = actors.actor(), actors.actor(), mount.path / "other"
    other.write_bytes(b"x" * SIZE)
    fd = holder(os.open, str(file), os.O_RDWR)
    pin_handle(holder, fd, 0, flags=0)
    waiting = holder.start(acts.poll, fd, select.POLLPRI, 60)
    eventually(lambda: holder.state() == "S")
    events = reader(os.open, str(mount.path / ".pinfs" / "trace"), os.O_RDONLY | os.O_NONBLOCK)
    assert reader(acts.poll, events, select.POLLIN, 0) == 0
    buffer = bytearray(SIZE)
    with Ring() as ring, other.open("rb") as opened:
        for _ in range(3):
            killed(mount)
            assert ring.call(READ, opened.fileno(), memoryview(buffer), SIZE, 0) == SIZE
            status = mount.status()
            assert (status["poll"], status["poll_mode"]) == (True, "auto")
    cut = breaker.start(os.truncate, str(file), 0)
    assert waiting.result() == select.POLLPRI
    assert reader(acts.poll, events, select.POLLIN) == select.POLLIN
    holder.kill()
    cut.result()


def test_what_the_kernel_was_told_of_polls_stays(mount: Surviving, file: Path) -> None:
    buffer = bytearray(SIZE)
    with Ring() as ring, file.open("rb") as opened:
        assert ring.call(READ, opened.fileno(), memoryview(buffer), SIZE, 0) == SIZE
    assert mount.status()["poll"] is False
    killed(mount)
    status = mount.status()
    assert (status["poll"], status["poll_mode"]) == (False, "auto")
