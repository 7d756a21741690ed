"""`pinfs ls`: lists pins and their holders, like lslocks(8)."""

import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click

from pinfs.cli import pinfilter, screen
from pinfs.cli.exitcodes import ExitCode, of_errno
from pinfs.cli.mounts import locate, mounts
from pinfs.cli.output import listing_options, print_json, print_json_line
from pinfs.cli.pinfilter import PinFilter
from pinfs.cli.pintable import (
    ROWS,
    Pin,
    PinTable,
    SortKey,
    chosen_columns,
    chosen_order,
    complete_columns,
    in_order,
    path_of,
    table_of_pins,
)
from pinfs.cli.screen import Screen, WatchVerb, watch_option
from pinfs.cli.verb import fail, failure_of
from pinfs.observe.asking import ask
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import breaker_text, in_kernel_text, lost_texts, printable


@dataclass(frozen=True)
class Request:
    """The parameters of the command line."""

    paths: tuple[str, ...]
    columns: list[str]
    order: list[SortKey]
    reverse: bool
    limit: int
    noheadings: bool
    users: frozenset[int]
    processes: tuple[str, ...]
    globs: tuple[str, ...]
    state: str | None
    watch_s: float | None
    as_json: bool

    @property
    def filter(self) -> PinFilter:
        """What is listed of what is there."""
        return PinFilter(self.users, self.processes, self.globs, self.state)


@dataclass
class Listing:
    """What one reading has found, in the order in which it is shown."""

    pins: list[Pin]
    in_kernel: list[dict[str, Any]]
    breakers: list[dict[str, Any]]
    lost: list[str]
    hidden: int
    """Pins that are left out because the caller may not see whose they are."""
    errors: list[OSError] = field(default_factory=list)

    def below(self) -> Iterator[str]:
        """What is said below a table."""
        for removal in self.in_kernel:
            yield in_kernel_text(removal | {"path": path_of(removal)})
        for breaker in self.breakers:
            yield breaker_text(breaker | {"path": path_of(breaker)})
        yield from self.lost
        if self.hidden:
            yield f"{self.hidden} pins are left out: only root and their owners see whose they are"


