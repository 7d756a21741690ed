"""Holes and ranges through the bridge, as a shell's tools and the kernel's own numbers show them (SPEC 2 and 3)."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NewMount
from mounted.kinds import on
from mounted.world import PAGE, run
from support import acts
from support.actor import Actor
from support.mounts import Mount, umount

SIZE = 16 * PAGE
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def mount(each_mount: Mount) -> Mount:
    """Here: one mount for all tests, over tmpfs, then over a disk."""
    return each_mount


@pytest.fixture
def file(mount: Mount, each_dir: Path) -> Path:
    """A file of sixteen pages without a zero in it."""
    path = each_dir / "file"
    with path.open("wb") as opened:
        opened.write(b"x" * SIZE)
        opened.flush()
        os.fsync(opened.fileno())  # delayed allocation: st_blocks counts what has been allocated
    return path


def fallocate(file: Path, flag: str, start: int, length: int) -> tuple[int, str]:
    """util-linux's fallocate; its exit status and what it says."""
    done = run("fallocate", flag, "-o", str(start), "-l", str(length), file)
    return done.returncode, done.stderr


def below(mount: Mount, path: Path) -> Path:
    """The backing file."""
    return mount.source / path.relative_to(mount.path)


def pins_of(file: Path) -> list[dict[str, Any]]:
    pins: list[dict[str, Any]] = json.loads(os.getxattr(file, "user.pinfs.pins"))["pins"]
    return pins


def blocks(file: Path) -> int:
    return file.stat().st_blocks * 512


def test_punching_a_pinned_range_is_refused_and_the_bytes_stay(mount: Mount, file: Path) -> None:
    mount.actor().pin(file, "p", f"{4 * PAGE}:{PAGE}")
    before = blocks(file)
    status, words = fallocate(file, "-p", 2 * PAGE, 4 * PAGE)
    assert (status, words) == (1, "fallocate: fallocate failed: Device or resource busy\n")
    assert file.read_bytes() == below(mount, file).read_bytes() == b"x" * SIZE
    assert blocks(file) == before


def test_punching_beside_a_pin_makes_a_hole(mount: Mount, file: Path) -> None:
    mount.actor().pin(file, "p", f"{4 * PAGE}:{PAGE}")
    before = blocks(file)
    assert fallocate(file, "-p", 5 * PAGE, 4 * PAGE) == (0, "")
    assert file.read_bytes() == b"x" * 5 * PAGE + bytes(4 * PAGE) + b"x" * 7 * PAGE
    assert before - blocks(file) == 4 * PAGE
    with file.open("rb") as opened:
        assert os.lseek(opened.fileno(), 0, os.SEEK_HOLE) == 5 * PAGE
        assert os.lseek(opened.fileno(), 5 * PAGE, os.SEEK_DATA) == 9 * PAGE
        assert os.lseek(opened.fileno(), 9 * PAGE, os.SEEK_HOLE) == SIZE
        with pytest.raises(OSError) as refused:
            os.lseek(opened.fileno(), SIZE, os.SEEK_DATA)
        assert refused.value.errno == errno.ENXIO


def breaks_waits_and_succeeds(mount: Mount, file: Path, flag: str, op: str) -> None:
    holder, breaker = mount.actor(), mount.actor()
    holder.pin(file, "p", f"{4 * PAGE}:{PAGE},mode=lease,signal=none")
    with mount.trace() as trace:
        punching = breaker.start(run, "fallocate", flag, "-o", str(4 * PAGE), "-l", str(PAGE), str(file))
        told = trace.until("break")
        assert (told["op"], told["from"], told["to"]) == (op, 4 * PAGE, 5 * PAGE)
        assert not punching.done()
        assert file.read_bytes() == b"x" * SIZE
        holder.release(file, "p")
        done = punching.result()
    assert (done.returncode, done.stderr) == (0, "")
    assert file.read_bytes() == b"x" * 4 * PAGE + bytes(PAGE) + b"x" * 11 * PAGE


def test_a_lease_is_broken_and_then_the_hole_is_punched(mount: Mount, file: Path) -> None:
    breaks_waits_and_succeeds(mount, file, "-p", "punch_hole")


@on("disk")
def test_zeroing_breaks_a_lease_as_punching_does(mount: Mount, file: Path) -> None:
    breaks_waits_and_succeeds(mount, file, "-z", "zero_range")


