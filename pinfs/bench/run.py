"""Interleaved rounds: each round runs a row's batch once in every directory, so that a busy moment affects them all."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from statistics import median
from typing import Final, Protocol

from pinfs.bench import breaks, cluster, data, metadata, pins, processes, programs, seals
from pinfs.bench.crowd import Crowds, CrowdSize
from pinfs.bench.material import Material
from pinfs.bench.places import Place, open_places
from pinfs.bench.rows import Batch, Row, Skip

COUNTS: Final = (1, 1000, 100_000, 1_000_000)
QUICK_COUNTS: Final = (1, 200)
ROUNDS: Final = 9
QUICK_ROUNDS: Final = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `counts`: sizes of the crowd of other pins."""

    directories: Sequence[str]
    only: Sequence[str] = ()
    rounds: int = ROUNDS
    counts: Sequence[int] = COUNTS
    quick: bool = False


class Watcher(Protocol):
    """Receives the progress of a run."""

    def begin(self, batches: int) -> None: ...
    def step(self, row: str) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """Microseconds per operation of one row, by directory, a sample a round. `notes`: why a directory has none."""

    row: Row
    samples: dict[str, list[float]]
    notes: dict[str, str] = field(default_factory=dict)

    def median(self, path: str) -> float | None:
        """The median of the rounds, microseconds."""
        return median(self.samples[path]) if self.samples.get(path) else None

    def best(self, path: str) -> float | None:
        """The best of the rounds, microseconds."""
        return min(self.samples.get(path, []), default=None)

    def ratio(self, path: str, base: str) -> float | None:
        """Time in `path` by time in `base`: the median of the rounds' own ratios, which a busy round moves less."""
        pairs = list(zip(self.samples.get(path, []), self.samples.get(base, []), strict=False))
        return median(ours / theirs for ours, theirs in pairs) if pairs else None


def all_rows(counts: Sequence[int], crowds: Crowds, material: Material) -> list[Row]:
    """Every row there is. The crowd comes last, because its pins stay until the end."""
    own = (data, metadata, pins, seals, breaks, cluster, processes)
    alone = [row for module in own for row in module.rows]
    return [*alone, *programs.rows(material), *pins.crowded(counts, crowds)]


def chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """Rows whose group is in `only`, or whose name contains or matches one of its other words; all if it is empty."""
    groups = {row.group for row in rows} & {*only}
    words = {*only} - groups

    def wanted(row: Row) -> bool:
        return row.group in groups or any(word == row.name or fnmatch(row.name, f"*{word}*") for word in words)

    return [row for row in rows if not only or wanted(row)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run."""

    plan: Plan
    places: list[Place]
    measured: list[Measured]
    crowds: list[CrowdSize]


class NoPeerError(Exception):
    """The rows of a cluster were asked for, and there are no two hosts of one among the directories."""


def run(plan: Plan, watcher: Watcher) -> Outcome:
    """Measure; clean up also when interrupted. OSError: no scratch directory can be created. NoPeerError."""
    with open_places(plan.directories) as places, Crowds(watcher.say) as crowds, Material() as material:
        rows = _possible(chosen(all_rows(plan.counts, crowds, material), plan.only), places, plan.only)
        watcher.begin(len(rows) * (plan.rounds + 1))
        measured = [measure(row, places, plan, watcher) for row in rows]
        return Outcome(plan, places, measured, crowds.sizes())


def _possible(rows: list[Row], places: Sequence[Place], only: Sequence[str]) -> list[Row]:
    """Without those of a cluster where there is none and its group was not asked for."""
    if any(place.peer_work for place in places):
        return rows
    if cluster.GROUP in only:
        raise NoPeerError(cluster.why_no_pair(places))
    return rows if only else [row for row in rows if row.group != cluster.GROUP]


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running in the middle of a batch."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure(row: Row, places: Sequence[Place], plan: Plan, watcher: Watcher) -> Measured:
    """Run one row in all places: one round to warm up, then the rounds that count."""
    result = Measured(row, {})
    with ExitStack() as stack, no_collector():
        batches: dict[str, Batch] = {}
        for place in places:
            with _excused(result, place.path):
                batches[place.path] = row.open_in(place, stack, plan.quick)
        for turn in range(plan.rounds + 1):
            watcher.step(row.name)
            for path in _rotated([path for path in batches if path not in result.notes], turn):
                with _excused(result, path):
                    us = batches[path]()
                    if turn > 0:
                        result.samples.setdefault(path, []).append(us)
    return result


@contextmanager
def _excused(result: Measured, path: str) -> Iterator[None]:
    """A directory that cannot run this row has a note instead of a result, and the others go on."""
    try:
        yield
    except (Skip, OSError) as why:
        result.notes[path] = why.strerror or str(why) if isinstance(why, OSError) else str(why)
        result.samples.pop(path, None)


def _rotated(paths: list[str], turn: int) -> list[str]:
    """`paths`, beginning with another one each turn."""
    start = turn % len(paths) if paths else 0
    return paths[start:] + paths[:start]
