"""Holds a pin while a command runs, after `pinfs pin` has registered it."""

import errno
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import click

from pinfs.cli.exitcodes import ExitCode, of_signal
from pinfs.cli.output import print_json_line
from pinfs.cli.told import Told
from pinfs.cli.verb import Failure
from pinfs.client.model import Event, PinInfo
from pinfs.observe.asking import BoundedMount, NoAnswerError
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import printable

_GONE = frozenset({errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ENOTDIR})
_FORWARDED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def span(info: PinInfo) -> str:
    """The pinned bytes as a half-open interval."""
    return f"[{info.start}, {info.start + info.length if info.length else 'end'})"


def print_pin(info: PinInfo) -> None:
    """A pin as JSON, with the version that all JSON values carry (docs/interfaces.md)."""
    print_json_line({"v": 1, **asdict(info)})


@dataclass(frozen=True)
class Held:
    """A pin of this process, and its reaction to a break (`on_break`)."""

    mount: Mount
    label: str
    name: str
    info: PinInfo
    on_break: str
    signal: int | None
    quiet: bool

    def release(self) -> bool:
        """Release the pin; a revoked pin and a dead daemon are no errors. False: the daemon does not answer, and will
        drop the pin with this process."""
        try:
            BoundedMount(*self.mount).command(f"release {self.info.id}")
        except NoAnswerError as error:
            click.echo(printable(f"pinfs: {self.label}: {error.why}; the pin ends with this process"), err=True)
            return False
        except OSError as error:
            if error.errno not in _GONE:
                raise
        return True

    def say(self, text: str) -> None:
        """A line on stderr, unless --quiet."""
        if not self.quiet:
            click.echo(printable(f"pinfs: {self.label} {span(self.info)}: {text}"), err=True)

    def gone_with(self, event: Event, child: int | None = None) -> bool:
        """React as --on-break says; return whether the pin is gone after this event."""
        if event.pin != self.info.id:
            return False
        if event.event == "break":
            return self._break(event, child)
        if event.event in ("revoked", "released"):
            self.say(f"{event.event} by {event.by}")
            return True
        if event.event == "withdrawn":
            self.say("no longer wanted")
        return False

    def _break(self, event: Event, child: int | None) -> bool:
        if self.on_break != "ignore":
            self.say(f"wanted for {event.op}, {event.remaining_s or 0:.1f} s left{_WHAT_NOW[self.on_break]}")
        for number in (self.signal, signal.SIGTERM if self.on_break == "term" else None):
            if child is not None and number:
                with suppress(ProcessLookupError):
                    os.kill(child, number)
        if self.on_break == "release":
            self.release()
        return self.on_break == "release"


_WHAT_NOW = {
    "release": ": released",
    "wait": ": kept until the end",
    "term": ": sent SIGTERM to the command",
}


def hold(held: Held, events: Iterable[Event], as_json: bool) -> int:
    """Without a command: hold until interrupted, or until the pin is gone. Returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if as_json:
            print_pin(held.info)
        else:
            click.echo(printable(f"pin {held.info.id}: {held.label} {span(held.info)}"))
        for event in events:
            if held.gone_with(event):
                break
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt):  # once more: now
            return ExitCode.OK if held.release() else ExitCode.NO_ANSWER
    return ExitCode.OK


def run(held: Held, told: Told, command: Sequence[str]) -> int:
    """Run COMMAND, holding the pin, and return its exit status as a shell would report it."""
    # Blocked here and in the thread, so that sigwaitinfo() receives them all, with their senders.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED | {signal.SIGCHLD})
    with ending_as_a_shell(command[0]):
        child = os.posix_spawnp(command[0], list(command), os.environ, setsigmask=(), setsigdef=_IGNORED_BY_PYTHON)
    with _answering(held, told, child):
        status = _end_of(child)
    held.release()
    return status


@contextmanager
def ending_as_a_shell(command: str) -> Iterator[None]:
    """A COMMAND that cannot be started ends with 126 or 127, as in sh(1), env(1) and flock(1)."""
    try:
        yield
    except OSError as error:
        found = error.errno != errno.ENOENT
        code = ExitCode.COMMAND_NOT_EXECUTABLE if found else ExitCode.COMMAND_NOT_FOUND
        hint = "" if found or not re.fullmatch("[-0-9:]+", command) else "; a range has the form FILE:START:LENGTH"
        raise Failure(f"{command}: {error.strerror}{hint}", code) from error


@contextmanager
def _answering(held: Held, told: Told, child: int) -> Iterator[None]:
    """Answer events in a thread while this one waits for signals."""
    thread = threading.Thread(target=_answer, args=(held, told, child))
    thread.start()
    try:
        yield
    finally:
        told.wake()
        thread.join()


def _answer(held: Held, told: Told, child: int) -> None:
    try:
        for event in told:
            held.gone_with(event, child)
    except OSError as error:  # the daemon is dead, and the pin gone with it; the command goes on
        held.say(f"the pin is gone: {error.strerror}")


def _end_of(child: int) -> int:
    """Forward signals until the child has ended. Those of the terminal (si_code > 0) reach the child by themselves."""
    while True:
        came = signal.sigwaitinfo(_FORWARDED | {signal.SIGCHLD})
        if came.si_signo != signal.SIGCHLD:
            if came.si_code <= 0:
                os.kill(child, came.si_signo)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else of_signal(-code)
