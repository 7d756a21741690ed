"""Verbs that show the present state again and again: in place on a terminal, one after the other in a pipe."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

import click

from pinfs.cli.verb import Verb

EVERY_S: Final = 2.0
"""As watch(1)."""
LEAST_S: Final = 0.1
LONG_S: Final = 0.5
"""A reading that takes longer is one of very many pins."""
SHARE: Final = 9.0
"""After a long one the mount is left alone for this many times as long."""


def pause_s(interval_s: float, took_s: float) -> float:
    """How long to wait after a reading that took so long, in seconds."""
    return interval_s if took_s < LONG_S else max(interval_s, SHARE * took_s)


class Screen:
    """The whole terminal, redrawn in place; at the end it shows again what it showed before.

    Keys come without Enter and unseen, if standard input is a terminal as well.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[Any] = []

    def __enter__(self) -> "Screen":
        if self._keys >= 0:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys, termios.TCSADRAIN)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self._keys >= 0:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    @property
    def height(self) -> int:
        """Lines."""
        return self._console.size.height

    def show(self, *parts: Any) -> None:
        """Draw what rich can draw, one below the other; what does not fit is cut off."""
        from rich.console import Group

        self._live.update(Group(*parts), refresh=True)

    def key(self, limit_s: float) -> str:
        """The next key, or "" after `limit_s` seconds."""
        if self._keys < 0:
            time.sleep(limit_s)
            return ""
        if not select.select([self._keys], [], [], limit_s)[0]:
            return ""
        typed = os.read(self._keys, 16).decode(errors="replace")
        return typed[:1] or "q"  # the terminal has gone


def heading(interval_s: float) -> Any:
    """The first line of a screen: how often it is drawn, of what, when it was."""
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_column(justify="right", no_wrap=True)
    command = " ".join(["pinfs", *sys.argv[1:]])
    line.add_row(Text(f"Every {interval_s:g} s: {command}", style="dim"), time.strftime("%H:%M:%S  q: quit"))
    return line


def again(interval_s: float, draw: Callable[[Screen], None], tell: Callable[[], None], *, in_place: bool) -> None:
    """Until interrupted, or `q` on a terminal: `draw` if the screen is to be redrawn, else `tell`."""
    if not in_place or not sys.stdout.isatty():
        while True:
            began_s = time.monotonic()
            tell()
            sys.stdout.flush()
            time.sleep(pause_s(interval_s, time.monotonic() - began_s))
    with Screen() as screen:
        while True:
            began_s = time.monotonic()
            draw(screen)
            if screen.key(pause_s(interval_s, time.monotonic() - began_s)) in ("q", "Q"):
                return


class WatchVerb(Verb):
    """A verb with `--watch [SECONDS]`: what follows it is a path unless it is a number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ready: list[str] = []
        for place, word in enumerate(args):
            if word == "--":
                ready += args[place:]
                break
            ready.append(word)
            if word in ("-w", "--watch") and not _is_number(args[place + 1 : place + 2]):
                ready.append(str(EVERY_S))
        return super().parse_args(ctx, ready)


def _is_number(words: Sequence[str]) -> bool:
    try:
        return bool(words) and float(words[0]) > -1
    except ValueError:
        return False


watch_option = click.option(
    "-w", "--watch", "watch_s", metavar="[SECONDS]", type=click.FloatRange(LEAST_S, 86400.0),
    help=f"Show it again every SECONDS ({EVERY_S:g}) until interrupted: in place on a terminal (q quits), one after "
    "the other in a pipe.",
)  # fmt: skip
