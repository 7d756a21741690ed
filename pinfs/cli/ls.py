"""`pinfs ls`: lists pins and their holders, like lslocks(8)."""

import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from pinfs.cli.exitcodes import ExitCode, of_errno
from pinfs.cli.mounts import locate, mounts
from pinfs.cli.output import listing_options, print_json, print_table
from pinfs.cli.verb import Verb, fail, failure_of
from pinfs.observe.asking import ask
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import in_kernel_text, lost_texts

Pin = dict[str, Any]

ROWS = 1000  # of a table; laying out a million takes minutes
UNSEEN = "-"  # the holder is shown to the owner's user and root only (SPEC 4)


def _text(key: str) -> Callable[[Pin], str]:
    return lambda pin: UNSEEN if pin.get(key) is None else str(pin[key])


def _length(pin: Pin) -> str:
    return str(pin["length"]) if pin["length"] else "end"


def _path(pin: Pin) -> str:
    return str(Path(pin["mount"], pin["path"])) if pin.get("path") is not None else f"(inode {pin.get('inode')})"


def _deadline(pin: Pin) -> str:
    return f"{pin['remaining_s']:.1f}s" if pin.get("remaining_s") is not None else UNSEEN


def _since(pin: Pin) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(pin["since"])) if "since" in pin else UNSEEN


COLUMNS: dict[str, Callable[[Pin], str]] = {
    "ID": _text("id"),
    "MODE": _text("mode"),
    "STATE": _text("state"),
    "START": _text("start"),
    "LENGTH": _length,
    "PID": _text("pid"),
    "COMM": _text("comm"),
    "UID": _text("uid"),
    "PATH": _path,
    "NOTE": _text("note"),
    "DEADLINE": _deadline,
    "NAME": _text("name"),
    "OWNER": _text("owner"),
    "SIGNAL": _text("signal"),
    "DIRTY": lambda pin: "yes" if pin.get("dirty") else "no",
    "INODE": _text("inode"),
    "SINCE": _since,
    "SEALED": lambda pin: "yes" if pin.get("sealed") else "no",
    "MOUNT": _text("mount"),
    "HOST": _text("host"),
}
DEFAULT = list(COLUMNS)[:11]
_NUMBERS = {"ID", "START", "LENGTH", "PID", "UID", "DEADLINE", "INODE"}
_STYLES = {"breaking": "bold yellow"}


