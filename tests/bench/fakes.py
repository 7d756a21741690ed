"""Stand-ins for what takes part in a benchmark: watchers, results that were not measured, places that are not there."""

import os
from collections.abc import Iterator
from pathlib import Path

from pinfs.bench.places import Place, Room
from pinfs.bench.rows import Batch, Rows
from pinfs.bench.run import Measured


class Silent:
    """A watcher without output."""

    def begin(self, batches: int) -> None:
        self.batches = batches

    def step(self, row: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Interrupting(Silent):
    """Ctrl-C in the middle of a row."""

    def __init__(self, row: str) -> None:
        self.row = row

    def step(self, row: str) -> None:
        if row == self.row:
            raise KeyboardInterrupt


def children(pid: int | None = None) -> list[int]:
    """Processes that a process (this one) has started and that are still there."""
    pid = pid or os.getpid()
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def measured(samples: dict[str, list[float]], name: str = "row", group: str = "data") -> Measured:
    """A result as if it had been measured."""
    rows = Rows()
    rows.row(group, name, 1)(nothing)
    return Measured(rows[0], samples)


def nothing(room: Room, calls: int) -> Iterator[Batch]:
    yield lambda: 1.0


def place(path: str, role: str = "other") -> Place:
    """A place of that path, which is its label as well."""
    return Place(path, path, role, "tmpfs", False, path, path)
