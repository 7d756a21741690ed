"""A mount that outlives its daemon, whose daemon is killed."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from support.mounts import force_umount, is_mounted, wait_mounted

from pinfs.journal.records import Kind
from pinfs.journal.slots import Slots, new_journal_file

LIMIT_S = 30.0
KEEPER = os.environ.get("KEEPER", "/tmp/kills/keeper.py")


class Surviving:
    def __init__(self, base: Path, options: Sequence[str], user: int = 0) -> None:
        self.base = base
        self.source, self.path = base / "source", base / "mnt"
        for d in (self.source, self.path):
            d.mkdir(exist_ok=True)
            os.chown(d, user, user)
        os.chown(base, user, user)
        prefix = ["setpriv", "--pdeathsig", "KILL"]
        if user:
            prefix += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        with open(base / "keeper.log", "ab") as log:
            self.keeper = subprocess.Popen(
                [*prefix, sys.executable, KEEPER, str(self.source), str(self.path), ",".join(options), str(base)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        self.kills: list[float] = []
        assert wait_mounted(self.path, self.keeper, LIMIT_S), self.log()
        self.as_user = prefix[3:] and ["setpriv", *prefix[3:]]
        self.read("status")

    def read(self, name: str) -> str:
        """A file of the control directory."""
        return self.run("cat", str(self.path / ".pinfs" / name))

    def run(self, *command: str, text: str = "") -> str:
        """As the user whose mount it is."""
        done = subprocess.run(
            [*self.as_user, *command], check=True, input=text, text=True, capture_output=True, timeout=LIMIT_S
        )
        return done.stdout

    def daemon(self) -> int:
        return int((self.base / "pid").read_text())

    def kill(self) -> int:
        pid = self.daemon()
        self.kills.append(time.monotonic())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    def log(self) -> str:
        return "".join(
            (self.base / n).read_text(errors="replace")
            for n in ("log", "keeper.log", "fault")
            if (self.base / n).exists()
        )

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.daemon(), signal.SIGTERM)
        try:
            self.keeper.wait(20)
        except subprocess.TimeoutExpired:
            self.keeper.kill()
            force_umount(self.path)
            self.keeper.wait()
            raise AssertionError("does not end\n" + self.log()[-5000:])
        assert not is_mounted(self.path)

    def reap(self) -> None:
        self.keeper.kill()
        self.keeper.wait()
        force_umount(self.path)


def journal_of(pid: int) -> dict[str, dict[int, bytes]]:
    """The records of a daemon's journal, by kind and id."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if "pinfs-journal" in os.readlink(fd):
            copy = new_journal_file()
            with open(fd, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                os.ftruncate(copy, size)
                used = struct.unpack_from("<Q", os.pread(file.fileno(), 24, 0), 16)[0]
                os.pwrite(copy, os.pread(file.fileno(), used * 128, 0), 0)
            slots = Slots(copy)
            os.close(copy)
            return {
                Kind(kind).name: {i: slots.body(s) for i, s in found.items()} for kind, found in slots.load().items()
            }
    raise AssertionError
