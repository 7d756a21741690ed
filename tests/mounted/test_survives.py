"""What hostile users may do, and the daemon must outlive: nobody's pins go with it.

A daemon that may have few descriptors or little memory shows soon what any other shows in the end.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import NewMount
from mounted.world import descriptors_of, resident_bytes
from support.actor import eventually
from support.mounts import Mount

LIMIT = 128
POOR = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
LIMIT_S = 20.0
MIB = 1 << 20
PIN = 3 << 30 | 104 << 16 | ord("P") << 8 | 0xA0  # PINFS_IOC_PIN (include/pinfs.h)
GETDENTS64 = {"x86_64": 217}.get(os.uname().machine, 61)

STRESS_S = float(os.environ.get("PINFS_STRESS_SECONDS", "7"))
BRIDGES = pytest.mark.parametrize("bridge", ["bridge=auto", "bridge=off"])


@contextmanager
def all_descriptors(mount: Mount) -> Iterator[None]:
    """A user keeps directories open until no more can be opened."""
    (mount.path / "d").mkdir()
    held: list[int] = []
    try:
        for _ in range(2 * LIMIT):
            held.append(os.open(mount.path / "d", os.O_RDONLY | os.O_DIRECTORY))
    except OSError:
        pass
    try:
        yield
    finally:
        for fd in held:
            os.close(fd)


def serves(mount: Mount) -> bool:
    return mount.process.poll() is None


# Descriptors


@BRIDGES
def test_the_service_manager_is_told_although_no_descriptor_is_left(
    new_mount: NewMount, base: Path, monkeypatch: pytest.MonkeyPatch, bridge: str
) -> None:
    """`STATUS=` every ten seconds, `WATCHDOG=1` more often: a socket each."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(base / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(base / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        mount = new_mount(bridge, prefix=POOR)
        with all_descriptors(mount):
            time.sleep(1)
            assert serves(mount)


@BRIDGES
def test_a_report_without_a_descriptor_left(new_mount: NewMount, bridge: str) -> None:
    mount = new_mount(bridge, prefix=POOR)
    with all_descriptors(mount):
        mount.process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        assert serves(mount)


@BRIDGES
def test_an_end_in_good_order_without_a_descriptor_left(new_mount: NewMount, bridge: str) -> None:
    mount = new_mount(bridge, prefix=POOR)
    with all_descriptors(mount):
        mount.process.terminate()
        assert mount.process.wait(LIMIT_S) == 0


def test_open_directories_leave_descriptors_to_look_with(new_mount: NewMount) -> None:
    mount = new_mount(prefix=POOR)
    with all_descriptors(mount):
        assert mount.status()["descriptors"] <= LIMIT


def test_removed_directories_leave_descriptors_to_look_with(new_mount: NewMount) -> None:
    """Each that a user still refers to (O_PATH, a working directory) costs the daemon one: no name leads there."""
    mount = new_mount(prefix=POOR)
    held: list[int] = []
    try:
        for number in range(2 * LIMIT):
            path = mount.path / str(number)
            path.mkdir()
            held.append(os.open(path, os.O_PATH))
            path.rmdir()
    except OSError:
        pass
    try:
        assert mount.status()["descriptors"] <= LIMIT
    finally:
        for fd in held:
            os.close(fd)


@BRIDGES
def test_unlinked_files_that_are_closed_without_a_descriptor_left(new_mount: NewMount, bridge: str) -> None:
    """Their descriptors, and the space of the files, come back; and the kernel's FORGET ends nothing."""
    mount = new_mount(bridge, prefix=POOR)
    before = descriptors_of(mount.pid)
    files = []
    for number in range(20):
        path = mount.path / str(number)
        files.append(os.open(path, os.O_RDWR | os.O_CREAT))
        path.unlink()
    with all_descriptors(mount):
        for fd in files:
            os.close(fd)
        time.sleep(0.5)
    eventually(lambda: not serves(mount) or descriptors_of(mount.pid) <= before + 2, 5)
    assert serves(mount)


# Memory


