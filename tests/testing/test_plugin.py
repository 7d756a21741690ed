"""pinfs.testing: the fixtures in tests of their own, and the holder behind them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.actor import eventually

from pinfs.fs import seallist
from pinfs.testing import HeldPin, HolderError, ScratchMount

LIMIT_S = 120.0
OPTIONS = ["break_timeout=0.5", "on_timeout=revoke"]


@pytest.fixture(scope="module")
def mount(fuse: None) -> Iterator[ScratchMount]:
    with ScratchMount(OPTIONS) as mount:
        yield mount


@pytest.fixture
def file(mount: ScratchMount) -> str:
    path = mount.path / "file"
    path.write_bytes(bytes(8192))
    return os.fspath(path)


def test_a_scratch_mount_leaves_nothing(fuse: None, tmp_path: Path) -> None:
    with ScratchMount(["max_pins=1"], backing=tmp_path) as mount:
        assert tmp_path in mount.source.parents
        assert mount.status()["mountpoint"] == os.fspath(mount.path)
        (mount.path / "file").touch()
        assert [path.name for path in mount.source.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_mount_that_is_in_use_ends(fuse: None, tmp_path: Path) -> None:
    with ScratchMount(backing=tmp_path) as mount:
        file = (mount.path / "file").open("w")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.fstatvfs(file.fileno())
    file.close()


OF_DEATHS = [[], ["survive=on"], ["survive=on,spare"]]


@pytest.mark.parametrize("options", OF_DEATHS, ids=str)
def test_a_scratch_mount_whose_daemon_was_killed_leaves_nothing(fuse: None, tmp_path: Path, options: list[str]) -> None:
    """Neither a dead mount nor a file that is sealed, nor a list of such files, nor a process."""
    lists = seallist.all_lists()
    with ScratchMount(options, backing=tmp_path) as mount:
        name = os.fsencode(mount.path)
        file = mount.path / "file"
        file.write_bytes(bytes(8192))
        with HeldPin(os.fspath(file)):
            os.kill(mount.status()["pid"], signal.SIGKILL)
            if options:
                assert len(mount.pins()) == 1
    assert list(tmp_path.iterdir()) == []
    assert seallist.all_lists() == lists
    eventually(lambda: not [path for path in Path("/proc").glob("[0-9]*/cmdline") if name in content(path)])


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_pin_of_another_process(mount: ScratchMount, file: str) -> None:
    with HeldPin(file, 0, 4096, note="held") as held:
        (pin,) = mount.pins()
        assert (pin.id, pin.pid, pin.mode, pin.note) == (held.id, held.pid, "deny", "held")
        os.truncate(file, 4096)
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            os.truncate(file, 4095)
    assert mount.pins() == []
    held.release()


def test_a_lease_that_is_let_go(mount: ScratchMount, file: str) -> None:
    with HeldPin(file, mode="lease") as held:
        os.truncate(file, 0)
        event = held.next_break()
        assert (event["pin"], event["op"], event["from"]) == (held.id, "truncate", 0)
        assert mount.pins() == []


def test_a_lease_that_is_not(mount: ScratchMount, file: str) -> None:
    """The mount's policy decides at the deadline; the holder sleeps on."""
    with HeldPin(file, mode="lease", lets_go=False) as held:
        os.truncate(file, 0)
        assert held.next_break()["pin"] == held.id
        assert held.breaks[0]["remaining_s"] > 0
        assert os.stat(file).st_size == 0
        assert mount.pins() == []


def test_a_pin_that_is_refused(mount: ScratchMount, file: str) -> None:
    with pytest.raises(OSError, match="does not lie inside the file") as refused:
        HeldPin(file, 8192, 1)
    assert refused.value.errno == errno.ENXIO


def test_no_break_comes(mount: ScratchMount, file: str) -> None:
    with HeldPin(file, mode="lease") as held, pytest.raises(HolderError, match="no break"):
        held.next_break(limit_s=0.01)


# The plugin, in a run of its own

INNER = """
import os, pytest

@pytest.mark.pinfs(options=["break_timeout=0.25"])
def test_passes(pinfs_mount, pinfs_pin):
    file = pinfs_mount.path / "file"
    file.write_bytes(bytes(100))
    pin = pinfs_pin(file, 0, 50, mode="lease", lets_go=False)
    with pytest.raises(OSError, match="busy"):
        os.truncate(file, 0)
    print("released after the test:", pinfs_mount.path, pin.pid)

def test_fails(pinfs_mount):
    raise AssertionError("as it should")
"""


def inner_run(directory: Path, *prefix: str) -> str:
    """pytest as another project would run it."""
    (directory / "test_inner.py").write_text(INNER)
    words = [
        *prefix,
        sys.executable,
        "-m",
        "pytest",
        "-rA",
        "--strict-markers",
        "-p",
        "no:cacheprovider",
        "--rootdir=.",
    ]
    result = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return result.stdout + result.stderr


def test_the_fixtures(fuse: None, tmp_path: Path) -> None:
    said = inner_run(tmp_path)
    assert "1 failed, 1 passed" in said
    (line,) = [line for line in said.splitlines() if line.startswith("released after")]
    path, pid = line.split()[-2:]
    assert not os.path.exists(path)
    assert not os.path.exists(f"/proc/{pid}")
    assert "log of the pinfs on" in said, "a failure shows the daemon's log"
    assert "is mounted on" in said


def test_what_is_missing_is_said(fuse: None, tmp_path: Path) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/fuse; exec "$@"', "sh"]
    said = inner_run(tmp_path, *hidden)
    assert "2 errors" in said
    assert "A scratch pinfs cannot be mounted here" in said
    assert "--device /dev/fuse --cap-add SYS_ADMIN" in said
    assert "Traceback" not in said
