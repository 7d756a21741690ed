"""Real mounts for tests: a daemon process on a source directory, watched from its start to its end.

A test that goes wrong must not wedge the next one: whatever waits on a mount is set free by aborting the connection
(umount2 with MNT_FORCE), after the stacks of the daemon have been written down.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from support.actor import Actors, HungError, where

REPO = Path(__file__).parents[2]
START_LIMIT_S = 30.0
STOP_LIMIT_S = 20.0
TEST_LIMIT_S = 120.0
"""A mount that one test keeps longer than this is aborted: the test hangs."""

BACKINGS = {"tmpfs": Path("/dev/shm"), "disk": Path("/var/tmp")}
BAD_LOG_LINE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback|Exception ignored")
MNT_FORCE, MNT_DETACH = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)

DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM")
"""So that a run that is killed leaves no daemon and no mount."""

live: list[Mount] = []
bases: list[Path] = []


class DaemonError(AssertionError):
    """The daemon did not do what every mount must do: start, stay quiet, end with exit code 0."""


class Mount(Actors):
    """A mounted pinfs. `path` is the mount point, `source` the directory behind it. `prefix` is a command to run the
    daemon under (prlimit, ...), which must become the daemon by exec."""

    program = REPO / "mount.py"

    def __init__(
        self, base: Path, options: Sequence[str] = (), *, source: Path | None = None, prefix: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.base = base
        self.prefix = tuple(prefix)
        self.source = source or _made(base / "source")
        self.path = _made(base / "mnt")
        self.options: tuple[str, ...] = ()
        self._log = base / "log"
        self._expected: list[str] = []
        self._watchdog: threading.Timer | None = None
        self._hung = ""
        self._start(options)

    # --- life

    def _start(self, options: Sequence[str]) -> None:
        self.options = tuple(options)
        command = [
            *self.prefix,
            *DIES_WITH_US,
            sys.executable,
            str(self.program),
            str(self.source),
            str(self.path),
        ]
        if options:
            command += ["-o", ",".join(options)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=_environment()
            )
        self.pid = self.process.pid
        live.append(self)
        self.watch()
        try:
            self._wait_usable()
        except BaseException:
            self.reap()
            raise

    def watch(self, limit_s: float = TEST_LIMIT_S) -> None:
        """The test may take `limit_s` seconds from now; then the mount is aborted, so that it fails and never hangs."""
        self._unwatch()
        self._watchdog = threading.Timer(limit_s, self.abort, [f"the test took more than {limit_s} s"])
        self._watchdog.daemon = True
        self._watchdog.start()

    def _unwatch(self) -> None:
        if self._watchdog:
            self._watchdog.cancel()

    def _wait_usable(self) -> None:
        if not wait_mounted(self.path, self.process, START_LIMIT_S):
            raise DaemonError(f"the daemon did not mount (exit code {self.process.poll()})\n{self.log()}")
        try:
            os.stat(self.path)
        except OSError as failure:
            raise DaemonError(f"mounted but not usable: {failure}\n{self.log()}") from None

    def remount(self, *options: str) -> None:
        """Ends the daemon and starts a new one on the same source with other options."""
        self.stop()
        self._start(options)

    def stop(self, by: str = "signal") -> None:
        """Ends the mount by SIGTERM, or by umount(2) when `by` is "umount", and holds the daemon to its promises: exit
        code 0 in bounded time, nothing mounted, nothing in the log above level INFO but what was announced."""
        try:
            self.dismiss(hanging=False)
            self._ask_to_end(by)
            self.process.wait(STOP_LIMIT_S)
        except (HungError, subprocess.TimeoutExpired) as hang:
            self.abort(f"does not end: {hang}")
        finally:
            self.reap()
        self._check_end()

    def _ask_to_end(self, by: str) -> None:
        if not is_mounted(self.path):  # the test unmounted it: the daemon ends by itself when nobody uses it any more
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                return
        if by == "umount":
            umount(self.path)
        else:
            self.process.send_signal(signal.SIGTERM)

    def _check_end(self) -> None:
        if self._hung:
            raise DaemonError(f"{self._hung}\n{self.log()}")
        if self.process.returncode:
            raise DaemonError(f"the daemon ended with {self.process.returncode}\n{self.log()}")
        self.check_log()

    def abort(self, why: str) -> None:
        """Writes down where the daemon stands, then ends it and sets free whatever waits for it."""
        if self.process.poll() is None:
            self._hung = f"{why}\n{where(self.pid)}"
            for number in (signal.SIGUSR1, signal.SIGABRT, signal.SIGKILL):  # its report, faulthandler's, the end
                self.process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(1)
        force_umount(self.path)

    def reap(self) -> None:
        """After this nothing of the mount is left, however it ended, and nothing is asked of it any more."""
        self._unwatch()
        if self in live:
            live.remove(self)
        self.process.kill()
        self.process.wait(STOP_LIMIT_S)
        if is_mounted(self.path):
            force_umount(self.path)
            self._hung = self._hung or "the daemon ended and left its mount behind"
        self.dismiss()  # who was in the middle of a call is free now

    def __enter__(self) -> Mount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self in live:
            self.stop()

    # --- the log

    def log(self) -> str:
        """All that the daemon has written so far; nothing where it never began, or all of it is cleared away."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def expect_log(self, pattern: str) -> None:
        """Announces lines of level WARNING or above: these must come, all others fail the test."""
        self._expected.append(pattern)

    def check_log(self) -> None:
        """Raises DaemonError for bad lines that nobody announced and announced lines that did not come."""
        bad = [line for line in self.log().splitlines() if BAD_LOG_LINE.search(line)]
        unannounced = [line for line in bad if not any(re.search(p, line) for p in self._expected)]
        missing = [p for p in self._expected if not re.search(p, self.log())]
        if unannounced or missing:
            raise DaemonError(f"not announced: {unannounced}\nannounced but missing: {missing}\n{self.log()}")

    @contextmanager
    def lent(self) -> Iterator[Mount]:
        """To one of the tests that share it, which leaves it as it found it."""
        self.watch()
        yield self
        self.dismiss()
        self.check_log()

    def new_dir(self) -> Path:
        """A fresh directory, open to every uid."""
        path = Path(tempfile.mkdtemp(dir=self.path))
        path.chmod(0o777)
        return path

    # --- the control directory

    def control(self, name: str) -> Path:
        """A file of the control directory (SPEC 7)."""
        return self.path / ".pinfs" / name

    def pins(self) -> list[dict[str, Any]]:
        """Every pin."""
        return [json.loads(line) for line in self.control("pins").read_text().splitlines()]

    def status(self) -> dict[str, Any]:
        """What `pinfs status` shows."""
        status: dict[str, Any] = json.loads(self.control("status").read_text())
        return status

    def policy(self, text: str | None = None) -> dict[str, Any]:
        """The policy in force, after putting `text` (TOML) in force if given. OSError(EINVAL): it was refused."""
        if text is not None:
            with self.control("policy").open("w") as file:
                file.write(text)
        return tomllib.loads(self.control("policy").read_text())

    def metrics(self) -> dict[str, float]:
        """Every sample of `.pinfs/metrics`, by its name with labels as it is written there."""
        lines = self.control("metrics").read_text().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """The events of all pins from now on (SPEC 7): how a test waits for something to happen without sleeping."""
        trace = Trace(os.open(self.control("trace"), os.O_RDONLY | os.O_NONBLOCK))
        try:
            yield trace
        finally:
            os.close(trace.fd)


