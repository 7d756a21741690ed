"""Rows of several processes that work at once, each in a directory of its own: what they get done together."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from pinfs.bench import worker
from pinfs.bench.pins import VALUE, attribute
from pinfs.bench.places import Room
from pinfs.bench.remote import Remote, started
from pinfs.bench.rows import Batch, Rows

GROUP: Final = "processes"
WORKS: Final = (
    ("mixed metadata", "mixed", 500),
    ("open + close", "open_close", 4000),
    ("pin + release", "pin_release", 2000),
    ("pwrite + pread 4 KiB", "write_read", 4000),
)
"""Name of the row, name of the work in `worker.py`, operations of each process in a batch."""


class Gate:
    """A pipe; whoever polls `ends[0]` goes on when it is opened, all at once."""

    def __init__(self, stack: ExitStack) -> None:
        self.ends = os.pipe()
        for end in self.ends:
            stack.callback(os.close, end)

    def open(self) -> None:
        """Wake all that wait."""
        os.write(self.ends[1], b"x")

    def shut(self) -> None:
        """Have the next ones wait; all that waited must have gone on."""
        os.read(self.ends[0], 1)


class Team:
    """Processes that begin each batch together. `calls`: operations of each process in a batch."""

    def __init__(self, workers: Sequence[Remote], gates: tuple[Gate, Gate], calls: int) -> None:
        self._workers, self._gates, self._calls = workers, gates, calls

    def batch(self) -> float:
        """Microseconds an operation: from the first one's begin to the last one's end, by the operations of all."""
        gate, other = self._gates
        gate.open()
        spans = [one.answer() for one in self._workers]
        gate.shut()
        self._gates = other, gate
        wall_ns = max(end for _, end in spans) - min(begin for begin, _ in spans)
        return float(wall_ns / 1000 / (self._calls * len(spans)))


@contextmanager
def team(room: Room, calls: int, count: int, work: str) -> Iterator[Team]:
    """`count` processes that are ready to work. OSError: they cannot."""
    arguments = (attribute(room), VALUE.decode()) if work == "pin_release" else ()
    with ExitStack() as stack:
        gates = (Gate(stack), Gate(stack))
        fds = [gate.ends[0] for gate in gates]
        workers = [
            stack.enter_context(
                started(worker.__file__, *fds, work, f"{room.path}/{number}", calls, *arguments, pass_fds=fds)
            )
            for number in range(count)
        ]
        for one in workers:
            one.answer()
        yield Team(workers, gates, calls)


def counts(processors: int) -> list[int]:
    """How many processes there are in a row."""
    return sorted({1, 4, processors})


def row_name(name: str, count: int) -> str:
    """Of the row in which `count` processes do that work."""
    return f"{name}, {count} process{'es' if count > 1 else ''}"


def together(count: int, work: str) -> Callable[[Room, int], Iterator[Batch]]:
    """A row of `count` processes."""

    def prepare(room: Room, calls: int) -> Iterator[Batch]:
        with team(room, calls, count, work) as workers:
            yield workers.batch

    return prepare


def crews(processors: int) -> Rows:
    """The rows of a machine with so many processors."""
    rows = Rows()
    for name, work, calls in WORKS:
        for count in counts(processors):
            rows.row(GROUP, row_name(name, count), calls)(together(count, work))
    return rows


rows: Final = crews(os.cpu_count() or 1)
