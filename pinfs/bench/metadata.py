"""Metadata rows: system calls on names and inodes. A batch restores the directory, unmeasured."""

# Rows are system calls: no pathlib here, which would be measured with them.

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from pinfs.bench.data import opened
from pinfs.bench.places import Room
from pinfs.bench.rows import Batch, Rows, Skip, us_each

rows: Final = Rows()
row = rows.row

ENTRIES: Final = 1000
XATTR: Final = "user.bench"


def create(path: str) -> None:
    """creat(2) and close(2) of a new file."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def open_close(path: str) -> None:
    """open(2) for reading and close(2)."""
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def write_small(path: str) -> None:
    """A new file of 512 bytes."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    os.write(fd, b"x" * 512)
    os.close(fd)


def read_small(path: str) -> None:
    """open(2), read(2), close(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.read(fd, 4096)
    os.close(fd)


def ls_long(path: str) -> None:
    """The calls of `ls -l`: each name of the directory, and lstat(2) of each."""
    with os.scandir(path) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)


def for_each(call: Callable[[str], object], paths: list[str]) -> None:
    """Set up and clean up, unmeasured."""
    for path in paths:
        call(path)


def stays(call: Callable[[str], object]) -> Callable[[Room, int], Iterator[Batch]]:
    """A row of calls on one file."""

    def prepare(room: Room, calls: int) -> Iterator[Batch]:
        paths = [room.file()] * calls
        yield lambda: us_each(call, paths)

    return prepare


def comes(call: Callable[[str], object], undo: Callable[[str], object]) -> Callable[[Room, int], Iterator[Batch]]:
    """A row that creates names."""

    def prepare(room: Room, calls: int) -> Iterator[Batch]:
        paths = room.names(calls)

        def batch() -> float:
            us = us_each(call, paths)
            for_each(undo, paths)
            return us

        yield batch

    return prepare


def goes(make: Callable[[str], object], call: Callable[[str], object]) -> Callable[[Room, int], Iterator[Batch]]:
    """A row that removes names."""

    def prepare(room: Room, calls: int) -> Iterator[Batch]:
        paths = room.names(calls)

        def batch() -> float:
            for_each(make, paths)
            return us_each(call, paths)

        yield batch

    return prepare


def cold(room: Room, count: int) -> Callable[[], tuple[str, list[str]]]:
    """Each call gives a new directory of `count` files that the kernel has not seen through this file system yet."""
    if room.back_path is None:
        raise Skip("its backing directory cannot be reached, so nothing can be made behind the kernel's back")
    generation = 0

    def make() -> tuple[str, list[str]]:
        nonlocal generation
        generation += 1
        os.mkdir(f"{room.back_path}/{generation}")
        for_each(create, [f"{room.back_path}/{generation}/{i:06}" for i in range(count)])
        return f"{room.path}/{generation}", [f"{room.path}/{generation}/{i:06}" for i in range(count)]

    return make


row("metadata", "stat, warm", 2000)(stays(os.stat))


@row("metadata", "stat, first time", 500)
def stat_cold(room: Room, calls: int) -> Iterator[Batch]:
    make = cold(room, calls)
    yield lambda: us_each(os.stat, make()[1])


@row("metadata", "stat of a name that is not there", 1000)
def stat_missing(room: Room, calls: int) -> Iterator[Batch]:
    paths = [f"{room.path}/missing"] * calls
    yield lambda: us_each(os.path.exists, paths)


row("metadata", "access", 1000)(stays(lambda path: os.access(path, os.R_OK)))
row("metadata", "open + close", 1000)(stays(open_close))
row("metadata", "open + read + close", 1000)(stays(read_small))
row("metadata", "create + close", 500)(comes(create, os.unlink))
row("metadata", "create + write 512 bytes + close", 500)(comes(write_small, os.unlink))
row("metadata", "unlink", 500)(goes(create, os.unlink))
row("metadata", "mkdir", 500)(comes(os.mkdir, os.rmdir))
row("metadata", "rmdir", 500)(goes(os.mkdir, os.rmdir))
row("metadata", "symlink", 500)(comes(partial(os.symlink, "target"), os.unlink))


@row("metadata", "link", 500)
def link(room: Room, calls: int) -> Iterator[Batch]:
    yield from comes(partial(os.link, room.file()), os.unlink)(room, calls)


@row("metadata", "rename", 500)
def rename(room: Room, calls: int) -> Iterator[Batch]:
    names = (room.file("a"), f"{room.path}/b")
    turns = [turn % 2 for turn in range(calls + calls % 2)]  # even, so that a batch ends where it began

    def flip(turn: int) -> None:
        os.rename(names[turn], names[1 - turn])

    yield lambda: us_each(flip, turns)


@row("metadata", "readlink", 1000)
def readlink(room: Room, calls: int) -> Iterator[Batch]:
    path = f"{room.path}/link"
    os.symlink("some/where/else", path)
    yield lambda: us_each(os.readlink, [path] * calls)


@row("metadata", f"readdir of {ENTRIES} entries", 20)
def readdir(room: Room, calls: int) -> Iterator[Batch]:
    for_each(create, room.names(ENTRIES))
    yield lambda: us_each(os.listdir, [room.path] * calls)


@row("metadata", f"ls -l of {ENTRIES} entries", 10)
def ls_warm(room: Room, calls: int) -> Iterator[Batch]:
    for_each(create, room.names(ENTRIES))
    yield lambda: us_each(ls_long, [room.path] * calls)


@row("metadata", f"ls -l of {ENTRIES} entries, first time", 1)
def ls_cold(room: Room, calls: int) -> Iterator[Batch]:
    make = cold(room, ENTRIES)
    yield lambda: us_each(ls_long, [make()[0]])


row("metadata", "utimes", 1000)(stays(os.utime))


@row("metadata", "chmod", 1000)
def chmod(room: Room, calls: int) -> Iterator[Batch]:
    path = room.file()
    modes = [(0o600, 0o644)[turn % 2] for turn in range(calls)]
    yield lambda: us_each(partial(os.chmod, path), modes)


@row("metadata", "ftruncate, growing and shrinking", 1000)
def truncate(room: Room, calls: int) -> Iterator[Batch]:
    sizes = [(8192, 4096)[turn % 2] for turn in range(calls)]
    with opened(room.file(), os.O_RDWR) as fd:
        yield lambda: us_each(partial(os.ftruncate, fd), sizes)


@row("metadata", "open with O_TRUNC + close", 500)
def open_truncate(room: Room, calls: int) -> Iterator[Batch]:
    def reopen(path: str) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC))

    yield from stays(reopen)(room, calls)


@row("metadata", "fsync", 500)
def fsync(room: Room, calls: int) -> Iterator[Batch]:
    with opened(room.file(), os.O_RDWR) as fd:
        yield lambda: us_each(os.fsync, [fd] * calls)


@row("metadata", "statfs", 1000)
def statfs(room: Room, calls: int) -> Iterator[Batch]:
    yield lambda: us_each(os.statvfs, [room.path] * calls)


@row("metadata", "setxattr", 500)
def setxattr(room: Room, calls: int) -> Iterator[Batch]:
    values = [b"value%03d" % (turn % 1000) for turn in range(calls)]
    with opened(room.file(), os.O_RDWR) as fd:
        yield lambda: us_each(partial(os.setxattr, fd, XATTR), values)


@row("metadata", "getxattr", 500)
def getxattr(room: Room, calls: int) -> Iterator[Batch]:
    with opened(room.file(), os.O_RDWR) as fd:
        os.setxattr(fd, XATTR, b"value000")
        yield lambda: us_each(partial(os.getxattr, fd), [XATTR] * calls)


@row("metadata", "removexattr", 100)
def removexattr(room: Room, calls: int) -> Iterator[Batch]:
    names = [f"{XATTR}.{turn}" for turn in range(min(calls, 40))]  # an inode on disk holds only few
    with opened(room.file(), os.O_RDWR) as fd:

        def batch() -> float:
            for name in names:
                os.setxattr(fd, name, b"value000")
            return us_each(partial(os.removexattr, fd), names)

        yield batch
