"""Codecs: sizes as in linux/fuse.h, and every field where the C struct has it."""

import ctypes
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.bridge import wire
from pinfs.fs.types import Entry, Opened
from pinfs.linux.calls import NOW

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)

SIZES = {
    "IN_HEADER": 40, "OUT_HEADER": 16, "GETATTR_IN": 16, "SETATTR_IN": 88, "MKDIR_IN": 8, "RENAME2_IN": 16,
    "OPEN_IN": 8, "CREATE_IN": 16, "RELEASE_IN": 24, "READ_IN": 40, "WRITE_IN": 40, "FSYNC_IN": 16,
    "SETXATTR_EXT_IN": 16,
    "SETXATTR_IN": 8, "GETXATTR_IN": 8, "IOCTL_IN": 32, "POLL_IN": 24, "FALLOCATE_IN": 32, "LSEEK_IN": 24,
    "COPY_FILE_RANGE_IN": 56, "STATX_IN": 24, "BATCH_FORGET_IN": 8, "FORGET_ONE": 16, "INIT_OUT": 64,
    "ATTR_OUT": 104, "ENTRY_OUT": 128, "OPEN_OUT": 16, "WRITE_OUT": 8, "GETXATTR_OUT": 8, "IOCTL_OUT": 16,
    "POLL_OUT": 8, "STATFS_OUT": 80, "DIRENT": 24, "STATX_OUT": 288,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_c_structs(name: str) -> None:
    assert getattr(wire, name).size == SIZES[name]


class Attr(ctypes.LittleEndianStructure):
    """struct fuse_attr, as the header has it."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("ino", "size", "blocks", "atime", "mtime", "ctime")] + [
        (name, ctypes.c_uint32)
        for name in ("atimensec", "mtimensec", "ctimensec", "mode", "nlink", "uid", "gid", "rdev", "blksize", "flags")
    ]


@pytest.fixture
def file_stat(tmp_path) -> os.stat_result:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    os.utime(path, ns=(-1_500_000_000, 12_345_678_901))
    st: os.stat_result = path.stat()
    return st


def check_attr(data: bytes, nodeid: int, st: os.stat_result) -> None:
    attr = Attr.from_buffer_copy(data)
    assert (attr.ino, attr.size, attr.blocks) == (nodeid, 5000, st.st_blocks)
    assert (ctypes.c_int64(attr.atime).value, attr.atimensec) == (-2, 500_000_000)
    assert (attr.mtime, attr.mtimensec) == (12, 345_678_901)
    assert (attr.ctime, attr.ctimensec) == divmod(st.st_ctime_ns, 10**9)
    assert (attr.mode, attr.nlink, attr.uid, attr.gid) == (st.st_mode, 1, st.st_uid, st.st_gid)
    assert (attr.rdev, attr.blksize, attr.flags) == (0, st.st_blksize, 0)


def test_attributes_go_out_as_they_are(file_stat) -> None:
    out = wire.attr_out(77, file_stat, wire.seconds(1.25))
    assert struct.unpack_from("<QII", out) == (1, 250_000_000, 0)
    check_attr(out[16:], 77, file_stat)


def test_entry(file_stat) -> None:
    out = wire.entry_out(Entry(77, file_stat), (1, 2), (3, 4))
    assert struct.unpack_from("<QQQQII", out) == (77, 0, 1, 3, 2, 4)
    check_attr(out[40:], 77, file_stat)
    assert struct.unpack_from("<QQQQII", wire.with_generation(out, 99)) == (77, 99, 1, 3, 2, 4)
    assert wire.with_generation(out, 99)[16:] == out[16:]


def test_device_numbers() -> None:
    st = os.stat("/dev/null")
    out = wire.attr_out(1, st, (0, 0))
    assert Attr.from_buffer_copy(out[16:]).rdev == os.makedev(1, 3)


def test_statx_has_the_time_of_birth_where_there_is_one(file_stat) -> None:
    out = wire.statx_out(77, file_stat, 5_000_000_007, (1, 2))
    mask, blksize, _, nlink, uid, gid, mode, ino, size, blocks = struct.unpack_from("<IIQIIIHxxQQQ", out, 32)
    assert (mask, blksize, nlink, mode) == (0xFFF, file_stat.st_blksize, 1, file_stat.st_mode)
    assert (uid, gid, ino, size, blocks) == (file_stat.st_uid, file_stat.st_gid, 77, 5000, file_stat.st_blocks)
    times = [struct.unpack_from("<qI", out, 32 + 64 + 16 * place) for place in range(4)]
    assert times == [(-2, 500_000_000), (5, 7), divmod(file_stat.st_ctime_ns, 10**9), (12, 345_678_901)]
    without = wire.statx_out(77, file_stat, None, (1, 2))
    assert struct.unpack_from("<I", without, 32) == (0x7FF,)


def test_passthrough_keeps_only_the_flags_that_the_kernel_takes_beside_it() -> None:
    fh, flags, backing_id = wire.OPEN_OUT.unpack(wire.open_out(Opened(5, 1 << 1, 9)))
    assert (fh, flags, backing_id) == (5, 1 << 7 | 1 << 5, 9)
    assert wire.OPEN_OUT.unpack(wire.open_out(Opened(5, 1 << 1, 0))) == (5, 1 << 1 | 1 << 5, 0)


def setattr_in(valid: int, **fields: int) -> tuple[int, ...]:
    names = (
        "valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused4 uid gid unused5"
    )
    return tuple({"valid": valid, **fields}.get(name, 0) for name in names.split())


def test_only_what_is_valid_is_changed() -> None:
    changes, fh = wire.attributes(setattr_in(0, size=1, mode=2, uid=3, gid=4, fh=5))
    assert [getattr(changes, name) for name in ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns")] == [None] * 6
    assert fh is None
    assert not changes.kill_suidgid


def test_each_change() -> None:
    valid = 0b1 | 0b10 | 0b100 | 0b1000 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 11
    fields = setattr_in(valid, size=2**40, mode=0o644, uid=3, gid=4, fh=5, atime=-2, atimensec=500_000_000)
    changes, fh = wire.attributes(fields)
    assert (changes.mode, changes.uid, changes.gid, changes.size) == (0o644, 3, 4, 2**40)
    assert (changes.atime_ns, changes.mtime_ns, fh) == (-1_500_000_000, NOW, 5)
    assert changes.kill_suidgid


@given(st.binary(max_size=20))
def test_a_name_ends_with_its_only_nul(data: bytes) -> None:
    if data.endswith(b"\0") and data.count(b"\0") == 1:
        assert wire.name_of(memoryview(data)) == data[:-1]
    else:
        with pytest.raises(OSError, match="name"):
            wire.name_of(memoryview(data))


@given(st.binary(max_size=20))
def test_two_names(data: bytes) -> None:
    if data.endswith(b"\0") and data.count(b"\0") == 2:
        assert wire.names_of(memoryview(data), 0) == tuple(data.split(b"\0")[:2])
    else:
        with pytest.raises(OSError, match="names"):
            wire.names_of(memoryview(data), 0)


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=30), st.integers(0, 4096), st.booleans())
def test_a_listing_keeps_to_its_size_and_is_aligned(names: list[bytes], size: int, plus: bool) -> None:
    entry = Entry(9, os.stat("/"))
    listing = wire.Listing(size, plus, (0, 0), lambda nodeid: (0, 0))
    fitting = 0
    for place, name in enumerate(names, 1):
        if not listing.add(name, place, entry if plus else (9, 4)):
            break
        fitting = place
    data = b"".join(listing.parts)
    assert len(data) <= size
    assert read_listing(data, plus) == [(9, place, 4, name) for place, name in enumerate(names[:fitting], 1)]


def read_listing(data: bytes, plus: bool) -> list[tuple[int, int, int, bytes]]:
    found, at = [], 0
    while at < len(data):
        at += 128 if plus else 0
        ino, offset, length, kind = wire.DIRENT.unpack_from(data, at)
        found.append((ino, offset, kind, data[at + 24 : at + 24 + length]))
        at += (24 + length + 7) & ~7
    return found


def test_dots_in_a_plus_listing_have_no_node() -> None:
    listing = wire.Listing(4096, True, (0, 0), lambda nodeid: (0, 0))
    assert listing.add(b".", 1, (5, 4))
    assert b"".join(listing.parts)[:128] == bytes(128)
