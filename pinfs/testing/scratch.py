"""A pinfs for one test: an empty directory on memory, mounted, and gone without a trace afterwards."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pinfs

MEMORY = Path("/dev/shm")  # tmpfs on every Linux, also in containers (there often 64 MiB of it)
START_S = 60.0
END_S = 20.0

_NEEDED = """\
A scratch pinfs cannot be mounted here: {why}
It takes /dev/fuse and root, or /dev/fuse and fusermount3 (package fuse3) for other users.
In a container: --device /dev/fuse --cap-add SYS_ADMIN (and root in it). `pinfs doctor` tells more."""


class ScratchError(Exception):
    """A scratch mount could not be made, or did not end as it should; the text says what to do."""


class ScratchMount:
    """An empty pinfs, mounted between `mount` and `unmount`, or within `with`.

    `path` is the mount point, `source` the directory behind it. `options` are those of `-o`; `backing` is a directory
    to make the source in, where memory will not do (a DAX file system, say).
    """

    def __init__(self, options: Sequence[str] = (), backing: str | os.PathLike[str] | None = None) -> None:
        self.options = tuple(options)
        self._base = Path(tempfile.mkdtemp(prefix="pinfs-scratch-", dir=backing or _memory()))
        self._base.chmod(0o755)
        self.path = self._base / "mnt"
        self.source = self._base / "source"
        self._log = self._base / "log"
        self._daemon: int | None = None

    def __enter__(self) -> "ScratchMount":
        try:
            self.mount()
        except BaseException:
            shutil.rmtree(self._base)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.unmount()
        shutil.rmtree(self._base)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def mount(self) -> None:
        """Mount; raises ScratchError, which says what is missing."""
        self.path.mkdir(exist_ok=True)
        self.source.mkdir(exist_ok=True)
        words: list[str | Path] = ["mount", self.source, self.path, "--daemon", "--log-file", self._log]
        for option in self.options:
            words += ["-o", option]
        result = subprocess.run(
            [sys.executable, "-m", "pinfs.cli.main", *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        if result.returncode:
            raise ScratchError(_NEEDED.format(why=result.stderr.strip()))
        self._daemon = os.pidfd_open(self.status()["pid"])

    def unmount(self) -> None:
        """End the mount, whoever uses it; returns when its daemon has ended. Raises ScratchError if that hangs."""
        if self._daemon is None:
            return
        daemon, self._daemon = self._daemon, None
        try:
            _end(daemon, signal.SIGTERM)
        except TimeoutError:
            _end(daemon, signal.SIGKILL)
            subprocess.run(["umount" if os.geteuid() == 0 else "fusermount3", *_LAZILY, self.path], check=False)
            raise ScratchError(f"the daemon did not end within {END_S} s; its log:\n{self.log()}") from None
        finally:
            os.close(daemon)

    def status(self) -> dict[str, Any]:
        """`.pinfs/status`."""
        status: dict[str, Any] = json.loads((self.path / ".pinfs" / "status").read_text())
        return status

    def pins(self) -> list[pinfs.PinInfo]:
        """All pins on this mount."""
        return pinfs.all_pins(self.path)

    def log(self) -> str:
        """What the daemon has logged so far."""
        with suppress(FileNotFoundError):
            return self._log.read_text(errors="replace")
        return ""


_LAZILY = ("-l",) if os.geteuid() == 0 else ("-u", "-z")


def _memory() -> Path | None:
    return MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else None


def _end(process: int, number: signal.Signals) -> None:
    """Signal a pidfd and wait for its end. Raises TimeoutError."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)
    waiter = select.poll()
    waiter.register(process, select.POLLIN)
    if not waiter.poll(END_S * 1000):
        raise TimeoutError
