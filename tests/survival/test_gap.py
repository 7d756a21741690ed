"""What may happen while there is no daemon."""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import acts
from support.actor import Actor, Actors, Pending, eventually
from support.mounts import MNT_DETACH, MNT_FORCE, fuse_mounts, is_mounted, umount

from pinfs.journal.records import BROKEN, Kind
from pinfs.journal.slots import SLOT, WORD_BITS, Slots

from .surviving import LIMIT_S, Surviving, journal_fd, records_of, surviving

SIZE = 8192
BLOCK = 4096
VERSION_WORD = 1
START_TIME_WORD = 10


@pytest.fixture
def mount(root: None, fuse: None) -> Iterator[Surviving]:
    with surviving("tmpfs", ()) as mount:
        yield mount


@pytest.fixture
def lost(root: None, fuse: None) -> Iterator[Surviving]:
    """A mount that does not survive its test."""
    with surviving("tmpfs", (), ends=False) as mount:
        yield mount


@pytest.fixture
def file(mount: Surviving) -> str:
    path = mount.path / "file"
    path.write_bytes(b"x" * SIZE)
    return str(path)


@contextmanager
def journal(mount: Surviving) -> Iterator[Slots]:
    """Of the mount, in the gap."""
    fd = os.open(journal_fd(mount.keeper), os.O_RDWR)
    slots = Slots(fd)
    try:
        yield slots
    finally:
        slots.close()
        os.close(fd)


def waiting(breaker: Actor, path: str, mount: Surviving) -> Pending[None]:
    """A truncate that waits for a lease."""
    call = breaker.start(os.truncate, path, 0)
    eventually(lambda: mount.status()["waiting"] == 1)
    return call


def state_of(path: str, name: str = "p") -> str:
    state: str = json.loads(os.getxattr(path, f"user.pinfs.pin.{name}"))["state"]
    return state


# Callers


def test_a_caller_is_killed_whose_request_is_not_read(mount: Surviving, file: str, actors: Actors) -> None:
    caller = actors.actor()
    with mount.gap():
        caller.start(os.mkdir, str(mount.path / "never"))
        eventually(lambda: caller.state() == "S")
        assert caller.kill() == -signal.SIGKILL
    assert not (mount.path / "never").exists()


def test_a_breaker_is_killed_whose_request_was_read(mount: Surviving, file: str, actors: Actors) -> None:
    """It takes nothing, and the pin stands."""
    holder, breaker = actors.actor(), actors.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    waiting(breaker, file, mount)
    with mount.gap():
        breaker.signal(signal.SIGKILL)
    breaker.close()
    assert os.stat(file).st_size == SIZE
    eventually(lambda: mount.status()["waiting"] == 0)
    (pin,) = mount.pins()
    assert pin["name"] == "p"
    holder.release(file, "p")


def test_a_signal_that_ends_a_waiting_breaker(mount: Surviving, file: str, actors: Actors) -> None:
    holder, breaker = actors.actor(), actors.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    call = waiting(breaker, file, mount)
    with mount.gap():
        breaker.signal(signal.SIGINT)
    with pytest.raises(ProcessLookupError, match=f"ended with -{signal.SIGINT:d}"):
        call.result()
    assert os.stat(file).st_size == SIZE


def test_a_breaker_waits_on(mount: Surviving, file: str, actors: Actors) -> None:
    holder, breaker = actors.actor(), actors.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    call = waiting(breaker, file, mount)
    before = json.loads(os.getxattr(file, "user.pinfs.pins"))["pins"][0]["deadline"]
    with mount.gap():
        assert not call.done()
        assert os.stat(mount.source / "file").st_size == SIZE
    after = json.loads(holder(os.getxattr, file, "user.pinfs.pins"))["pins"][0]["deadline"]
    assert abs(after - before) < 0.1
    assert not call.done()
    holder.release(file, "p")
    call.result()
    assert os.stat(file).st_size == 0


def test_pinned_bytes_are_safe_in_the_source(mount: Surviving, file: str, actors: Actors) -> None:
    """The seal stands while there is no daemon."""
    actors.actor().pin(file, "p", "0:0")
    if not mount.status()["seal"]:
        pytest.skip(f"no seal: {mount.status()['seal_unavailable_because']}")
    with mount.gap(), pytest.raises(PermissionError):
        os.truncate(mount.source / "file", 0)


# Holders


def test_a_holder_ends(mount: Surviving, file: str, actors: Actors) -> None:
    holder, breaker = actors.actor(), actors.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    call = waiting(breaker, file, mount)
    with mount.gap():
        holder.kill()
        assert not call.done()
    call.result()
    assert mount.pins() == []


def test_the_number_of_a_holder_is_used_again(mount: Surviving, file: str, actors: Actors) -> None:
    """Another process has it now, as its start tells: the pin is not that one's, and goes."""
    holder, other = actors.actor(), actors.actor()
    holder(signal.signal, signal.SIGIO, signal.SIG_DFL)  # which would end it
    holder.pin(file, "p", "0:0,mode=lease")
    other.pin(file, "q", "0:0")
    with mount.gap(), journal(mount) as slots:
        found = slots.load()[Kind.PIN]
        slots.words[(found[min(found)] << WORD_BITS) + START_TIME_WORD] -= 1
    assert [pin["name"] for pin in mount.pins()] == ["q"]
    assert holder(os.getpid) == holder.pid


