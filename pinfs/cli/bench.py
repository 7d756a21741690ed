"""`pinfs bench DIR [OTHER...]`: the same work on a mount, its backing directory and other directories."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from pinfs.bench import report
from pinfs.bench.crowd import Crowds
from pinfs.bench.rows import Row
from pinfs.bench.run import COUNTS, QUICK_COUNTS, QUICK_ROUNDS, ROUNDS, Outcome, Plan, all_rows, chosen, run

INTERRUPTED = 130  # what a shell reports for a command that SIGINT has ended


def _words(_: click.Context, __: click.Parameter, value: str | None) -> list[str]:
    return [word.strip() for word in (value or "").split(",") if word.strip()]


def _counts(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int]:
    try:
        return [int(word.replace("_", "")) for word in _words(context, parameter, value)]
    except ValueError:
        raise click.BadParameter("numbers, separated by commas") from None


def _directories(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for at, path in enumerate(value):
        if any(Path(path).samefile(earlier) for earlier in value[:at]):
            raise click.BadParameter(f"{path} is there twice")
    return value


class Bar:
    """A progress bar on standard error. It draws when told to: a thread of its own would disturb a batch."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def begin(self, batches: int) -> None:
        self._progress.update(self._task, total=batches, refresh=True)

    def step(self, row: str) -> None:
        self._progress.update(self._task, description=row, advance=1, refresh=True)

    def say(self, text: str) -> None:
        self._progress.update(self._task, description=text, refresh=True)


@contextmanager
def _clean_end() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: with everything taken down."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command("bench")
@click.argument("directories", nargs=-1, type=click.Path(exists=True, file_okay=False), callback=_directories)
@click.option("--rounds", type=click.IntRange(1), help=f"Rounds that count [{ROUNDS}; --quick: {QUICK_ROUNDS}].")
@click.option("--only", metavar="ROWS", callback=_words, help="Groups, words or globs of names, separated by commas.")
@click.option("--pins", metavar="N,...", callback=_counts, help=f"Sizes of the crowd of other pins [{COUNTS}].")
@click.option("--cpu", type=click.IntRange(0), help="Run on this processor (taskset for the daemons: see the manual).")
@click.option("--quick", is_flag=True, help="Small batches, to see that everything works; the times mean little.")
@click.option("--list", "only_list", is_flag=True, help="List the rows and measure nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON, also on a terminal.")
def bench(
    directories: tuple[str, ...],
    rounds: int | None,
    only: list[str],
    pins: list[int],
    cpu: int | None,
    quick: bool,
    only_list: bool,
    as_json: bool,
) -> None:
    """Measure the mount DIRECTORY, its backing directory, and any OTHER directories, interleaved round by round.

    Ratios are of times: above 1, the first directory is slower.
    """
    counts = pins or (QUICK_COUNTS if quick else COUNTS)
    if only_list:
        _list(chosen(all_rows(counts, Crowds(click.echo)), only))
        return
    if not directories:
        raise click.UsageError("Name a directory.")
    if cpu is not None:
        _use(cpu)
    plan = Plan(directories, only, rounds or (QUICK_ROUNDS if quick else ROUNDS), counts, quick)
    with _clean_end(), Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        outcome = _run(plan, Bar(progress))
    _print(outcome, as_json or not sys.stdout.isatty())


def _list(rows: list[Row]) -> None:
    for row in rows:
        click.echo(f"{row.group:<10}{row.name}")


def _use(cpu: int) -> None:
    """The benchmark and its other processes, which inherit it."""
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        raise click.UsageError(f"--cpu {cpu}: {error.strerror}") from None


def _run(plan: Plan, bar: Bar) -> Outcome:
    try:
        return run(plan, bar)
    except OSError as error:
        raise click.ClickException(str(error)) from None


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.as_json(outcome), indent=1))
        return
    console = Console()
    console.print(report.as_table(outcome))
    for remark in report.remarks(outcome):
        console.print(remark, highlight=False)
