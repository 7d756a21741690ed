"""Eventfds of pins and of event channels, on real mounts: when the daemon adds to them, and to whose."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from conftest import NewMount
from support import acts
from support.actor import Actor, Actors, eventually
from support.eventfds import FULL, IOC_UNPIN, EventFd, pin_by_attribute, pin_by_ioctl, pin_handle
from support.mounts import Mount
from support.uring import READ, Ring

import pinfs

LIMIT_S = 20.0
ALICE, BOB = 1000, 1001
SIZE = 8192
SHARED_MOUNT_OPTIONS = ("break_timeout=100",)

PinBy = Callable[..., None]
EITHER_WAY = pytest.mark.parametrize("pin_by", [pin_by_attribute, pin_by_ioctl], ids=["attribute", "ioctl"])


@pytest.fixture
def file(shared_dir: Path) -> Path:
    return made(shared_dir)


@pytest.fixture
def holder(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


@pytest.fixture
def breaker(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


@pytest.fixture
def eventfd(holder: Actor) -> EventFd:
    return EventFd(holder)


def made(directory: Path, name: str = "file") -> Path:
    path = directory / name
    path.write_bytes(b"x" * SIZE)
    path.chmod(0o666)
    return path


def pin_of(holder: Actor, path: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(holder(os.getxattr, str(path), f"user.pinfs.pin.{name}"))
    return found


# When something is added


@EITHER_WAY
def test_a_break_adds_one(file: Path, holder: Actor, breaker: Actor, eventfd: EventFd, pin_by: PinBy) -> None:
    pin_by(holder, file, eventfd.number)
    assert eventfd.count() == 0
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    assert not cut.done()
    holder.kill()
    cut.result()


@EITHER_WAY
def test_nothing_is_added_where_nothing_breaks(
    file: Path, holder: Actor, breaker: Actor, eventfd: EventFd, pin_by: PinBy
) -> None:
    pin_by(holder, file, eventfd.number, "deny")
    assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
    breaker(os.truncate, str(file), 2 * SIZE)
    assert eventfd.count() == 0


@EITHER_WAY
@pytest.mark.mount("conflict=break")
def test_deny_pins_that_break(mount: Mount, pin_by: PinBy) -> None:
    file, holder, breaker = made(mount.path), mount.actor(), mount.actor()
    eventfd = EventFd(holder)
    pin_by(holder, file, eventfd.number, "deny")
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    holder.kill()
    cut.result()


def test_once_a_break_and_again_at_the_next(file: Path, shared_mount: Mount, holder: Actor, breaker: Actor) -> None:
    """Breakers that join a break add nothing; its end adds nothing."""
    eventfd, other = EventFd(holder), shared_mount.actor()
    for _ in range(2):
        pin_by_attribute(holder, file, eventfd.number)
        with shared_mount.trace() as trace:
            cuts = [breaker.start(os.truncate, str(file), 1), other.start(os.truncate, str(file), 0)]
            trace.until("break")
            eventually(lambda: shared_mount.status()["waiting"] >= 1)
            holder.release(file, f"e{eventfd.number}")
            for cut in cuts:
                cut.result()
        assert eventfd.count() == 1
        file.write_bytes(b"x" * SIZE)


@pytest.mark.mount("break_timeout=0.3", "retry_after=0")
def test_a_break_that_is_withdrawn_adds_no_more(mount: Mount) -> None:
    file, holder, breaker = made(mount.path), mount.actor(), mount.actor()
    eventfd = EventFd(holder)
    pin_by_attribute(holder, file, eventfd.number)
    for _ in range(2):
        assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
        assert eventfd.count() == 1


def test_signal_pollpri_and_eventfd_together(file: Path, holder: Actor, breaker: Actor, eventfd: EventFd) -> None:
    """The signal comes first: a program that the eventfd wakes finds it there."""
    holder(acts.catch, signal.SIGUSR1)
    fd = holder(os.open, str(file), os.O_RDWR)
    pin = pin_handle(holder, fd, eventfd.number, signo=signal.SIGUSR1)
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    assert holder(acts.next_signal, signal.SIGUSR1, 0).value == pin
    assert holder(acts.poll, fd, select.POLLPRI) & select.POLLPRI
    holder(acts.ioctl, fd, IOC_UNPIN, struct.pack("<Q", pin))
    cut.result()


@EITHER_WAY
@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK, os.EFD_SEMAPHORE])
def test_a_full_counter_stops_nobody(shared_mount: Mount, shared_dir: Path, pin_by: PinBy, flags: int) -> None:
    files = [made(shared_dir, f"{number}") for number in range(3)]
    holder, breakers = shared_mount.actor(), [shared_mount.actor() for _ in range(3)]
    eventfd = EventFd(holder, flags)
    holder(os.eventfd_write, eventfd.number, FULL)
    for file in files:
        pin_by(holder, file, eventfd.number)
    with shared_mount.trace() as trace:
        cuts = [breaker.start(os.truncate, str(file), 0) for breaker, file in zip(breakers, files, strict=True)]
        for _ in files:
            trace.until("break")
    assert shared_mount.status()["waiting"] == 3
    assert holder(os.eventfd_read, eventfd.number) in ((1,) if flags == os.EFD_SEMAPHORE else (FULL, FULL + 1))
    holder.kill()
    for cut in cuts:
        cut.result()


# To whose


@EITHER_WAY
def test_the_program_may_close_its_descriptor(
    file: Path, holder: Actor, breaker: Actor, eventfd: EventFd, pin_by: PinBy
) -> None:
    """And have another eventfd under that number."""
    pin_by(holder, file, eventfd.number)
    eventfd.forget()
    usurper = holder(os.eventfd, 0, os.EFD_NONBLOCK)
    assert usurper == eventfd.number
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    assert holder.errno(os.eventfd_read, usurper) == errno.EAGAIN
    holder.kill()
    cut.result()


def test_one_eventfd_of_several_pins(shared_mount: Mount, shared_dir: Path, holder: Actor, eventfd: EventFd) -> None:
    files = [made(shared_dir, name) for name in "abc"]
    pin_by_attribute(holder, files[0], eventfd.number)
    pin_by_ioctl(holder, files[1], eventfd.number)
    pin_by_attribute(holder, files[2], eventfd.number)
    holder.release(files[2], f"e{eventfd.number}")
    breakers = [shared_mount.actor() for _ in range(2)]
    cuts = [breaker.start(os.truncate, str(file), 0) for breaker, file in zip(breakers, files, strict=False)]
    counted = 0
    while counted < 2:
        counted += eventfd.wait()
    assert counted == 2
    holder.kill()
    for cut in cuts:
        cut.result()


@pytest.mark.parametrize("uid", [0, ALICE])
def test_for_another_process_it_is_the_callers(shared_mount: Mount, file: Path, breaker: Actor, uid: int) -> None:
    """The number is one of the calling process, also with `pid=`; and what is written to outlives that process."""
    caller, holder = shared_mount.actor(uid=uid), shared_mount.actor(uid=uid)
    eventfd, not_meant = EventFd(caller), EventFd(holder)
    assert eventfd.number == not_meant.number
    caller.pin(file, "p", f"0:0,mode=lease,signal=none,pid={holder.pid},eventfd={eventfd.number}")
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    assert not_meant.count() == 0
    holder.kill()
    cut.result()


def test_the_caller_may_be_gone(shared_mount: Mount, file: Path, breaker: Actor) -> None:
    caller, holder = shared_mount.actor(), shared_mount.actor()
    eventfd = EventFd(caller)
    caller.pin(file, "p", f"0:0,mode=lease,signal=none,pid={holder.pid},eventfd={eventfd.number}")
    caller.kill()
    with shared_mount.trace() as trace:
        cut = breaker.start(os.truncate, str(file), 0)
        trace.until("break")
    holder.kill()
    cut.result()


@EITHER_WAY
@pytest.mark.parametrize("dumpable", [True, False])
def test_of_another_user(shared_mount: Mount, file: Path, breaker: Actor, pin_by: PinBy, dumpable: bool) -> None:
    """The daemon is root. An actor that has become another user is not dumpable until it says so (prctl(2))."""
    holder = shared_mount.actor(uid=ALICE)
    holder(acts.set_dumpable, dumpable)
    eventfd = EventFd(holder)
    pin_by(holder, file, eventfd.number)
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    holder.kill()
    cut.result()


@EITHER_WAY
def test_of_a_process_with_numbers_of_its_own(shared_mount: Mount, file: Path, breaker: Actor, pin_by: PinBy) -> None:
    holder = shared_mount.actor(prefix=["unshare", "--pid", "--fork", "--kill-child"])
    assert holder.pid == 1
    eventfd = EventFd(holder)
    pin_by(holder, file, eventfd.number)
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    holder.kill()
    cut.result()


def test_of_a_thread(file: Path, holder: Actor, breaker: Actor, eventfd: EventFd) -> None:
    value = f"0:0,mode=lease,signal=none,eventfd={eventfd.number}".encode()
    holder(acts.in_thread, os.setxattr, str(file), "user.pinfs.pin.p", value)
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    holder.kill()
    cut.result()


def test_resize_keeps_it(file: Path, shared_mount: Mount, holder: Actor, breaker: Actor, eventfd: EventFd) -> None:
    holder.pin(file, "p", f"0:100,mode=lease,signal=none,eventfd={eventfd.number}")
    eventfd.forget()
    channel = holder(os.open, str(shared_mount.control("events")), os.O_RDWR)
    pin = pin_of(holder, file, "p")
    assert pin["eventfd"] is True
    holder(os.write, channel, f"resize {pin['id']} 4096 4096\n".encode())
    moved = pin_of(holder, file, "p")
    assert (moved["start"], moved["eventfd"]) == (4096, True)
    cut = breaker.start(os.truncate, str(file), 4096)
    assert eventfd.wait() == 1
    holder.kill()
    cut.result()


def test_replacing_changes_it(file: Path, holder: Actor, breaker: Actor, eventfd: EventFd) -> None:
    other = EventFd(holder)
    holder.pin(file, "p", f"0:0,mode=lease,signal=none,eventfd={eventfd.number}")
    holder.pin(file, "p", f"0:0,mode=lease,signal=none,eventfd={other.number}")
    cut = breaker.start(os.truncate, str(file), 0)
    assert other.wait() == 1
    holder.release(file, "p")
    cut.result()
    assert (eventfd.count(), other.count()) == (0, 0)


def test_replacing_without_one_drops_it(
    file: Path, shared_mount: Mount, holder: Actor, breaker: Actor, eventfd: EventFd
) -> None:
    holder.pin(file, "p", f"0:0,mode=lease,signal=none,eventfd={eventfd.number}")
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    assert pin_of(holder, file, "p")["eventfd"] is False
    with shared_mount.trace() as trace:
        cut = breaker.start(os.truncate, str(file), 0)
        trace.until("break")
    holder.release(file, "p")
    cut.result()
    assert eventfd.count() == 0


def test_only_the_owners_user_sees_that_there_is_one(shared_mount: Mount, file: Path) -> None:
    alice, bob = shared_mount.actor(uid=ALICE), shared_mount.actor(uid=BOB)
    pin_by_attribute(alice, file, EventFd(alice).number)
    for who, seen in ((alice, True), (bob, None), (shared_mount.actor(), True)):
        (pin,) = json.loads(who(os.getxattr, str(file), "user.pinfs.pins"))["pins"]
        assert pin.get("eventfd") is seen


# By channel


@pytest.fixture
def channel(holder: Actor, shared_mount: Mount) -> int:
    return holder(os.open, str(shared_mount.control("events")), os.O_RDWR | os.O_NONBLOCK)


def lines_of(holder: Actor, channel: int) -> list[str]:
    return [json.loads(line)["event"] for line in holder(os.read, channel, 1 << 16).splitlines()]


def test_a_channel_adds_at_each_line(file: Path, holder: Actor, breaker: Actor, eventfd: EventFd, channel: int) -> None:
    holder(os.write, channel, f"eventfd {eventfd.number}\n".encode())
    eventfd.forget()
    assert eventfd.count() == 0
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    assert eventfd.count() == 0
    cut = breaker.start(os.truncate, str(file), 0)
    assert eventfd.wait() == 1
    assert lines_of(holder, channel) == ["break"]
    holder.release(file, "p")
    assert eventfd.wait() == 1
    assert lines_of(holder, channel) == ["released"]
    cut.result()


def test_a_channel_where_lines_wait_adds_at_once(file: Path, holder: Actor, eventfd: EventFd, channel: int) -> None:
    holder.pin(file, "p", "0:0")
    holder.release(file, "p")
    holder(os.write, channel, f"eventfd {eventfd.number}\n".encode())
    assert eventfd.count() == 1
    assert lines_of(holder, channel) == ["released"]


def test_the_last_eventfd_of_a_channel_counts(file: Path, holder: Actor, eventfd: EventFd, channel: int) -> None:
    last = EventFd(holder)
    holder(os.write, channel, f"eventfd {eventfd.number}\neventfd {last.number}\n".encode())
    holder.pin(file, "p", "0:0")
    holder.release(file, "p")
    assert (eventfd.count(), last.count()) == (0, 1)


def test_a_pin_and_its_channel_may_have_the_same(
    file: Path, holder: Actor, breaker: Actor, eventfd: EventFd, channel: int
) -> None:
    holder(os.write, channel, f"eventfd {eventfd.number}\n".encode())
    pin_by_attribute(holder, file, eventfd.number)
    with_both = 2
    cut = breaker.start(os.truncate, str(file), 0)
    counted = 0
    while counted < with_both:
        counted += eventfd.wait()
    holder(os.close, channel)
    holder.kill()
    cut.result()


def test_no_line_is_missed(shared_mount: Mount, file: Path) -> None:
    """A reader that clears the eventfd and then reads all lines, while others are added."""
    rounds = 500
    channel = os.open(shared_mount.control("events"), os.O_RDWR | os.O_NONBLOCK)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)

    def releases() -> None:
        for _ in range(rounds):
            os.setxattr(file, "user.pinfs.pin.p", b"0:0")
            os.removexattr(file, "user.pinfs.pin.p")

    adding = threading.Thread(target=releases)
    try:
        os.write(channel, f"eventfd {eventfd}\n".encode())
        adding.start()
        seen: list[int] = []
        while len(seen) < rounds:
            assert select.select([eventfd], [], [], LIMIT_S)[0], f"{len(seen)} lines, then none"
            os.eventfd_read(eventfd)
            seen += all_numbers(channel)
    finally:
        adding.join()
        os.close(channel)
        os.close(eventfd)
    assert seen == list(range(seen[0], seen[0] + rounds))


def all_numbers(channel: int) -> list[int]:
    numbers: list[int] = []
    try:
        while True:
            numbers += [json.loads(line)["seq"] for line in os.read(channel, 1 << 16).splitlines()]
    except BlockingIOError:
        return numbers


# By whom it is waited for


@pytest.fixture(params=["process", "handle"])
def pinned(request: pytest.FixtureRequest, file: Path, shared_mount: Mount) -> Iterator[tuple[pinfs.Pin, int]]:
    """A lease of this process, and its eventfd."""
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    with pinfs.pin(file, mode="lease", signal="none", eventfd=eventfd, owner=request.param) as pin:
        yield pin, eventfd
    os.close(eventfd)


def test_epoll(pinned: tuple[pinfs.Pin, int], file: Path, breaker: Actor) -> None:
    pin, eventfd = pinned
    with select.epoll() as poller:
        poller.register(eventfd, select.EPOLLIN | select.EPOLLET)
        cut = breaker.start(os.truncate, str(file), 0)
        assert poller.poll(LIMIT_S) == [(eventfd, select.EPOLLIN)]
    assert pin.state() == "breaking"
    pin.release()
    cut.result()


def test_io_uring(pinned: tuple[pinfs.Pin, int], file: Path, breaker: Actor, ring: Ring) -> None:
    pin, eventfd = pinned
    os.set_blocking(eventfd, True)
    counter = bytearray(8)
    cut = breaker.start(os.truncate, str(file), 0)
    assert ring.call(READ, eventfd, memoryview(counter), 8, 0) == 8
    assert struct.unpack("=Q", counter) == (1,)
    pin.release()
    cut.result()


def test_trio(pinned: tuple[pinfs.Pin, int], file: Path, breaker: Actor) -> None:
    pin, eventfd = pinned

    async def wait() -> None:
        with trio.fail_after(LIMIT_S):
            await trio.lowlevel.wait_readable(eventfd)

    cut = breaker.start(os.truncate, str(file), 0)
    trio.run(wait)
    pin.release()
    cut.result()


# The mount's end


@pytest.mark.parametrize(
    ("pin_by", "by"), [(pin_by_attribute, "signal"), (pin_by_attribute, "umount"), (pin_by_ioctl, "signal")]
)
def test_the_mounts_end_is_told(new_mount: NewMount, actors: Actors, pin_by: PinBy, by: str) -> None:
    mount, holder = new_mount(), actors.actor()
    eventfd = EventFd(holder)
    pin_by(holder, made(mount.path), eventfd.number, "deny")
    mount.stop(by)
    assert eventfd.wait() == 1


def test_the_mounts_end_is_told_to_channels(new_mount: NewMount, actors: Actors) -> None:
    mount, holder = new_mount(), actors.actor()
    eventfd = EventFd(holder)
    channel = holder(os.open, str(mount.control("events")), os.O_RDWR)
    holder(os.write, channel, f"eventfd {eventfd.number}\n".encode())
    mount.stop()
    assert eventfd.wait() == 1