def test_a_holder_is_held_up_by_the_gap(mount: Surviving, file: str, actors: Actors) -> None:
    """It was about to answer when the daemon ended: that the deadline has passed meanwhile costs neither it nor the
    breaker."""
    mount.policy("break_timeout = 1.5\non_timeout = 'kill'\n")
    holder, breaker = actors.actor(), actors.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    call = waiting(breaker, file, mount)
    with mount.gap():
        began = time.monotonic()
        looks = holder.start(os.getxattr, file, "user.pinfs.pin.p")
        eventually(lambda: time.monotonic() - began > 1.6)
    assert json.loads(looks.result())["state"] == "breaking"
    holder.release(file, "p")
    call.result()
    assert os.stat(file).st_size == 0


# The source


@pytest.mark.parametrize("options", [(), ("passthrough=off",)])
@pytest.mark.parametrize("backing", ["tmpfs", "ext4"])
def test_a_file_is_replaced(root: None, fuse: None, actors: Actors, backing: str, options: tuple[str, ...]) -> None:
    """Nobody reads the new bytes under the old handle, or the old ones under the new name."""
    with surviving(backing, options) as mount:
        path, behind = mount.path / "file", mount.source / "file"
        behind.write_bytes(b"old" * 100)
        reader = actors.actor()
        fd = reader(os.open, str(path), os.O_RDONLY)
        assert reader(os.pread, fd, 3, 0) == b"old"
        number = behind.stat().st_ino
        with mount.gap():
            # With passthrough the kernel itself has the old one; else ext4 may give its number to the new one.
            eventually(lambda: _replaced(behind, number) or backing == "tmpfs" or not options)
        try:
            found = reader(os.pread, fd, 3, 0)
        except OSError as e:
            assert e.errno in (errno.ESTALE, errno.EBADF, errno.EIO)
        else:
            assert found == b"old"
        assert _read(path) == b"new" * 100
        reader(os.close, fd)


def _replaced(path: Path, number: int) -> bool:
    """Whether the new file has the number of the old one, as on ext4."""
    path.unlink()
    path.write_bytes(b"new" * 100)
    return path.stat().st_ino == number


def _read(path: Path) -> bytes:
    """The bytes that a name leads to; the kernel may have to ask once more."""
    try:
        return path.read_bytes()
    except OSError as e:
        assert e.errno == errno.ESTALE
        return path.read_bytes()


def test_a_file_is_removed_that_is_mapped(mount: Surviving, file: str) -> None:
    with open(file, "rb+") as opened, mmap.mmap(opened.fileno(), SIZE) as mapped:
        with mount.gap():
            (mount.source / "file").unlink()
        mapped[:3] = b"abc"
        assert mapped[:4] == b"abcx"


# The mount


def test_it_is_aborted(lost: Surviving, actors: Actors) -> None:
    caller = actors.actor()
    with lost.gap():
        call = caller.start(os.mkdir, str(lost.path / "never"))
        eventually(lambda: caller.state() == "S")
        with suppress(OSError):  # EBUSY, after fuse_umount_begin() has aborted it
            umount(lost.path, MNT_FORCE)
        assert call.error() in (errno.ECONNABORTED, errno.ENOTCONN)
    lost.wait_ended()


def test_it_is_unmounted_lazily(lost: Surviving, actors: Actors) -> None:
    """With nothing open the mount is over; nothing starts another daemon."""
    with lost.gap():
        umount(lost.path, MNT_DETACH)
    lost.wait_ended()


def test_it_is_unmounted_lazily_while_a_file_is_open(lost: Surviving, actors: Actors) -> None:
    """What is open is served until it is closed."""
    path = lost.path / "file"
    path.write_bytes(b"open")
    user = actors.actor()
    fd = user(os.open, str(path), os.O_RDWR)
    with lost.gap():
        umount(lost.path, MNT_DETACH)
    assert user(os.fstat, fd).st_size == 4
    assert user(os.pread, fd, 10, 0) == b"open"
    user(os.ftruncate, fd, 2)
    assert user(os.pread, fd, 10, 0) == b"op"
    user(os.close, fd)
    lost.wait_ended()


# The journal


def given_up(lost: Surviving, words: str) -> None:
    """No daemon can take over: the log says why, and callers are told."""
    eventually(lambda: not is_mounted(lost.path), LIMIT_S)
    lost.wait_ended()
    assert words in lost.log()
    assert lost.path not in fuse_mounts()


def test_the_journal_is_of_another_version(given: Surviving) -> None:
    with given.gap(), journal(given) as slots:
        slots.words[VERSION_WORD] = 99
    given_up(given, "the journal has version 99, and this pinfs reads version 1")


