"""Mounts that `pinfs mount --daemon` makes, their daemons and keepers."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.actor import eventually
from support.mounts import REPO

from pinfs.observe.daemons import keeper_pid, keepers
from pinfs.observe.mounts import Mount

LIMIT_S = 60.0
KEPT = 3
"""Descriptors of a mount without open files: the connection, the source, the journal."""
PROGRAM = (sys.executable, str(REPO / "pinfs/cli/__main__.py"))
"""`pinfs` of this tree."""


class Background:
    """A mount that `pinfs mount --daemon` has made; `prefix`: a command to run every `pinfs` under (setpriv...)."""

    def __init__(self, base: Path, prefix: Sequence[str] = ()) -> None:
        self.base = base
        self.prefix = tuple(prefix)
        self.source, self.point, self.log = base / "source", base / "mnt", base / "log"
        self.source.mkdir(exist_ok=True)
        self.point.mkdir(exist_ok=True)

    def pinfs(self, *words: object, program: Sequence[str] = PROGRAM, **how: Any) -> subprocess.CompletedProcess[str]:
        command = [*self.prefix, *program, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, **how)

    def mount(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.pinfs("mount", self.source, self.point, "--daemon", "--log-file", self.log, *words)

    def status(self) -> dict[str, Any]:
        read = subprocess.run([*self.prefix, "cat", self.point / ".pinfs/status"], capture_output=True, check=True)
        status: dict[str, Any] = json.loads(read.stdout)
        return status

    @property
    def pid(self) -> int:
        pid: int = self.status()["pid"]
        return pid

    @property
    def keeper(self) -> int | None:
        return keeper_pid(Mount(str(self.point), str(self.source)))

    def keepers(self) -> list[int]:
        """All keepers that began for mounts below `base`, found by their commands."""
        return [pid for pid in keepers() if str(self.base).encode() in cmdline(pid)]

    def umount(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.pinfs("umount", self.point, *words)

    def upgrade(self, program: Sequence[str] = PROGRAM) -> subprocess.CompletedProcess[str]:
        return self.pinfs("upgrade", self.point, program=program)

    def processes(self) -> list[int]:
        """All whose command names the mount point."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [pid for pid in pids if str(self.point).encode() in cmdline(pid) and pid != os.getpid()]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_end(*pids: int | None) -> None:
    """They may be children of a first process that never reaps: a zombie has ended, too."""
    for pid in pids:
        assert pid is not None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        waiter = select.poll()
        waiter.register(pidfd, select.POLLIN)
        assert waiter.poll(LIMIT_S * 1000)
        os.close(pidfd)


def kill(background: Background, number: int = signal.SIGKILL) -> int:
    """End the daemon, and wait until another one serves; the number of the one that was."""
    pid = background.pid
    os.kill(pid, number)
    wait_end(pid)
    eventually(lambda: background.pid != pid, LIMIT_S)
    return pid


def program_of(tree: Path) -> tuple[str, str]:
    """`pinfs` of another tree."""
    return sys.executable, str(tree / "pinfs/cli/__main__.py")
