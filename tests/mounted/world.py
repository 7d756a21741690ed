"""What tests on mounts look at from outside: FUSE connections, processes that are stuck, commands and what they say."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.actor import eventually
from support.mounts import umount

COMMAND_LIMIT_S = 30.0
PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end. It speaks English, whatever the machine does."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=COMMAND_LIMIT_S, check=False
    )


def state_of(pid: int) -> str:
    """A process's state, as ps shows it; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def uninterruptible() -> list[int]:
    """Threads of this process's descendants that are in state D now."""
    return [tid for pid in _descendants(os.getpid()) for tid in _threads(pid) if state_of(tid) == "D"]


def nothing_is_stuck() -> None:
    """Fails unless state D passes for all that this process has started."""
    eventually(lambda: not uninterruptible())


def _descendants(pid: int) -> Iterator[int]:
    for tid in _threads(pid):
        try:
            children = Path(f"/proc/{pid}/task/{tid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in map(int, children):
            yield child
            yield from _descendants(child)


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def mount(source: str, where: Path, kind: str, options: str = "", flags: int = 0) -> None:
    """mount(2)."""
    if _libc.mount(source.encode(), os.fsencode(where), kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(where))


@contextmanager
def mounted(source: str, where: Path, kind: str, options: str = "", flags: int = 0) -> Iterator[Path]:
    """A file system for the length of a test."""
    where.mkdir(exist_ok=True)
    mount(source, where, kind, options, flags)
    try:
        yield where
    finally:
        umount(where)


class Connection:
    """One connection, by the kernel's own files for it (fusectl)."""

    def __init__(self, control: Path, mountpoint: Path) -> None:
        rows = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
        (device,) = (row[2] for row in rows if row[4] == os.fspath(mountpoint))
        self._files = control / device.split(":")[1]

    @property
    def waiting(self) -> int:
        """Requests that are on their way or unanswered."""
        return int((self._files / "waiting").read_text())

    def abort(self) -> None:
        """Ends the connection: all requests fail, and all to come."""
        (self._files / "abort").write_text("1")


@contextmanager
def connection(mountpoint: Path, base: Path) -> Iterator[Connection]:
    """The connection of a mount. fusectl is mounted below `base` meanwhile: not every machine has it in /sys."""
    with mounted("fusectl", base / "fusectl", "fusectl") as control:
        yield Connection(control, mountpoint)


def descriptors_of(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    """The memory of a process, without what it shares with its files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def one_line(text: str) -> str:
    """What a command wrote on the terminal, which has to be one line and no traceback."""
    (line,) = text.splitlines()
    assert "Traceback" not in line
    return line


USER = 65534
"""Who mounts as an ordinary user: nobody. fusermount3 asks for the name of its user, and this one has a name on every
machine."""


def as_user(uid: int) -> Sequence[str]:
    """A command prefix: what follows runs as an ordinary user who may read every file, and no more.

    So the interpreter may lie where that user could not go (below /root). fusermount3 gains nothing from it:
    executing a set-user-id program drops ambient capabilities (capabilities(7)).
    """
    user = str(uid)
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *reading]
