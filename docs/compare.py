"""The table of docs/comparison.md: what keeps a mapped file's bytes, each means put to the same six tests.

    sudo .venv/bin/python docs/compare.py [DIRECTORY [MEANS...]]

DIRECTORY (default /var/tmp) is on ext4, XFS or btrfs: swapon(2) takes no file in memory. Takes a minute, most of it
lease-break-time of the kernel. Adds a swap file of 64 KiB and takes it away again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pinfs
from pinfs.testing import ScratchMount

SIZE: Final = 64 * 1024
SOON_S: Final = 1.0
"""A breaker whose call takes longer has waited."""
END_S: Final = 120.0
TESTS: Final = ("truncate", "hole", "O_TRUNC", "append", "asked", "killed")
HEADINGS: Final = (
    "truncate(2)", "a punched hole", "open with O_TRUNC (`>`)", "appending", "the holder is asked",
    "after `kill -9` of the holder",
)  # fmt: skip
F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_WRITE = 1033, 2, 8
F_SETSIG: Final = 10
PUNCH_HOLE: Final = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
libc = ctypes.CDLL(None, use_errno=True)

Release = Callable[[], None]
Told = Callable[[], None] | None
Hold = Callable[[str, Told], Release]


# Holders: each takes hold of the file, and returns what lets go of it. `told`, if any, is to be called when a breaker
# comes; without it the holder does nothing.


def _deny(path: str, told: Told) -> Release:
    return pinfs.pin(path).release


def _lease(path: str, told: Told) -> Release:
    return pinfs.pin(path, mode="lease", on_break=(lambda event: told()) if told else None).release


def _fcntl_lease(path: str, told: Told) -> Release:
    fd = os.open(path, os.O_RDONLY)
    signal.signal(signal.SIGIO, lambda number, frame: told() if told else None)
    fcntl.fcntl(fd, F_SETSIG, signal.SIGIO)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    return lambda: os.close(fd)


def _fcntl_lock(path: str, told: Told) -> Release:
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    return lambda: os.close(fd)


def _seals(seals: int) -> Hold:
    def hold(path: str, told: Told) -> Release:
        fcntl.fcntl(int(path.rpartition("/")[2]), F_ADD_SEALS, seals)
        return lambda: None  # a seal stays

    return hold


def _swapon(path: str, told: Told) -> Release:
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    if libc.swapon(path.encode(), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return lambda: libc.swapoff(path.encode()) and None


def _chattr(flag: str) -> Hold:
    def hold(path: str, told: Told) -> Release:
        subprocess.run(["chattr", f"+{flag}", path], check=True)
        return lambda: subprocess.run(["chattr", f"-{flag}", path], check=True) and None

    return hold


MEANS: Final[dict[str, Hold]] = {
    "pinfs, deny pin": _deny,
    "pinfs, lease": _lease,
    "fcntl(2) lease, F_RDLCK": _fcntl_lease,
    "fcntl(2) lock, F_WRLCK": _fcntl_lock,
    "memfd, F_SEAL_SHRINK": _seals(F_SEAL_SHRINK),
    "memfd, F_SEAL_SHRINK and F_SEAL_WRITE": _seals(F_SEAL_SHRINK | F_SEAL_WRITE),
    "swapon(2)": _swapon,
    "`chattr +a`": _chattr("a"),
    "`chattr +i`": _chattr("i"),
}


def hold(means: str, path: str, answers: bool) -> None:
    """In a process of its own: hold, say so, and map the file; let go when told (`answers`) or when stdin ends."""

    def told() -> None:
        release()
        print("asked", flush=True)

    release = MEANS[means](path, told if answers else None)
    with open(path, "rb", buffering=0) as file:
        mapping = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)
    print("holds", flush=True)
    with suppress(KeyboardInterrupt):
        sys.stdin.read()
    with suppress(OSError):  # it has let go already
        release()
    mapping.close()


# Breakers


def act(test: str, path: str) -> None:
    """In a process of its own. Prints 0 or the errno, and the seconds that the call took."""
    number, began = 0, time.monotonic()
    try:
        if test == "truncate":
            os.truncate(path, 0)
        elif test == "O_TRUNC":
            os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        elif test == "append":
            os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b"more")
        elif libc.fallocate(os.open(path, os.O_RDWR), PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(SIZE)):
            raise OSError(ctypes.get_errno(), "fallocate")
    except OSError as error:
        number = error.errno or errno.EIO
    print(number, time.monotonic() - began)


def said(breaker: subprocess.Popen[str]) -> tuple[str, bool]:
    """`done`, or the name of the errno; and whether the breaker had to wait."""
    number, took_s = breaker.communicate(timeout=END_S)[0].split()
    return errno.errorcode[int(number)] if int(number) else "done", float(took_s) > SOON_S


class Held:
    """A file that another process holds by one of the means."""

    def __init__(self, means: str, path: str, *, answers: bool = False) -> None:
        words = [sys.executable, __file__, "--hold", means, path, *(["answers"] if answers else [])]
        fds = [int(path.rpartition("/")[2])] if path.startswith("/proc/") else []
        self.process = subprocess.Popen(words, stdin=-1, stdout=-1, stderr=-1, text=True, pass_fds=fds)
        self.path = path
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if self.process.stdout.readline() != "holds\n":
            raise OSError(self.process.stderr.read().strip().splitlines()[-1])

    def breaker(self, test: str) -> subprocess.Popen[str]:
        path = self.path
        fds = [int(path.rpartition("/")[2])] if path.startswith("/proc/") else []
        return subprocess.Popen([sys.executable, __file__, "--act", test, path], stdout=-1, text=True, pass_fds=fds)

    def end(self, *, kill: bool = False) -> str:
        """What it has said since it holds."""
        if kill:
            self.process.kill()
        return self.process.communicate(timeout=END_S)[0]


@contextmanager
def files(means: str, directory: Path, mount: Path) -> Iterator[Callable[[], str]]:
    """Fresh files of SIZE bytes for one of the means, which are taken away."""
    with ExitStack() as stack:

        def fresh() -> str:
            if means.startswith("memfd"):
                fd = os.memfd_create("held", os.MFD_ALLOW_SEALING)
                stack.callback(os.close, fd)
                path = f"/proc/self/fd/{fd}"
            else:
                fd, path = tempfile.mkstemp(dir=mount if means.startswith("pinfs") else directory)
                os.close(fd)
                stack.callback(os.unlink, path)
                if "chattr" in means:
                    stack.callback(subprocess.run, ["chattr", "-i", "-a", path], check=True)
            Path(path).write_bytes(b"w" * SIZE)
            return path

        yield fresh


def put_to_the_tests(means: str, directory: Path, mount: Path) -> dict[str, str]:
    """Test: what the breaker got. `waits, then X`: it waited for a holder that does nothing, and X came of it."""
    found = {}
    with files(means, directory, mount) as fresh:
        silent = {test: Held(means, fresh()) for test in ("truncate", "hole", "O_TRUNC", "append")}
        breakers = {test: held.breaker(test) for test, held in silent.items()}
        for test, breaker in breakers.items():
            what, waited = said(breaker)
            found[test] = f"waits, then {what}" if waited else what
        for held in silent.values():
            held.end()
        answering = Held(means, fresh(), answers=True)
        said(answering.breaker("truncate"))
        found["asked"] = "yes" if "asked" in answering.end() else "no"
        killed = Held(means, fresh())
        killed.end(kill=True)
        found["killed"] = "free" if said(killed.breaker("truncate"))[0] == "done" else "still held"
        if means.startswith("swapon"):
            libc.swapoff(killed.path.encode())
    return found


def rows(directory: Path, chosen: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Means, and what its tests have found; all `not to be had here` where this machine refuses the means."""
    with ScratchMount(["break_timeout=3"]) as mount:
        for means in chosen:
            try:
                yield means, put_to_the_tests(means, directory, mount.path)
            except OSError as error:
                print(f"{means}: {error}", file=sys.stderr)
                yield means, dict.fromkeys(TESTS, "not to be had here")


def main(directory: str, *chosen: str) -> None:
    """Print the table."""
    print("| | " + " | ".join(HEADINGS) + " |")
    print("|---|" + "---|" * len(HEADINGS))
    for means, found in rows(Path(directory), chosen or [*MEANS]):
        print(f"| {means} | " + " | ".join(found[test] for test in TESTS) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hold"]:
        hold(sys.argv[2], sys.argv[3], "answers" in sys.argv[4:])
    elif sys.argv[1:2] == ["--act"]:
        act(sys.argv[2], sys.argv[3])
    else:
        main(*(sys.argv[1:] or ["/var/tmp"]))
