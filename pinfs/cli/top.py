"""`pinfs top`: what a mount is doing right now, like top(1)."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from pinfs.cli.mounts import the_mount
from pinfs.cli.output import json_or, print_json, print_json_line, print_table, table_of
from pinfs.cli.screen import EVERY_S, LEAST_S, Screen, pause_s
from pinfs.cli.verb import Verb, failure_of
from pinfs.observe import activity
from pinfs.observe.mounts import COUNTED, Mount
from pinfs.observe.wording import age_text, breaker_text, bytes_text, cluster_text, in_kernel_text, life_text, printable

Json = dict[str, Any]

MAX_HOLDERS: Final = 100
"""Holders in one JSON object; `more_holders` counts the others."""
KEYS: Final = {"b": "breaks", "p": "pins", "s": "bytes", "a": "age"}
_HOLDERS: Final = ("PID", "COMM", "UID", "PINS", "BREAKING", "BYTES", "FILES", "OLDEST")
_BREAKS: Final = ("LEFT", "REMOVAL", "BREAKER", "WAITS FOR")
_RATES: Final = {"requests": "requests", "pins": "pins", "releases": "releases", "refusals": "refusals",
                 "breaks": "breaks", "timeouts": "timed out"}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What the control directory said, and when (seconds of a steady clock)."""

    at_s: float
    took_s: float
    pins: list[Json]
    status: Json
    counters: dict[str, float]


@click.command(
    cls=Verb,
    short_help="Show what a mount is doing right now.",
    examples="""
# the only mount, drawn anew every two seconds until q
pinfs top

# the holders of most bytes first, every half second
pinfs top --sort bytes --every 0.5 /mnt/models

# once, for a report
pinfs top --once --text /mnt/models

# breaks per second, for a script
pinfs top --json | jq --unbuffered '.rates.breaks'

# what each removal waits for, and how long at most
pinfs top --once --json | jq -c '.breaks[] | {op, path, holders, remaining_s}'
""",
)
@click.argument("where", metavar="[MOUNT]", required=False)
@click.option("-e", "--every", "every_s", type=click.FloatRange(LEAST_S, 86400.0), default=EVERY_S, show_default=True,
              metavar="SECONDS", help="How often to read the mount.")  # fmt: skip
@click.option("-s", "--sort", "order", type=click.Choice(list(activity.ORDERS)), default="breaks", show_default=True,
              help="Which holders come first: those with the most of this.")  # fmt: skip
@click.option("-1", "--once", is_flag=True, help="Read it twice, SECONDS apart, print it and end.")
@json_or("text", "One JSON object for each reading (the default in a pipe), or text (the default on a terminal).")
def top(where: str | None, every_s: float, order: str, once: bool, as_json: bool) -> None:
    """Show what MOUNT is doing: removals that wait, for which holders and how long at most; holders by their pins;
    requests, pins, releases, refusals and breaks per second; take-overs; the hosts of its cluster.

    On a terminal it is drawn in place. Keys: b, p, s, a sort the holders by breaks, pins, bytes (size), age of the
    oldest pin; q ends. BYTES adds up the lengths of pins; "+" and "to the end": some reach to the end of their
    file, wherever that is. Only root sees the holders of other users' pins and their breakers.
    """
    mount = the_mount(where)
    if once:
        show_once(mount, every_s, order, as_json)
    elif as_json or not sys.stdout.isatty():
        _follow(mount, every_s, order, as_json)
    else:
        _in_place(mount, every_s, order)


def read(mount: Mount) -> Reading:
    """OSError: the mount does not answer, or has ended."""
    began_s = time.monotonic()
    pins, status = mount.pins(), mount.status()
    counters = mount.counters([*COUNTED, *activity.RATES.values()])
    return Reading(began_s, time.monotonic() - began_s, pins, status, counters)


def shown(mount: Mount, before: Reading | None, now: Reading, order: str) -> Json:
    """One JSON object. `rates` is null where there was no reading before."""
    passed_s = now.at_s - before.at_s if before else 0.0
    ranked = activity.holders(now.pins, time.time(), order)
    status = now.status
    return {
        "v": 1,
        "mountpoint": mount.point,
        "at": round(time.time(), 3),
        "interval_s": round(passed_s, 3),
        "rates": activity.rates(before.counters, now.counters, passed_s) if before else None,
        "pins": status["pins"],
        "pinned_bytes": int(now.counters.get("pinfs_pinned_bytes", 0)),
        "waiting": status["waiting"],
        "sealed_files": status.get("sealed_files"),
        "uptime_s": status["uptime_s"],
        "breaks": activity.breaks(status, now.pins),
        "in_kernel": status.get("in_kernel", []),
        "holders": ranked[:MAX_HOLDERS],
        "more_holders": max(0, len(ranked) - MAX_HOLDERS),
        "takeovers": status.get("takeovers", 0),
        "last_takeover": status.get("last_takeover"),
        "life": life_text(status),
        "cluster": status.get("cluster"),
        "hosts": activity.hosts(status.get("cluster")),
    }


