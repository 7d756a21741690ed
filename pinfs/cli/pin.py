"""`pinfs pin`: hold a pin while a command runs, like flock(1)."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import click

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.holding import Held, ending_as_a_shell, hold, print_pin, run
from pinfs.cli.mounts import require_answer
from pinfs.cli.told import Told
from pinfs.cli.verb import Failure, Verb, failure_of
from pinfs.client import xattrs
from pinfs.client.inode import inode_of
from pinfs.client.model import PinInfo
from pinfs.client.mounts import require_pinfs
from pinfs.linux.signals import parse_signal

_RETRY_S = 0.05

T = TypeVar("T")


def split_range(text: str) -> tuple[str, int, int]:
    """FILE[:START:LENGTH] as (file, start, length); only a trailing `:NUMBER:NUMBER` is a range."""
    match = re.fullmatch(r"(.+):([0-9]+):([0-9]+)", text, re.DOTALL)
    return (match[1], int(match[2]), int(match[3])) if match else (text, 0, 0)


def range_hint(text: str) -> str:
    """What to say of a FILE that does not exist but ends in a range of another form; "" where it does not."""
    file, rest = next(((text[:at], text[at + 1 :]) for at in _colons(text) if os.path.isfile(text[:at])), ("", ""))
    if not file:
        return ""
    example = f"{file}:{rest}:0" if re.fullmatch("[0-9]+", rest) else f"{file}:0:4096"
    return f"; a range has the form {file}:START:LENGTH, in bytes, LENGTH 0: to the end of the file (such as {example})"


def _colons(text: str) -> Iterator[int]:
    """Where the colons are, from the right."""
    return (at for at in reversed(range(len(text))) if text[at] == ":")


def signal_number(text: str | None) -> int | None:
    """The number of a signal as `parse_signal` reads it; None for "none" and where none is given."""
    try:
        return None if text is None else parse_signal(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@dataclass(frozen=True)
class Request:
    """The parameters of the command line."""

    file: str
    command: tuple[str, ...]
    mode: Literal["deny", "lease"]
    start: int | None
    length: int | None
    on_break: str | None
    number: int | None
    note: str
    name: str
    dirty: bool
    pid: int | None
    wait_s: float
    no_fork: bool
    failure_code: int | None
    quiet: bool
    as_json: bool

    def __post_init__(self) -> None:
        if self.on_break and not self.stays:
            raise click.UsageError("--on-break needs this process to answer breaks: not with --pid or --no-fork")
        if self.pid is not None and self.command:
            raise click.UsageError("--pid pins for a process that runs already: not with COMMAND")
        if self.no_fork and not self.command:
            raise click.UsageError("--no-fork needs a COMMAND to become")

    @property
    def stays(self) -> bool:
        """Whether this process is the holder and stays to answer breaks."""
        return self.pid is None and not self.no_fork

    @cached_property
    def target(self) -> tuple[str, int, int]:
        """(path, start, length)."""
        if self.start is None and self.length is None:
            return split_range(self.file)
        return self.file, self.start or 0, self.length or 0

    def requested(self) -> xattrs.RequestedPin:
        """The pin as it is registered. No signal unless asked for: SIGIO, the default of leases, ends most programs."""
        _path, start, length = self.target
        number = "none" if self.stays or self.number is None else self.number
        return xattrs.RequestedPin(start, length, self.mode, number, self.pid, self.dirty, self.note)


@click.command(
    cls=Verb,
    short_help="Hold a pin while a command runs.",
    examples="""
# the file cannot be truncated while this program runs
pinfs pin /mnt/models/big.bin -- ./serve /mnt/models/big.bin

# its first MiB only; the same with a file name that ends in numbers
pinfs pin /mnt/models/big.bin:0:1048576 -- ./serve
pinfs pin --start 0 --length 1048576 /mnt/models/a:1:2 -- ./serve

# a lease: a truncate waits while the program is told to end (SIGTERM)
pinfs pin --mode lease --on-break term /mnt/log/app.log -- ./reader

# hold it until Ctrl-C, or until a truncate wants it
pinfs pin --mode lease --note "looking at it" /mnt/models/big.bin