class Trace:
    """Reads `.pinfs/trace`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen: list[dict[str, Any]] = []
        self._next = 0

    def until(self, event: str, limit_s: float = 20.0, **wanted: Any) -> dict[str, Any]:
        """The next event of that kind with the fields wanted; those before it are passed over, but stay in `seen`."""
        while True:
            while self._next < len(self.seen):
                found = self.seen[self._next]
                self._next += 1
                if found["event"] == event and all(found.get(k) == v for k, v in wanted.items()):
                    return found
            self._read(limit_s, f"{event} {wanted}")

    def _read(self, limit_s: float, what: str) -> None:
        until = time.monotonic() + limit_s
        while select.select([self.fd], [], [], max(0.0, until - time.monotonic()))[0] and time.monotonic() < until:
            try:
                lines = os.read(self.fd, 1 << 16)
            except BlockingIOError:  # poll=off: always ready
                time.sleep(0.01)
                continue
            self.seen.extend(json.loads(line) for line in lines.splitlines())
            return
        raise AssertionError(f"no event {what} in {limit_s} s; seen: {self.seen}")


def new_base(backing: str = "tmpfs") -> Path:
    """A fresh directory for one mount, on that kind of file system. World-readable: other uids go through it."""
    base = Path(tempfile.mkdtemp(prefix="pinfs-test-", dir=BACKINGS[backing]))
    base.chmod(0o755)
    bases.append(base)
    return base


@contextmanager
def fresh_mount(
    *options: str, backing: str = "tmpfs", source: Path | None = None, prefix: Sequence[str] = ()
) -> Iterator[Mount]:
    """A mount in a fresh directory of its own."""
    base = new_base(backing)
    try:
        with Mount(base, options, source=source, prefix=prefix) as mount:
            yield mount
    finally:
        remove_tree(base)


def remove_tree(path: Path) -> None:
    """Also files that still carry a seal, since their daemon was killed (SPEC 12)."""
    try:
        shutil.rmtree(path)
    except PermissionError:
        subprocess.run(["chattr", "-R", "-f", "-a", path], check=False)
        shutil.rmtree(path)


def wait_mounted(path: Path, process: subprocess.Popen[Any], limit_s: float) -> bool:
    """True as soon as FUSE is mounted on `path`; False when the process ends first, or after `limit_s` seconds."""
    pidfd = os.pidfd_open(process.pid)
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    try:
        with open("/proc/self/mountinfo") as table:
            waiter.register(table, select.POLLPRI)  # proc_pid_mountinfo(5): a change of the table
            while not is_mounted(path):
                if process.poll() is not None or not waiter.poll(limit_s * 1000):
                    return False
        return True
    finally:
        os.close(pidfd)


def is_mounted(path: Path) -> bool:
    """Whether a FUSE file system is mounted on `path`. Asks the table, not the mount: a dead one does not hang us."""
    return path in fuse_mounts()


def fuse_mounts() -> list[Path]:
    """The mount points of all FUSE file systems."""
    rows = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [Path(row[4]) for row in rows if row[row.index("-") + 1].split(".")[0] == "fuse"]


def leftovers() -> list[Path]:
    """What is still mounted below any base of this run."""
    return [path for path in fuse_mounts() if any(base in path.parents for base in bases)]


def umount(path: Path, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(path), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(path))


def force_umount(path: Path) -> None:
    """Aborts the connection, so that nothing waits on it any longer, and takes the mount away."""
    with suppress(OSError):
        umount(path, MNT_FORCE)  # busy or not: the connection is aborted (fuse_umount_begin)
    with suppress(OSError):
        umount(path, MNT_DETACH)


def _made(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
