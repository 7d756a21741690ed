"""`pinfs status`: shows the state of mounts, once or again and again."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

import click

from pinfs.cli.exitcodes import ExitCode, of_errno
from pinfs.cli.mounts import mount_of, mounts
from pinfs.cli.output import listing_options, print_json, print_json_line, print_table
from pinfs.cli.verb import Verb, fail
from pinfs.observe.mounts import COUNTED, Mount
from pinfs.observe.wording import (
    breaker_text,
    cluster_text,
    in_kernel_text,
    page_pins_text,
    survival_text,
    takeover_text,
)

Status = dict[str, Any]
LABELS: Final = {
    "source": "source",
    "pid": "daemon's process",
    "version": "version",
    "compiled": "compiled",
    "uptime_s": "up for",
    "passthrough": "passthrough",
    "page_pins": "page pins",
    "seal": "pins are sealed",
    "bridge": "bridge",
    "poll": "poll(2) answered",
    "pins": "pins",
    "sealed_files": "sealed files",
    "waiting": "breakers waiting",
    "evictions": "last closes waiting",
    "descriptors": "descriptors",
    "cluster": "cluster",
    "survives": "outlives its daemon",
    "takeovers": "take-overs",
    "last_takeover": "last take-over",
}
"""Keys of `.pinfs/status`, and how a table calls them."""


@click.command(
    cls=Verb,
    short_help="Show the state of a mount.",
    examples="""
# all mounts of this machine
pinfs status

# one mount, read again and again until Ctrl-C
pinfs status --watch /mnt/models

# do reads and mappings go straight to the files below?
pinfs status --json /mnt/models | jq '.mounts[0].passthrough'
""",
)
@click.argument("where", metavar="[MOUNT]", required=False)
@click.option("-w", "--watch", is_flag=True, help="Read it again every --interval seconds until interrupted.")
@click.option("-i", "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS")
@listing_options
@click.pass_context
def status(ctx: click.Context, where: str | None, watch: bool, interval: float, as_json: bool) -> None:
    """Show the state of MOUNT, or of all pinfs mounts: daemon, passthrough, pins, breakers waiting, counters.

    Exit code 7 if one of them is stale, that is, its daemon is gone, and 13 if a daemon does not answer.
    """
    wanted = mount_of(where) if where else None
    found = _look(wanted)
    if not found:
        fail("there is no pinfs mount on this machine", ExitCode.NOT_PINFS)
    if watch:
        _watch(wanted, interval, as_json)
    if as_json:
        print_json({"v": 1, "mounts": found})
    else:
        print_table(*_table(found))
    ctx.exit(next((code for one in found if (code := one["exit_code"])), ExitCode.OK))


def _look(wanted: Mount | None) -> list[Status]:
    """The status of `wanted`, or of all mounts."""
    if wanted is not None:
        return [look_at(wanted)]
    found = [(mount, look_at(mount)) for mount in mounts()]
    return [one for mount, one in found if "error" not in one or not mount.has_gone()]


def look_at(mount: Mount) -> Status:
    """The daemon's status and counters; for a stale mount the `error` instead."""
    try:
        return {**mount.status(), "mountpoint": mount.point, "counters": mount.counters(), "exit_code": 0}
    except OSError as error:
        return {"v": 1, "mountpoint": mount.point, "source": mount.source, "error": error.strerror,
                "exit_code": int(of_errno(error.errno))}  # fmt: skip


_SAID: Final[dict[str, Callable[[Any], str]]] = {
    "cluster": cluster_text,
    "page_pins": page_pins_text,
    "survives": survival_text,
    "last_takeover": takeover_text,
}
"""Values of several parts, in words."""


def _table(found: list[Status]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = []
    for one in found:
        rows += [("mount", one["mountpoint"]), *_rows(one), ("", "")]
    return (), rows[:-1]


def _rows(one: Status) -> Iterator[tuple[str, str]]:
    if one["exit_code"] == ExitCode.NO_ANSWER:
        yield "state", one["error"]
        return
    if "error" in one:
        yield "state", f"stale: {one['error']} (to fix: pinfs umount {one['mountpoint']})"
        return
    for key, label in LABELS.items():
        if one.get(key) is not None:
            yield label, _words(one, key)
    for removal in one.get("in_kernel", ()):
        yield "in the kernel", in_kernel_text(removal)
    for breaker in one.get("breakers", ()):
        yield "waits", breaker_text(breaker)
    for name, count in one["counters"].items():
        yield COUNTED[name], f"{count:,.0f}"
    yield "kernel features", ", ".join(one.get("negotiated", ()))


def _words(one: Status, key: str) -> str:
    value = one[key]
    if key in _SAID:
        return _SAID[key](value)
    if isinstance(value, bool):
        why = one.get(f"{key}_unavailable_because")
        return "yes" if value else f"no: {why}" if why else "no"
    if key == "uptime_s":
        return str(timedelta(seconds=round(value)))
    return f"{value:,}" if isinstance(value, int) and key != "pid" else str(value)


def _watch(wanted: Mount | None, interval_s: float, as_json: bool) -> None:
    """Until interrupted: redraw the table on a terminal, print one JSON object a line in a pipe."""
    if as_json:
        while True:
            print_json_line({"v": 1, "mounts": _look(wanted)})
            time.sleep(interval_s)
    while True:
        table = _table(_look(wanted))
        click.clear()
        print_table(*table)
        time.sleep(interval_s)
