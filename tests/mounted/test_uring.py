"""What io_uring asks the daemon for when it reads and writes files of the mount, whose data it has by passthrough
(docs/kernel-facts.md, "io_uring and POLL")."""

import mmap
import os
import select
import struct
import time
from pathlib import Path

import pytest
from mounted.test_bridge_passthrough import requests
from support import acts
from support.actor import Actor, eventually
from support.eventfds import IOC_UNPIN, pin_handle
from support.mounts import Mount
from support.uring import READ, WRITE, Ring

PAGE = 4096
CALLS = 50
NEXT_TO_NOTHING = CALLS // 2
"""Requests that a test makes besides: opens, reads of the metrics, the one POLL that is answered ENOSYS."""


def asked(mount: Mount, ring: Ring, opcode: int, calls: int, flags: int = 0) -> float:
    """How many requests some calls take, and whether they do what they should."""
    path = mount.path / "file"
    path.write_bytes(b"x" * PAGE)
    buffer = mmap.mmap(-1, PAGE)
    buffer[:] = b"y" * PAGE
    fd = os.open(path, os.O_RDWR | flags)
    before = counted(mount)
    for _ in range(calls):
        assert ring.call(opcode, fd, buffer, PAGE, 0) == PAGE
    os.close(fd)
    assert buffer[:] == path.read_bytes() == (b"x" if opcode == READ else b"y") * PAGE
    return counted(mount) - before


def counted(mount: Mount) -> float:
    time.sleep(0.05)  # the dispatcher counts when nothing comes for some milliseconds
    return requests(mount)


EACH_CALL = pytest.mark.parametrize(("opcode", "flags"), [(READ, 0), (READ, os.O_DIRECT), (WRITE, os.O_DIRECT)])


def polls_are_answered(mount: Mount) -> tuple[bool, str]:
    status = mount.status()
    return status["poll"], status["poll_mode"]


@pytest.mark.mount("poll=on")
@EACH_CALL
def test_with_poll_on_each_call_polls_but_of_a_handle_with_o_nonblock(
    mount: Mount, ring: Ring, opcode: int, flags: int
) -> None:
    assert asked(mount, ring, opcode, CALLS, flags) >= CALLS
    assert asked(mount, ring, opcode, CALLS, flags | os.O_NONBLOCK) < NEXT_TO_NOTHING
    assert polls_are_answered(mount) == (True, "on")


@pytest.mark.mount("poll=on")
def test_with_poll_on_a_buffered_write_polls_a_hundred_times_and_more(mount: Mount, ring: Ring) -> None:
    assert asked(mount, ring, WRITE, 1) > 100


@pytest.mark.mount("poll=off")
@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_with_poll_off_nobody_polls(mount: Mount, ring: Ring, opcode: int) -> None:
    assert polls_are_answered(mount) == (False, "off")
    assert asked(mount, ring, opcode, CALLS) < NEXT_TO_NOTHING


@pytest.mark.mount("poll=off", "bridge=off")
def test_with_poll_off_nobody_polls_plain_pyfuse3(mount: Mount) -> None:
    """POLLERR would say that each poll was asked, and failed."""
    fd = os.open(mount.control("events"), os.O_RDONLY | os.O_NONBLOCK)
    assert acts.poll(fd, select.POLLIN | select.POLLPRI, 0) == select.POLLIN
    os.close(fd)


@EACH_CALL
def test_by_itself_a_mount_is_asked_once_at_the_most(mount: Mount, ring: Ring, opcode: int, flags: int) -> None:
    assert polls_are_answered(mount) == (True, "auto")
    assert asked(mount, ring, opcode, CALLS, flags) < NEXT_TO_NOTHING
    assert polls_are_answered(mount) == (False, "auto")
    assert asked(mount, ring, WRITE, CALLS) < NEXT_TO_NOTHING


@pytest.mark.parametrize("path", ["file", ".pinfs/status"])
def test_a_poll_for_reading_is_as_good_as_one_of_io_uring(mount: Mount, path: str) -> None:
    (mount.path / "file").touch()
    fd = os.open(mount.path / path, os.O_RDONLY)
    assert acts.poll(fd, select.POLLIN, 0) == select.POLLIN
    assert polls_are_answered(mount) == (False, "auto")
    os.close(fd)


def lease_of_a_handle(holder: Actor, file: Path) -> tuple[int, int]:
    file.write_bytes(b"x" * PAGE)
    fd = holder(os.open, str(file), os.O_RDWR)
    return fd, pin_handle(holder, fd, 0, flags=0)


def unpin(holder: Actor, fd: int, pin: int) -> None:
    holder(acts.ioctl, fd, IOC_UNPIN, struct.pack("<Q", pin))


def test_programs_that_wait_are_woken_although_io_uring_is_used(mount: Mount, ring: Ring) -> None:
    """For POLLPRI of a handle pin, by poll and epoll; then, when they have gone, it ends."""
    holder, breaker, leased = mount.actor(), mount.actor(), mount.path / "leased"
    fd, pin = lease_of_a_handle(holder, leased)
    waiting = holder.start(acts.poll, fd, select.POLLPRI)
    eventually(lambda: holder.state() == "S")
    with select.epoll() as poller:
        mine = os.open(leased, os.O_RDONLY)
        poller.register(mine, select.EPOLLPRI)
        assert asked(mount, ring, READ, CALLS) >= CALLS
        assert polls_are_answered(mount) == (True, "auto")
        cut = breaker.start(os.truncate, str(leased), 0)
        assert waiting.result() == select.POLLPRI
        unpin(holder, fd, pin)
        cut.result()
    os.close(mine)
    assert polls_are_answered(mount) == (True, "auto")
    holder(os.close, fd)
    assert asked(mount, ring, READ, CALLS) < NEXT_TO_NOTHING
    assert polls_are_answered(mount) == (False, "auto")


@pytest.mark.parametrize("name", ["events", "trace"])
def test_readers_of_events_that_wait_are_woken(mount: Mount, ring: Ring, name: str) -> None:
    holder, file = mount.actor(), mount.path / "f"
    file.write_bytes(b"x" * PAGE)
    fd = holder(os.open, str(mount.control(name)), os.O_RDONLY | os.O_NONBLOCK)
    assert holder(acts.poll, fd, select.POLLIN, 0) == 0
    assert asked(mount, ring, READ, CALLS) >= CALLS
    holder.pin(file, "p", "0:0")
    holder.release(file, "p")
    assert holder(acts.poll, fd, select.POLLIN) == select.POLLIN
    holder(os.close, fd)
    assert asked(mount, ring, READ, CALLS) < NEXT_TO_NOTHING


def test_where_it_has_ended_nothing_is_reported_that_is_not_so(mount: Mount, ring: Ring) -> None:
    """No POLLPRI, and everything is ready."""
    holder = mount.actor()
    fd, _ = lease_of_a_handle(holder, mount.path / "leased")
    asked(mount, ring, READ, 1)
    assert holder(acts.poll, fd, select.POLLPRI, 0) == 0
    assert holder(acts.poll, fd, select.POLLIN, 0) == select.POLLIN
