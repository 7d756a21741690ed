"""How verbs print: tables for people, JSON for programs, and nothing that could reach out of the terminal."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from pinfs.observe.wording import printable

F = TypeVar("F", bound=Callable[..., Any])
Row = Sequence[str]


def wants_json(as_json: bool, as_table: bool) -> bool:
    """Tables on a terminal and JSON in a pipe, unless one of them is asked for."""
    return as_json or not (as_table or sys.stdout.isatty())


def print_json(value: Any) -> None:
    """One JSON value, ASCII only, on one line (several lines on a terminal)."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def print_json_line(value: Any) -> None:
    """One JSON value on one line, at once: somebody may be reading along."""
    click.echo(json.dumps(value))
    sys.stdout.flush()


def listing_options(command: F) -> F:
    """`--json` and `--table`."""
    command = click.option("--table", "as_table", is_flag=True, help="Print a table even into a pipe.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON (the default in a pipe).")(command)


def print_table(headings: Row, rows: Iterable[Row], *, right: Iterable[int] = (), styles: Sequence[str] = ()) -> None:
    """An aligned table: bold headings and colours on a terminal only (NO_COLOR is honoured), no lines around cells.

    `right` are the columns to align on the right, `styles` one rich style for each row.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 1 << 15  # a pipe has no edge to wrap at
    table = Table(box=None, show_header=bool(headings), pad_edge=False, header_style="bold")
    on_the_right = set(right)
    rows = list(rows)
    for number in range(len(headings) or max(map(len, rows), default=0)):
        heading = headings[number] if headings else ""
        table.add_column(heading, justify="right" if number in on_the_right else "left", overflow="fold")
    for number, row in enumerate(rows):
        style = styles[number] if styles else ""
        table.add_row(*[Text(printable(cell)) for cell in row], style=style)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), color=console.is_terminal)
