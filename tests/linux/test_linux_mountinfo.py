"""The one parser of /proc/self/mountinfo."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.linux import mountinfo
from pinfs.linux.mountinfo import MountEntry, mount_at, mounts, parse_entry, unescape

PATHS = st.binary().map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
"""Any bytes but NUL, as names of files may be."""


def escaped(text: str, more: bytes = b"") -> bytes:
    """As the kernel's mangle_path() does."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" + more else bytes([byte]) for byte in os.fsencode(text))


@given(PATHS)
def test_what_the_kernel_escapes_is_read_back(path: str) -> None:
    assert unescape(escaped(path)) == path
    assert b"\n" not in escaped(path)
    assert unescape(escaped(path, b"#")) == path


@given(PATHS, PATHS, PATHS, st.integers(0, 3))
def test_a_line(root: str, point: str, source: str, optional: int) -> None:
    peers = b"".join(b"shared:%d " % number for number in range(optional))
    places = b"/%b /%b" % (escaped(root), escaped(point))
    line = b"36 35 0:45 %b rw,noatime %b- fuse.pinfs %b rw,user_id=7" % (places, peers, escaped(source, b"#"))
    wanted = MountEntry(os.makedev(0, 45), "/" + root, "/" + point, "fuse.pinfs", source, "rw,user_id=7")
    assert parse_entry(line) == wanted


def test_octal_digits_that_are_no_escape() -> None:
    assert unescape(rb"/a\134040b") == r"/a\040b"
    assert unescape(rb"/a\40b\9\777") == r"/a\40b\9\777"


def test_the_table_of_this_machine() -> None:
    assert "/proc" in [entry.point for entry in mounts()]
    entry = mount_at("/proc/self")
    assert entry is not None
    assert (entry.point, entry.fstype, entry.dev) == ("/proc", "proc", os.stat("/proc").st_dev)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["22 1 254:0 / / rw - ext4 /dev/vda rw", r"23 22 0:9 / /a\040b rw - tmpfs one rw"]
    rows += [r"24 22 0:10 / /a\040b rw - tmpfs two rw", "25 22 0:11 / /a rw - xfs three rw"]
    rows += ["26 22 0:12 / /\r\x0b rw - xfs four rw"]  # not escaped by the kernel
    path = tmp_path / "mountinfo"
    path.write_bytes("".join(row + "\n" for row in rows).encode())
    monkeypatch.setattr(mountinfo, "PATH", str(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/", "/dev/vda"),
        ("/ab", "/dev/vda"),
        ("/a", "three"),
        ("/a/b", "three"),
        ("/a b", "two"),
        ("/a b/c", "two"),
        ("/\r\x0b/c", "four"),
    ],
)
def test_the_mount_of_a_path_is_the_innermost_and_latest(table, path: str, source: str) -> None:
    entry = mount_at(path)
    assert entry is not None
    assert entry.source == source


@pytest.mark.parametrize("line", [b"", b"36 35 0:45 / / rw", b"36 35 x / / rw - ext4 a rw"])
def test_what_is_no_line(line: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        parse_entry(line)
