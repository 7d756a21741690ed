"""Pins as a table: columns, order, rows."""

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from pinfs.cli.output import print_table, table_of
from pinfs.observe.wording import age_text

Pin = dict[str, Any]
Value = int | float | str | None
SortKey = tuple[str, bool]
"""A column, and whether it is to fall."""

ROWS: Final = 1000  # of a table; laying out a million takes minutes
UNSEEN: Final = "-"  # the holder is shown to the owner's user and root only (SPEC 4)


class Column(NamedTuple):
    """What a column shows of a pin, and what it is sorted by: None goes last, whichever the order."""

    text: Callable[[Pin], str]
    value: Callable[[Pin], Value]
    is_number: bool = False


def _of(key: str, *, is_number: bool = False) -> Column:
    return Column(lambda pin: UNSEEN if pin.get(key) is None else str(pin[key]), lambda pin: pin.get(key), is_number)


def _flag(key: str) -> Column:
    return Column(lambda pin: "yes" if pin.get(key) else "no", lambda pin: bool(pin.get(key)))


def _length(pin: Pin) -> str:
    return str(pin["length"]) if pin["length"] else "end"


def path_of(pin: Pin) -> str:
    """The path of the pin's file, from the root directory; its inode where it has no name (any more)."""
    return str(Path(pin["mount"], pin["path"])) if pin.get("path") is not None else f"(inode {pin.get('inode')})"


def _deadline(pin: Pin) -> str:
    return f"{pin['remaining_s']:.1f}s" if pin.get("remaining_s") is not None else UNSEEN


def _since(pin: Pin) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(pin["since"])) if "since" in pin else UNSEEN


def age_s(pin: Pin) -> float | None:
    """How long it has been registered, in seconds."""
    return max(0.0, time.time() - pin["since"]) if "since" in pin else None


def _age(pin: Pin) -> str:
    age = age_s(pin)
    return UNSEEN if age is None else age_text(age)


COLUMNS: Final[dict[str, Column]] = {
    "ID": _of("id", is_number=True),
    "MODE": _of("mode"),
    "STATE": _of("state"),
    "START": _of("start", is_number=True),
    "LENGTH": Column(_length, lambda pin: pin["length"] or inf, True),
    "PID": _of("pid", is_number=True),
    "COMM": _of("comm"),
    "UID": _of("uid", is_number=True),
    "PATH": Column(path_of, lambda pin: path_of(pin) if pin.get("path") is not None else None),
    "NOTE": _of("note"),
    "DEADLINE": Column(_deadline, lambda pin: pin.get("remaining_s"), True),
    "NAME": _of("name"),
    "OWNER": _of("owner"),
    "SIGNAL": Column(_of("signal").text, lambda pin: None if pin.get("signal") is None else str(pin["signal"])),
    "DIRTY": _flag("dirty"),
    "INODE": _of("inode", is_number=True),
    "SINCE": Column(_since, lambda pin: pin.get("since")),
    "AGE": Column(_age, age_s, True),
    "SEALED": _flag("sealed"),
    "MOUNT": _of("mount"),
    "HOST": _of("host"),
}
DEFAULT: Final = list(COLUMNS)[:11]
_LONG: Final = {"PATH", "NOTE", "NAME", "MOUNT"}
_STYLES: Final = {"breaking": "bold yellow"}


def chosen_columns(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[str]:
    """The value of `--columns`, for click."""
    if value is None:
        return DEFAULT
    chosen = [name for name in value.removeprefix("+").upper().split(",") if name]
    _check(chosen, value)
    return [*DEFAULT, *chosen] if value.startswith("+") else chosen


def chosen_order(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[SortKey]:
    """The value of `--sort`, for click."""
    if value is None:
        return []
    words = [word for word in value.upper().split(",") if word]
    keys = [(word.lstrip("+-"), word.startswith("-")) for word in words]
    _check([name for name, _falling in keys], value)
    return keys


def complete_columns(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """What a shell offers for `--columns` and `--sort`: the names that the last word of the list may become."""
    before, comma, begun = incomplete.rpartition(",")
    sign = begun[:1] if begun[:1] in ("+", "-") else ""
    wanted = begun.removeprefix(sign).upper()
    return [f"{before}{comma}{sign}{name}" for name in COLUMNS if name.startswith(wanted)]


def _check(names: list[str], value: str) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or not names:
        raise click.BadParameter(f"unknown column {', '.join(unknown) or value!r}; there are {', '.join(COLUMNS)}")


def in_order(pins: Iterable[Pin], order: Sequence[SortKey], *, reverse: bool = False) -> list[Pin]:
    """The pins by the columns of `order`, the first of them decides; without any, breaking pins come first."""
    found = list(pins)
    if not order:
        found.sort(key=lambda pin: pin["state"] != "breaking")
        return found[::-1] if reverse else found
    for name, falling in reversed(order):
        value = COLUMNS[name].value
        found.sort(key=lambda pin: (None is (shown := value(pin)), 0 if shown is None else shown),
                   reverse=falling != reverse)  # fmt: skip
        found.sort(key=lambda pin: value(pin) is None)
    return found


class PinTable(NamedTuple):
    """The pins that a table shows, in their order, and how many it leaves out."""

    columns: list[str]
    pins: list[Pin]
    left_out: int
    headings: bool = True

    def print(self) -> None:
        """To standard output; on standard error, how many pins are left out."""
        headings, rows, layout = self._parts()
        print_table(headings, rows, **layout)
        if self.left_out:
            click.echo(f"... and {self.left_out} more: name a FILE, or --limit 0, or --json", err=True)

    def drawn(self) -> Any:
        """For a screen: one line a pin, however narrow it is."""
        headings, rows, layout = self._parts()
        cut = [number for number, name in enumerate(self.columns) if name in _LONG]
        return table_of(headings, rows, **layout, cut=cut)

    def _parts(self) -> tuple[list[str], list[list[str]], dict[str, Any]]:
        rows = [[COLUMNS[name].text(pin) for name in self.columns] for pin in self.pins]
        right = [number for number, name in enumerate(self.columns) if COLUMNS[name].is_number]
        styles = [_STYLES.get(pin["state"], "") for pin in self.pins]
        return self.columns if self.headings else [], rows, {"right": right, "styles": styles}


def table_of_pins(pins: list[Pin], columns: list[str], *, headings: bool = True, limit: int = ROWS) -> PinTable:
    """The first `limit` of `pins` (0: all)."""
    shown = pins[:limit] if limit else pins
    return PinTable(columns, shown, len(pins) - len(shown), headings)