# for a shell script, until the script ends, or until it is released
id=$(pinfs pin --pid $$ /mnt/models/big.bin)
pinfs release "$id"
""",
)
@click.argument("file", metavar="FILE[:START:LENGTH]")
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--mode",
    type=click.Choice(["deny", "lease"]),
    default="deny",
    show_default=True,
    help="deny: removals fail (EBUSY). lease: they wait until the pin is released, up to a deadline.",
)
@click.option(
    "--start", type=click.IntRange(0), metavar="BYTES", help="The first byte; FILE is then taken as it stands."
)
@click.option("--length", type=click.IntRange(0), metavar="BYTES", help="How many bytes; 0: to the end of the file.")
@click.option(
    "--on-break",
    type=click.Choice(["wait", "release", "term", "ignore"]),
    help="What to do when a removal breaks the lease: wait: say so, keep it until COMMAND has ended "
    "(default with COMMAND); release: say so and let go (default without); term: end COMMAND with "
    "SIGTERM, let go when it has ended; ignore: as wait, but silently.",
)
@click.option(
    "--signal",
    "number",
    metavar="SIGNAL",
    callback=lambda _ctx, _param, value: signal_number(value),
    help="Also send SIGNAL to COMMAND (or to the process of --pid) when a removal breaks the lease.",
)
@click.option("--note", default="", metavar="TEXT", help="Shown in listings; no commas.")
@click.option(
    "--name", default=xattrs.fresh_name, metavar="NAME", help="The pin's name within its process; default: a fresh one."
)
@click.option("--dirty", is_flag=True, help="A device may write there: flush the range before the release is answered.")
@click.option(
    "--pid",
    type=click.IntRange(1),
    metavar="N",
    help="Register for process N, print the id, and return. The pin ends with N, or by pinfs release ID.",
)
@click.option(
    "-w",
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Try again for SECONDS while a removal of the range is under way.",
)
@click.option(
    "-F",
    "--no-fork",
    is_flag=True,
    help="Become COMMAND, which is then the holder itself; only its own --signal handler can answer a break.",
)
@click.option(
    "-E",
    "--failure-code",
    type=click.IntRange(0, 255),
    metavar="N",
    help="Exit with N where the pin cannot be registered, to tell that from COMMAND's own status.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing about breaks.")
@click.option("--json", "as_json", is_flag=True, help="Without COMMAND: print the pin as JSON.")
@click.pass_context
def pin(ctx: click.Context, /, **parameters: Any) -> None:
    """Pin the bytes of FILE while COMMAND runs, or until interrupted. LENGTH 0 or no range: to the end of the file.

    With COMMAND its exit status is passed on (128 + N if signal N ended it, 126 and 127 as in a shell), and SIGTERM,
    SIGHUP, SIGUSR1, SIGUSR2, and those SIGINT and SIGQUIT that are not the terminal's own, are passed to it. If pinfs
    itself is killed, the pin is gone while COMMAND goes on; with --no-fork there is only one process.

    What happens to a lease that is not released in time is the policy's choice (on_timeout; see pinfs policy).
    """
    request = Request(**parameters)
    _had(request, lambda: require_answer(request.target[0]))
    ctx.exit(_stay(request) if request.stays else _leave(request))


def _stay(request: Request) -> int:
    path = request.target[0]
    inode = _had(request, lambda: inode_of(path))
    _had(request, lambda: require_pinfs(inode))
    # Opened before the pin is registered, the channel misses none of its events.
    with _had(request, lambda: Told(inode)) as told:
        info = _had(request, lambda: register(request))
        on_break = request.on_break or ("wait" if request.command else "release")
        held = Held(told.mount, path, request.name, info, on_break, request.number, request.quiet)
        return run(held, told, request.command) if request.command else hold(held, told, request.as_json)


def _leave(request: Request) -> int:
    """Register for another process (--pid), or become COMMAND (--no-fork)."""
    info = _had(request, lambda: register(request))
    if request.no_fork:
        with ending_as_a_shell(request.command[0]):
            os.execvp(request.command[0], request.command)
    if request.as_json:
        print_pin(info)
    else:
        click.echo(info.id)
    return ExitCode.OK


def register(request: Request) -> PinInfo:
    """Register the pin; while a removal of the range is under way (EAGAIN), try again for --wait seconds."""
    inode = inode_of(request.target[0])
    require_pinfs(inode)
    inode.require_regular()
    end = time.monotonic() + request.wait_s
    while True:
        try:
            return xattrs.register(inode, request.name, request.requested())
        except OSError as error:
            if error.errno != errno.EAGAIN or time.monotonic() >= end:
                raise
        time.sleep(_RETRY_S)


def _had(request: Request, get: Callable[[], T]) -> T:
    """The result of `get`; where it fails, --failure-code is the exit code."""
    try:
        return get()
    except ValueError as error:  # a value that the attribute's text form cannot carry
        raise click.UsageError(str(error)) from error
    except OSError as error:
        failure = failure_of(error)
        takes_range = error.errno == errno.ENOENT and request.start is None and request.length is None
        hint = range_hint(request.file) if takes_range else ""
        code = failure.exit_code if request.failure_code is None else request.failure_code
        raise Failure(failure.message + hint, code) from error
