"""A pinfs for one test: an empty directory on tmpfs, mounted for a block and removed afterwards."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pinfs
from pinfs.linux.inodeflags import clear_append
from pinfs.observe.daemons import connection_of, daemon_pid, keeper_pid
from pinfs.observe.mounts import Mount

MEMORY = Path("/dev/shm")  # tmpfs on every Linux, also in containers (often limited to 64 MiB there)
STATE = "PINFS_STATE_DIRECTORY"
START_S = 60.0
END_S = 20.0

_NEEDED = """\
A scratch pinfs cannot be mounted here: {why}
It takes /dev/fuse and root, or /dev/fuse and fusermount3 (package fuse3) for other users.
In a container: --device /dev/fuse --cap-add SYS_ADMIN (and root in it). `pinfs doctor` tells more."""


class ScratchError(Exception):
    """A scratch mount could not be created or ended; the text says what to do."""


class ScratchMount:
    """An empty pinfs, mounted within `with`.

    `path` is the mount point, `source` the directory behind it. `options` are those of `-o`; `backing` is a directory
    for the source, where tmpfs will not do (a DAX file system, say). The mount ends with its daemon, unless `options`
    have survive=on. Raises ScratchError.
    """

    path: Path
    source: Path

    def __init__(self, options: Sequence[str] = (), backing: str | os.PathLike[str] | None = None) -> None:
        self.options = ("survive=off", *options)
        self._backing = backing or _memory()
        self._undo = ExitStack()

    def __enter__(self) -> "ScratchMount":
        with ExitStack() as undo:
            base = Path(tempfile.mkdtemp(prefix="pinfs-scratch-", dir=self._backing))
            undo.callback(_remove_tree, base)
            base.chmod(0o755)
            self.path, self.source, self._log = base / "mnt", base / "source", base / "log"
            self._state = base / "state"
            for directory in (self.path, self.source, self._state):
                directory.mkdir()
            self._mount()
            undo.callback(self._unmount, os.pidfd_open(self.status()["pid"]))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.close()

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def _mount(self) -> None:
        words: list[str | Path] = ["mount", self.source, self.path, "--daemon", "--log-file", self._log]
        for option in self.options:
            words += ["-o", option]
        result = subprocess.run(
            [sys.executable, "-m", "pinfs.cli.main", *words], env=os.environ | {STATE: os.fspath(self._state)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        if result.returncode:
            raise ScratchError(_NEEDED.format(why=result.stderr.strip()))

    def _unmount(self, daemon: int) -> None:
        """End the mount, although it may be in use, and wait for the end of `daemon`, a pidfd. A keeper is ended as
        well, before it starts another daemon, and the one that it has started."""
        processes = [*self._kept(), daemon]
        try:
            _end(processes, signal.SIGTERM)
        except TimeoutError:
            _end(processes, signal.SIGKILL)
            raise ScratchError(f"the daemon did not end within {END_S} s; its log:\n{self.log()}") from None
        finally:
            for process in processes:
                os.close(process)
            if connection_of(self._mounted) is not None:  # the daemon was killed
                subprocess.run([*_LAZY_UMOUNT, self.path], check=False)

    def _kept(self) -> Iterator[int]:
        """Pidfds of the keeper and of the daemon that it keeps."""
        if (keeper := keeper_pid(self._mounted)) is not None:
            for pid in filter(None, (keeper, daemon_pid(self._mounted))):
                with suppress(ProcessLookupError):
                    yield os.pidfd_open(pid)

    @property
    def _mounted(self) -> Mount:
        return Mount(os.path.realpath(self.path), os.path.realpath(self.source))

    def status(self) -> dict[str, Any]:
        """`.pinfs/status`."""
        status: dict[str, Any] = json.loads((self.path / ".pinfs" / "status").read_text())
        return status

    def pins(self) -> list[pinfs.PinInfo]:
        """All pins on this mount."""
        return pinfs.all_pins(self.path)

    def log(self) -> str:
        """The daemon's log so far."""
        return self._log.read_text(errors="replace")


_LAZY_UMOUNT = ("umount", "-l") if os.geteuid() == 0 else ("fusermount3", "-u", "-z")


def _memory() -> Path | None:
    return MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else None


def _end(processes: Sequence[int], number: signal.Signals) -> None:
    """Signal pidfds and wait for their end. Raises TimeoutError."""
    for process in processes:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, number)
    until = time.monotonic() + END_S
    for process in processes:
        waiter = select.poll()
        waiter.register(process, select.POLLIN)
        if not waiter.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError


def _remove_tree(base: Path) -> None:
    """Also files whose daemon was killed while they were sealed (SPEC 12)."""
    try:
        shutil.rmtree(base)
    except PermissionError:
        for path in filter(Path.is_file, base.rglob("*")):
            clear_append(path)
        shutil.rmtree(base)