def show_once(mount: Mount, every_s: float, order: str, as_json: bool) -> None:
    """Two readings, and what has happened between them."""
    before = read(mount)
    time.sleep(pause_s(every_s, before.took_s))
    found = shown(mount, before, read(mount), order)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _follow(mount: Mount, every_s: float, order: str, as_json: bool) -> None:
    before = read(mount)
    while True:
        time.sleep(pause_s(every_s, before.took_s))
        now = read(mount)
        found = shown(mount, before, now, order)
        if as_json:
            print_json_line(found)
        else:
            _print(found)
            click.echo()
        before = now


def _in_place(mount: Mount, every_s: float, order: str) -> None:
    """What does not answer is said in place: it may come back."""
    from rich.text import Text

    before: Reading | None = None
    with Screen() as screen:
        while True:
            try:
                now = read(mount)
            except OSError as error:
                screen.show(Text(printable(failure_of(error).message), style="bold red"), Text("q: quit", style="dim"))
                rest_s, before = every_s, None
            else:
                _draw(screen, shown(mount, before, now, order), order)
                rest_s, before = pause_s(every_s, now.took_s), now
            key = screen.key(rest_s).lower()
            if key == "q":
                return
            order = KEYS.get(key, order)


# Words


def _head(found: Json) -> Iterator[str]:
    pins = f"{_counted(found['pins'], 'pin')} of {bytes_text(found['pinned_bytes'])}"
    waiting = f"{_counted(found['waiting'], 'breaker')} waiting"
    yield f"{found['mountpoint']}: {pins}, {waiting}, up for {age_text(found['uptime_s'])}"
    rates = found["rates"] or dict.fromkeys(_RATES)
    yield "per second: " + ", ".join(f"{label} {_rate(rates[name])}" for name, label in _RATES.items())
    if found["life"]:
        yield f"the mount {found['life']}"
    if found["cluster"]:
        silent = ", ".join(f"{printable(one['host'])} {one['silent_s']:.1f} s" for one in found["hosts"])
        yield f"cluster {cluster_text(found['cluster'])}; silent for: {silent}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _break(one: Json) -> tuple[str, ...]:
    left = "-" if one["remaining_s"] is None else f"{one['remaining_s']:.1f}s"
    end = "end" if one["to"] is None else one["to"]
    path = f"(inode {one['inode']})" if one["path"] is None else one["path"]
    breaker = f"host {one['host']}" if one.get("host") else _process(one) if one.get("pid") else "-"
    return left, f"{one['op']} of {path} [{one['from']}, {end})", breaker, _waits_for(one)


def _waits_for(one: Json) -> str:
    known = [_process(holder) for holder in one["holders"] if holder["pid"] is not None]
    pins = ", ".join(map(str, one["waits_for"])) or "an earlier removal, or another host"
    return f"{', '.join(known)} (pin {pins})" if known else f"pin {pins}" if one["waits_for"] else pins


def _process(process: Json) -> str:
    return " ".join(str(process[key]) for key in ("pid", "comm") if process.get(key) is not None)


def _holder(one: Json) -> tuple[str, ...]:
    seen = [str(one[key]) if one[key] is not None else "-" for key in ("pid", "comm", "uid")]
    size = f"{bytes_text(one['bytes'])}{'+' if one['open_ended'] else ''}" if one["bytes"] else "to the end"
    return *seen, f"{one['pins']:,}", f"{one['breaking']:,}", size, f"{one['files']:,}", age_text(one["oldest_s"])


_HOLDER_LAYOUT: Final[dict[str, Any]] = {"right": [0, 2, 3, 4, 5, 6, 7]}


def _print(found: Json) -> None:
    for line in _head(found):
        click.echo(line)
    for one in found["breaks"]:
        click.echo(f"  {breaker_text(one)}")
    for one in found["in_kernel"]:
        click.echo(f"  {in_kernel_text(one)}")
    click.echo()
    print_table(_HOLDERS, [_holder(one) for one in found["holders"]], **_HOLDER_LAYOUT)
    if found["more_holders"]:
        click.echo(f"... and {found['more_holders']:,} more holders")


def _draw(screen: Screen, found: Json, order: str) -> None:
    from rich.text import Text

    first, *more = _head(found)
    parts: list[Any] = [Text(first, style="bold"), *(Text(line, no_wrap=True, overflow="ellipsis") for line in more)]
    parts += [Text(in_kernel_text(one), style="yellow") for one in found["in_kernel"]]
    room = max(4, screen.height - len(parts) - 5)
    breaking = found["breaks"][: max(1, room // 2)]
    if breaking:
        parts += [Text(), table_of(_BREAKS, [_break(one) for one in breaking], right=[0], cut=[1, 3],
                                   styles=["bold yellow"] * len(breaking))]  # fmt: skip
    ranked = found["holders"][: max(1, room - len(breaking))]
    parts += [Text(), table_of(_HOLDERS, [_holder(one) for one in ranked], cut=[1], styles=_styles(ranked),
                               **_HOLDER_LAYOUT)]  # fmt: skip
    left_out = len(found["holders"]) - len(ranked) + found["more_holders"]
    keys = ", ".join(f"{key}: {name}{' (now)' if name == order else ''}" for key, name in KEYS.items())
    words = f"sort by {keys}; q: quit" + (f"; {left_out} holders not shown" if left_out else "")
    screen.show(*parts, Text(words, style="dim"))


def _styles(holders: Sequence[Json]) -> list[str]:
    return ["yellow" if one["breaking"] else "" for one in holders]
