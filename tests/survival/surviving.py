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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support.actor import eventually
from support.mounts import REPO, force_umount, is_mounted, new_base, remove_tree, wait_mounted

from pinfs.journal.records import Kind
from pinfs.journal.slots import SLOT, Slots, new_journal_file

LIMIT_S = 30.0
USER = 65534
KEEPER = os.environ.get("KEEPER", "/tmp/kills/keeper.py")


class Surviving:
    """`source` on `path`, with a keeper. `user`: whose mount it is; only this user may look into it."""

    def __init__(self, base: Path, options: Sequence[str] = (), user: int = 0) -> None:
        self.base = base
        self.source, self.path = base / "source", base / "mnt"
        for directory in (base, self.source, self.path):
            directory.mkdir(exist_ok=True)
            os.chown(directory, user, user)
        self.as_user = [f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        command = ["setpriv", *self.as_user, "--pdeathsig", "KILL", sys.executable, KEEPER]
        with (base / "keeper.log").open("ab") as log:
            self.keeper = subprocess.Popen(
                [*command, str(self.source), str(self.path), ",".join(options), str(base)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(REPO)},
            )
        self.kills: list[float] = []
        try:
            assert wait_mounted(self.path, self.keeper, LIMIT_S), self.log()
            self.status()
        except BaseException:
            self.reap()
            raise

    # What it says

    def run(self, *command: str, text: str = "", limit_s: float = LIMIT_S) -> str:
        """The output of a command of the user whose mount it is."""
        prefix = ["setpriv", *self.as_user] if self.as_user else []
        done = subprocess.run(
            [*prefix, *command], check=True, input=text, text=True, capture_output=True, timeout=limit_s
        )
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
        logs = (self.base / name for name in ("log", "keeper.log", "fault"))
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    # Its deaths

    @property
    def daemon(self) -> int:
        """The process that serves it, or is about to."""
        return int((self.base / "pid").read_text())

    def kill(self) -> int:
        """The daemon; its pid."""
        pid = self.daemon
        self.kills.append(time.monotonic())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    def wait_taken_over(self, killed: int) -> None:
        """Until another daemon serves."""
        eventually(lambda: self.daemon != killed, LIMIT_S)
        self.status()

    @contextmanager
    def gap(self) -> Iterator[None]:
        """Inside of it there is no daemon."""
        self.keeper.send_signal(signal.SIGSTOP)
        killed = self.kill()
        try:
            eventually(lambda: not is_running(killed))
            yield
        finally:
            self.keeper.send_signal(signal.SIGCONT)

    # Its end

    def stop(self) -> None:
        """In good order: nothing is mounted then, and no process is left."""
        with suppress(ProcessLookupError):
            os.kill(self.daemon, signal.SIGTERM)
        self.wait_ended()

    def wait_ended(self) -> int:
        """The exit status of the keeper."""
        try:
            status = self.keeper.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.reap()
            raise AssertionError(f"the mount does not end\n{self.log()[-5000:]}") from None
        assert not is_mounted(self.path)
        return status

    def reap(self) -> None:
        """Whatever happened, nothing is left."""
        self.keeper.send_signal(signal.SIGCONT)
        self.keeper.kill()
        self.keeper.wait(LIMIT_S)
        force_umount(self.path)


def is_running(pid: int) -> bool:
    """A zombie has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def surviving(backing: str, options: Sequence[str], user: int = 0) -> Iterator[Surviving]:
    """A fresh one. `backing`: tmpfs, disk, or ext4 (in a file)."""
    base = new_base("disk" if backing == "ext4" else backing)
    try:
        with ext4(base) if backing == "ext4" else suppress():
            mount = Surviving(base, options, user)
            try:
                yield mount
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
        subprocess.run(["umount", source], check=True)


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
