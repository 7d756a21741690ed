"""Plain pyfuse3 (`-o bridge=off`): files, pins and breaks work; what is lost is said.

test_bridge_passthrough.py looks at data on such a mount.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from mounted.world import PAGE, connection, run
from support import acts
from support.actor import eventually
from support.mounts import Mount

SHARED_MOUNT_OPTIONS = ("bridge=off", "max_waiting=100", "break_timeout=60")


@pytest.fixture
def file(shared_dir: Path) -> Path:
    path = shared_dir / "file"
    path.write_bytes(b"x" * 4 * PAGE)
    return path


def test_what_is_lost_is_said(shared_mount: Mount, file: Path) -> None:
    status = shared_mount.status()
    assert (status["bridge"], status["passthrough"]) == (False, False)
    assert "bridge=off" in status["bridge_unavailable_because"]
    for word in ("fallocate", "ioctl", "SEEK_HOLE", "passthrough", "interrupted"):
        assert word in shared_mount.log()
    assert run("fallocate", "-p", "-l", "4096", file).returncode == 1
    with file.open("rb") as opened:
        assert os.lseek(opened.fileno(), 0, os.SEEK_HOLE) == 4 * PAGE


def test_who_may_not_keep_set_ids_drops_them_by_opening(shared_mount: Mount, file: Path) -> None:
    """O_TRUNC, of which the kernel does not say whether the caller may."""
    for uid, mode in ((1000, 0o777), (0, 0o6777)):
        file.chmod(0o6777)
        user = shared_mount.actor(uid=uid)
        user(os.close, user(os.open, str(file), os.O_RDONLY | os.O_TRUNC))
        assert file.stat().st_mode & 0o7777 == mode


def test_the_life_of_files_and_directories(shared_mount: Mount, shared_dir: Path) -> None:
    one, other = shared_dir / "one", shared_dir / "other"
    one.mkdir()
    (one / "file").write_bytes(b"data")
    (one / "link").hardlink_to(one / "file")
    (one / "symlink").symlink_to("file")
    os.mkfifo(one / "fifo")
    os.setxattr(one / "file", "user.colour", b"green")
    one.rename(other)
    assert sorted(os.listdir(other)) == ["fifo", "file", "link", "symlink"]
    assert (other / "symlink").read_bytes() == (other / "link").read_bytes() == b"data"
    assert os.getxattr(other / "link", "user.colour") == b"green"
    assert os.listxattr(other / "link") == ["user.colour"]
    os.removexattr(other / "link", "user.colour")
    os.chmod(other / "file", 0o600)
    os.utime(other / "file", ns=(1, 2))
    st = (shared_mount.source / shared_dir.name / "other" / "link").stat()
    assert (st.st_mode & 0o777, st.st_mtime_ns, st.st_nlink) == (0o600, 2, 2)
    assert os.statvfs(other).f_namemax == 255
    run("rm", "-r", other)
    assert os.listdir(shared_dir) == []


def test_deny_pins_refuse_every_removal_that_arrives(shared_mount: Mount, file: Path) -> None:
    holder, breaker = shared_mount.actor(), shared_mount.actor()
    holder.pin(file, "p", f"{PAGE}:{PAGE}")
    assert breaker.errno(os.truncate, str(file), PAGE) == errno.EBUSY
    assert breaker.errno(acts.write_file, str(file), b"") == errno.EBUSY  # O_TRUNC
    assert run("truncate", "-s", "0", file).stderr.endswith("Device or resource busy\n")
    breaker(os.truncate, str(file), 2 * PAGE)
    assert file.read_bytes() == b"x" * 2 * PAGE
    holder.kill()
    eventually(lambda: not shared_mount.pins())
    breaker(os.truncate, str(file), 0)


def test_a_lease_is_broken_and_the_holder_told(shared_mount: Mount, file: Path) -> None:
    holder, breaker = shared_mount.actor(), shared_mount.actor()
    holder(acts.catch, signal.SIGIO)
    events = holder(os.open, str(shared_mount.control("events")), os.O_RDWR)
    holder.pin(file, "p", "0:0,mode=lease")
    (pin,) = shared_mount.pins()
    cut = breaker.start(os.truncate, str(file), 0)
    assert holder(acts.next_signal, signal.SIGIO).value == pin["id"]
    assert b'"break"' in holder(acts.read_event_lines, events)
    assert not cut.done()
    holder.release(file, "p")
    cut.result()


def test_a_hundred_waiting_breakers_do_not_stall_the_mount(shared_mount: Mount, shared_dir: Path) -> None:
    """pyfuse3 gives each waiting handler a task, of a limited number: max_waiting stays below it (SPEC 3.10)."""
    holder = shared_mount.actor()
    files = [shared_dir / str(number) for number in range(100)]
    for path in files:
        path.write_bytes(b"x")
        holder.pin(path, "p", "0:0,mode=lease,signal=none")
    script = 'for file; do /usr/bin/truncate -s 0 "$file" & done; wait'
    breakers = shared_mount.actor().start(run, "sh", "-c", script, "sh", *map(str, files))
    eventually(lambda: shared_mount.status()["waiting"] == 100)
    late = shared_dir / "late"
    late.write_bytes(b"x")
    holder.pin(late, "p", "0:0,mode=lease,signal=none")
    assert shared_mount.actor().errno(os.truncate, str(late), 0) == errno.EBUSY
    for path in files:
        holder.release(path, "p")
    assert breakers.result().stderr == ""
    assert {path.stat().st_size for path in files} == {0}


def test_a_killed_breaker_ends_when_it_is_answered(shared_mount: Mount, file: Path) -> None:
    """What the bridge is there for: here not even SIGKILL ends a waiting breaker before its answer."""
    holder, breaker = shared_mount.actor(), shared_mount.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    with shared_mount.trace() as trace:
        breaker.start(os.truncate, str(file), 0)
        trace.until("break")
        breaker.process.kill()
        eventually(lambda: breaker.state() == "D")
        assert shared_mount.status()["waiting"] == 1
        holder.release(file, "p")
    assert breaker.process.wait(20) == -signal.SIGKILL


@pytest.mark.mount("bridge=off")
def test_an_answer_that_comes_too_late_is_no_error(mount: Mount) -> None:
    """The breaker is let go when the connection is over already; a log line above INFO would fail this test."""
    path = str(mount.path / "file")
    holder, breaker = mount.actor(), mount.actor()
    holder(acts.write_file, path, b"x")
    holder.pin(path, "p", "0:0,mode=lease,signal=none")
    cut = breaker.start(os.truncate, path, 0)
    eventually(lambda: mount.status()["waiting"] == 1)
    with connection(mount.path, mount.base) as link:
        link.abort()
    holder.kill()
    assert cut.error() in (errno.ENOTCONN, errno.ECONNABORTED)
    assert mount.process.wait(20) == 0