@on("disk")
def test_zeroing_a_pinned_range_is_refused(mount: Mount, file: Path) -> None:
    mount.actor().pin(file, "p", f"{4 * PAGE}:{PAGE}")
    assert fallocate(file, "-z", 2 * PAGE, 4 * PAGE) == (1, "fallocate: fallocate failed: Device or resource busy\n")
    assert fallocate(file, "-z", 5 * PAGE, PAGE) == (0, "")
    assert file.read_bytes() == b"x" * 5 * PAGE + bytes(PAGE) + b"x" * 10 * PAGE


@on("tmpfs")
def test_what_the_backing_cannot_do_bothers_no_holder(mount: Mount, file: Path) -> None:
    """tmpfs has no ZERO_RANGE (SPEC 2: a holder is never bothered for an operation that would fail anyway)."""
    holder = mount.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    with mount.trace() as trace:
        assert fallocate(file, "-z", 0, PAGE) == (1, "fallocate: fallocate failed: Operation not supported\n")
        holder.release(file, "p")
        trace.until("released")
    assert [event["event"] for event in trace.seen] == ["released"]


def test_preallocating_a_pinned_range_is_no_removal(mount: Mount, file: Path) -> None:
    mount.actor().pin(file, "p", "0:0")
    assert fallocate(file, "-n", 0, 2 * SIZE) == (0, "")
    assert file.stat().st_size == SIZE
    assert fallocate(file, "--posix", SIZE, SIZE) == (0, "")
    assert file.read_bytes() == b"x" * SIZE + bytes(SIZE)


@on("tmpfs")
def test_what_is_refused_by_its_arguments_breaks_nothing(mount: Mount, file: Path) -> None:
    holder, breaker = mount.actor(), mount.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    fd = breaker(os.open, str(file), os.O_RDWR)
    punch = PUNCH_HOLE | KEEP_SIZE
    for mode, offset, length, expected in (
        (COLLAPSE, 0, PAGE, errno.EOPNOTSUPP),  # the kernel does not pass it on
        (INSERT, 0, PAGE, errno.EOPNOTSUPP),
        (PUNCH_HOLE, 0, PAGE, errno.EOPNOTSUPP),  # only with KEEP_SIZE
        (punch | ZERO, 0, PAGE, errno.EOPNOTSUPP),
        (0x4000, 0, PAGE, errno.EOPNOTSUPP),
        (punch, -1, PAGE, errno.EINVAL),
        (punch, 0, 0, errno.EINVAL),
        (punch, 0, -1, errno.EINVAL),
        (punch, (1 << 63) - 1, PAGE, errno.EFBIG),
    ):
        assert breaker.errno(acts.fallocate, fd, mode, offset, length) == expected
    reading = breaker(os.open, str(file), os.O_RDONLY)
    assert breaker.errno(acts.fallocate, reading, punch, 0, PAGE) == errno.EBADF
    assert [pin["state"] for pin in pins_of(file)] == ["held"]


# --- copy_file_range


def copy(actor: Actor, source: Path, target: Path, length: int, offset: int) -> int:
    """One copy_file_range(2) inside the mount."""
    fd_in, fd_out = actor(os.open, str(source), os.O_RDONLY), actor(os.open, str(target), os.O_RDWR)
    try:
        return actor(os.copy_file_range, fd_in, fd_out, length, 0, offset)
    finally:
        actor(os.close, fd_in)
        actor(os.close, fd_out)


def test_copying_into_a_pinned_range_changes_its_data_in_place(mount: Mount, file: Path) -> None:
    """The holder's mapping sees the new bytes in its own pages: nothing was swapped below it."""
    other = file.with_name("other")
    other.write_bytes(b"y" * 2 * PAGE)
    holder = mount.actor()
    holder.pin(file, "p", f"{4 * PAGE}:{4 * PAGE}")
    address = holder(acts.map_file, str(file), SIZE)
    holder(acts.poke, address + 5 * PAGE, b"x")  # the page is there before
    assert copy(mount.actor(), other, file, 2 * PAGE, 5 * PAGE) == 2 * PAGE
    assert file.read_bytes() == b"x" * 5 * PAGE + b"y" * 2 * PAGE + b"x" * 9 * PAGE
    assert holder(acts.peek, address + 5 * PAGE, PAGE) == b"y" * PAGE


def test_where_the_target_is_pinned_the_daemon_never_asks_the_backing_to_copy(new_mount: NewMount) -> None:
    """A backing with reflinks (XFS, btrfs) answers copy_file_range(2) with shared blocks. So this daemon is forbidden
    the call (seccomp, EDQUOT), and copies where there are pins all the same."""
    mount = new_mount(prefix=forbidding_copy_file_range())
    source, free, pinned = (mount.path / name for name in ("source", "free", "pinned"))
    for path in (source, free, pinned):
        path.write_bytes(path.name[:1].encode() * PAGE)
    mount.actor().pin(pinned, "p", "0:16")
    user = mount.actor()
    with pytest.raises(OSError) as refused:
        copy(user, source, free, PAGE, 0)
    assert refused.value.errno == errno.EDQUOT
    assert copy(user, source, pinned, PAGE, 0) == PAGE
    assert pinned.read_bytes() == source.read_bytes()


