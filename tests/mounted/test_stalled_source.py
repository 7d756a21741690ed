"""A source that is served by another program, which answers late for one file: its users wait, and no other; `.pinfs`
answers, signals do, the mount ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import acts, mounts
from support.actor import Pending
from support.mounts import Mount

from pinfs.runtime.threads import MAX_FOR_ONE

LIMIT_S = 20.0
PROMPT_S = 2.0
"""What a call that waits for nothing takes at most on a busy machine; a stalled one would take for ever."""
SLOW = "s"
"""The directory of what stalls: the kernel itself locks a directory while a name in it is changed."""
TYPE = "user.test"


class Source:
    """The file system of stalling.py, mounted."""

    def __init__(self, base: Path) -> None:
        self.files, self.path = base / "files", base / "served"
        self.files.mkdir()
        self.path.mkdir()
        program = Path(__file__).with_name("stalling.py")
        environment = {**os.environ, "PYTHONPATH": f"{mounts.REPO}:{mounts.REPO / 'tests'}"}
        self.server = subprocess.Popen([sys.executable, str(program), str(self.files), str(self.path)], env=environment)
        if not mounts.wait_mounted(self.path, self.server, 20):
            self.reap()
            raise AssertionError("the source is not mounted")

    def stalls(self) -> bool:
        """Whether a call waits for it."""
        return self.files.with_suffix(".stalls").exists()

    def answer(self) -> None:
        """From now on it answers for all files."""
        self.server.send_signal(signal.SIGUSR1)

    def reap(self) -> None:
        mounts.force_umount(self.path)
        self.server.kill()
        self.server.wait()


@pytest.fixture
def options() -> str:
    """Without passthrough, reads and writes come to the daemon as well."""
    return "passthrough=off"


@pytest.fixture
def source(fuse: None, base: Path) -> Iterator[Source]:
    source = Source(base)
    for name in ("other", "moved"):
        (source.files / name).write_bytes(b"x" * 100)
    for name in ("d", SLOW):
        (source.files / name).mkdir()
    (source.files / "d" / "f").touch()
    try:
        yield source
    finally:
        source.reap()


@pytest.fixture
def mount(source: Source, base: Path, options: str) -> Iterator[Mount]:
    (base / "over").mkdir()
    mount = Mount(base / "over", [options, "entry_timeout=0", "attr_timeout=0"], source=source.path)
    try:
        with mount:
            yield mount
            source.answer()  # a process cannot end before its system calls do
    finally:
        source.answer()
        shutil.rmtree(base / "over", ignore_errors=True)


def check_prompt(mount: Mount, done: Callable[[], bool]) -> None:
    """All else works as ever, while a call stands."""
    for number in range(3):
        began = time.monotonic()
        other = mount.path / "other"
        assert other.read_bytes() == b"x" * 100
        new = mount.path / "d" / f"new{number}"
        new.write_bytes(b"y" * 5000)
        assert new.stat().st_size == 5000
        os.truncate(new, 10)
        new.chmod(0o600)
        os.rename(new, mount.path / "d" / "renamed")
        assert sorted(os.listdir(mount.path / "d")) == ["f", "renamed"]
        (mount.path / "d" / "renamed").unlink()
        assert mount.status()["source_calls"] >= 1
        assert time.monotonic() - began < PROMPT_S
    assert not done()


CALLS: dict[str, tuple[str, Callable[..., object], tuple[object, ...]]] = {
    # operation of the source: what is there before, the call, and its arguments (PATH: what is there, MOUNT: where)
    "lookup": ("file", os.stat, ("PATH",)),
    "getattr": ("file", os.stat, ("PATH",)),
    "setattr": (
        "file",
        os.chmod,
        (
            "PATH",
            0o600,
        ),
    ),
    "open": ("file", acts.read_file, ("PATH",)),
    "read": ("file", acts.read_file, ("PATH",)),
    "write": (
        "file",
        acts.write_file,
        (
            "PATH",
            b"z",
        ),
    ),
    "create": (
        "",
        acts.write_file,
        (
            "PATH",
            b"z",
        ),
    ),
    "mkdir": ("", os.mkdir, ("PATH",)),
    "mknod": ("", os.mkfifo, ("PATH",)),
    "symlink": ("", os.symlink, ("target", "PATH")),
    "unlink": ("file", os.unlink, ("PATH",)),
    "rmdir": ("directory", os.rmdir, ("PATH",)),
    "rename": ("file", os.rename, ("PATH", "MOUNT/s/renamed")),
    "opendir": ("directory", os.listdir, ("PATH",)),
    "readdir": ("directory", os.listdir, ("PATH",)),
    "getxattr": (
        "file",
        os.getxattr,
        (
            "PATH",
            TYPE,
        ),
    ),
    "setxattr": ("file", os.setxattr, ("PATH", TYPE, b"w")),
    "listxattr": ("file", os.listxattr, ("PATH",)),
    "removexattr": (
        "file",
        os.removexattr,
        (
            "PATH",
            TYPE,
        ),
    ),
    "readlink": ("link", os.readlink, ("PATH",)),
}


def put(source: Source, name: str, what: str) -> None:
    match what:
        case "file":
            (source.files / SLOW / name).write_bytes(b"x" * 100)
            os.setxattr(source.files / SLOW / name, TYPE, b"v")
        case "directory":
            (source.files / SLOW / name).mkdir()
        case "link":
            (source.files / SLOW / name).symlink_to("a")


def stalled_call(source: Source, mount: Mount, operation: str) -> Pending[Any]:
    what, call, arguments = CALLS[operation]
    name = f"slow-{operation}"
    put(source, name, what)
    pending: Pending[Any] = mount.actor().start(
        call,
        *(
            each.replace("PATH", f"MOUNT/{SLOW}/{name}").replace("MOUNT", str(mount.path))
            if isinstance(each, str)
            else each
            for each in arguments
        ),
    )
    until(source.stalls)
    return pending


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("operation", CALLS)
def test_one_file_that_does_not_answer(source: Source, mount: Mount, operation: str) -> None:
    stalled = stalled_call(source, mount, operation)
    check_prompt(mount, stalled.done)
    source.answer()
    assert stalled.error() is None


@pytest.mark.parametrize("options", ["passthrough=auto"])
@pytest.mark.parametrize("operation", ["getattr", "open"])
def test_with_passthrough(source: Source, mount: Mount, operation: str) -> None:
    test_one_file_that_does_not_answer(source, mount, operation)


def test_a_crowd_at_one_file(source: Source, mount: Mount) -> None:
    """More requests than a file may have threads."""
    put(source, "slow-open", "file")
    path = str(mount.path / SLOW / "slow-open")
    crowd = [mount.actor().start(acts.read_file, path) for _ in range(2 * MAX_FOR_ONE)]
    until(lambda: mount.status()["source_calls"] == MAX_FOR_ONE)
    check_prompt(mount, crowd[0].done)
    source.answer()
    assert [one.error() for one in crowd] == [None] * len(crowd)


def test_a_signal_ends_the_wait(source: Source, mount: Mount) -> None:
    actor = mount.actor()
    put(source, "slow-getattr", "file")
    actor.start(os.stat, str(mount.path / SLOW / "slow-getattr"))
    until(source.stalls)
    os.kill(actor.pid, signal.SIGKILL)
    actor.process.wait(LIMIT_S)
    check_prompt(mount, lambda: False)


@pytest.mark.parametrize("operation", ["lookup", "getattr", "open", "mkdir", "readdir"])
def test_sigterm_ends_the_mount(source: Source, mount: Mount, operation: str) -> None:
    stalled = stalled_call(source, mount, operation)
    os.kill(mount.pid, signal.SIGTERM)
    until(lambda: not mounts.is_mounted(mount.path))
    assert stalled.error() in (errno.EINTR, errno.ENOTCONN, errno.ECONNABORTED)
    source.answer()
    assert mount.process.wait(LIMIT_S) == 0


def test_what_comes_too_late_is_taken_in(source: Source, mount: Mount) -> None:
    """The caller has gone before its directory was made."""
    actor = mount.actor()
    path = mount.path / SLOW / "slow-mkdir"
    actor.start(os.mkdir, str(path))
    until(source.stalls)
    os.kill(actor.pid, signal.SIGKILL)
    actor.process.wait(LIMIT_S)
    source.answer()
    until(path.is_dir)
    until(lambda: mount.status()["source_calls"] == 0)
    path.rmdir()


def test_pins_on_such_a_source(source: Source, mount: Mount) -> None:
    """They hold as elsewhere, while another file does not answer."""
    path = mount.path / "other"
    holder, breaker = mount.actor(), mount.actor()
    stalled = stalled_call(source, mount, "getattr")
    holder.pin(path, "n", "0:50,mode=deny")
    assert breaker.start(os.truncate, str(path), 10).error() == errno.EBUSY
    os.truncate(path, 60)
    holder.release(path, "n")
    os.truncate(path, 10)
    assert path.stat().st_size == 10
    assert not stalled.done()
