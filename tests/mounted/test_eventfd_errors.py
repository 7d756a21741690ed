"""Eventfds that the daemon does not take, or not any more: errors, limits, and what all that leaves open in it."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from mounted.test_bridge_user import mount as _users_mount
from mounted.usermount import UserMount
from mounted.world import USER, as_user
from support import acts
from support.actor import Actor, Actors, eventually
from support.eventfds import PIN_EVENTFD, EventFd, pin_by_attribute, pin_by_ioctl, pin_handle
from support.mounts import REPO, Mount

ALICE = 1000
LIMIT = 1024
SIZE = 8192

PinBy = Callable[..., None]
EITHER_WAY = pytest.mark.parametrize("pin_by", [pin_by_attribute, pin_by_ioctl], ids=["attribute", "ioctl"])


def tell_channel(holder: Actor, path: Path, eventfd: int) -> None:
    """Has the channel of a mount write to it."""
    channel = holder(os.open, str(path.parents[1] / ".pinfs" / "events"), os.O_RDWR)
    try:
        holder(os.write, channel, f"eventfd {eventfd}\n".encode())
    finally:
        holder(os.close, channel)


ANY_WAY = pytest.mark.parametrize(
    "name_it", [pin_by_attribute, pin_by_ioctl, tell_channel], ids=["attribute", "ioctl", "channel"]
)


@pytest.fixture
def file(shared_dir: Path) -> Path:
    path = shared_dir / "file"
    path.write_bytes(b"x" * SIZE)
    path.chmod(0o666)
    return path


@pytest.fixture
def holder(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


@contextmanager
def nothing_is_left(mount: Mount, warm: Path) -> Iterator[None]:
    """Of what happens inside: no pin, and nothing that the daemon has open. What it opens once, for the first eventfd
    of all, and what it opens for a file, it has before."""
    with_one = mount.actor()
    pin_by_attribute(with_one, warm, EventFd(with_one).number)
    with_one.kill()
    eventually(lambda: not mount.pins())
    before = opened_by(mount.pid)
    yield
    with suppress(AssertionError):
        eventually(lambda: opened_by(mount.pid) == before, 5)
    assert opened_by(mount.pid) == before
    assert mount.pins() == []


def opened_by(pid: int) -> Counter[str]:
    """What a process has open, by kind and path, but for pidfds: the daemon remembers those that have called it."""
    links: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            links[os.readlink(f"/proc/{pid}/fd/{fd}")] += 1
    del links["anon_inode:[pidfd]"]
    return links


def eventfds_of(mount: Mount) -> int:
    return opened_by(mount.pid)["anon_inode:[eventfd]"]


# What is no eventfd


def nothing(holder: Actor, file: Path) -> int:
    return 900


def pipe(holder: Actor, file: Path) -> int:
    return holder(os.pipe)[0]


def file_of_the_mount(holder: Actor, file: Path) -> int:
    return holder(os.open, str(file), os.O_RDWR)


def control_file(holder: Actor, file: Path) -> int:
    return holder(os.open, str(file.parents[1] / ".pinfs" / "events"), os.O_RDWR)


def ordinary_file(holder: Actor, file: Path) -> int:
    return holder(os.open, tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR)


def only_a_path(holder: Actor, file: Path) -> int:
    return holder(os.open, str(file), os.O_PATH)


def epoll(holder: Actor, file: Path) -> int:
    return holder(acts.new_epoll)


def pidfd(holder: Actor, file: Path) -> int:
    return holder(os.pidfd_open, os.getpid())


def memfd(holder: Actor, file: Path) -> int:
    return holder(os.memfd_create, "eventfd")


@ANY_WAY
@pytest.mark.parametrize(
    ("thing", "failure"),
    [(nothing, errno.EBADF)]
    + [
        (thing, errno.EINVAL)
        for thing in (pipe, file_of_the_mount, control_file, ordinary_file, only_a_path, epoll, pidfd, memfd)
    ],
)
def test_what_is_no_eventfd(
    shared_mount: Mount, file: Path, name_it: PinBy, thing: Callable[[Actor, Path], int], failure: int
) -> None:
    with nothing_is_left(shared_mount, file):
        holder = shared_mount.actor()
        number = thing(holder, file)
        for _ in range(20):
            with pytest.raises(OSError) as refused:
                name_it(holder, file, number)
            assert refused.value.errno == failure
        assert shared_mount.pins() == []
        holder.kill()


@pytest.mark.parametrize(
    "value",
    ["", "x", "-1", "+1", "0x1", "1.5", " 1", "1 ", str(1 << 31), str(1 << 64), "9" * 19, "1,eventfd=1", "None"],
)
def test_malformed_numbers(file: Path, shared_mount: Mount, holder: Actor, value: str) -> None:
    attribute = f"0:0,eventfd={value}".encode()
    assert holder.errno(os.setxattr, str(file), "user.pinfs.pin.p", attribute) == errno.EINVAL
    channel = holder(os.open, str(shared_mount.control("events")), os.O_RDWR)
    assert holder.errno(os.write, channel, f"eventfd {value}\n".encode()) == errno.EINVAL
    assert shared_mount.pins() == []


@pytest.mark.parametrize(
    ("flags", "number", "failure"),
    [(PIN_EVENTFD, 2**32 - 1, errno.EINVAL), (PIN_EVENTFD, 1 << 31, errno.EINVAL), (0, 1, errno.EINVAL),
     (4, 0, errno.EINVAL), (4 | PIN_EVENTFD, 0, errno.EINVAL)],
)  # fmt: skip
def test_ioctls_that_are_refused(
    file: Path, shared_mount: Mount, holder: Actor, flags: int, number: int, failure: int
) -> None:
    """A number without its flag, a flag that is none, numbers that no process has."""
    fd = holder(os.open, str(file), os.O_RDWR)
    with pytest.raises(OSError) as refused:
        pin_handle(holder, fd, number, flags=flags)
    assert refused.value.errno == failure
    assert shared_mount.pins() == []


def test_what_was_there_stands_where_the_change_is_refused(file: Path, shared_mount: Mount, holder: Actor) -> None:
    """Pin and channel keep the eventfd that they had."""
    eventfd, of_channel, breaker = EventFd(holder), EventFd(holder), shared_mount.actor()
    holder.pin(file, "p", f"0:0,mode=lease,signal=none,eventfd={eventfd.number}")
    channel = holder(os.open, str(shared_mount.control("events")), os.O_RDWR)
    holder(os.write, channel, f"eventfd {of_channel.number}\n".encode())
    value = f"0:100,mode=lease,signal=none,eventfd={pipe(holder, file)}".encode()
    assert holder.errno(os.setxattr, str(file), "user.pinfs.pin.p", value) == errno.EINVAL
    assert holder.errno(os.write, channel, b"eventfd 900\n") == errno.EBADF
    cut = breaker.start(os.truncate, str(file), 4096)
    assert (eventfd.wait(), of_channel.wait()) == (1, 1)
    holder.kill()
    cut.result()


@EITHER_WAY
def test_a_pin_that_is_refused_for_another_reason_leaves_nothing(
    shared_mount: Mount, file: Path, pin_by: PinBy
) -> None:
    os.close(os.open(file, os.O_RDONLY))  # what that needs stays open for a while
    with nothing_is_left(shared_mount, file):
        holder = shared_mount.actor()
        eventfd = EventFd(holder)
        if pin_by is pin_by_attribute:
            value = f"{SIZE}:1,eventfd={eventfd.number}".encode()
            assert holder.errno(os.setxattr, str(file), "user.pinfs.pin.p", value) == errno.ENXIO
        else:
            reader = holder(os.open, str(file), os.O_RDONLY)
            with pytest.raises(OSError) as refused:
                pin_handle(holder, reader, eventfd.number)
            assert refused.value.errno == errno.EACCES
        holder.kill()


# How long the daemon keeps it


def release(holder: Actor, file: Path, eventfd: EventFd) -> None:
    holder.release(file, f"e{eventfd.number}")


def replace(holder: Actor, file: Path, eventfd: EventFd) -> None:
    holder.pin(file, f"e{eventfd.number}", "0:0")
    holder.release(file, f"e{eventfd.number}")


def die(holder: Actor, file: Path, eventfd: EventFd) -> None:
    if holder.process.poll() is None:
        holder.kill()


@pytest.mark.parametrize("end", [release, replace, die])
def test_it_goes_with_its_pin(shared_mount: Mount, file: Path, end: Callable[..., None]) -> None:
    with nothing_is_left(shared_mount, file):
        holder = shared_mount.actor()
        before = eventfds_of(shared_mount)
        eventfds = [EventFd(holder) for _ in range(5)]
        for eventfd in eventfds:
            pin_by_attribute(holder, file, eventfd.number)
        assert eventfds_of(shared_mount) == before + len(eventfds)
        for eventfd in eventfds:
            end(holder, file, eventfd)
        eventually(lambda: eventfds_of(shared_mount) == before)


def test_it_goes_with_its_handle(shared_mount: Mount, file: Path) -> None:
    holder = shared_mount.actor()
    eventfd = EventFd(holder)
    with nothing_is_left(shared_mount, file):
        fd = holder(os.open, str(file), os.O_RDWR)
        for _ in range(3):
            pin_handle(holder, fd, eventfd.number)
        holder(os.close, fd)


@pytest.mark.parametrize("dies", [False, True])
def test_it_goes_with_its_channel(shared_mount: Mount, file: Path, dies: bool) -> None:
    with nothing_is_left(shared_mount, file):
        holder = shared_mount.actor()
        channel = holder(os.open, str(shared_mount.control("events")), os.O_RDWR)
        for _ in range(3):
            holder(os.write, channel, f"eventfd {EventFd(holder).number}\n".encode())
        if not dies:
            holder(os.close, channel)
        holder.kill()


def test_it_stays_until_the_last_of_its_pins_goes(shared_mount: Mount, file: Path) -> None:
    with nothing_is_left(shared_mount, file):
        holder, breaker = shared_mount.actor(), shared_mount.actor()
        eventfd = EventFd(holder)
        for name in "ab":
            holder.pin(file, name, f"0:0,mode=lease,signal=none,eventfd={eventfd.number}")
        with_two = eventfds_of(shared_mount)
        eventfd.forget()
        holder.release(file, "a")
        assert eventfds_of(shared_mount) == with_two
        cut = breaker.start(os.truncate, str(file), 0)
        assert eventfd.wait() == 1
        holder.kill()
        cut.result()


# How many


def limit_reached(mount: Mount) -> float:
    metrics = mount.metrics().items()
    return sum(value for name, value in metrics if name.startswith("pinfs_limit_reached_total"))


def test_a_user_may_have_so_many(shared_mount: Mount, file: Path) -> None:
    """The program closes each when the daemon has it. One that is there already may be named as often as one likes, one
    that is given back makes room, and root has no such limit."""
    with nothing_is_left(shared_mount, file):
        alice, root = shared_mount.actor(uid=ALICE), shared_mount.actor()
        before = limit_reached(shared_mount)
        assert alice(acts.pin_with_new_eventfds, str(file), "a", LIMIT) is None
        assert limit_reached(shared_mount) == before
        assert alice(acts.pin_with_new_eventfds, str(file), "b", 1) == errno.EDQUOT
        assert limit_reached(shared_mount) == before + 1
        assert shared_mount.actor(uid=ALICE)(acts.pin_with_new_eventfds, str(file), "c", 1) == errno.EDQUOT
        assert shared_mount.actor(uid=ALICE + 1)(acts.pin_with_new_eventfds, str(file), "d", 1) is None
        assert root(acts.pin_with_new_eventfds, str(file), "e", LIMIT + 1) is None
        alice.release(file, "a0")
        assert alice(acts.pin_with_new_eventfds, str(file), "f", 1) is None
        shared_mount.dismiss()


def test_a_daemon_without_descriptors_left_says_so(new_mount: Callable[..., Mount]) -> None:
    """Root's are not counted: what ends is the daemon's own share. The mount can be looked at, and pins hold."""
    mount = new_mount(prefix=("prlimit", "--nofile=128:128"))
    file, holder = mount.path / "file", mount.actor()
    file.write_bytes(b"x" * SIZE)
    assert holder(acts.pin_with_new_eventfds, str(file), "p", 200) == errno.EDQUOT
    assert limit_reached(mount) == 1
    assert mount.status()["descriptors"] <= 128
    assert mount.actor().errno(os.truncate, str(file), 0) == errno.EBUSY
    assert os.listdir(mount.path) == ["file"]
    mount.actor().pin(file, "without", "0:0")
    mount.dismiss()
    eventually(lambda: not mount.pins())
    assert mount.actor()(acts.pin_with_new_eventfds, str(file), "p", 1) is None


# A daemon that may not fetch it

user_mount = _users_mount


@pytest.fixture
def users_file(user_mount: UserMount, actors: Actors) -> Path:
    path = user_mount.path / "directory" / "file"
    writer = actors.actor(uid=USER)
    writer(os.mkdir, str(path.parent))
    writer(acts.write_file, str(path), b"x" * SIZE)
    return path


@ANY_WAY
def test_a_users_daemon_takes_that_users(users_file: Path, actors: Actors, name_it: PinBy) -> None:
    holder, breaker = actors.actor(prefix=as_user(USER)), actors.actor(uid=USER)
    eventfd = EventFd(holder)
    name_it(holder, users_file, eventfd.number)
    if name_it is not tell_channel:
        cut = breaker.start(os.truncate, str(users_file), 0)
        assert eventfd.wait() == 1
        holder.kill()
        cut.result()


@ANY_WAY
def test_a_process_that_is_not_dumpable(
    user_mount: UserMount,
    users_file: Path,
    actors: Actors,
    name_it: PinBy,
) -> None:
    """EPERM; the log names the reason, no pin stands, and without an eventfd all goes well."""
    holder = actors.actor(prefix=as_user(USER))
    eventfd = EventFd(holder)
    holder(acts.set_dumpable, False)
    for _ in range(3):
        with pytest.raises(PermissionError) as refused:
            name_it(holder, users_file, eventfd.number)
        assert refused.value.errno == errno.EPERM
    assert holder(acts.read_file, str(user_mount.path / ".pinfs" / "pins")) == b""
    assert "eventfd" in user_mount.log.read_text()
    holder.pin(users_file, "p", "0:0")
    assert actors.actor(uid=USER).errno(os.truncate, str(users_file), 0) == errno.EBUSY
    assert holder(acts.poll, eventfd.number, select.POLLIN, 0) == 0


# Whose it is


def test_a_channel_names_nothing_of_a_process_that_has_become_another_users(shared_mount: Mount, file: Path) -> None:
    """A user opens a channel and executes a set-user-id program: whoever has the channel could have the daemon, which
    is root, write to the eventfds of that program."""
    program = shared_mount.actor()
    eventfd = EventFd(program)
    program(os.setresuid, ALICE, ALICE, 0)
    channel = program(os.open, str(shared_mount.control("events")), os.O_RDWR)
    program(os.setresuid, 0, 0, 0)
    command = f"eventfd {eventfd.number}\n".encode()
    before = eventfds_of(shared_mount)
    assert program.errno(os.write, channel, command) == errno.EPERM
    assert eventfds_of(shared_mount) == before
    program(os.setresuid, ALICE, ALICE, ALICE)
    assert program.errno(os.write, channel, command) is None
    program.kill()


LISTENER = """
import ctypes, os, sys, threading
import pinfs
ctypes.CDLL(None).prctl(4, int(sys.argv[2]), 0, 0, 0)
with pinfs.EventChannel(sys.argv[1]) as channel:
    pinfs.pin(sys.argv[1]).release()
    events = channel.read(20)
    print(any(thread.name == "pinfs-relay" for thread in threading.enumerate()), [event.event for event in events])
"""


@pytest.mark.parametrize("dumpable", [True, False])
def test_the_client_does_without_where_there_is_none(users_file: Path, dumpable: bool) -> None:
    """With a thread that waits in read(2)."""
    command = [*as_user(USER), sys.executable, "-c", LISTENER, str(users_file), str(int(dumpable))]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{not dumpable} ['released']\n", "")
