"""Real mounts of the test double: what the kernel sends is what the bridge understands, with each transport."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bridge.double import REVERSE, WAIT
from bridge.helpers import abort
from support import mounts

from pinfs.linux import syscalls

PYTHONPATH = f"{mounts.REPO}:{mounts.REPO / 'tests'}"
PUNCH = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE


class Doubled:
    """A mounted double. `left` is what it reported at its end."""

    def __init__(self, base: Path, kind: str) -> None:
        self.source, self.path, self.kind = base / "source", base / "mnt", kind
        self.source.mkdir()
        self.path.mkdir()
        program = Path(__file__).with_name("serve_double.py")
        self.daemon = subprocess.Popen(
            [sys.executable, str(program), str(self.source), str(self.path), kind],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PYTHONPATH},
        )  # fmt: skip
        if not mounts.wait_mounted(self.path, self.daemon, 20):
            raise AssertionError(self.daemon.communicate())

    def end(self) -> dict[str, Any]:
        """Unmount, after what close() has left in the queue (an unmount drops it): a lookup comes behind that."""
        assert not (self.path / "no such file").exists()
        mounts.umount(self.path)
        return self.wait()

    def wait(self) -> dict[str, Any]:
        out, err = self.daemon.communicate(timeout=20)
        assert self.daemon.returncode == 0, err
        self.errors = err
        left: dict[str, Any] = json.loads(out)
        return left

    def reap(self) -> None:
        mounts.force_umount(self.path)
        self.daemon.kill()
        if self.daemon.stdout and not self.daemon.stdout.closed:
            self.daemon.communicate()


@contextmanager
def doubled(base: Path, kind: str) -> Iterator[Doubled]:
    mount = Doubled(base, kind)
    try:
        yield mount
    finally:
        mount.reap()


@pytest.fixture(params=["bridged", "passthrough"])
def mount(base: Path, request: pytest.FixtureRequest) -> Iterator[Doubled]:
    with doubled(base, request.param) as mount:
        yield mount


@pytest.fixture(params=["bridged", "passthrough", "plain"])
def any_mount(base: Path, request: pytest.FixtureRequest) -> Iterator[Doubled]:
    with doubled(base, request.param) as mount:
        yield mount


def test_everyday_life(any_mount: Doubled) -> None:
    """Every name operation, with each transport."""
    path = any_mount.path
    (path / "file").write_bytes(b"hello")
    os.link(path / "file", path / "hard")
    os.symlink("file", path / "soft")
    os.mkfifo(path / "fifo")
    (path / "dir").mkdir()
    assert (path / "soft").read_bytes() == b"hello"
    assert os.readlink(path / "soft") == "file"
    assert os.stat(path / "hard").st_nlink == 2
    assert sorted(os.listdir(path)) == ["dir", "fifo", "file", "hard", "soft"]
    assert {entry.name: entry.is_dir() for entry in os.scandir(path)}["dir"]
    assert os.statvfs(path).f_bsize == os.statvfs(any_mount.source).f_bsize
    os.rename(path / "hard", path / "dir" / "moved")
    os.setxattr(path / "file", "user.a", b"x" * 5000)
    assert os.listxattr(path / "file") == ["user.a"]
    assert os.getxattr(path / "file", "user.a") == b"x" * 5000
    os.removexattr(path / "file", "user.a")
    os.truncate(path / "file", 2)
    os.utime(path / "file", ns=(1_000_000_001, 2_000_000_002))
    assert (os.stat(path / "file").st_size, os.stat(path / "file").st_mtime_ns) == (2, 2_000_000_002)
    os.unlink(path / "dir" / "moved")
    os.rmdir(path / "dir")
    with pytest.raises(FileNotFoundError):
        os.stat(path / "dir")
    directory = os.open(path, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert any_mount.end()["handles"] == 0


def test_a_large_directory(any_mount: Doubled) -> None:
    for number in range(1000):
        (any_mount.source / f"file with a rather long name {number}").touch()
    names = [entry.name for entry in os.scandir(any_mount.path) if entry.stat().st_size == 0]
    assert sorted(names) == sorted(os.listdir(any_mount.source))


def test_a_missing_name_is_looked_up_once_and_still_can_be_created(mount: Doubled) -> None:
    for _ in range(5):
        assert not (mount.path / "file").exists()
    (mount.path / "file").touch()
    assert (mount.path / "file").exists()
    os.rename(mount.path / "file", mount.path / "other")
    assert not (mount.path / "file").exists()
    assert (mount.path / "other").exists()
    assert mount.end()["calls"]["lookup of file"] <= 3


def test_data_in_blocks_of_all_sizes(any_mount: Doubled) -> None:
    data = os.urandom(3 << 20)
    with open(any_mount.path / "file", "w+b", buffering=0) as file:
        for size in (1, 4095, 4096, 65537, 1 << 20, 3 << 20):
            assert os.pwrite(file.fileno(), data[:size], 12345) == size
            assert os.pread(file.fileno(), size, 12345) == data[:size]
        os.fsync(file.fileno())
    assert (any_mount.source / "file").read_bytes()[12345:] == data


def test_a_mapping_and_the_file_are_the_same_bytes(mount: Doubled) -> None:
    with open(mount.path / "file", "w+b", buffering=0) as file:
        file.truncate(8192)
        with mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[4096:4101] = b"store"
            mapped.flush()
            assert (mount.source / "file").read_bytes()[4096:4101] == b"store"
            os.pwrite(file.fileno(), b"write", 0)
            assert mapped[:5] == b"write"


def test_passthrough_reads_and_writes_without_the_daemon(base: Path) -> None:
    with doubled(base, "passthrough") as mount:
        file = mount.path / "file"
        file.write_bytes(b"x" * 100_000)
        handles = [os.open(file, flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDONLY)]
        os.pwrite(handles[1], b"first", 0)
        os.unlink(file)
        assert os.pread(handles[0], 5, 0) == b"first"
        os.pwrite(handles[2], b"again", 0)
        os.ftruncate(handles[2], 10)
        assert os.pread(handles[3], 100, 0) == b"againxxxxx"
        for handle in handles:
            os.close(handle)
        left = mount.end()
    assert left["why_no_passthrough"] == ""
    assert (left["handles"], left["registered"]) == (0, 0)
    assert not {"read", "write"} & left["calls"].keys()


def test_many_opens_leave_nothing_behind(base: Path) -> None:
    with doubled(base, "passthrough") as mount:
        (mount.source / "file").write_bytes(b"x")
        for _ in range(3000):
            os.close(os.open(mount.path / "file", os.O_RDONLY))
        left = mount.end()
    assert (left["handles"], left["registered"]) == (0, 0)
    assert left["descriptors"] < 30


def test_fallocate_and_holes(mount: Doubled) -> None:
    with open(mount.path / "file", "w+b", buffering=0) as file:
        fd = file.fileno()
        syscalls.fallocate(fd, 0, 0, 1 << 20)
        file.write(b"x" * (1 << 20))
        syscalls.fallocate(fd, PUNCH, 4096, 8192)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
        assert os.lseek(fd, 4096, os.SEEK_DATA) == 12288
        assert os.pread(fd, 4096, 4096) == bytes(4096)
        assert os.stat(file.name).st_blocks == ((1 << 20) - 8192) // 512
        with pytest.raises(OSError, match="Invalid argument"):
            syscalls.fallocate(fd, PUNCH, -1, 4096)
        with pytest.raises(OSError, match=r"too large|Invalid"):
            syscalls.fallocate(fd, 0, 2**63 - 4096, 2**63 - 1)


def test_copy_file_range_is_done_by_the_daemon(mount: Doubled) -> None:
    data = os.urandom(100_000)
    (mount.path / "from").write_bytes(data)
    with open(mount.path / "from", "rb") as source, open(mount.path / "to", "wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 50_000, 1000, 0) == 50_000
    assert (mount.path / "to").read_bytes() == data[1000:51_000]
    assert mount.end()["calls"]["copy_file_range"] == 1


def test_o_tmpfile(mount: Doubled) -> None:
    fd = os.open(mount.path, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"nameless")
    directory = os.open(mount.path, os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=directory, follow_symlinks=True)
    os.close(directory)
    os.close(fd)
    assert (mount.path / "named").read_bytes() == b"nameless"
    assert (mount.source / "named").stat().st_mode & 0o777 == 0o640 & ~umask()


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_time_of_birth(mount: Doubled) -> None:
    (mount.path / "file").touch()
    through, behind = (os.open(place / "file", os.O_RDONLY) for place in (mount.path, mount.source))
    assert syscalls.birth_time_ns(through) == syscalls.birth_time_ns(behind) is not None
    os.close(through)
    os.close(behind)


def test_rename_flags(mount: Doubled) -> None:
    for name in "ab":
        (mount.path / name).write_text(name)
    directory = os.open(mount.path, os.O_RDONLY)
    with pytest.raises(FileExistsError):
        syscalls.renameat2(directory, b"a", directory, b"b", syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(directory, b"a", directory, b"b", syscalls.RENAME_EXCHANGE)
    os.close(directory)
    assert [(mount.source / name).read_text() for name in "ab"] == ["b", "a"]


def test_ioctl(mount: Doubled) -> None:
    with open(mount.path / "file", "w+b") as file:
        data = bytearray(b"12345678")
        fcntl.ioctl(file, REVERSE, data)
        assert data == b"87654321"
        for wrong in (REVERSE + 1, REVERSE | 1 << 29, 0x5401, 0xFFFF_FFFF):
            with pytest.raises(OSError) as refused:
                fcntl.ioctl(file, wrong, bytearray(1 << 14))
            assert refused.value.errno in (errno.ENOTTY, errno.EFAULT)


def test_a_mistake_in_an_operation_is_eio_and_the_mount_lives(any_mount: Doubled) -> None:
    (any_mount.path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="Input/output error"):
        os.getxattr(any_mount.path / "file", "user.fail")
    assert (any_mount.path / "file").read_bytes() == b"x"
    any_mount.end()
    assert "ZeroDivisionError" in any_mount.errors


def truncating(path: Path) -> subprocess.Popen[bytes]:
    """A process that truncates to the size for which the double waits."""
    program = f"import os; print(flush=True); os.truncate({str(path)!r}, {WAIT})"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    while Path(f"/proc/{process.pid}/wchan").read_text() != "request_wait_answer":
        assert process.poll() is None
        select.select([], [], [], 0.005)
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_who_waits(mount: Doubled, signum: int) -> None:
    (mount.path / "file").write_bytes(b"x")
    breaker = truncating(mount.path / "file")
    breaker.send_signal(signum)
    breaker.communicate(timeout=10)
    assert breaker.returncode in (-signum, 130)
    assert (mount.path / "file").read_bytes() == b"x"


def test_who_waits_is_answered_when_its_time_comes(mount: Doubled) -> None:
    (mount.path / "file").write_bytes(b"x")
    breaker = truncating(mount.path / "file")
    mount.daemon.send_signal(signal.SIGUSR1)
    breaker.communicate(timeout=10)
    assert breaker.returncode == 0


def test_closing_does_not_wait_for_a_truncate_of_the_same_file(mount: Doubled) -> None:
    """FOPEN_NOFLUSH: a holder can answer a break by closing, although the truncate holds the inode's lock."""
    (mount.path / "file").write_bytes(b"x")
    reader = os.open(mount.path / "file", os.O_RDWR)
    breaker = truncating(mount.path / "file")
    closer = subprocess.Popen([sys.executable, "-c", f"import os; os.close({reader})"], pass_fds=[reader])
    assert closer.wait(10) == 0
    assert breaker.poll() is None
    os.close(reader)
    mount.daemon.send_signal(signal.SIGUSR1)
    breaker.communicate(timeout=10)


def test_an_aborted_connection_frees_everybody(mount: Doubled, tmp_path: Path) -> None:
    (mount.path / "file").write_bytes(b"x")
    breaker = truncating(mount.path / "file")
    abort(mount.path, tmp_path)
    _, err = breaker.communicate(timeout=10)
    assert b"abort" in err
    mount.wait()


def test_a_lazy_unmount_lasts_until_the_last_file_is_closed(mount: Doubled) -> None:
    with open(mount.path / "file", "w+b", buffering=0) as file:
        mounts.umount(mount.path, mounts.MNT_DETACH)
        file.write(b"still here")
        file.seek(0)
        assert file.read() == b"still here"
        assert mount.daemon.poll() is None
    mount.wait()
