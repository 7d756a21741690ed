"""A daemon that may have few descriptors: it goes on working, and who opens one file too many is told so.

Holders cost a descriptor each (a pidfd), open files one or two, nothing else costs any that it keeps.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted.world import connection, descriptors_of, resident_bytes, run
from support.actor import Actor, eventually
from support.mounts import Mount, fresh_mount

LIMIT = 256


@pytest.fixture(scope="module")
def _poor_mount(fuse: None) -> Iterator[Mount]:
    with fresh_mount(prefix=["prlimit", f"--nofile={LIMIT}:{LIMIT}"]) as mount:
        yield mount


@pytest.fixture
def poor(_poor_mount: Mount) -> Iterator[Mount]:
    """A mount whose daemon may have 256 descriptors; all tests share it: what one uses up the next one would miss."""
    with _poor_mount.lent() as mount:
        yield mount


@pytest.fixture
def place(poor: Mount) -> Path:
    return poor.new_dir()


def made(place: Path, count: int) -> list[Path]:
    paths = [place / str(number) for number in range(count)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def open_all(actor: Actor, paths: list[Path], flags: int) -> tuple[list[Path], int | None]:
    """Opens until the first error: what is open now, and the errno."""
    opened: list[Path] = []
    for path in paths:
        if failed := actor.errno(os.open, str(path), flags):
            return opened, failed
        opened.append(path)
    return opened, None


def test_more_files_than_descriptors_can_be_used_one_after_the_other(poor: Mount, place: Path) -> None:
    for path in made(place, 2 * LIMIT):
        assert path.read_bytes() == path.name.encode()
        os.setxattr(path, "user.a", b"1")
        path.chmod(0o600)
        path.rename(path.with_name(f"{path.name}-moved"))
    assert len(os.listdir(place)) == 2 * LIMIT
    run("rm", "-r", place)
    assert descriptors_of(poor.pid) < LIMIT


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_the_open_that_is_too_many_fails_and_nothing_else(poor: Mount, place: Path, flags: int) -> None:
    paths, other = made(place, LIMIT + 50), poor.actor()
    greedy = poor.actor()
    opened, failed = open_all(greedy, paths, flags)
    assert failed == errno.EMFILE
    assert len(opened) > LIMIT // 2

    last = paths[-1]
    assert last.stat().st_size == len(last.name)
    assert len(os.listdir(place)) == len(paths)
    other(os.truncate, str(last), 1)
    os.setxattr(last, "user.a", b"1")
    last.chmod(0o640)
    last.rename(place / "moved")
    (place / "linked").hardlink_to(place / "moved")
    (place / "symlink").symlink_to("moved")
    (place / "directory").mkdir()
    (place / "linked").unlink()
    assert poor.status()["descriptors"] <= LIMIT
    other.pin(paths[0], "p", "0:0")
    assert other.errno(os.truncate, str(paths[0]), 0) == errno.EBUSY
    other.release(paths[0], "p")

    greedy.close()
    eventually(lambda: poor.actor().errno(os.open, str(paths[-2]), flags) is None)


def test_a_tree_deeper_than_descriptors(poor: Mount, place: Path) -> None:
    depth = 2 * LIMIT
    os.chdir(place)
    try:
        for number in range(depth):
            os.mkdir(str(number))
            os.chdir(str(number))
        Path("file").write_bytes(b"deep")
        assert Path("file").read_bytes() == b"deep"
        assert os.listdir(".") == ["file"]
    finally:
        os.chdir("/")
    assert descriptors_of(poor.pid) < LIMIT
    run("rm", "-r", place)
    assert not place.exists()


def test_more_holders_than_descriptors(poor: Mount, place: Path) -> None:
    """Each one that does not fit is told so; those that do are held, and go with their processes."""
    (path,) = made(place, 1)
    sleepers = [subprocess.Popen(["/bin/sleep", "1000"]) for _ in range(LIMIT)]
    try:
        failures = {pin_for(path, sleeper.pid) for sleeper in sleepers}
        assert failures == {None, errno.EDQUOT}
        assert len(poor.pins()) > LIMIT // 2
        assert poor.actor().errno(os.truncate, str(path), 0) == errno.EBUSY
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    eventually(lambda: not poor.pins())
    os.truncate(path, 0)
    opened, _ = open_all(poor.actor(), made(place, LIMIT // 2), os.O_RDWR)
    assert len(opened) == LIMIT // 2


def pin_for(path: Path, pid: int) -> int | None:
    try:
        os.setxattr(path, f"user.pinfs.pin.{pid}", f"0:0,pid={pid}".encode())
    except OSError as failure:
        return failure.errno
    return None


def test_nothing_is_left_of_many_opens(shared_mount: Mount, shared_dir: Path) -> None:
    """PINFS_TEST_OPENS=1000000 for the whole million."""
    opens = int(os.environ.get("PINFS_TEST_OPENS", "20000"))
    paths = made(shared_dir, 10)
    for path in paths:
        os.close(os.open(path, os.O_RDWR))
    descriptors, memory = descriptors_of(shared_mount.pid), resident_bytes(shared_mount.pid)
    for number in range(opens):
        os.close(os.open(paths[number % 10], (os.O_RDONLY, os.O_RDWR)[number // 10 % 2]))
    with connection(shared_mount.path, shared_mount.base) as link:
        eventually(lambda: link.waiting == 0)
    eventually(lambda: descriptors_of(shared_mount.pid) <= descriptors)
    assert resident_bytes(shared_mount.pid) < memory + (4 << 20)
