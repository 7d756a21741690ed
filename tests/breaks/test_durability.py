"""What a device (or anybody with a mapping) has written into pinned bytes reaches the backing: with fsync, and with the
release of a pin that says dirty=yes, before that is answered (issue: durability of pinned writes)."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import NewMount
from support import acts as common
from support.actor import Actor, eventually
from support.mounts import Mount, umount

from breaks import acts
from breaks.acts import ORIGINAL, PAGE, SIZE
from breaks.seeing import Channel

SHARED_MOUNT_OPTIONS = ("break_timeout=100",)
DIRTY = f"{PAGE}:{PAGE},mode=lease,signal=none,dirty=yes"
MARK = b"written by a device"

Act = Callable[[Mount, Actor, Path, int], object]


def _removexattr(mount: Mount, actor: Actor, path: Path, fd: int) -> None:
    actor(os.removexattr, str(path), "user.pinfs.pin.p")


def _getxattr(mount: Mount, actor: Actor, path: Path, fd: int) -> None:
    actor.release(path, "p")


def _channel(mount: Mount, actor: Actor, path: Path, fd: int) -> None:
    assert Channel(mount, actor).tell(f"release {mount.pins()[0]['id']}") is None


def _replace(mount: Mount, actor: Actor, path: Path, fd: int) -> None:
    actor.pin(path, "p", "0:1")


def _resize(mount: Mount, actor: Actor, path: Path, fd: int) -> None:
    assert Channel(mount, actor).tell(f"resize {mount.pins()[0]['id']} 0 1") is None


def _fsync(mount: Mount, actor: Actor, path: Path, fd: int) -> None:
    actor(os.fsync, fd)


def _fdatasync(mount: Mount, actor: Actor, path: Path, fd: int) -> None:
    actor(os.fdatasync, fd)


def _unpin(mount: Mount, actor: Actor, path: Path, fd: int) -> None:
    actor(acts.unpin_handle, fd, mount.pins()[0]["id"])


OF_PROCESS: list[Act] = [_removexattr, _getxattr, _channel, _replace, _resize, _fsync, _fdatasync]
OF_HANDLE: list[Act] = [_unpin, _channel, _fsync, _fdatasync]
FLUSHES = [*(("process", act) for act in OF_PROCESS), *(("handle", act) for act in OF_HANDLE)]
NAMED = pytest.mark.parametrize(("owner", "act"), FLUSHES, ids=lambda v: v if isinstance(v, str) else v.__name__)


def _pin_dirty(actor: Actor, path: Path, owner: str) -> int:
    """Pins the middle page as one that is written to. Returns an open descriptor."""
    fd: int = actor(os.open, str(path), os.O_RDWR)
    if owner == "process":
        actor.pin(path, "p", DIRTY)
    else:
        actor(acts.pin_handle, fd, PAGE, PAGE, "lease", 0, acts.DIRTY)
    return fd


# ---- the order of system calls


@contextmanager
def _traced(mount: Mount, base: Path) -> Iterator[Path]:
    """What the daemon asks of the kernel meanwhile: flushes, and replies to requests."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace here")
    text = base / "strace"
    command = [strace, "-fye", "trace=fsync,fdatasync,write,writev", "-o", str(text), "-p", str(mount.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr
    assert "attached" in tracer.stderr.readline()
    try:
        yield text
    finally:
        tracer.terminate()
        tracer.communicate()


def _calls(text: Path) -> str:
    """f for a flush of our file that has ended well, r for a reply to a request, in order."""
    letters = []
    for line in text.read_text().splitlines():
        if re.search(r"(fsync|fdatasync)\(\d+<[^>]*/f>.*\) += 0|<\.\.\. f(data)?sync resumed>.*= 0", line):
            letters.append("f")
        elif re.search(r"writev?\(\d+</dev/fuse>", line):
            letters.append("r")
    return "".join(letters)


@NAMED
def test_flushed_before_it_is_answered(patient: Mount, file: Path, base: Path, owner: str, act: Act) -> None:
    holder = patient.actor()
    fd = _pin_dirty(holder, file, owner)
    with _traced(patient, base) as text:
        act(patient, holder, file, fd)
        eventually(lambda: text.exists() and "r" in _calls(text))
    assert "fr" in _calls(text)


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_what_is_not_dirty_is_not_flushed(patient: Mount, file: Path, base: Path, owner: str) -> None:
    holder = patient.actor()
    fd: int = holder(acts.pin, str(file), owner, "lease")
    with _traced(patient, base) as text:
        (_getxattr if owner == "process" else _unpin)(patient, holder, file, fd)
        eventually(lambda: text.exists() and "r" in _calls(text))
    assert "f" not in _calls(text)


def test_a_breaker_goes_on_after_the_flush(patient: Mount, file: Path, base: Path) -> None:
    """While it waits, the kernel holds the inode's lock; and what it cuts has been written."""
    holder = patient.actor()
    _pin_dirty(holder, file, "process")
    cut = patient.actor().start(os.truncate, str(file), acts.INSIDE)
    eventually(lambda: patient.pins()[0]["state"] == "breaking")
    with _traced(patient, base) as text:
        holder.release(file, "p")
        assert cut.error() is None
        eventually(lambda: "frr" in _calls(text))
    assert _calls(text).count("f") == 1


# ---- the data


@pytest.fixture
def image(base: Path) -> Iterator[Path]:
    """A disk image with ext4 on it, mounted at `base`/disk."""
    image, disk = base / "image", base / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, disk], check=False).returncode:
        pytest.skip("no loop devices here")
    with ExitStack() as stack:
        stack.callback(umount, disk)
        yield image


def _on_the_disk(image: Path, name: str) -> bytes:
    """The file as it is on the disk now: read without the kernel's file system and its cache."""
    with image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        done = subprocess.run(["debugfs", "-R", f"cat {name}", image], capture_output=True, check=True)
    return done.stdout


@NAMED
def test_the_data_is_on_the_disk(image: Path, base: Path, new_mount: NewMount, owner: str, act: Act) -> None:
    disk = base / "disk"
    mount = new_mount("break_timeout=100", source=disk)
    path = mount.path / "f"
    path.write_bytes(ORIGINAL)
    fd = os.open(disk / "f", os.O_RDONLY)
    os.fsync(fd)  # so that blocks and size are there, and only the bytes are at stake
    os.close(fd)
    assert _on_the_disk(image, "f") == ORIGINAL
    holder = mount.actor()
    handle = _pin_dirty(holder, path, owner)
    address = holder(common.map_file, str(path), SIZE)
    holder(common.poke, address + acts.INSIDE, MARK)
    act(mount, holder, path, handle)
    assert _on_the_disk(image, "f")[acts.INSIDE : acts.INSIDE + len(MARK)] == MARK
    mount.stop()