def test_waiting_readers_of_events_cost_little(new_mount: NewMount) -> None:
    """One user may have 512 channels, all users 4096: 1 MiB each would be the end of most machines."""
    mount = new_mount()
    before = resident_bytes(mount.pid)
    program = (
        "import os, sys, threading\n"
        "for _ in range(100):\n"
        "    threading.Thread(target=os.read, args=(os.open(sys.argv[1], 0), 4096), daemon=True).start()\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(mount.control("events"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as readers:
        time.sleep(2)
        cost = resident_bytes(mount.pid) - before
        readers.kill()
    assert cost < 20 * MIB


def test_unread_events_cost_no_more_than_a_bound(new_mount: NewMount) -> None:
    """A line holds the path, in JSON: 16,384 lines are no bound for bytes. Here 200 lines of 460 KB."""
    mount = new_mount()
    name = b"\xff" * 255
    top = os.open(mount.path, os.O_RDONLY)
    os.fchdir(top)
    try:
        for _ in range(300):
            os.mkdir(name)
            os.chdir(name)
        Path("f").write_bytes(b"x")
        before = resident_bytes(mount.pid)
        channel = os.open(mount.control("events"), os.O_RDONLY | os.O_NONBLOCK)
        file = os.open("f", os.O_RDWR)
        for _ in range(200):
            os.setxattr(file, "user.pinfs.pin.p", b"0:0")
            os.removexattr(file, "user.pinfs.pin.p")
        cost = resident_bytes(mount.pid) - before
        os.close(channel)
        os.close(file)
    finally:
        os.chdir("/")
        os.close(top)
        eventually(lambda: mount.status()["sealed_files"] == 0)
        subprocess.run(["rm", "-rf", os.fsencode(mount.source) + b"/" + name], check=True)
    assert cost < 32 * MIB


def test_open_directories_cost_little(new_mount: NewMount) -> None:
    """Many handles on one large directory: the names need not be kept once for each."""
    mount = new_mount()
    for number in range(10_000):
        (mount.source / str(number)).touch()
    before = resident_bytes(mount.pid)
    held = [os.open(mount.path, os.O_RDONLY) for _ in range(40)]
    libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(300)
    for fd in held:
        libc.syscall(GETDENTS64, fd, buffer, len(buffer))
    cost = resident_bytes(mount.pid) - before
    for fd in held:
        os.close(fd)
    assert cost < 20 * MIB


def test_open_lists_of_pins_cost_little(new_mount: NewMount) -> None:
    """A user may have 1,250,000 pins: 10 MB for each open of `.pinfs/pins`, and no limit on these."""
    mount = new_mount()
    (mount.path / "f").write_bytes(b"x")
    file = os.open(mount.path / "f", os.O_RDWR)
    for _ in range(20_000):
        fcntl.ioctl(file, PIN, bytearray(struct.pack("<QQIiIIQ64s", 0, 0, 0, 0, 0, 0, 0, b"")), True)
    before = resident_bytes(mount.pid)
    held = [os.open(mount.control("pins"), os.O_RDONLY) for _ in range(300)]
    cost = resident_bytes(mount.pid) - before
    for fd in (*held, file):
        os.close(fd)
    assert cost < 10 * MIB


# Callers that die


@BRIDGES
def test_callers_that_are_killed_at_any_moment(new_mount: NewMount, bridge: str) -> None:
    """The kernel takes back the request of a caller that was killed before the daemon read it: there was something to
    read, says poll(2), and read(2) then finds nothing."""
    mount = new_mount(bridge, "entry_timeout=0", "attr_timeout=0")
    program = (
        "import os, sys, time\n"
        "os.chdir(sys.argv[1])\n"
        "end = time.monotonic() + float(sys.argv[2])\n"
        "while time.monotonic() < end and os.path.exists('.'):\n"
        "    children = []\n"
        "    for _ in range(8):\n"
        "        child = os.fork()\n"
        "        while not child:\n"
        "            os.stat('.')\n"
        "        children.append(child)\n"
        "    time.sleep(0.003)\n"
        "    for child in children:\n"
        "        os.kill(child, 9)\n"
        "    for child in children:\n"
        "        os.waitpid(child, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(mount.path), str(STRESS_S * 2 / 3)]) as killer:
        while killer.poll() is None and serves(mount):
            time.sleep(0.1)
        killer.kill()
    assert serves(mount)
