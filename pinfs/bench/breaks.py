"""The latency of a break, between two processes: pinfs's against the kernel's own lease (fcntl(2), F_SETLEASE).

The breaker is the same call in both, truncate(2) by path; the holder sleeps in sigtimedwait(2). Stamps are
CLOCK_MONOTONIC. A holder of pinfs that waits for its eventfd sleeps in read(2) instead.
"""

import os
from collections.abc import Iterator
from statistics import median
from time import monotonic_ns
from typing import Final, NamedTuple

from pinfs.bench import holder
from pinfs.bench.places import Room
from pinfs.bench.remote import Remote, started
from pinfs.bench.rows import Batch, Rows

rows: Final = Rows()
row = rows.row


class Break(NamedTuple):
    """One break, in microseconds."""

    told: float  # from truncate's entry to the arrival of the signal, or of the eventfd's count
    done: float  # from the release's start to truncate's return
    whole: float


def break_once(other: Remote, command: str, path: str, there: str) -> Break:
    """Let the holder take its pin or lease, truncate the file by its name `there`, and read the holder's stamps."""
    os.truncate(path, 4096)
    other.tell(command, path)
    other.wait_asleep()
    entered_ns = monotonic_ns()
    os.truncate(there, 0)
    returned_ns = monotonic_ns()
    told_ns, let_go_ns = other.answer()
    return Break((told_ns - entered_ns) / 1000, (returned_ns - let_go_ns) / 1000, (returned_ns - entered_ns) / 1000)


def breaks(room: Room, calls: int, what: int, hold: str = "hold_pin", cut_in: str | None = None) -> Iterator[Batch]:
    """A batch is the median of `calls` breaks, so that a break delayed by the scheduler does not dominate. `hold`: the
    holder's command on pinfs; `cut_in`: the directory by which the breaker reaches the file, the room itself if None.
    """
    command = hold if room.place.pinfs else "hold_lease"
    path = room.file()
    there = f"{cut_in or room.path}/{os.path.basename(path)}"
    with started(holder.__file__) as other:
        break_once(other, command, path, there)  # raises OSError where there are no leases
        yield lambda: median(break_once(other, command, path, there)[what] for _ in range(calls))


@row("break", "lease break: truncate's entry to the signal's arrival", 100)
def break_told(room: Room, calls: int) -> Iterator[Batch]:
    yield from breaks(room, calls, 0)


@row("break", "lease break: truncate's entry to the eventfd's wake-up", 100)
def break_told_by_eventfd(room: Room, calls: int) -> Iterator[Batch]:
    yield from breaks(room, calls, 0, "hold_pin_by_eventfd")


@row("break", "lease break: release to truncate's return", 100)
def break_done(room: Room, calls: int) -> Iterator[Batch]:
    yield from breaks(room, calls, 1)


@row("break", "lease break: truncate's entry to its return", 100)
def break_whole(room: Room, calls: int) -> Iterator[Batch]:
    yield from breaks(room, calls, 2)
