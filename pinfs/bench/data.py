"""Data rows: reads, writes and mappings of an open file. All data is in memory; nothing is synced."""

import mmap
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from struct import Struct
from typing import Final

from pinfs.bench.places import Room
from pinfs.bench.rows import Batch, Rows, us_each
from pinfs.linux.abi import PAGE_SIZE

rows: Final = Rows()
row = rows.row

PAGE: Final = 4096  # bytes of a small read or write, whatever the size of a page of memory
MIB: Final = 1 << 20
U64: Final = Struct("=Q")


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """A descriptor for the length of a row."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def shuffled(offsets: range) -> list[int]:
    """A random order, the same in every run and every directory."""
    order = list(offsets)
    random.Random(1).shuffle(order)
    return order


def reads(room: Room, offsets: list[int], size: int) -> Iterator[Batch]:
    """preadv into one buffer, so that no memory is allocated in the loop."""
    with opened(room.file(size=len(offsets) * size), os.O_RDONLY) as fd:
        call = partial(os.preadv, fd, [bytearray(size)])
        yield lambda: us_each(call, offsets)


def writes(room: Room, offsets: list[int], size: int) -> Iterator[Batch]:
    """pwrite over bytes that are there already."""
    with opened(room.file(size=len(offsets) * size), os.O_RDWR) as fd:
        call = partial(os.pwrite, fd, os.urandom(size))
        yield lambda: us_each(call, offsets)


@row("data", "read 4 KiB, sequential", 8192)
def read_sequential(room: Room, calls: int) -> Iterator[Batch]:
    yield from reads(room, list(range(0, calls * PAGE, PAGE)), PAGE)


@row("data", "read 4 KiB, random", 8192)
def read_random(room: Room, calls: int) -> Iterator[Batch]:
    yield from reads(room, shuffled(range(0, calls * PAGE, PAGE)), PAGE)


@row("data", "write 4 KiB, sequential", 8192)
def write_sequential(room: Room, calls: int) -> Iterator[Batch]:
    yield from writes(room, list(range(0, calls * PAGE, PAGE)), PAGE)


@row("data", "write 4 KiB, random", 8192)
def write_random(room: Room, calls: int) -> Iterator[Batch]:
    yield from writes(room, shuffled(range(0, calls * PAGE, PAGE)), PAGE)


@row("data", "read 1 MiB", 64)
def read_large(room: Room, calls: int) -> Iterator[Batch]:
    yield from reads(room, list(range(0, calls * MIB, MIB)), MIB)


@row("data", "write 1 MiB", 64)
def write_large(room: Room, calls: int) -> Iterator[Batch]:
    yield from writes(room, list(range(0, calls * MIB, MIB)), MIB)


@contextmanager
def mapped(fd: int) -> Iterator[mmap.mmap]:
    """The whole file, shared and writable."""
    with closing(mmap.mmap(fd, 0)) as memory:
        yield memory


def storing(memory: mmap.mmap) -> Callable[[int], None]:
    """A call that stores 8 bytes at an offset."""

    def store(offset: int) -> None:
        U64.pack_into(memory, offset, offset)

    return store


@row("data", "load 8 bytes from a mapping, random", 8192)
def mapped_load(room: Room, calls: int) -> Iterator[Batch]:
    offsets = shuffled(range(0, calls * PAGE, PAGE))
    with opened(room.file(size=calls * PAGE), os.O_RDWR) as fd, mapped(fd) as memory:
        call = partial(U64.unpack_from, memory)
        yield lambda: us_each(call, offsets)


@row("data", "store 8 bytes into a mapping, random", 8192)
def mapped_store(room: Room, calls: int) -> Iterator[Batch]:
    offsets = shuffled(range(0, calls * PAGE, PAGE))
    with opened(room.file(size=calls * PAGE), os.O_RDWR) as fd, mapped(fd) as memory:
        yield lambda: us_each(storing(memory), offsets)


@row("data", "first touch of a mapped page, store", 8192)
def mapped_fault(room: Room, calls: int) -> Iterator[Batch]:
    offsets = shuffled(range(0, calls * PAGE_SIZE, PAGE_SIZE))
    with opened(room.file(size=calls * PAGE_SIZE), os.O_RDWR) as fd:

        def batch() -> float:
            with mapped(fd) as memory:
                return us_each(storing(memory), offsets)

        yield batch


@row("data", "map + touch one page + unmap", 500)
def map_unmap(room: Room, calls: int) -> Iterator[Batch]:
    with opened(room.file(size=PAGE_SIZE), os.O_RDWR) as fd:

        def map_touch(length: int) -> None:
            with mmap.mmap(fd, length) as memory:
                memory[0] = 1

        yield lambda: us_each(map_touch, [PAGE_SIZE] * calls)
