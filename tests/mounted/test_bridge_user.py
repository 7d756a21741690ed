"""A mount by an ordinary user, through fusermount3: no passthrough, no other users, but pins that hold.

The daemon runs without any capability but the one to read files, so that the interpreter may lie anywhere (`as_user`).
What this does not cover: an installation that only the user can reach.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted.usermount import UserMount, mounted
from mounted.world import USER, as_user, one_line, run
from support import acts
from support.actor import Actors
from support.mounts import REPO

OTHER = 1001
LIMIT_S = 30.0


@pytest.fixture
def mount(base: Path) -> Iterator[UserMount]:
    with mounted(base) as mount:
        yield mount


def test_pins_hold_on_a_users_mount(mount: UserMount, actors: Actors) -> None:
    holder, breaker = actors.actor(uid=USER), actors.actor(uid=USER)
    file = str(mount.path / "file")
    holder(acts.write_file, file, b"x" * 8192)
    holder.pin(file, "p", "0:4096")
    assert breaker.errno(os.truncate, file, 100) == errno.EBUSY
    breaker(os.truncate, file, 4096)
    holder(acts.catch, signal.SIGIO)
    holder.pin(file, "p", "0:4096,mode=lease")
    cut = breaker.start(os.truncate, file, 0)
    assert holder(acts.next_signal, signal.SIGIO).uid == USER
    holder.release(file, "p")
    cut.result()
    fd = breaker(os.open, file, os.O_RDWR)
    breaker(os.write, fd, b"x" * 8192)
    breaker(acts.fallocate, fd, 2 | 1, 0, 4096)
    assert breaker(os.lseek, fd, 0, os.SEEK_DATA) == 4096
    st = (mount.source / "file").stat()
    assert (st.st_uid, st.st_gid, st.st_size) == (USER, USER, 8192)


def test_a_waiting_breaker_can_be_killed_on_a_users_mount(mount: UserMount, actors: Actors) -> None:
    holder, breaker = actors.actor(uid=USER), actors.actor(uid=USER)
    file = str(mount.path / "file")
    holder(acts.write_file, file, b"x" * 4096)
    holder(acts.catch, signal.SIGIO)
    holder.pin(file, "p", "0:0,mode=lease")
    breaker.start(os.truncate, file, 0)
    holder(acts.next_signal, signal.SIGIO)
    assert breaker.kill() == -signal.SIGKILL
    assert json.loads(holder(os.getxattr, file, "user.pinfs.pin.p"))["state"] == "breaking"


def test_it_says_what_is_lost(mount: UserMount, actors: Actors) -> None:
    status = json.loads(actors.actor(uid=USER)(acts.read_file, str(mount.path / ".pinfs" / "status")))
    assert (status["bridge"], status["passthrough"]) == (True, False)
    assert "root" in status["passthrough_unavailable_because"]
    assert "passthrough: only root" in mount.log.read_text()


def test_nobody_else_may_enter(mount: UserMount, actors: Actors) -> None:
    for uid in (0, OTHER):
        assert actors.actor(uid=uid).errno(os.listdir, str(mount.path)) == errno.EACCES


def test_fusermount_takes_it_away(mount: UserMount) -> None:
    done = run(*as_user(USER), "fusermount3", "-u", mount.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert mount.process.wait(LIMIT_S) == 0


def test_a_mount_point_that_is_not_the_users_is_refused(base: Path) -> None:
    source, point = base / "source", base / "mnt"
    source.mkdir()
    os.chown(source, USER, USER)
    point.mkdir(mode=0o755)
    done = run(*as_user(USER), sys.executable, REPO / "mount.py", source, point)
    assert done.returncode == 6, done.stderr
    line = one_line(done.stderr)
    assert line.startswith(f"pinfs: mounting on {point} failed: ")
    assert "no write access" in line