def test_the_journal_lacks_records(given: Surviving) -> None:
    with given.gap(), journal(given) as slots:
        slots.words[BROKEN] = 1
    given_up(given, "records are missing")


def test_the_journal_has_no_room_any_more(given: Surviving, actors: Actors) -> None:
    """As where there is no memory for it: all goes on, and `status` and the log say what would be."""
    file, holder = given.path / "file", actors.actor()
    file.write_bytes(b"x")
    with given.gap(), journal(given) as slots:
        room = slots.reserved
        os.truncate(journal_fd(given.keeper), room * SLOT)
    with file.open("ab") as opened:
        opened.truncate(room * BLOCK)
    holder.start(acts.pin_blocks, str(file), room, BLOCK).result()
    status = given.status()
    assert status["pins"] == room
    assert status["survives"]["unavailable_because"] == f"all {room} slots are in use"
    assert f"the mount would not survive the daemon any more: all {room} slots are in use" in given.log()
    work_on(given, file, actors)
    holder.kill()
    eventually(lambda: given.status()["pins"] == 0)
    assert given.status()["survives"]["unavailable_because"]
    given.kill()
    given_up(given, "records are missing, for which there was no room")


def work_on(given: Surviving, pinned: Path, actors: Actors) -> None:
    """No call fails that would not fail elsewhere."""
    other = actors.actor()
    assert other.errno(os.truncate, str(pinned), 0) == errno.EBUSY
    directory = given.path / "directory"
    directory.mkdir()
    (directory / "a").write_bytes(b"text")
    os.rename(directory / "a", directory / ("b" * 200))
    os.link(directory / ("b" * 200), directory / "c")
    os.truncate(directory / "c", 2)
    assert (directory / ("b" * 200)).read_bytes() == b"te"
    fd = other(os.open, str(directory / "c"), os.O_RDWR)
    for name in list(directory.iterdir()):
        name.unlink()
    assert other(os.pread, fd, 9, 0) == b"te"
    other(os.close, fd)
    directory.rmdir()


@pytest.mark.parametrize("size", [0, 100, 4096 + 128 * 5])
def test_the_journal_is_cut(given: Surviving, size: int) -> None:
    with given.gap():
        fd = os.open(journal_fd(given.keeper), os.O_RDWR)
        os.ftruncate(fd, size)
        os.close(fd)
    given_up(given, "cannot be taken over")


def test_the_journal_is_overwritten(given: Surviving) -> None:
    with given.gap():
        fd = os.open(journal_fd(given.keeper), os.O_RDWR)
        os.pwrite(fd, os.urandom(1 << 16), 0)
        os.close(fd)
    given_up(given, "this is not a journal of pinfs")


@pytest.fixture
def given(root: None, fuse: None) -> Iterator[Surviving]:
    """A mount that is given up when three daemons have failed."""
    with surviving("tmpfs", ("max_deaths=3",), ends=False) as mount:
        yield mount


# More deaths


def test_death_upon_death(mount: Surviving, file: str, actors: Actors) -> None:
    """Daemons that are killed while they take over leave what they have found."""
    holder, breaker = actors.actor(), actors.actor()
    for number in range(200):
        (mount.path / f"f{number}").write_bytes(b"x")
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    fd = holder(os.open, file, os.O_RDWR)
    call = waiting(breaker, file, mount)
    for number in range(5):  # after each the keeper waits twice as long
        killed = mount.kill()
        eventually(lambda killed=killed: mount.daemon not in (0, killed), LIMIT_S)  # type: ignore[misc]
        subprocess.run(["sleep", str(0.15 * number)], check=True)  # in any part of its start
    (pin,) = mount.pins()
    assert (pin["name"], pin["state"]) == ("p", "breaking")
    assert not call.done()
    holder.release(file, "p")
    call.result()
    assert holder(os.fstat, fd).st_size == 0
    holder(os.close, fd)
    assert len(list(mount.path.iterdir())) == 201
    eventually(lambda: "HANDLE" not in records_of(mount.daemon))


# The freezer

FREEZERS = (Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup"))


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A cgroup of version 1 whose processes can be frozen."""
    group = FREEZERS[0] / f"pinfs-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as e:
        pytest.skip(f"no freezer: {e.strerror}")
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_a_caller_is_frozen(mount: Surviving, file: str, actors: Actors, freezer: Path) -> None:
    """It goes on with its call when it thaws, in a gap or after it; a waiting call may be interrupted by that."""
    holder, breaker, caller = actors.actor(), actors.actor(), actors.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    call = waiting(breaker, file, mount)
    with mount.gap():
        made = caller.start(os.mkdir, str(mount.path / "made"))
        for actor in (breaker, caller):
            (freezer / "cgroup.procs").write_text(str(actor.pid))
        (freezer / "freezer.state").write_text("FROZEN")
    assert mount.status()["pins"] == 1
    (freezer / "freezer.state").write_text("THAWED")
    assert made.error() in (None, errno.EINTR)
    assert os.stat(file).st_size == SIZE
    holder.release(file, "p")
    assert call.error() in (None, errno.EINTR)
    for actor in (breaker, caller):
        actor.close()
