"""A backing that lets a removal wait without limit: a FUSE file system of the tests' own, whose truncate to WAIT bytes
waits for a gate. The removal through pinfs ends at its deadline, on a signal and with the mount, and nothing else on
the mount waits with it (SPEC 3.9)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bridge.double import WAIT
from bridge.test_mounted_double import Doubled
from support import mounts
from support.actor import Pending
from support.mounts import Mount

SIZE = 1 << 20
BREAK_TIMEOUT_S = 3
LONG = "break_timeout=100"


def pinfs(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pinfs.cli.main import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=mounts.REPO)


class Stalled:
    """pinfs over the double, with two files in it."""

    def __init__(self, base: Path, options: str) -> None:
        (base / "below").mkdir()
        self.double = Doubled(base / "below", "bridge")
        for name in ("f", "g"):
            (self.double.source / name).write_bytes(b"x" * SIZE)
        self.mount = Mount(base, [options], source=self.double.path)
        self.path, self.other = self.mount.path / "f", self.mount.path / "g"

    def truncating(self) -> tuple[int, Pending[None]]:
        """A breaker that waits in the kernel by now: its process, and its call."""
        breaker = self.mount.actor()
        call = breaker.start(os.truncate, str(self.path), WAIT)
        self.until(lambda: self.in_kernel() != [])
        return breaker.pid, call

    def in_kernel(self) -> list[dict[str, object]]:
        waiting: list[dict[str, object]] = self.mount.status()["in_kernel"]
        return waiting

    @staticmethod
    def until(reached: object, limit_s: float = 10.0) -> None:
        until = time.monotonic() + limit_s
        while not reached():  # type: ignore[operator]
            assert time.monotonic() < until
            time.sleep(0.01)

    def size(self) -> int:
        return (self.double.source / "f").stat().st_size


@pytest.fixture
def options() -> str:
    return LONG


@pytest.fixture
def stalled(fuse: None, options: str) -> Iterator[Stalled]:
    base = mounts.new_base()
    stalled = Stalled(base, options)
    try:
        with stalled.mount:
            yield stalled
    finally:
        stalled.double.reap()
        shutil.rmtree(base)


@pytest.mark.parametrize("options", [f"break_timeout={BREAK_TIMEOUT_S}"])
def test_the_deadline_ends_it(stalled: Stalled) -> None:
    mount, began = stalled.mount, time.monotonic()
    with mount.trace() as trace:
        pid, cut = stalled.truncating()
        longest_s = 0.0
        while not cut.done():
            before = time.monotonic()
            assert stalled.other.stat().st_size == SIZE
            assert stalled.path.stat().st_size == SIZE
            longest_s = max(longest_s, time.monotonic() - before)
        assert cut.error() == errno.EBUSY
        waited_s = time.monotonic() - began
        event = trace.until("refused", why="kernel")
    assert BREAK_TIMEOUT_S <= waited_s < BREAK_TIMEOUT_S + 1
    assert longest_s < BREAK_TIMEOUT_S / 3
    assert (event["op"], event["from"], event["to"], event["breaker"]["pid"]) == ("truncate", WAIT, None, pid)
    assert mount.metrics()['pinfs_refusals_total{op="truncate",why="kernel"}'] == 1
    assert stalled.in_kernel() == []
    assert stalled.size() == SIZE
    assert "is refused (kernel)" in mount.log()


def test_a_signal_ends_it_at_once(stalled: Stalled) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        pid, _ = stalled.truncating()
        os.kill(pid, number)
        stalled.until(lambda: stalled.in_kernel() == [])
    assert stalled.size() == SIZE
    stalled.mount.actor()(os.truncate, str(stalled.path), 10)
    assert stalled.size() == 10


def test_the_end_of_the_mount_ends_it(stalled: Stalled) -> None:
    _, cut = stalled.truncating()
    os.kill(stalled.mount.pid, signal.SIGTERM)
    assert cut.error() == errno.EBUSY
    stalled.mount.process.wait(mounts.STOP_LIMIT_S)
    assert stalled.size() == SIZE


@pytest.mark.parametrize("options", [f"break_timeout={BREAK_TIMEOUT_S}"])
def test_a_backing_that_heeds_no_signal(stalled: Stalled) -> None:
    """It is stopped: the breaker is answered all the same, and the file stays out of reach until the call is over."""
    mount = stalled.mount
    mount.expect_log("cannot be interrupted in the kernel")
    _, cut = stalled.truncating()
    os.kill(stalled.double.daemon.pid, signal.SIGSTOP)
    try:
        assert cut.error() == errno.EBUSY
        assert [removal["interruptible"] for removal in stalled.in_kernel()] == [False]
        assert mount.metrics()["pinfs_removals_uninterruptible"] == 1
    finally:
        os.kill(stalled.double.daemon.pid, signal.SIGCONT)
    stalled.until(lambda: stalled.in_kernel() == [])
    assert stalled.size() == SIZE


def test_what_waits_is_shown(stalled: Stalled) -> None:
    pid, cut = stalled.truncating()
    (shown,) = stalled.in_kernel()
    assert (shown["path"], shown["from"], shown["to"], shown["pid"]) == ("f", WAIT, None, pid)
    assert stalled.mount.metrics()["pinfs_removals_in_kernel"] == 1
    listed, found = (pinfs(verb, stalled.mount.path, "--table") for verb in ("ls", "status"))
    for text in (listed.stderr, found.stdout):
        assert f"[{WAIT}, end) by {pid} has waited" in text
    assert f"truncate of {stalled.path} " in listed.stderr
    (listed_as_json,) = json.loads(pinfs("ls", stalled.mount.path, "--json").stdout)["in_kernel"]
    assert listed_as_json["pid"] == pid
    os.kill(stalled.double.daemon.pid, signal.SIGUSR1)  # the gate
    assert cut.error() is None


def test_calls_that_need_the_lock_of_the_file_wait_without_the_mount(stalled: Stalled) -> None:
    """The kernel has locked the backing file. Its write comes by a handle that no lock of the mount keeps out."""
    fd = os.open(stalled.path, os.O_RDWR)
    _, cut = stalled.truncating()
    reader = stalled.mount.actor()
    read = reader.start(os.path.getsize, str(stalled.other))
    chmod = stalled.mount.actor().start(os.chmod, str(stalled.path), 0o600)
    assert read.result() == SIZE
    assert not chmod.done()
    os.kill(stalled.double.daemon.pid, signal.SIGUSR1)
    assert cut.error() is None
    assert chmod.error() is None
    os.close(fd)
