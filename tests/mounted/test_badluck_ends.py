"""Ends that nobody planned, in the middle of everything: an aborted connection, a killed daemon, unmounts of all kinds.

Whoever waits gets a clear error, nothing hangs, and nothing stays mounted.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NewMount
from mounted.world import connection, nothing_is_stuck, run
from support import acts
from support.actor import Pending, eventually
from support.mounts import MNT_DETACH, MNT_FORCE, REPO, Mount, is_mounted, umount, wait_mounted

LIMIT_S = 20.0
GONE = {errno.ECONNABORTED, errno.ENOTCONN, errno.EIO}
FILES = 4


class Crowd:
    """A mount in full work: leases that are being broken, breakers of every kind that wait, and who waits for these."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.files = [mount.path / str(number) for number in range(FILES)]
        self.holder = mount.actor()
        for file in self.files:
            file.write_bytes(b"x" * 8192)
            self.holder.pin(file, "p", "0:0,mode=lease,signal=none")
        self.fds = [self.holder(os.open, str(file), os.O_RDWR) for file in self.files]
        self.calls: dict[str, Pending[Any]] = {}
        truncated, opened, punched, cut = map(str, self.files)
        self._start("truncate", os.truncate, truncated, 0)
        self._start("O_TRUNC", os.open, opened, os.O_WRONLY | os.O_TRUNC)
        self._start_with_fd("ftruncate", cut, os.ftruncate, 0)
        bridged = mount.status()["bridge"]
        if bridged:
            self._start_with_fd("fallocate", punched, acts.fallocate, 3, 0, 4096)
        self.breakers = set(self.calls)
        eventually(self.all_wait)
        self._start_with_fd("setxattr", truncated, os.setxattr, "user.a", b"1")  # waits in the kernel for the truncate
        if bridged:  # who reads cannot be interrupted otherwise, and would hold up the test
            self._start_with_fd("read of events", str(mount.control("events")), os.read, 4096)

    def _start(self, what: str, call: Any, *args: Any) -> None:
        self.calls[what] = self.mount.actor().start(call, *args)

    def _start_with_fd(self, what: str, path: str, call: Any, *args: Any) -> None:
        actor = self.mount.actor()
        fd = actor(os.open, path, os.O_RDWR)
        self.calls[what] = actor.start(call, fd, *args)

    def all_wait(self) -> bool:
        return bool(self.mount.status()["waiting"] == len(self.breakers))

    def errors(self) -> dict[str, int | None]:
        return {what: call.error(LIMIT_S) for what, call in self.calls.items()}

    def untouched(self) -> bool:
        """Nobody's bytes are gone."""
        return all((self.mount.source / file.name).stat().st_size == 8192 for file in self.files)


@pytest.fixture(params=["bridge=auto", "bridge=off"])
def crowd(request: pytest.FixtureRequest, new_mount: NewMount) -> Iterator[Crowd]:
    yield Crowd(new_mount("break_timeout=60", request.param))
    nothing_is_stuck()


def test_aborting_the_connection_answers_everybody(crowd: Crowd) -> None:
    with connection(crowd.mount.path, crowd.mount.base) as link:
        link.abort()
    assert set(crowd.errors().values()) <= GONE
    assert crowd.mount.process.wait(LIMIT_S) == 0
    assert not is_mounted(crowd.mount.path)
    assert crowd.untouched()


def test_a_forced_umount_answers_everybody(crowd: Crowd) -> None:
    with pytest.raises(OSError, match="busy"):
        umount(crowd.mount.path, MNT_FORCE)
    assert set(crowd.errors().values()) <= GONE
    assert crowd.mount.process.wait(LIMIT_S) == 0
    assert not is_mounted(crowd.mount.path)
    assert crowd.untouched()


def test_sigterm_answers_breakers_before_it_unmounts(crowd: Crowd) -> None:
    crowd.mount.process.terminate()
    errors = crowd.errors()
    assert {errors[what] for what in crowd.breakers} == {errno.EBUSY}
    assert crowd.mount.process.wait(LIMIT_S) == 0
    assert not is_mounted(crowd.mount.path)
    assert crowd.untouched()
    assert crowd.holder.errno(os.fstat, crowd.fds[0]) in GONE  # a clear error, for good


def test_sigterm_twice_is_no_worse_than_once(crowd: Crowd) -> None:
    for _ in range(2):
        crowd.mount.process.terminate()
    crowd.errors()
    assert crowd.mount.process.wait(LIMIT_S) in (0, -signal.SIGTERM)
    assert not is_mounted(crowd.mount.path)
    crowd.mount.process.returncode = 0  # it was asked to


def test_a_busy_mount_is_not_unmounted_and_nobody_notices(crowd: Crowd) -> None:
    with pytest.raises(OSError, match="busy"):
        umount(crowd.mount.path)
    assert crowd.all_wait()
    for file in crowd.files:
        crowd.holder.release(file, "p")
    crowd.calls.pop("read of events", None)
    assert set(crowd.errors().values()) == {None}


def test_after_a_lazy_umount_the_protocol_goes_on(crowd: Crowd) -> None:
    """Who has files open goes on as before, and the daemon ends with the last of them."""
    mount = crowd.mount
    umount(mount.path, MNT_DETACH)
    assert not is_mounted(mount.path)
    for fd in crowd.fds:
        assert crowd.holder(os.getxattr, fd, "user.pinfs.release.p") == b"released"
    crowd.calls.pop("read of events", None)
    assert set(crowd.errors().values()) == {None}
    assert mount.process.poll() is None
    mount.dismiss()
    assert mount.process.wait(LIMIT_S) == 0
    assert (mount.source / "0").stat().st_size == 0


def test_a_killed_daemon_leaves_clear_errors_and_a_mount_that_can_be_taken_away(crowd: Crowd) -> None:
    mount = crowd.mount
    mount.process.kill()
    mount.process.wait(LIMIT_S)
    assert set(crowd.errors().values()) <= GONE
    assert crowd.untouched()
    with pytest.raises(OSError, match="Transport endpoint is not connected"):
        os.listdir(mount.path)
    mount.dismiss()
    done = run(sys.executable, "-m", "pinfs.cli.main", "umount", mount.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mounted(mount.path)
    mount.process.returncode = 0  # it did not end by itself


@pytest.mark.parametrize("option", ["bridge=auto", "bridge=off"])
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, "umount"])
def test_an_end_before_the_beginning(base: Path, by: signal.Signals | str, option: str) -> None:
    """As early as anybody can see the mount, and at a few moments after."""
    source, point = base / "source", base / "mnt"
    for directory in (source, point):
        directory.mkdir()
    for pause_ms in range(2):
        command = [sys.executable, str(REPO / "mount.py"), str(source), str(point), "-o", option]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert wait_mounted(point, process, LIMIT_S)
        time.sleep(pause_ms / 1000)  # not to be right: to be early in several ways
        if isinstance(by, signal.Signals):
            process.send_signal(by)
        else:
            umount(point, MNT_DETACH)
        words, _ = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, b"Traceback" in words) == (0, False), words
        assert not is_mounted(point)
