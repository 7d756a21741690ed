"""File systems that are mounted below the source: dead ones, silent ones, and those that are to be unmounted."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.mounts import Mount, force_umount

from pinfs.linux import syscalls

LIMIT_S = 10.0
PROMPT_S = 1.0
"""What a call that waits for nothing takes at most on a busy machine; a hung one would take for ever."""


@contextmanager
def silent_mount(point: Path) -> Iterator[int]:
    """A FUSE file system whose server answers INIT alone; it ends (ENOTCONN) when the descriptor is closed."""
    point.mkdir(exist_ok=True)
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    syscalls.mount("silent", str(point), "fuse", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    unique = struct.unpack_from("<IIQ", os.read(fd, 1 << 17))[2]
    os.write(
        fd, struct.pack("<IiQ", 16 + 64, 0, unique) + struct.pack("<IIIIHHII", 7, 31, 0, 0, 12, 9, 4096, 1) + bytes(36)
    )
    abort = threading.Timer(LIMIT_S, os.close, [fd])  # so that nothing hangs for longer
    abort.start()
    time.sleep(0.5)  # until the daemon has read the table of mounts
    try:
        yield fd
    finally:
        abort.cancel()
        with suppress(OSError):
            os.close(fd)
        force_umount(point)


def until(happens: object, limit_s: float = LIMIT_S) -> None:
    assert callable(happens)
    end = time.monotonic() + limit_s
    while not happens():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


@pytest.mark.mount("entry_timeout=0", "attr_timeout=0")
def test_a_silent_submount_holds_up_its_own_entry_only(mount: Mount) -> None:
    (mount.source / "file").write_text("data")
    (mount.source / "d").mkdir()
    with silent_mount(mount.source / "d" / "silent") as server:
        until(lambda: "silent" in os.listdir(mount.path / "d"))
        visitor, other = mount.actor(), mount.actor()
        looking = visitor.start(os.stat, str(mount.path / "d" / "silent"))
        for _ in range(5):
            began = time.monotonic()
            assert (mount.path / "file").read_text() == "data"
            (mount.path / "new").write_text("new")
            (mount.path / "new").unlink()
            assert os.listdir(mount.path / "d") == ["silent"]
            assert time.monotonic() - began < PROMPT_S
        removing = other.start(os.rmdir, str(mount.path / "d" / "silent"))
        began = time.monotonic()
        assert (mount.path / "file").stat().st_size == 4
        assert time.monotonic() - began < PROMPT_S
        os.close(server)
        with pytest.raises(OSError):
            looking.result()
        with pytest.raises(OSError):
            removing.result()


@pytest.mark.mount("entry_timeout=0", "attr_timeout=0")
def test_a_dead_submount_does_not_empty_the_listing(mount: Mount) -> None:
    for name in "abc":
        (mount.source / name).write_text(name)
    with silent_mount(mount.source / "dead") as server:
        os.close(server)
        with os.scandir(mount.path) as entries:
            assert {entry.name for entry in entries} >= {"a", "b", "c", "dead"}
        with pytest.raises(OSError) as dead:
            (mount.path / "dead").stat()
        assert dead.value.errno == errno.ENOTCONN
        assert (mount.path / "c").read_text() == "c"


@pytest.mark.mount("attr_timeout=60", "entry_timeout=60")
def test_a_submount_is_measured_and_can_be_unmounted_soon(mount: Mount) -> None:
    point = mount.source / "sub"
    point.mkdir()
    syscalls.mount("small", str(point), "tmpfs", 0, "size=4m")
    try:
        (point / "d").mkdir()
        (point / "d" / "file").write_text("data")
        sub = mount.path / "sub"
        assert (sub / "d" / "file").read_text() == "data"
        assert os.listdir(sub / "d") == ["file"]
        for path in (sub, sub / "d" / "file"):
            st = os.statvfs(path)
            assert st.f_blocks * st.f_frsize == 4 << 20
        st, source = os.statvfs(mount.path), os.statvfs(mount.source)
        assert st.f_blocks * st.f_frsize == source.f_blocks * source.f_frsize
        until(lambda: unmounted(point))
    finally:
        force_umount(point)


def unmounted(point: Path) -> bool:
    try:
        syscalls.umount2(str(point), 0)
    except OSError as e:
        assert e.errno == errno.EBUSY
        return False
    return True
