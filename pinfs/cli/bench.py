"""`pinfs bench DIR [OTHER...]`: the same work on a mount, its backing directory and other directories."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from pinfs.bench import report
from pinfs.bench.crowd import Crowds
from pinfs.bench.material import Material
from pinfs.bench.run import (
    COUNTS,
    QUICK_COUNTS,
    QUICK_ROUNDS,
    ROUNDS,
    NoPeerError,
    Outcome,
    Plan,
    all_rows,
    chosen,
    run,
)
from pinfs.cli.mounts import require_answer
from pinfs.cli.output import listing_options, print_json, print_table
from pinfs.cli.verb import Verb, failure_of
from pinfs.observe.asking import NoAnswerError


def _counts(_: click.Context, __: click.Parameter, value: str | None) -> list[int]:
    try:
        return [int(word) for word in (value or "").split(",") if word]
    except ValueError:
        raise click.BadParameter("numbers, separated by commas") from None


def _directories(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for at, path in enumerate(value):
        if any(Path(path).samefile(earlier) for earlier in value[:at]):
            raise click.BadParameter(f"{path} is there twice")
    return value


class _Directory(click.Path):
    """A directory; where it lies on a pinfs, that one answers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            require_answer(value)
        except NoAnswerError as error:
            raise failure_of(error) from error
        return super().convert(value, param, ctx)


class Bar:
    """A progress bar on standard error. It draws on each call; a thread of its own would disturb a batch."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._ending = False

    def begin(self, batches: int) -> None:
        self._progress.update(self._task, total=batches, refresh=True)

    def step(self, row: str) -> None:
        self._stop_here()
        self._progress.update(self._task, description=row, advance=1, refresh=True)

    def say(self, text: str) -> None:
        self._stop_here()
        self._progress.update(self._task, description=text, refresh=True)

    def end(self, number: int, frame: object) -> None:
        """A signal handler: the first signal ends the run between two rounds, the second at once."""
        if self._ending:
            raise KeyboardInterrupt
        self._ending = True

    def _stop_here(self) -> None:
        if self._ending:
            raise KeyboardInterrupt


@contextmanager
def _ended_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@click.command(
    cls=Verb,
    short_help="Measure a mount against its backing and other directories.",
    examples="""
# a mount against its backing directory and against bindfs on the same one, all on one processor
taskset -c 0 pinfs mount /dev/shm/source /mnt/pinfs --daemon
taskset -c 0 bindfs /dev/shm/source /mnt/bindfs
taskset -c 0 pinfs bench /mnt/pinfs /mnt/bindfs

# the most frequent calls, more rounds
pinfs bench /mnt/pinfs --only stat --only 'open + close' --rounds 30

# what several processes get done at once, on pinfs and on bindfs
pinfs bench /mnt/pinfs /mnt/bindfs --only processes

# what git, tar and rm take on pinfs and on bindfs
pinfs bench /mnt/pinfs /mnt/bindfs --only programs

# two hosts of one cluster, and a mount of another source without cluster
pinfs bench /mnt/a /mnt/b /mnt/plain --only cluster

# whether the cost of a pin depends on the number of pins
pinfs bench /mnt/pinfs --only crowd --pins 1,1000000
""",
)
@click.argument("directories", metavar="DIR [OTHER]...", nargs=-1, callback=_directories,
                type=_Directory(exists=True, file_okay=False))  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), help=f"Rounds that count (default {ROUNDS}, quick {QUICK_ROUNDS}).")
@click.option("--only", metavar="ROWS", multiple=True, help="A group, or a word or glob of names (again for more).")
@click.option("--pins", metavar="N,...", callback=_counts, help="Numbers of other pins, for the rows of group crowd.")
@click.option("--cpu", type=click.IntRange(0), help="Run on this processor. (The daemons stay where they are.)")
@click.option("--quick", is_flag=True, help="Small batches: shows that all rows work; the times mean little.")
@click.option("--list", "only_list", is_flag=True, help="List the rows, measure nothing.")
@listing_options
def bench(cpu: int | None, only_list: bool, as_json: bool, **chosen_plan: Any) -> None:
    """Measure a mount DIR, its backing directory, and any OTHER directories, interleaved round by round.

    Times are microseconds per operation. Ratios are of times: above 1, DIR is slower than the other.
    """
    plan = _plan(**chosen_plan)
    rows = chosen(all_rows(plan.counts, Crowds(click.echo), Material()), plan.only)
    if not rows:
        raise click.UsageError("There is no row like that; --list prints all.")
    if only_list:
        for row in rows:
            click.echo(f"{row.group:<10}{row.name}")
        return
    if not plan.directories:
        raise click.UsageError("Name a directory.")
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        bar = Bar(progress)
        try:
            with _ended_by(bar.end):
                outcome = run(plan, bar)
        except NoPeerError as error:
            raise click.UsageError(f"{error}.") from error
    _print(outcome, as_json)


def _plan(
    directories: tuple[str, ...], only: tuple[str, ...], rounds: int | None, pins: list[int], quick: bool
) -> Plan:
    return Plan(
        directories,
        only,
        rounds or (QUICK_ROUNDS if quick else ROUNDS),
        pins or (QUICK_COUNTS if quick else COUNTS),
        quick,
    )


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print_json(report.as_json(outcome))
        return
    headings, rows = report.as_table(outcome)
    numbers = [at for at, heading in enumerate(headings) if at and heading != report.VERDICT]
    print_table(headings, rows, right=numbers)
    click.echo("\n" + "\n".join(report.remarks(outcome)))
