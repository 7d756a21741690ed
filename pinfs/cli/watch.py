"""`pinfs watch`: pins and breaks as they happen."""

import errno
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.mounts import Mount, the_mount
from pinfs.cli.output import print_json_line, printable, wants_json
from pinfs.cli.verb import Verb, fail

Event = dict[str, Any]

_BUFFER = 1 << 20  # bytes; a line of the trace must fit in whole (docs/interfaces.md)
_STYLES = {"break": "yellow", "refused": "red", "revoked": "red", "withdrawn": "magenta", "overflow": "red"}


@click.command(
    cls=Verb,
    short_help="Show pins and breaks as they happen.",
    examples="""
# what happens on the only mount, as it happens
pinfs watch

# the next break, for a script
pinfs watch --json /mnt/models | jq --unbuffered 'select(.event == "break")'

# one event, then go
pinfs watch --count 1 /mnt/models
""",
)
@click.argument("where", metavar="[MOUNT]", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Insist on all events of all users; root only.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("-i", "--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True, metavar="SECONDS",
              help="How often to look, for those who are not root.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (the default in a pipe).")
@click.option("--text", "as_text", is_flag=True, help="Lines for people, even into a pipe.")
def watch(
    where: str | None, everything: bool, count: int | None, interval: float, as_json: bool, as_text: bool
) -> None:
    """Print what happens to the pins of MOUNT until interrupted: pinned, break, refused, released, revoked, withdrawn.

    Root reads the daemon's trace, which has every event. Others may not: they are shown how the list of pins changes,
    looked at every --interval seconds, so that what comes and goes in between stays unseen.
    """
    mount = the_mount(where)
    show = print_json_line if wants_json(as_json, as_text) else _print_event
    for event in islice(_events(mount, everything, interval), count):
        show(event)


def _events(mount: Mount, everything: bool, interval_s: float) -> Iterator[Event]:
    try:
        fd = os.open(mount.control("trace"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        if everything:
            fail(f"{mount.point}: only root can watch all events", ExitCode.NOT_PERMITTED)
        return _changes(mount, interval_s)
    return _trace(fd)


def _trace(fd: int) -> Iterator[Event]:
    with os.fdopen(fd, "rb", buffering=0) as trace:
        while lines := trace.read(_BUFFER):
            yield from map(json.loads, lines.splitlines())


def _changes(mount: Mount, interval_s: float) -> Iterator[Event]:
    """What differs from one look at the pins to the next."""
    before = {pin["id"]: pin for pin in mount.pins()}
    while True:
        time.sleep(interval_s)
        now = {pin["id"]: pin for pin in mount.pins()}
        yield from differences(before, now)
        before = now


def differences(before: dict[int, Event], now: dict[int, Event]) -> Iterator[Event]:
    """Events that lead from one table of pins (by id) to the next."""
    for number in before.keys() - now.keys():
        yield _event("released", before[number])
    for number, pin in now.items():
        old = before.get(number)
        if old is None:
            yield _event("pinned", pin)
        if pin["state"] == "breaking" and (old is None or old["state"] != "breaking"):
            yield _event("break", pin)
        if pin["state"] == "held" and old is not None and old["state"] == "breaking":
            yield _event("withdrawn", pin)


def _event(kind: str, pin: Event) -> Event:
    rest = {key: value for key, value in pin.items() if key not in ("id", "state", "v")}
    return {"v": 1, "event": kind, "pin": pin["id"], **rest}


def _print_event(event: Event) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text()
    line.append(time.strftime("%H:%M:%S "), style="dim")
    line.append(f"{event.get('event', '?'):<10}", style=_STYLES.get(event.get("event", ""), "green"))
    line.append(printable(describe(event)))
    Console(highlight=False, soft_wrap=True).print(line)


def describe(event: Event) -> str:
    """One event in words: the pin, its range and file, who holds it, who asks for it and how long that may take."""
    words = []
    if event.get("pin") is not None:
        words.append(f"pin {event['pin']}")
    if event.get("start") is not None:
        end = event["start"] + event["length"] if event.get("length") else "end"
        words.append(f"{event.get('mode', '')} [{event['start']}, {end})".strip())
    if event.get("path") is not None:
        words.append(f"of {event['path']}")
    words += [f"held by {_who(event)}"] if event.get("pid") is not None else []
    words += [f"for {event['op']}"] if event.get("op") else []
    words += [f"of {_who(event['breaker'])}"] if event.get("breaker") else []
    words += [f"({event[key]})" for key in ("why", "by") if event.get(key)]
    words += [f"{event['remaining_s']:.1f} s left"] if event.get("remaining_s") is not None else []
    words += [f"{event['lost']} events lost"] if event.get("lost") else []
    return " ".join(words)


def _who(process: Event) -> str:
    return " ".join(str(process[key]) for key in ("pid", "comm") if process.get(key) is not None)
