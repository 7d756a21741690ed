"""How a mount ends, and what bad luck does to it: holders that stop, breakers that are killed, a daemon that dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import acts
from support.actor import Actor, Pending
from support.mounts import MNT_DETACH, DaemonError, Mount, is_mounted, umount

SIZE = 8192


@pytest.fixture
def file(mount: Mount) -> Path:
    path = mount.path / "f"
    path.write_bytes(b"x" * SIZE)
    return path


def pin_lease(holder: Actor, path: Path) -> None:
    holder(acts.catch, signal.SIGIO)
    holder.pin(path, "p", f"0:{SIZE},mode=lease")


Held = tuple[Actor, Pending[None]]


@pytest.fixture
def held(mount: Mount, file: Path) -> Held:
    """Who holds a lease on the file, and a truncate that waits for it."""
    holder = mount.actor()
    pin_lease(holder, file)
    cut = mount.actor().start(os.truncate, str(file), 0)
    holder(acts.next_signal, signal.SIGIO)
    return holder, cut


def test_sigterm_answers_waiting_breakers_and_unmounts(mount: Mount, held: Held) -> None:
    _, cut = held
    mount.process.send_signal(signal.SIGTERM)
    assert cut.error() == errno.EBUSY
    assert mount.process.wait() == 0
    assert not is_mounted(mount.path)
    assert (mount.source / "f").stat().st_size == SIZE


def test_umount_is_refused_while_a_breaker_waits_and_then_ends_the_daemon(mount: Mount, file: Path, held: Held) -> None:
    holder, cut = held
    with pytest.raises(OSError, match="busy"):
        umount(mount.path)
    holder.release(file, "p")
    cut.result()
    mount.stop(by="umount")


def test_a_lazy_umount_lets_what_is_under_way_finish(mount: Mount, file: Path, held: Held) -> None:
    holder, cut = held
    fd = holder(os.open, str(file), os.O_RDWR)
    umount(mount.path, MNT_DETACH)
    assert holder(os.getxattr, fd, "user.pinfs.release.p") == b"released"
    cut.result()
    assert (mount.source / "f").stat().st_size == 0
    holder(os.close, fd)
    assert mount.process.wait() == 0  # it ends when the last file is closed


def test_a_killed_daemon_frees_everybody(mount: Mount, file: Path, held: Held) -> None:
    holder, cut = held
    mount.process.kill()
    assert cut.error() in (errno.ENOTCONN, errno.ECONNABORTED)
    assert holder.errno(os.stat, str(file)) == errno.ENOTCONN
    with pytest.raises(DaemonError, match="left its mount behind"):
        mount.stop()
    assert (mount.source / "f").stat().st_size == SIZE


def test_a_holder_that_dies_is_no_obstacle(mount: Mount, held: Held) -> None:
    holder, cut = held
    assert not cut.done()
    holder.kill()
    cut.result()
    assert mount.pins() == []


@pytest.mark.mount("break_timeout=1")
def test_a_stopped_holder_costs_the_deadline_and_keeps_its_pin(mount: Mount, file: Path) -> None:
    holder, breaker = mount.actor(), mount.actor()
    pin_lease(holder, file)
    holder.signal(signal.SIGSTOP)
    assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
    assert [pin["state"] for pin in mount.pins()] == ["held"]
    holder.signal(signal.SIGCONT)
    holder.release(file, "p")
    breaker(os.truncate, str(file), 0)


@pytest.mark.mount("break_timeout=1", "on_timeout=revoke")
def test_at_the_deadline_the_pin_can_be_revoked(mount: Mount, file: Path) -> None:
    holder = mount.actor()
    pin_lease(holder, file)
    mount.actor()(os.truncate, str(file), 0)
    assert holder.errno(os.getxattr, str(file), "user.pinfs.pin.p") == errno.ENODATA


@pytest.mark.mount("break_timeout=1", "on_timeout=kill")
def test_at_the_deadline_the_holder_can_be_killed(mount: Mount, file: Path) -> None:
    holder = mount.actor()
    pin_lease(holder, file)
    mount.actor()(os.truncate, str(file), 0)
    assert holder.process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_waiting_truncate_can_be_ended_and_the_break_goes_on(mount: Mount, file: Path, number: int) -> None:
    holder = mount.actor()
    pin_lease(holder, file)
    breaker = subprocess.Popen(["truncate", "-s", "0", str(file)])
    holder(acts.next_signal, signal.SIGIO)
    breaker.send_signal(number)
    assert breaker.wait() == -number
    assert [pin["state"] for pin in mount.pins()] == ["breaking"]
    assert file.stat().st_size == SIZE


@pytest.mark.parametrize("bridge", ["on", "off"])
def test_a_removal_that_takes_nothing_away_asks_nobody(new_mount: Callable[..., Mount], bridge: str) -> None:
    mount = new_mount(f"bridge={bridge}")
    path = str(mount.path / "f")
    holder, breaker = mount.actor(), mount.actor()
    holder(acts.write_file, path, b"x" * SIZE)
    pin_lease(holder, Path(path))
    breaker(os.truncate, path, SIZE)
    breaker(os.truncate, path, SIZE + 1)
    stranger = mount.actor(uid=1000)
    assert stranger.errno(os.truncate, path, 0) == errno.EACCES  # it may not, so the holder is not asked
    assert breaker.errno(os.truncate, str(mount.path / "missing"), 0) == errno.ENOENT
    assert [pin["state"] for pin in mount.pins()] == ["held"]


@contextmanager
def mounted(*command: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *command], check=True)
    try:
        yield
    finally:
        umount(Path(command[-1]), MNT_DETACH)


def test_a_full_source_keeps_pins_and_mount_alive(base: Path, new_mount: Callable[..., Mount]) -> None:
    source = base / "small"
    source.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "small", source):
        mount = new_mount(source=source)
        holder = mount.actor()
        path = mount.path / "f"
        holder(acts.write_file, str(path), b"x" * SIZE)
        holder.pin(path, "p", "0:0")
        assert holder.errno(acts.write_file, str(mount.path / "big"), b"x" * (2 << 20)) == errno.ENOSPC
        assert mount.actor().errno(os.truncate, str(path), 0) == errno.EBUSY
        holder.release(path, "p")
        mount.stop()


def test_a_read_only_source_answers_erofs(base: Path, new_mount: Callable[..., Mount]) -> None:
    source = base / "fixed"
    source.mkdir()
    (source / "f").write_bytes(b"x" * SIZE)
    with mounted("--bind", "-o", "ro", source, source):
        mount = new_mount(source=source)
        actor = mount.actor()
        assert actor.errno(os.truncate, str(mount.path / "f"), 0) == errno.EROFS
        assert actor.errno(acts.write_file, str(mount.path / "new"), b"") == errno.EROFS
        assert actor(acts.read_file, str(mount.path / "f")) == b"x" * SIZE
        mount.stop()
