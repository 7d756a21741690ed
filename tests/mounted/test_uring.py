"""What io_uring asks the daemon for when it reads and writes files of the mount, whose data it has by passthrough
(docs/kernel-facts.md, "io_uring and POLL")."""

import mmap
import os
import time

import pytest
from mounted.test_bridge_passthrough import requests
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


@pytest.mark.parametrize(("opcode", "flags"), [(READ, 0), (READ, os.O_DIRECT), (WRITE, os.O_DIRECT)])
def test_each_call_polls_but_of_a_handle_with_o_nonblock(mount: Mount, ring: Ring, opcode: int, flags: int) -> None:
    assert asked(mount, ring, opcode, CALLS, flags) >= CALLS
    assert asked(mount, ring, opcode, CALLS, flags | os.O_NONBLOCK) < NEXT_TO_NOTHING


def test_a_buffered_write_polls_a_hundred_times_and_more(mount: Mount, ring: Ring) -> None:
    assert asked(mount, ring, WRITE, 1) > 100


@pytest.mark.mount("poll=off")
@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_with_poll_off_nobody_polls(mount: Mount, ring: Ring, opcode: int) -> None:
    assert asked(mount, ring, opcode, CALLS) < NEXT_TO_NOTHING
