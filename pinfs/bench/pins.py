"""Pin rows. Without pinfs, a plain extended attribute of the same length takes the pin's place."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from pinfs.bench.crowd import Crowds
from pinfs.bench.data import PAGE, opened
from pinfs.bench.places import Room
from pinfs.bench.rows import Batch, Prepare, Rows, us_each

rows: Final = Rows()
row = rows.row

PIN: Final = "user.pinfs.pin.bench"
PLAIN: Final = "user.other.pin.bench"
VALUE: Final = b"0:4096"
ANSWER: Final = 360
"""Bytes of the JSON that getxattr of a pin answers in a room, give or take the digits of its numbers."""


def attribute(room: Room) -> str:
    """The pin's attribute on pinfs, a plain one elsewhere."""
    return PIN if room.place.pinfs else PLAIN


@row("pins", "pin + release", 500)
def pin_release(room: Room, calls: int) -> Iterator[Batch]:
    name = attribute(room)
    with opened(room.file(), os.O_RDWR) as fd:

        def pair(value: bytes) -> None:
            os.setxattr(fd, name, value)
            os.removexattr(fd, name)

        yield lambda: us_each(pair, [VALUE] * calls)


@row("pins", "pin, moved", 500)
def pin_move(room: Room, calls: int) -> Iterator[Batch]:
    with pinned(room) as (fd, name):
        yield lambda: us_each(partial(os.setxattr, fd, name), [b"4096:4096", VALUE] * (calls // 2))


@row("pins", "getxattr of the pin", 500)
def pin_get(room: Room, calls: int) -> Iterator[Batch]:
    """A plain attribute is as long as the answer, for which Python asks twice: first with room for 128 bytes."""
    with pinned(room) as (fd, name):
        if not room.place.pinfs:
            os.setxattr(fd, name, b"x" * ANSWER)
        yield lambda: us_each(partial(os.getxattr, fd), [name] * calls)


@row("pins", "ftruncate beside a pin", 500)
def pin_truncate(room: Room, calls: int) -> Iterator[Batch]:
    """The guard finds a pin in the file, and that its bytes are not removed."""
    with pinned(room) as (fd, _):
        yield lambda: us_each(partial(os.ftruncate, fd), [PAGE, 2 * PAGE] * (calls // 2))


@contextmanager
def pinned(room: Room) -> Iterator[tuple[int, str]]:
    """A file of two pages, the first of them pinned: its descriptor, the pin's attribute."""
    name = attribute(room)
    with opened(room.file(size=2 * PAGE), os.O_RDWR) as fd:
        os.setxattr(fd, name, VALUE)
        try:
            yield fd, name
        finally:
            os.removexattr(fd, name)


def crowded(counts: Sequence[int], crowds: Crowds) -> Rows:
    """Two rows of each count of pins on other files (pinfs only), ascending, because a crowd only grows."""
    rows = Rows()
    for count in sorted(counts):
        for name, prepare in (("pin + release", pin_release), ("ftruncate beside a pin", pin_truncate)):
            rows.row("crowd", crowd_name(name, count), 500)(partial(_beside_a_crowd, prepare, crowds, count))
    return rows


def crowd_name(name: str, count: int) -> str:
    """The name of the row that measures `name` beside `count` other pins."""
    return f"{name}, {count} other pins"


def _beside_a_crowd(prepare: Prepare, crowds: Crowds, count: int, room: Room, calls: int) -> Iterator[Batch]:
    if room.place.pinfs:
        crowds.of(room.place).grow(count)
    yield from prepare(room, calls)