@click.command(
    cls=WatchVerb,
    short_help="List pins and their holders.",
    examples="""
# all pins of this machine
pinfs ls

# the pins that keep this file from being truncated
pinfs ls /mnt/models/big.bin

# the pins of all files below a directory
pinfs ls /mnt/models/2026

# what is being broken right now, the least time left first, every half second
pinfs ls --state breaking --sort deadline --watch 0.5

# the pins of a user, those of a program, the oldest and the largest first
pinfs ls --user alice --process 'python*' --sort -age,-length -o +AGE

# the pins of all files of one kind, and those of one process
pinfs ls --path '*.safetensors'
pinfs ls --process 4711

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
@click.option("-o", "columns", metavar="COL[,COL]...", callback=chosen_columns,
              shell_complete=complete_columns,
              help="Columns to print; +COL adds to the usual ones.")  # fmt: skip
@click.option("-s", "--sort", "order", metavar="[-]COL[,[-]COL]...", callback=chosen_order,
              shell_complete=complete_columns,
              help="Sort by these columns, -COL from the largest down; else pins that break come first.")  # fmt: skip
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option("-u", "--user", "users", metavar="USER", multiple=True, callback=pinfilter.users,
              help="Only pins of this user (a name or a uid); may be repeated.")  # fmt: skip
@click.option("-p", "--process", "processes", metavar="PID|NAME", multiple=True,
              help="Only pins of this process, or of programs of this name (a glob); may be repeated.")  # fmt: skip
@click.option("--path", "globs", metavar="GLOB", multiple=True, callback=pinfilter.globs,
              help="Only pins of files below the mount point that match, as `path` of a rule of the policy: '*.bin', "
              "'models/**'; may be repeated.")  # fmt: skip
@click.option("--state", type=click.Choice(["held", "breaking"]), help="Only pins of this state.")
@click.option("-l", "--limit", metavar="ROWS", type=click.IntRange(0), default=ROWS, show_default=True,
              help="Rows of the table; 0: all, however long that takes to lay out.")  # fmt: skip
@click.option("-n", "--noheadings", is_flag=True, help="Print no line of headings.")
@watch_option
@listing_options
@click.pass_context
def ls(ctx: click.Context, /, **parameters: Any) -> None:
    """List the pins of each FILE, of all files below each DIR or MOUNT, or of all pinfs mounts of this machine.

    Only root sees the holders of other users' pins. LENGTH "end": up to the end of the file, wherever that moves. STATE
    "breaking": a breaker waits for this pin, until DEADLINE at most. Below the table: removals that wait, and for which
    pins; those that the kernel keeps waiting, for pages that a device or a program holds without a pin; and what was
    lost when a daemon was replaced. Pins of other hosts of a cluster are listed there (see pinfs cluster); HOST is a
    column for lists put together.

    Columns: ID MODE STATE START LENGTH PID COMM UID PATH NOTE DEADLINE, and NAME OWNER SIGNAL DIRTY INODE SINCE AGE
    SEALED MOUNT HOST. A pin is listed if it matches one of each kind of filter that is given.

    A table on a terminal, JSON in a pipe; --table and --json decide otherwise.
    """
    request = Request(**parameters)
    if request.watch_s is not None:
        in_place = not request.as_json
        screen.again(request.watch_s, lambda on: _draw(on, request), lambda: _tell_again(request), in_place=in_place)
        return
    found = _look(request)
    _tell(found, request, print_json)
    ctx.exit(of_errno(found.errors[0].errno) if found.errors else ExitCode.OK)


def _tell(found: Listing, request: Request, print_as_json: Callable[[dict[str, Any]], None], end: str = "") -> None:
    """JSON, or a table, what is below it, and `end`; then what does not answer."""
    if request.as_json:
        print_as_json(_as_json(found))
    else:
        _table(found, request, request.limit).print()
        for line in found.below():
            click.echo(line, err=True)
        click.echo(end, nl=False)
    for error in found.errors:
        failure_of(error).show()


def _tell_again(request: Request) -> None:
    """One of many in a pipe: a line of JSON, or a table with an empty line at its end."""
    _tell(_look(request), request, print_json_line, end="\n")


def _draw(on: Screen, request: Request) -> None:
    """What does not answer is said in place: it may come back."""
    from rich.text import Text

    assert request.watch_s is not None
    try:
        found = _look(request)
    except (OSError, click.ClickException) as error:
        words = error.message if isinstance(error, click.ClickException) else failure_of(error).message
        on.show(screen.heading(request.watch_s), Text(printable(words), style="bold red"))
        return
    lines = [Text(line) for line in found.below()]
    lines += [Text(printable(failure_of(error).message), style="bold red") for error in found.errors]
    room = max(1, on.height - len(lines) - 3)
    table = _table(found, request, min(room, request.limit or room))
    counted = f"{len(found.pins)} {'pin' if len(found.pins) == 1 else 'pins'}"
    lines.insert(0, Text(f"{counted}, {table.left_out} of them not shown" if table.left_out else counted, style="dim"))
    on.show(screen.heading(request.watch_s), table.drawn(), *lines)


def _table(found: Listing, request: Request, limit: int) -> PinTable:
    return table_of_pins(found.pins, request.columns, headings=not request.noheadings, limit=limit)


def _as_json(found: Listing) -> dict[str, Any]:
    return {"v": 1, "pins": found.pins, "in_kernel": found.in_kernel, "breakers": found.breakers}


def _look(request: Request) -> Listing:
    """OSError, Failure: one of the paths that were named cannot be listed."""
    paths = request.paths
    pins, errors = ([pin for path in paths for pin in _pins_at(path)], []) if paths else pins_of_all()
    statuses = list(_statuses(paths, {error.filename for error in errors}))
    hosts = {mount.point: cluster["host"] for mount, one in statuses if (cluster := one.get("cluster"))}
    for pin in pins:
        if (host := hosts.get(pin["mount"])) is not None:
            pin["host"] = host
    wanted = request.filter
    shown = in_order(wanted.shown(pins) if wanted else pins, request.order, reverse=request.reverse)
    hidden = sum("uid" not in pin for pin in pins) if wanted.needs_holders else 0
    in_kernel = [removal | {"mount": mount.point} for mount, one in statuses for removal in one.get("in_kernel", ())]
    breakers = [removal | {"mount": mount.point} for mount, one in statuses for removal in one.get("breakers", ())]
    if paths or wanted:
        listed = {(pin["mount"], pin["id"]) for pin in shown}
        breakers = [one for one in breakers if any((one["mount"], pin) in listed for pin in one["waits_for"])]
    lost = [
        f"{mount.point}: lost when the daemon was replaced: {text}"
        for mount, one in statuses
        for text in lost_texts(one.get("last_takeover"))
    ]
    return Listing(shown, in_kernel, breakers, lost, hidden, errors)


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
