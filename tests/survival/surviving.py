"""A mount that outlives its daemon, for tests that kill that daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mounted.world import as_user
from support.actor import eventually
from support.mounts import force_umount, is_mounted, new_base, remove_tree

from pinfs.journal.records import Kind
from pinfs.journal.slots import SLOT, Slots, new_journal_file

LIMIT_S = 30.0
USER = 65534


class Surviving:
    """`source` on `path`, made by `pinfs mount --daemon`, with its keeper. `user`: whose mount it is, and who alone may
    look into it. `source`: None for one of its own. `prefix`: a command to run everything under (nsenter, ...)."""

    def __init__(
        self,
        base: Path,
        options: Sequence[str] = (),
        user: int = 0,
        source: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.base = base
        self.source, self.path, self._log = source or base / "source", base / "mnt", base / "log"
        for directory in (base, self.source, self.path):
            directory.mkdir(exist_ok=True)
            os.chown(directory, user, user)
        self.prefix = (*prefix, *(as_user(user) if user else ()))
        self.kills: list[float] = []
        self.keeper = self._first = 0
        options = ("survive=on", "max_deaths=0", *options)
        words = ["--daemon", "--log-file", str(self._log), "-o", ",".join(options)]
        try:
            self.run(sys.executable, "-m", "pinfs.cli.main", "mount", str(self.source), str(self.path), *words)
            status = self.status()
            self.keeper, self._first = status["survives"]["keeper_pid"], status["pid"]
        except BaseException as e:
            self.reap()
            said = e.stderr if isinstance(e, subprocess.CalledProcessError) else ""
            raise AssertionError(f"it is not mounted: {said}\n{self.log()}") from e

    # What it says

    def run(self, *command: str, text: str = "", limit_s: float = LIMIT_S) -> str:
        """The output of a command of the user whose mount it is."""
        command = (*self.prefix, *command)
        done = subprocess.run(command, check=True, input=text, text=True, capture_output=True, timeout=limit_s)
        return done.stdout

    def read(self, name: str) -> str:
        """A file of the control directory."""
        return self.run("cat", str(self.path / ".pinfs" / name))

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.read("status"))
        return status

    def policy(self, text: str) -> None:
        self.run("tee", str(self.path / ".pinfs" / "policy"), text=text)

    def pins(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read("pins").splitlines()]

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    # Its deaths

    @property
    def daemon(self) -> int:
        """The process that serves it, or the one that is about to; 0: there is none."""
        if is_running(self._first):
            return self._first
        try:
            children = Path(f"/proc/{self.keeper}/task/{self.keeper}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # the keeper has ended, and its parent has noticed already
            return 0
        return next((int(pid) for pid in children if is_running(int(pid))), 0)  # the oldest; a spare comes after it

    def kill(self) -> int:
        """The daemon; its pid."""
        pid = self.daemon
        if pid:
            self.kills.append(time.monotonic())
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pid

    def kill_keeper(self) -> None:
        """While a daemon serves, which outlives it. Returns when that has another one."""
        old = self.status()["survives"]["keeper_pid"]
        os.kill(old, signal.SIGKILL)
        eventually(lambda: self.status()["survives"]["keeper_pid"] not in (None, old), LIMIT_S)
        status = self.status()
        self.keeper, self._first = status["survives"]["keeper_pid"], status["pid"]

    @contextmanager
    def gap(self) -> Iterator[None]:
        """Inside of it there is no daemon."""
        os.kill(self.keeper, signal.SIGSTOP)
        killed = self.kill()
        try:
            eventually(lambda: not is_running(killed))
            yield
        finally:
            os.kill(self.keeper, signal.SIGCONT)

    # Its end

    def stop(self) -> None:
        """In good order: nothing is mounted then, and no process is left."""
        os.kill(self.keeper, signal.SIGTERM)
        self.wait_ended()

    def wait_ended(self) -> None:
        """Until the keeper has ended, and with it the mount."""
        eventually(lambda: not is_running(self.keeper), LIMIT_S)
        assert not is_mounted(self.path)

    def reap(self) -> None:
        """Whatever happened, nothing is left."""
        for pid in (self.keeper, self.daemon if self.keeper else 0):
            if pid and is_running(pid):
                for number in (signal.SIGCONT, signal.SIGKILL):
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
        force_umount(self.path)


def is_running(pid: int) -> bool:
    """A zombie has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def surviving(backing: str, options: Sequence[str], user: int = 0, *, ends: bool = True) -> Iterator[Surviving]:
    """A fresh one. `backing`: tmpfs, disk, or ext4 (in a file). `ends`: in good order, when the test does."""
    base = new_base("disk" if backing == "ext4" else backing)
    try:
        with ext4(base) if backing == "ext4" else nullcontext():
            mount = Surviving(base, options, user)
            try:
                yield mount
                if ends:
                    mount.stop()
            finally:
                mount.reap()
    finally:
        remove_tree(base)


@contextmanager
def ext4(base: Path) -> Iterator[None]:
    """An empty file system of its own as the source."""
    image, source = base / "image", base / "source"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    source.mkdir()
    subprocess.run(["mount", "-o", "loop", image, source], check=True)
    try:
        shutil.rmtree(source / "lost+found")
        yield
    finally:
        subprocess.run(["umount", "--lazy", source], check=True)


def journal_fd(pid: int) -> Path:
    """The journal of a process that has it."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if "pinfs-journal" in os.readlink(fd):
                return fd
    raise AssertionError("it has no journal")


def records_of(pid: int) -> dict[str, dict[int, bytes]]:
    """What the journal of a process holds, by kind and id."""
    copy = new_journal_file()
    with journal_fd(pid).open("rb") as file:
        os.ftruncate(copy, os.fstat(file.fileno()).st_size)
        (used,) = struct.unpack_from("<Q", os.pread(file.fileno(), 24, 0), 16)
        os.pwrite(copy, os.pread(file.fileno(), used * SLOT, 0), 0)
    slots = Slots(copy)
    os.close(copy)
    found = slots.load()
    records = {Kind(kind).name: {id_: slots.body(slot) for id_, slot in ids.items()} for kind, ids in found.items()}
    slots.close()
    return records
