"""The client where there is no pinfs, and what it takes to import it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pinfs
from pinfs.client import mounts
from pinfs.client.errors import advice
from pinfs.client.inode import inode_of
from pinfs.linux.mountinfo import MountEntry


@pytest.fixture
def plain_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8192)
    return path


@pytest.mark.parametrize("call", [pinfs.pin, pinfs.pins, pinfs.all_pins, pinfs.events])
def test_not_on_pinfs(call, plain_file: Path) -> None:
    with pytest.raises(pinfs.NotPinfsError) as failure:
        call(plain_file)
    assert failure.value.errno == errno.EOPNOTSUPP
    assert failure.value.filename == str(plain_file)
    assert os.listxattr(plain_file) == []


def test_missing_ok_gives_a_pin_that_does_nothing(plain_file: Path) -> None:
    with pinfs.pin(plain_file, 0, 4096, mode="lease", on_break=print, missing_ok=True) as pin:
        assert not pin.active
        assert pin.state() == "gone"
        pin.resize(0, 10)
        pin.change(mode="deny")
        pin.extend(5)
        assert (pin.start, pin.length, pin.mode) == (0, 10, "deny")
    pin.release()


def test_missing_ok_is_not_for_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pinfs.pin(tmp_path / "no", missing_ok=True)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "shared"},
        {"owner": "thread"},
        {"mode": "lease", "on_break": print, "pid": 1},
        {"owner": "handle", "pid": 1},
        {"owner": "handle", "name": "x"},
    ],
)
def test_contradictions(options, plain_file: Path) -> None:
    with pytest.raises(ValueError, match=r"mode|pid|process"):
        pinfs.pin(plain_file, missing_ok=True, **options)


def test_missing_ok_is_named_where_it_would_help(plain_file: Path) -> None:
    with pytest.raises(pinfs.NotPinfsError, match="not on a pinfs mount; missing_ok=True"):
        pinfs.pin(plain_file)
    with pytest.raises(pinfs.NotPinfsError, match="not on a pinfs mount:"):
        pinfs.pins(plain_file)


@pytest.mark.parametrize("file", [99999, -1])
def test_a_descriptor_that_is_not_open(file) -> None:
    with pytest.raises(OSError, match="descriptor") as failure:
        pinfs.pin(file)
    assert failure.value.errno == errno.EBADF


@pytest.mark.parametrize("wrong", [True, 1.5, "1", None])
def test_ranges_are_of_ints(plain_file: Path, wrong) -> None:
    for what, place in (("start", (wrong, 1)), ("length", (0, wrong))):
        with pytest.raises(TypeError, match=f"{what} is a number of bytes, an int, not {wrong!r}"):
            pinfs.pin(plain_file, *place, missing_ok=True)
        with pytest.raises(TypeError, match=what):
            pinfs.pin(plain_file, missing_ok=True).resize(*place)


def test_pins_of_a_file_share_a_descriptor(plain_file: Path) -> None:
    fd = os.open(plain_file, os.O_RDONLY)
    one, two = inode_of(plain_file), inode_of(fd)
    assert one is two
    number = one.fd
    del one, two
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)
    with open(fd, "rb") as file:
        assert inode_of(file).path.startswith("/proc/self/fd/")


def test_an_inode_outlives_its_name(plain_file: Path) -> None:
    inode = inode_of(plain_file)
    plain_file.unlink()
    assert os.stat(inode.path).st_ino == inode.ino


def test_advice_keeps_class_and_errno() -> None:
    with pytest.raises(BlockingIOError, match="try again") as failure:
        with advice("pin 0:1", "file"):
            raise OSError(errno.EAGAIN, "x")
    assert failure.value.filename == "file"


def test_errors_without_advice_pass() -> None:
    original = OSError(errno.EIO, "broken")
    with pytest.raises(OSError, match="broken") as failure, advice("pin", "file"):
        raise original
    assert failure.value is original


def test_a_part_of_a_mount_is_told_from_the_whole(plain_file: Path, monkeypatch) -> None:
    inode = inode_of(plain_file)
    part = MountEntry(inode.dev, "/models", "/data", "fuse.pinfs", "/src", "rw")
    monkeypatch.setattr(mounts, "entries_of", lambda dev: [part])
    with pytest.raises(FileNotFoundError, match="/data shows its /models"):
        mounts.root_of(inode)


def test_a_covered_mount_is_passed_over(plain_file: Path, monkeypatch) -> None:
    inode = inode_of(plain_file)
    covered = MountEntry(inode.dev, "/", "/proc", "fuse.pinfs", "/src", "rw")
    whole = MountEntry(inode.dev, "/", str(plain_file.parent), "fuse.pinfs", "/src", "rw")
    monkeypatch.setattr(mounts, "entries_of", lambda dev: [covered, whole])
    assert mounts.root_of(inode) == plain_file.parent


def test_import_needs_the_standard_library_only() -> None:
    """`-S`: no site-packages at all."""
    program = (
        "import sys, pinfs; names = {m.partition('.')[0] for m in sys.modules}; "
        "bad = names - set(sys.stdlib_module_names) - {'pinfs'}; "
        "bad = {m for m in bad if getattr(sys.modules[m], '__file__', None)}; print(sorted(bad))"
    )
    root = str(Path(pinfs.__file__).parents[1])
    command = [sys.executable, "-S", "-c", program]
    run = subprocess.run(command, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
