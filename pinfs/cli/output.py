"""Output of the verbs: tables for people, JSON for programs. Control characters never reach the terminal."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from pinfs.observe.wording import printable

F = TypeVar("F", bound=Callable[..., Any])
Row = Sequence[str]


def print_json(value: Any) -> None:
    """One JSON value, ASCII only, on one line (several lines on a terminal)."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def print_json_line(value: Any) -> None:
    """One JSON value on one line, flushed: a reader in a pipe sees each event as it happens."""
    click.echo(json.dumps(value))
    sys.stdout.flush()


def json_or(other: str, help_text: str) -> Callable[[F], F]:
    """The options `--json` and `--OTHER`, as the parameter `as_json`: JSON in a pipe unless an option chooses."""
    return click.option(
        f"--json/--{other}", "as_json", default=None, help=help_text,
        callback=lambda _ctx, _param, chosen: not sys.stdout.isatty() if chosen is None else chosen,
    )  # fmt: skip


listing_options = json_or("table", "Print JSON (the default in a pipe) or a table (the default on a terminal).")
"""The options of verbs that list."""


def print_table(headings: Row, rows: Iterable[Row], *, right: Iterable[int] = (), styles: Sequence[str] = ()) -> None:
    """An aligned table: bold headings and colours on a terminal only (NO_COLOR is honoured), no lines around cells.

    `right` are the columns to align on the right, `styles` one rich style for each row.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 1 << 15  # a pipe has no width to wrap at
    with console.capture() as captured:
        console.print(table_of(headings, rows, right=right, styles=styles))
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), color=console.is_terminal)


def table_of(
    headings: Row,
    rows: Iterable[Row],
    *,
    right: Iterable[int] = (),
    styles: Sequence[str] = (),
    cut: Iterable[int] | None = None,
) -> Any:
    """The table, for rich to draw. `cut`: each row is one line, and where it does not fit these columns are cut off; if
    None, cells are folded."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=bool(headings), pad_edge=False, header_style="bold")
    on_the_right = set(right)
    rows = [[printable(cell) for cell in row] for row in rows]
    cut_off = None if cut is None else set(cut)
    for number in range(len(headings) or max(map(len, rows), default=0)):
        heading = headings[number] if headings else ""
        is_whole = cut_off is not None and number not in cut_off
        table.add_column(
            heading,
            justify="right" if number in on_the_right else "left",
            overflow="fold" if cut_off is None else "ellipsis",
            no_wrap=is_whole,  # rich narrows the others first
            min_width=max([len(heading), *(len(row[number]) for row in rows)]) if is_whole else None,
        )
    for number, row in enumerate(rows):
        style = styles[number] if styles else ""
        table.add_row(*[Text(cell, no_wrap=cut_off is not None) for cell in row], style=style)
    return table
