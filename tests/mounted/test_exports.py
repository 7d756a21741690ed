"""open_by_handle_at(2) on the mount, also after the kernel has forgotten the inode (docs/nfs.md)."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mounted.world import USER, run
from support import mounts, seeds
from support.disks import Disks
from support.mounts import REPO, Mount, fresh_mount

from pinfs.linux.filehandles import handle_of, open_handle

pytestmark = pytest.mark.usefixtures("root")

EXPORTED = "nfs_export=on"


@pytest.fixture(params=["tmpfs", "ext4", "ext4/below"])
def exported(request: pytest.FixtureRequest, fuse: None, disks: Disks) -> Iterator[Mount]:
    kind, _, below = request.param.partition("/")
    source = None
    if kind != "tmpfs":
        source = disks.mount(kind, disks.base / "image") / below
        source.mkdir(exist_ok=True)
    with fresh_mount(EXPORTED, source=source) as mount:
        yield mount


class Handles:
    """Handles of paths on a mount."""

    def __init__(self, mount: Mount, *paths: str) -> None:
        self._mount = mount
        self._handles = {}
        for path in paths:
            fd = os.open(mount.path / path, os.O_PATH | os.O_NOFOLLOW)
            self._handles[path] = handle_of(fd)
            os.close(fd)

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        directory = os.open(self._mount.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return open_handle(directory, self._handles[path], flags)
        finally:
            os.close(directory)

    def read(self, path: str) -> bytes:
        with open(self.open(path), "rb") as file:
            return file.read()

    def is_stale(self, path: str) -> bool:
        try:
            os.close(self.open(path))
        except OSError as e:
            assert e.errno == errno.ESTALE
            return True
        return False


def forget(mount: Mount) -> None:
    """The kernel forgets the inodes of the mount, and what the backing knows by name."""
    for _ in range(2):
        Path("/proc/sys/vm/drop_caches").write_text("2")
    mount.control("status").read_text()  # after the FORGETs


def tree(mount: Mount) -> None:
    (mount.path / "d/e").mkdir(parents=True)
    (mount.path / "d/e/file").write_text("data")
    (mount.path / "d/e/link").symlink_to("file")


def test_forgotten_inodes_are_opened(exported: Mount) -> None:
    tree(exported)
    handles = Handles(exported, "d", "d/e", "d/e/file", "d/e/link")
    for _ in range(3):
        forget(exported)
        assert handles.read("d/e/file") == b"data"
        forget(exported)
        directory = handles.open("d/e", os.O_RDONLY | os.O_DIRECTORY)
        assert sorted(os.listdir(directory)) == ["file", "link"]
        assert os.readlink(f"/proc/self/fd/{directory}") == str(exported.path / "d/e")  # the kernel knows its way again
        assert os.stat("..", dir_fd=directory).st_ino == (exported.source / "d").stat().st_ino
        os.close(directory)
        forget(exported)
        link = handles.open("d/e/link", os.O_PATH | os.O_NOFOLLOW)
        assert os.readlink("", dir_fd=link) == "file"
        os.close(link)


def test_a_forgotten_file_is_written_pinned_and_guarded(exported: Mount) -> None:
    tree(exported)
    handles = Handles(exported, "d/e/file")
    forget(exported)
    fd = handles.open("d/e/file", os.O_RDWR)
    os.pwrite(fd, b"DATA and more", 0)
    os.setxattr(f"/proc/self/fd/{fd}", "user.pinfs.pin.p", b"0:4")
    forget(exported)
    assert (exported.source / "d/e/file").read_text() == "DATA and more"
    with pytest.raises(OSError, match="busy"):
        os.ftruncate(fd, 0)
    with pytest.raises(OSError, match="busy"):
        os.truncate(exported.path / "d/e/file", 0)
    os.removexattr(f"/proc/self/fd/{fd}", "user.pinfs.pin.p")
    os.ftruncate(fd, 4)
    os.close(fd)
    assert (exported.path / "d/e/file").read_text() == "DATA"


def test_removed_files_are_stale(exported: Mount) -> None:
    tree(exported)
    handles = Handles(exported, "d/e", "d/e/file", "d/e/link")
    forget(exported)
    shutil.rmtree(exported.source / "d/e")
    for path in ("d/e/file", "d/e/link", "d/e"):
        assert handles.is_stale(path)
    for number in range(20):  # with ext4 these get the numbers
        (exported.path / f"new{number}").write_text("new")
    forget(exported)
    assert handles.is_stale("d/e/file")
    assert handles.is_stale("d/e")


def test_a_handle_does_not_lead_out_of_the_source(exported: Mount) -> None:
    """A client may make up any handle."""
    outside = exported.source.parent / "outside"
    outside.write_text("secret")
    try:
        (exported.path / "file").write_text("data")
        known = Handles(exported, "file")
        fd = os.open(exported.path, os.O_RDONLY | os.O_DIRECTORY)
        for number in (outside.stat().st_ino, exported.source.parent.stat().st_ino):
            if number == exported.source.stat().st_ino or outside.stat().st_dev != exported.source.stat().st_dev:
                continue
            head = known._handles["file"][:8]
            for generation in (0, 1):
                made_up = head + (number >> 32).to_bytes(4, "little") + (number & 0xFFFFFFFF).to_bytes(4, "little")
                with pytest.raises(OSError) as failed:
                    open_handle(fd, made_up + generation.to_bytes(4, "little"), os.O_RDONLY)
                assert failed.value.errno == errno.ESTALE
        os.close(fd)
    finally:
        outside.unlink()


def test_handles_last_beyond_the_daemon(fuse: None, disks: Disks) -> None:
    source = disks.mount("ext4", disks.base / "image")
    for below in ("", "below"):
        (source / below).mkdir(exist_ok=True)
        with fresh_mount(EXPORTED, source=source / below) as mount:
            assert mount.status()["nfs_handles_last"]
            tree(mount)
            handles = Handles(mount, "d", "d/e", "d/e/file")
            mount.remount(EXPORTED)
            forget(mount)
            assert handles.read("d/e/file") == b"data"
            assert not handles.is_stale("d/e")
            assert not handles.is_stale("d")
            shutil.rmtree(mount.path / "d")


def test_without_the_option_there_are_no_handles(mount: Mount) -> None:
    """Rather than some that are stale later on: an NFS server is told at once."""
    (mount.path / "file").write_text("data")
    status = mount.status()
    assert (status["nfs_export"], status["nfs_handles_last"]) == (False, False)
    with pytest.raises(OSError) as failed:
        Handles(mount, "file")
    assert failed.value.errno == errno.EOPNOTSUPP


def refused(*command: str | os.PathLike[str]) -> str:
    done = run(*command)
    assert done.returncode
    return done.stderr


def test_what_cannot_be_exported_is_refused_in_words(base: Path) -> None:
    for name in ("source", "mnt"):
        (base / name).mkdir()
        os.chown(base / name, USER, USER)
    command = (sys.executable, REPO / "mount.py", base / "source", base / "mnt", "-o")
    user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all")
    assert "CAP_DAC_READ_SEARCH" in refused(*user, *command, EXPORTED)
    bounded = ("setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-all")
    assert "CAP_DAC_READ_SEARCH" in refused(*bounded, *command, EXPORTED)
    assert "needs the bridge" in refused(*command, f"{EXPORTED},bridge=off")
    over = base / "over"
    for name in ("lower", "upper", "work", "merged"):
        (over / name).mkdir(parents=True)
    options = f"lowerdir={over}/lower,upperdir={over}/upper,workdir={over}/work,nfs_export=off,index=off"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", over / "merged"], check=True)
    try:
        told = refused(sys.executable, REPO / "mount.py", over / "merged", base / "mnt", "-o", EXPORTED)
        assert "has no file handles" in told
    finally:
        mounts.umount(over / "merged")
    assert not mounts.is_mounted(base / "mnt")


def test_while_everything_changes(exported: Mount) -> None:
    """Names come and go, the kernel forgets and finds: no data but a file's own, no inode that the kernel takes for
    bad (EIO)."""
    until = time.monotonic() + 3
    random.seed(seeds.SEED)
    handles: list[tuple[bytes, bytes]] = []
    wrong: list[object] = []

    def repeat(act: Callable[[], None]) -> None:
        try:
            while time.monotonic() < until:
                with suppress(FileNotFoundError, FileExistsError, IsADirectoryError):
                    act()
        except BaseException as e:
            wrong.append(e)

    def change() -> None:
        name = exported.path / f"d{random.randrange(4)}" / f"f{random.randrange(8)}"
        match random.randrange(4):
            case 0:
                os.replace(name, name.with_name(f"f{random.randrange(8)}"))
            case 1:
                name.unlink()
            case 2:
                os.rename(name, exported.path / f"d{random.randrange(4)}" / name.name)
            case _:
                content = random.randbytes(8).hex().encode()
                with open(name, "xb") as file:
                    file.write(content)
                    handles.append((handle_of(file.fileno()), content))

    def opened(directory: int, handle: bytes) -> int:
        try:
            return open_handle(directory, handle, os.O_RDONLY)
        except OSError as e:
            if e.errno != errno.ENOMEM:  # the kernel says so at times while its caches are dropped; the daemon does not
                raise
            return open_handle(directory, handle, os.O_RDONLY)

    def look() -> None:
        directory = os.open(exported.path, os.O_RDONLY)
        for handle, content in handles[-20:]:
            try:
                with open(opened(directory, handle), "rb") as file:
                    if file.read() not in (content, b""):
                        wrong.append((handle, content))
            except OSError as e:
                if e.errno != errno.ESTALE:
                    wrong.append(e)
        os.close(directory)
        for path in exported.path.glob("d*/*"):
            path.stat()

    def drop() -> None:
        forget(exported)
        time.sleep(0.01)

    for number in range(4):
        (exported.path / f"d{number}").mkdir()
    threads = [threading.Thread(target=repeat, args=[act]) for act in (change, change, look, drop)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(handles) > 20


def test_nothing_of_it_is_left(exported: Mount) -> None:
    """What was found by handle is forgotten like everything else."""
    tree(exported)
    handles = Handles(exported, "d/e/file")
    before = exported.status()["descriptors"]
    for _ in range(20):
        forget(exported)
        os.close(handles.open("d/e/file"))
    forget(exported)
    assert exported.status()["descriptors"] <= before + 8
