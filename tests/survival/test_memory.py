"""The kernel kills a daemon that has reached its limit of memory (cgroups, version 1)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import acts
from support.actor import Actors, eventually

from .surviving import LIMIT_S, Surviving, surviving

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT = 20 << 20
"""Bytes beyond what a daemon has when it is put there."""
PINS = 60_000
BLOCK = 4096


class Limited:
    """A group of processes with LIMIT bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "memory.limit_in_bytes").write_text(str(LIMIT))

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        words = (self.path / "memory.oom_control").read_text().split()
        return int(words[words.index("oom_kill") + 1])


@pytest.fixture
def limited() -> Iterator[Limited]:
    path = MEMORY / f"pinfs-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as e:
        pytest.skip(f"no memory cgroup: {e.strerror}")
    yield Limited(path)
    eventually(lambda: not (path / "cgroup.procs").read_text(), LIMIT_S)
    path.rmdir()


def file_of(mount: Surviving) -> str:
    path = mount.path / "file"
    with path.open("wb") as file:
        file.truncate(PINS * BLOCK)
    return str(path)


def test_the_next_daemon_has_more(root: None, fuse: None, limited: Limited, actors: Actors) -> None:
    """No call fails, and no pin is lost, whatever the daemon did when it was killed."""
    with surviving("disk", ()) as mount:
        path, holder = file_of(mount), actors.actor()
        limited.add(mount.daemon)
        holder.start(acts.pin_blocks, path, PINS, BLOCK).result(2 * LIMIT_S)
        status = mount.status()
        assert (status["pins"], status["takeovers"], limited.kills) == (PINS, 1, 1)
        assert status["last_takeover"]["not_restored"] == []
        assert actors.actor().errno(os.truncate, path, 0) == errno.EBUSY


def test_the_next_daemon_has_no_more(root: None, fuse: None, limited: Limited, actors: Actors) -> None:
    """It needs as much as the one before: the mount is given up, and callers are told."""
    with surviving("disk", ("max_deaths=3",), ends=False) as mount:
        path, holder = file_of(mount), actors.actor()
        limited.add(mount.daemon)
        limited.add(mount.keeper)
        error = holder.start(acts.pin_blocks, path, PINS, BLOCK).error(2 * LIMIT_S)
        assert error in (errno.ECONNABORTED, errno.ENOTCONN)
        mount.wait_ended()
        assert limited.kills == 3
        assert "3 daemons have died within 60 s: the mount is given up" in mount.log()
