"""`pinfs watch`: pins and breaks as they happen."""

import errno
import json
import time
from collections.abc import Iterator
from itertools import islice

import click

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.mounts import the_mount
from pinfs.cli.output import json_or, print_json_line
from pinfs.cli.verb import Verb, fail
from pinfs.observe.asking import Question
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import EventJson, describe, differences, printable

_BUFFER = 1 << 20  # bytes; a read returns whole lines only (docs/interfaces.md)
_STYLES = {"break": "yellow", "refused": "red", "revoked": "red", "withdrawn": "magenta", "overflow": "red"}


@click.command(
    cls=Verb,
    short_help="Show pins and breaks as they happen.",
    examples="""
# what happens on the only mount, as it happens
pinfs watch

# the next break, for a script
pinfs watch --json /mnt/models | jq --unbuffered 'select(.event == "break")'

# one event, then exit
pinfs watch --count 1 /mnt/models
""",
)
@click.argument("where", metavar="[MOUNT]", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Fail unless all events of all users can be read (root).")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("-i", "--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True, metavar="SECONDS",
              help="How often to read the list of pins (users other than root).")  # fmt: skip
@json_or("text", "One JSON object a line (the default in a pipe), or lines for people (the default on a terminal).")
def watch(where: str | None, everything: bool, count: int | None, interval: float, as_json: bool) -> None:
    """Print what happens to the pins of MOUNT until interrupted: pinned, break, refused, released, revoked, withdrawn.

    Root reads the daemon's trace, which has every event. For other users the list of pins is read every --interval
    seconds and differences are printed: a pin that comes and goes between two readings is missed.
    """
    mount = the_mount(where)
    show = print_json_line if as_json else _print_event
    for event in islice(_events(mount, everything, interval), count):
        show(event)


def _events(mount: Mount, everything: bool, interval_s: float) -> Iterator[EventJson]:
    with Question(mount, lambda: _trace(mount)) as trace:
        try:
            trace.next()
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
        else:
            for lines in trace.rest():
                yield from map(json.loads, lines.splitlines())
            return
    if everything:
        fail(f"{mount.point}: only root can watch all events", ExitCode.NOT_PERMITTED)
    yield from _changes(mount, interval_s)


def _trace(mount: Mount) -> Iterator[bytes]:
    """Nothing once the trace is open, then its lines as they come. Ctrl-C would not end a read that the daemon never
    answers: another process waits for this one."""
    with mount.control("trace").open("rb", buffering=0) as trace:
        yield b""
        while lines := trace.read(_BUFFER):
            yield lines


def _changes(mount: Mount, interval_s: float) -> Iterator[EventJson]:
    """The differences between two readings of the pins."""
    before = {pin["id"]: pin for pin in mount.pins()}
    while True:
        time.sleep(interval_s)
        now = {pin["id"]: pin for pin in mount.pins()}
        yield from differences(before, now)
        before = now


def _print_event(event: EventJson) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text()
    line.append(time.strftime("%H:%M:%S "), style="dim")
    line.append(f"{event.get('event', '?'):<10}", style=_STYLES.get(event.get("event", ""), "green"))
    line.append(printable(describe(event)))
    Console(highlight=False, soft_wrap=True).print(line)