def _columns(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[str]:
    if value is None:
        return DEFAULT
    chosen = [name for name in value.removeprefix("+").upper().split(",") if name]
    unknown = [name for name in chosen if name not in COLUMNS]
    if unknown or not chosen:
        raise click.BadParameter(f"unknown column {', '.join(unknown) or value!r}; there are {', '.join(COLUMNS)}")
    return [*DEFAULT, *chosen] if value.startswith("+") else chosen


@click.command(
    cls=Verb,
    short_help="List pins and their holders.",
    examples="""
# all pins of this machine
pinfs ls

# the pins that keep this file from being truncated
pinfs ls /mnt/models/big.bin

# the pins of all files below a directory
pinfs ls /mnt/models/2026

# ids and processes, for a script
pinfs ls --table --noheadings -o ID,PID /mnt/models

# the usual columns and some more
pinfs ls -o +NAME,SINCE

# pins of a cluster of hosts, each by its own mount
for host in a b; do ssh $host pinfs ls --json; done | jq -c '.pins[] | {host, path, pid}'

# processes that a breaker waits for
pinfs ls --json | jq '.pins[] | select(.state == "breaking") | .pid'
""",
)
@click.argument("paths", metavar="[FILE|DIR|MOUNT]...", nargs=-1)
@click.option("-o", "columns", metavar="COL[,COL]...", callback=_columns,
              help="Columns to print; +COL adds to the usual ones.")  # fmt: skip
@click.option("-l", "--limit", metavar="ROWS", type=click.IntRange(0), default=ROWS, show_default=True,
              help="Rows of the table; 0: all, however long that takes to lay out.")  # fmt: skip
@click.option("-n", "--noheadings", is_flag=True, help="Print no line of headings.")
@listing_options
@click.pass_context
def ls(
    ctx: click.Context,
    paths: tuple[str, ...],
    columns: list[str],
    limit: int,
    noheadings: bool,
    as_json: bool,
) -> None:
    """List the pins of each FILE, of all files below each DIR or MOUNT, or of all pinfs mounts of this machine.

    Only root sees the holders of other users' pins. LENGTH "end": up to the end of the file, wherever that moves. STATE
    "breaking": a breaker waits for this pin, until DEADLINE at most. Below the table: removals that the kernel keeps
    waiting, for pages that a device or a program holds without a pin, and what was lost when a daemon was replaced.
    Pins of other hosts of a cluster are listed there (see pinfs cluster); HOST is a column for lists put together.

    A table on a terminal, JSON in a pipe; --table and --json decide otherwise.
    """
    pins, errors = ([pin for path in paths for pin in _pins_at(path)], []) if paths else pins_of_all()
    statuses = list(_statuses(paths, {error.filename for error in errors}))
    hosts = {mount.point: cluster["host"] for mount, one in statuses if (cluster := one.get("cluster"))}
    pins = [pin | {"host": hosts[pin["mount"]]} if pin["mount"] in hosts else pin for pin in pins]
    in_kernel = [removal | {"mount": mount.point} for mount, one in statuses for removal in one.get("in_kernel", ())]
    if as_json:
        print_json({"v": 1, "pins": pins, "in_kernel": in_kernel})
    else:
        print_pins(pins, columns, headings=not noheadings, limit=limit)
        for removal in in_kernel:
            click.echo(in_kernel_text(removal | {"path": _path(removal)}), err=True)
        for mount, one in statuses:
            for lost in lost_texts(one.get("last_takeover")):
                click.echo(f"{mount.point}: lost when the daemon was replaced: {lost}", err=True)
    for error in errors:
        failure_of(error).show()
    ctx.exit(of_errno(errors[0].errno) if errors else ExitCode.OK)


def print_pins(all_pins: Iterable[Pin], columns: list[str], *, headings: bool = True, limit: int = ROWS) -> None:
    """The table of at most `limit` pins (0: all); breaking pins come first, in a colour."""
    all_pins = sorted(all_pins, key=lambda pin: pin["state"] != "breaking")
    pins = all_pins[:limit] if limit else all_pins
    print_table(
        columns if headings else (),
        [[COLUMNS[name](pin) for name in columns] for pin in pins],
        right=[number for number, name in enumerate(columns) if name in _NUMBERS],
        styles=[_STYLES.get(pin["state"], "") for pin in pins],
    )
    if len(pins) < len(all_pins):
        click.echo(f"... and {len(all_pins) - len(pins)} more: name a FILE, or --limit 0, or --json", err=True)


def _pins_at(path: str) -> list[Pin]:
    mount, real = locate(path)
    if real == mount.point:
        return mount.pins()
    kind = ask(mount, lambda: stat.S_IFMT(os.stat(path).st_mode))
    if kind == stat.S_IFDIR:
        return pins_below(os.path.relpath(real, mount.point), mount)
    if kind != stat.S_IFREG:
        fail(f"{path}: neither a regular file nor a directory", ExitCode.USAGE)
    return pins_of_file(path, mount)


def pins_below(directory: str, mount: Mount) -> list[Pin]:
    """The pins of the files below `directory`, a path below the mount point. A file counts where its pin shows it: a
    file without a name is nowhere, and a file with several names is in one place."""
    return [pin for pin in mount.pins() if (pin.get("path") or "").startswith(directory + "/")]


def pins_of_file(path: str, mount: Mount) -> list[Pin]:
    """The pins of one file: from its attribute, or from the list of all where an attribute cannot hold them."""
    answer = json.loads(ask(mount, lambda: os.getxattr(path, "user.pinfs.pins")))
    if not answer.get("more"):
        return [pin | {"mount": mount.point} for pin in answer["pins"]]
    inode = answer["pins"][0]["inode"]
    return [pin for pin in mount.pins() if pin["inode"] == inode]


def _statuses(paths: Iterable[str], silent: Collection[str]) -> Iterator[tuple[Mount, dict[str, Any]]]:
    """The status of each of the mounts of `paths`, or of all mounts but those that are silent."""
    for mount in dict.fromkeys(locate(path)[0] for path in paths) or mounts():
        if mount.point not in silent:
            with suppress(OSError):  # it has ended meanwhile
                yield mount, mount.status()


def pins_of_all() -> tuple[list[Pin], list[OSError]]:
    """The pins of every mount that answers, and the errors of those that do not although they are still there."""
    pins: list[Pin] = []
    errors: list[OSError] = []
    for mount in mounts():
        try:
            pins += mount.pins()
        except OSError as error:
            if not mount.has_gone():
                errors.append(error)
    return pins, errors
