"""Mounts that an ordinary user makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mounted.world import USER, as_user
from support.mounts import REPO, force_umount, is_mounted, wait_mounted

LIMIT_S = 30.0


class UserMount:
    """What only that user can enter: everything about it is asked by actors."""

    def __init__(self, base: Path, options: tuple[str, ...] = (), source: Path | None = None) -> None:
        self.source, self.path, self.log = source or base / "source", base / "mnt", base / "log"
        for directory in (self.source, self.path):
            directory.mkdir(exist_ok=True)
            os.chown(directory, USER, USER)
        command = [*as_user(USER), sys.executable, str(REPO / "mount.py"), str(self.source), str(self.path)]
        command += ["-o", ",".join(options)] if options else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        assert wait_mounted(self.path, self.process, LIMIT_S), self.log.read_text()


@contextmanager
def mounted(base: Path, options: tuple[str, ...] = (), source: Path | None = None) -> Iterator[UserMount]:
    """It ends by SIGTERM, and in good order."""
    mount = UserMount(base, options, source)
    try:
        yield mount
    finally:
        mount.process.terminate()
        status = mount.process.wait(LIMIT_S)
        left = is_mounted(mount.path)
        force_umount(mount.path)
        assert (status, left) == (0, False), mount.log.read_text()
