"""Rows of the result, and the one measuring loop that they share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Final, TypeVar

from pinfs.bench.places import Place, Room, room

T = TypeVar("T")
Batch = Callable[[], float]  # runs one batch; returns microseconds per operation
Prepare = Callable[[Room, int], Iterator[Batch]]

QUICK_DIVISOR: Final = 50


class Skip(Exception):
    """The row has no meaning in this directory; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: `calls` operations a batch, prepared and cleaned up outside of the measured time."""

    group: str
    name: str
    calls: int
    prepare: Callable[[Room, int], AbstractContextManager[Batch]]

    def open_in(self, place: Place, stack: ExitStack, quick: bool) -> Batch:
        """Prepare the row in a new room of `place`; `stack` cleans up."""
        where = stack.enter_context(room(place))
        return stack.enter_context(self.prepare(where, max(2, self.calls // QUICK_DIVISOR) if quick else self.calls))


def us_each(call: Callable[[T], object], arguments: Sequence[T]) -> float:
    """Microseconds a call. The loop itself costs some 30 ns a turn, in every directory alike."""
    start_ns = perf_counter_ns()
    for argument in arguments:
        call(argument)
    return (perf_counter_ns() - start_ns) / 1000 / len(arguments)


class Rows(list[Row]):
    """A list of rows that a decorator fills."""

    def row(self, group: str, name: str, calls: int) -> Callable[[Prepare], Prepare]:
        def add(prepare: Prepare) -> Prepare:
            self.append(Row(group, name, calls, contextmanager(prepare)))
            return prepare

        return add