def forbidding_copy_file_range() -> list[str]:
    """A command prefix: what follows gets EDQUOT from copy_file_range(2)."""
    here = Path(__file__).with_name("without_copy_file_range.py")
    return ["/usr/bin/env", "python3", str(here)]


@pytest.fixture
def reflinks(base: Path) -> Iterator[Path]:
    """A directory on XFS, whose files can share blocks."""
    image, disk = base / "image", base / "disk"
    disk.mkdir()
    with image.open("wb") as opened:
        opened.truncate(512 << 20)
    if not shutil.which("mkfs.xfs"):
        pytest.skip("mkfs.xfs is not installed")
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, disk], check=False).returncode:
        pytest.skip("no loop devices here, or no XFS")
    yield disk
    umount(disk)


def places(path: Path) -> dict[int, int]:
    """Where each page of a file lies on the disk (filefrag(8) counts in blocks of 4 KiB here)."""
    os.sync()
    rows = re.findall(r"^ +\d+: +(\d+)\.\. +\d+: +(\d+)\.\. +\d+: +(\d+):", run("filefrag", "-v", path).stdout, re.M)
    return {int(page) + n: int(block) + n for page, block, length in rows for n in range(int(length))}


@pytest.mark.parametrize("pinned", ["source", "target"])
def test_blocks_are_shared_but_where_they_are_pinned(reflinks: Path, new_mount: NewMount, pinned: str) -> None:
    """Of 16 MiB, one page in the second half is pinned: that half is copied, the first one may be shared."""
    mount = new_mount(source=reflinks)
    size = 16 << 20
    for name in ("source", "target"):
        (mount.path / name).write_bytes(name[:1].encode() * size)
    before = {name: places(reflinks / name) for name in ("source", "target")}
    assert len(before["target"]) == size // PAGE
    mount.actor().pin(mount.path / pinned, "p", f"{12 << 20}:1")
    user = mount.actor()
    for offset in range(0, size, 4 << 20):
        source, target = (user(os.open, str(mount.path / name), os.O_RDWR) for name in ("source", "target"))
        assert user(os.copy_file_range, source, target, 4 << 20, offset, offset) == 4 << 20
    after = {name: places(reflinks / name) for name in ("source", "target")}
    assert after["source"] == before["source"]
    kept = range((12 << 20) // PAGE, size // PAGE)
    assert all(after["target"][page] == before["target"][page] for page in kept)
    assert all(after["target"][page] == after["source"][page] for page in range(kept.start))
    assert (mount.path / "target").read_bytes() == b"s" * size
    mount.stop()


# --- nameless files, times of birth, syncfs


def test_a_nameless_file_can_be_used_pinned_and_named(mount: Mount, each_dir: Path) -> None:
    user, breaker, named = mount.actor(), mount.actor(), each_dir / "named"
    fd = user(os.open, str(each_dir), os.O_TMPFILE | os.O_RDWR, 0o640)
    user(os.write, fd, b"x" * PAGE)
    own = f"/proc/self/fd/{fd}"
    user.pin(own, "p", "0:0")
    assert [pin["name"] for pin in mount.pins() if pin["path"] is None] == ["p"]
    assert user.errno(os.ftruncate, fd, 0) == errno.EBUSY
    user(os.link, own, str(named), src_dir_fd=fd, follow_symlinks=True)
    assert below(mount, named).read_bytes() == b"x" * PAGE
    assert below(mount, named).stat().st_mode & 0o777 == 0o640
    assert breaker.errno(os.truncate, str(named), 0) == errno.EBUSY
    user.release(own, "p")
    breaker(os.truncate, str(named), 0)
    assert user(os.fstat, fd).st_size == 0


def test_the_time_of_birth_is_the_backings(mount: Mount, file: Path) -> None:
    births = [run("stat", "-c", "%w", path).stdout for path in (file, below(mount, file))]
    assert births[0] == births[1] != "-\n"


def test_syncfs_and_fsync(mount: Mount, file: Path) -> None:
    with file.open("r+b") as opened:
        assert _libc.syncfs(opened.fileno()) == 0
        os.fsync(opened.fileno())
        os.fdatasync(opened.fileno())
