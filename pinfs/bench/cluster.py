"""Rows of two mounts of one source in one cluster (SPEC 14): what a pin at one host costs here and at the other one.

The first four rows are of files that nobody has pinned, and run in every directory: their time by that of a mount
without cluster is what the other hosts cost where there is nothing to ask them.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from pinfs.bench.breaks import breaks
from pinfs.bench.data import PAGE, opened
from pinfs.bench.metadata import comes, create, for_each, goes
from pinfs.bench.pins import PIN, VALUE
from pinfs.bench.places import Place, Room
from pinfs.bench.rows import Batch, Prepare, Rows, Skip, us_each

GROUP: Final = "cluster"
NEEDS: Final = "needs two mounts of one source in one cluster (-o cluster=ENDPOINTS), as DIR and OTHER"

rows: Final = Rows()
row = partial(rows.row, GROUP)


def the_other(room: Room) -> str:
    """The room at the other host. Skip: there is none."""
    if room.place.cluster is None:
        raise Skip("in no cluster")
    if room.peer_path is None:
        raise Skip(NEEDS)
    return room.peer_path


def why_no_pair(places: Sequence[Place]) -> str:
    """In words, where no two of them are hosts of one cluster with the same files."""
    what = [f"{place.path} is {_what(place)}" for place in places if place.role != "backing"]
    return f"group {GROUP} {NEEDS}: {'; '.join(what)}"


def _what(place: Place) -> str:
    if place.cluster is not None:
        return f"host {place.cluster.host} of cluster {place.cluster.name}"
    return "a pinfs mount in no cluster" if place.pinfs else "no pinfs mount"


# Files that nobody has pinned


@row("ftruncate of a file without pins", 2000)
def truncate_open(room: Room, calls: int) -> Iterator[Batch]:
    sizes = [PAGE, 2 * PAGE] * (calls // 2)
    with opened(room.file(size=2 * PAGE), os.O_RDWR) as fd:
        yield lambda: us_each(partial(os.ftruncate, fd), sizes)


@row("truncate of a file without pins, by its path", 1000)
def truncate_path(room: Room, calls: int) -> Iterator[Batch]:
    sizes = [PAGE, 2 * PAGE] * (calls // 2)
    path = room.file(size=2 * PAGE)
    yield lambda: us_each(partial(os.truncate, path), sizes)


row("unlink of a file without pins", 500)(goes(create, os.unlink))
row("create + close of a file without pins", 500)(comes(create, os.unlink))


# Pins


def pin(fd: int, name: str) -> None:
    """A deny pin of the first page."""
    os.setxattr(fd, name, VALUE)


@contextmanager
def pinned_here(room: Room) -> Iterator[tuple[int, str]]:
    """A file of three pages, the first of them pinned at this host: its descriptor here, its path at the other."""
    other = the_other(room)
    with opened(room.file(size=3 * PAGE), os.O_RDWR) as fd:
        pin(fd, PIN)
        try:
            yield fd, f"{other}/file"
        finally:
            os.removexattr(fd, PIN)


@row("first pin of a file", 20)
def first_pin(room: Room, calls: int) -> Iterator[Batch]:
    the_other(room)
    generation = 0

    def batch() -> float:
        nonlocal generation
        generation += 1
        paths = [room.file(f"{generation}.{number}") for number in range(calls)]
        us = us_each(lambda path: os.setxattr(path, PIN, VALUE), paths)
        for_each(lambda path: os.removexattr(path, PIN), paths)
        return us

    yield batch


def further_pins(room: Room, calls: int, what: int) -> Iterator[Batch]:
    """Pins and releases in a file that has one: the time of the first or of the second."""
    names = [f"{PIN}.{number}" for number in range(calls)]
    with pinned_here(room) as (fd, _):

        def batch() -> float:
            return (us_each(partial(pin, fd), names), us_each(partial(os.removexattr, fd), names))[what]

        yield batch


@row("further pin of a file", 50)
def further_pin(room: Room, calls: int) -> Iterator[Batch]:
    yield from further_pins(room, calls, 0)


@row("release of a pin", 50)
def release(room: Room, calls: int) -> Iterator[Batch]:
    yield from further_pins(room, calls, 1)


# Removals of a file that one host has pinned


@row("truncate refused at the other host", 50)
def refused(room: Room, calls: int) -> Iterator[Batch]:
    def must_fail(path: str) -> None:
        try:
            os.truncate(path, 0)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            raise Skip("a truncate at the other host has cut pinned bytes")

    with pinned_here(room) as (_, there):
        yield lambda: us_each(must_fail, [there] * calls)


def beside(room: Room, calls: int, *, at_other: bool) -> Iterator[Batch]:
    """Truncates that leave the pinned page alone."""
    sizes = [2 * PAGE, 3 * PAGE] * (calls // 2)
    with pinned_here(room) as (_, there):
        path = there if at_other else f"{room.path}/file"
        yield lambda: us_each(partial(os.truncate, path), sizes)


@row("truncate beside the pin, at its host", 50)
def beside_here(room: Room, calls: int) -> Iterator[Batch]:
    yield from beside(room, calls, at_other=False)


@row("truncate beside the pin, at the other host", 50)
def beside_there(room: Room, calls: int) -> Iterator[Batch]:
    yield from beside(room, calls, at_other=True)


def broken_from_there(what: int) -> Prepare:
    """A lease whose breaker is at the other host."""

    def prepare(room: Room, calls: int) -> Iterator[Batch]:
        yield from breaks(room, calls, what, cut_in=the_other(room))

    return prepare


row("lease at the other host: truncate's entry to the signal's arrival", 20)(broken_from_there(0))
row("lease at the other host: release to truncate's return", 20)(broken_from_there(1))
row("lease at the other host: truncate's entry to its return", 20)(broken_from_there(2))
