"""Sources and mount points that are not what one would wish: read-only, full, taken, served twice.

Beginnings that must fail with a clear line (missing, inside each other, stale) are in tests/bridge/test_daemon.py.
"""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NewMount
from mounted.world import PAGE, mount, mounted, one_line, run
from support import acts
from support.mounts import REPO, Mount, umount

MOUNT_FAILED = 6
MS_RDONLY, MS_REMOUNT, MS_BIND = 0x1, 0x20, 0x1000


def pinfs_mount(source: Path, point: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`mount.py` in the foreground, where it should not get far."""
    return run(sys.executable, REPO / "mount.py", source, point, *options)


# --- read-only


@pytest.fixture
def read_only(base: Path) -> Iterator[Path]:
    """A directory on a file system that is mounted read-only, with a file in it."""
    directory = base / "read-only"
    directory.mkdir()
    (directory / "file").write_bytes(b"x" * PAGE)
    mount(str(directory), directory, "none", "", MS_BIND)
    mount("none", directory, "none", "", MS_BIND | MS_REMOUNT | MS_RDONLY)
    yield directory
    umount(directory)


@pytest.mark.parametrize("option", ["passthrough=auto", "passthrough=off", "bridge=off"])
def test_a_read_only_source_can_be_read_mapped_and_run_from(read_only: Path, new_mount: NewMount, option: str) -> None:
    mount = new_mount(option, source=read_only)
    assert mount.status()["passthrough"] == (option == "passthrough=auto")
    file, user = mount.path / "file", mount.actor()
    assert file.read_bytes() == b"x" * PAGE
    address = user(acts.map_file, str(file), PAGE, writable=False)
    assert user(acts.peek, address, 1) == b"x"


def test_on_a_read_only_source_changes_fail_as_they_do_there_and_break_no_lease(
    read_only: Path, new_mount: NewMount
) -> None:
    """SPEC 2: a holder is never bothered for an operation that would fail anyway."""
    mount = new_mount(source=read_only)
    file, holder, user = mount.path / "file", mount.actor(), mount.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    calls: list[tuple[Callable[..., Any], *tuple[Any, ...]]] = [
        (os.truncate, str(file), 0),
        (os.open, str(file), os.O_RDWR),
        (os.open, str(file), os.O_RDONLY | os.O_TRUNC),
        (os.open, str(mount.path / "new"), os.O_WRONLY | os.O_CREAT),
        (os.unlink, str(file)),
        (os.rename, str(file), str(mount.path / "new")),
        (os.mkdir, str(mount.path / "new")),
        (os.chmod, str(file), 0o600),
        (os.setxattr, str(file), "user.a", b"1"),
    ]
    for call, *args in calls:
        assert user.errno(call, *args) == errno.EROFS, call
    assert [pin["state"] for pin in mount.pins()] == ["held"]


# --- full


@pytest.fixture
def small(base: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    with mounted("tmpfs", base / "small", "tmpfs", "size=256k") as path:
        yield path


@pytest.mark.parametrize("option", ["passthrough=auto", "passthrough=off"])
def test_a_full_source_says_so_and_pins_go_on(small: Path, new_mount: NewMount, option: str) -> None:
    mount = new_mount(option, source=small)
    file, holder, user = mount.path / "file", mount.actor(), mount.actor()
    fd = user(os.open, str(file), os.O_CREAT | os.O_RDWR)
    while not (failed := user.errno(os.write, fd, b"x" * 16 * PAGE)):
        pass
    assert failed == errno.ENOSPC
    full = file.stat().st_size
    assert user.errno(acts.fallocate, fd, 0, full, PAGE) == errno.ENOSPC
    holder.pin(file, "p", f"0:{PAGE}")
    assert user.errno(os.ftruncate, fd, 0) == errno.EBUSY
    holder.pin(file, "p", f"0:{PAGE},mode=lease,signal=none")
    with mount.trace() as trace:
        cut = user.start(os.ftruncate, fd, 0)
        trace.until("break")
        holder.release(file, "p")
        cut.result()
    user(os.pwrite, fd, b"y" * 4 * PAGE, 0)
    assert file.read_bytes() == b"y" * 4 * PAGE


# --- taken


def test_a_source_is_served_once_whatever_name_it_goes_by(mount: Mount, base: Path) -> None:
    point, link = base / "point", base / "link"
    point.mkdir()
    link.symlink_to(mount.source)
    with mounted(str(mount.source), base / "bound", "none", flags=MS_BIND) as bound:
        for name in (link, bound, mount.source / "." / ".." / mount.source.name):
            done = pinfs_mount(name, point)
            assert done.returncode == MOUNT_FAILED
            assert "another pinfs already serves" in one_line(done.stderr)


def test_a_mount_point_in_use_is_covered_and_uncovered_again(mount: Mount, new_mount: NewMount) -> None:
    """As mount(8) does it: who has the old one open stays there, and finds it again when the new one goes."""
    (mount.path / "file").write_bytes(b"below")
    below = (mount.path / "file").open("rb")
    above = mount.base / "above"
    above.mkdir()
    command = [sys.executable, str(REPO / "mount.py"), str(above), str(mount.path), "--daemon", "--log-file"]
    done = run(*command, mount.base / "above.log")
    assert done.returncode == 0, done.stderr
    (mount.path / "file").write_bytes(b"above")
    assert below.read() == b"below"
    below.close()
    daemon = os.pidfd_open(mount.status()["pid"])
    umount(mount.path)
    assert select.select([daemon], [], [], 20)[0]  # it has ended
    os.close(daemon)
    assert (mount.path / "file").read_bytes() == b"below"


def test_a_pinfs_on_a_pinfs(mount: Mount, new_mount: NewMount) -> None:
    """Each has its own pins. The kernel stacks passthrough once, or twice if the lower mount allows for it."""
    upper = new_mount(source=mount.path)
    file, holder, breaker = upper.path / "file", upper.actor(), mount.actor()
    file.write_bytes(b"x" * PAGE)
    assert (mount.source / "file").read_bytes() == b"x" * PAGE
    holder.pin(file, "p", "0:0")
    assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
    assert mount.pins() == []
    assert upper.status()["passthrough"] or upper.status()["passthrough_unavailable_because"]


def test_a_mount_below_the_source_is_part_of_what_is_served(base: Path, new_mount: NewMount) -> None:
    source = base / "source"
    source.mkdir()
    with mounted("tmpfs", source / "other", "tmpfs") as other:
        (other / "file").write_bytes(b"x" * PAGE)
        mount = new_mount(source=source)
        file = mount.path / "other" / "file"
        mount.actor().pin(file, "p", "0:0")
        assert mount.actor().errno(os.truncate, str(file), 0) == errno.EBUSY
        assert file.read_bytes() == b"x" * PAGE
        mount.stop()


@pytest.mark.mount("unlink=break", "break_timeout=100")
def test_a_file_system_below_the_source_refuses_before_anybody_is_asked(mount: Mount) -> None:
    below = mount.source / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    try:
        (below / "f").write_bytes(b"x")
        (mount.source / "g").write_bytes(b"x")
        holder, breaker = mount.actor(), mount.actor()
        for name in ("below/f", "g"):
            holder.pin(mount.path / name, "p", "0:0,mode=lease,signal=none")
        assert breaker.errno(os.rename, str(mount.path / "below/f"), str(mount.path / "g")) == errno.EXDEV
        subprocess.run(["mount", "-o", "remount,ro", below], check=True)
        assert breaker.errno(os.unlink, str(mount.path / "below/f")) == errno.EROFS
        assert {pin["state"] for pin in mount.pins()} == {"held"}
    finally:
        subprocess.run(["umount", "-l", below], check=True)
