"""The FUSE wire format (linux/fuse.h, protocol 7.45; little-endian): one Struct for each C struct.

Decoders are `unpack_from` on a slice that ends where the request ends. The table of routes says how long a request is
at least, and what is shorter never gets to them. Encoders return the body of a reply, without its header.
"""

import errno
import os
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

from pinfs.fs.types import Entry, Opened, SetAttr
from pinfs.linux.calls import NOW

# Opcodes (enum fuse_opcode)
LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
SETXATTR: Final = 21
GETXATTR: Final = 22
LISTXATTR: Final = 23
REMOVEXATTR: Final = 24
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
FSYNCDIR: Final = 30
ACCESS: Final = 34
CREATE: Final = 35
INTERRUPT: Final = 36
DESTROY: Final = 38
IOCTL: Final = 39
POLL: Final = 40
NOTIFY_REPLY: Final = 41
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
READDIRPLUS: Final = 44
RENAME2: Final = 45
LSEEK: Final = 46
COPY_FILE_RANGE: Final = 47
SYNCFS: Final = 50
TMPFILE: Final = 51
STATX: Final = 52
COPY_FILE_RANGE_64: Final = 53

# Headers. A reply's `error` is -errno; in a notification (unique 0) it is the code of the notification.
IN_HEADER: Final = Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER: Final = Struct("<IiQ")  # len error unique
IN_SIZE: Final = IN_HEADER.size
OUT_SIZE: Final = OUT_HEADER.size
NOTIFY_POLL: Final = 1
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_RESEND: Final = 7
U64: Final = Struct("<Q")

# Bodies of requests
INIT_IN: Final = Struct("<IIII")  # major minor max_readahead flags
INIT_FLAGS2: Final = Struct("<I")  # behind it since 7.36 (and 11 unused words)
GETATTR_IN: Final = Struct("<IIQ")  # getattr_flags dummy fh
SETATTR_IN: Final = Struct("<IIQQQqqqIIIIIIII")
MKDIR_IN: Final = Struct("<II")  # mode umask
MKNOD_IN: Final = Struct("<IIII")  # mode rdev umask padding
ACCESS_IN: Final = Struct("<II")  # mask padding
RENAME2_IN: Final = Struct("<QII")  # newdir flags padding
OPEN_IN: Final = Struct("<II")  # flags open_flags
CREATE_IN: Final = Struct("<IIII")  # flags mode umask open_flags
RELEASE_IN: Final = Struct("<QIIQ")  # fh flags release_flags lock_owner
READ_IN: Final = Struct("<QqIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN: Final = Struct("<QqIIQII")  # fh offset size write_flags lock_owner flags padding
FSYNC_IN: Final = Struct("<QII")  # fh fsync_flags padding
SETXATTR_IN: Final = Struct("<II")  # size flags
SETXATTR_EXT_IN: Final = Struct("<IIII")  # size flags setxattr_flags padding: where SETXATTR_EXT is negotiated
GETXATTR_IN: Final = Struct("<II")  # size padding
IOCTL_IN: Final = Struct("<QIIQII")  # fh flags cmd arg in_size out_size
POLL_IN: Final = Struct("<QQII")  # fh kh flags events
FALLOCATE_IN: Final = Struct("<QqqII")  # fh offset length mode padding
LSEEK_IN: Final = Struct("<QqII")  # fh offset whence padding
COPY_FILE_RANGE_IN: Final = Struct("<QqQQqQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
STATX_IN: Final = Struct("<IIQII")  # getattr_flags reserved fh sx_flags sx_mask
BATCH_FORGET_IN: Final = Struct("<II")  # count dummy
FORGET_ONE: Final = Struct("<QQ")  # nodeid nlookup

# Bodies of replies
INIT_OUT: Final = Struct("<IIIIHHIIHHIIH22x")
ATTR_OUT: Final = Struct("<QIIQQQqqqIIIIIIIIII")  # valid valid_nsec dummy, attr
ENTRY_OUT: Final = Struct("<QQQQIIQQQqqqIIIIIIIIII")  # nodeid generation entry/attr_valid, their nsec, attr
OPEN_OUT: Final = Struct("<QIi")  # fh open_flags backing_id
WRITE_OUT: Final = Struct("<II")  # size padding
GETXATTR_OUT: Final = Struct("<II")  # size padding
IOCTL_OUT: Final = Struct("<iIII")  # result flags in_iovs out_iovs
POLL_OUT: Final = Struct("<II")  # revents padding
STATFS_OUT: Final = Struct("<QQQQQIII28x")  # blocks bfree bavail files ffree bsize namelen frsize
INVAL_INODE_OUT: Final = Struct("<Qqq")  # ino off len
DIRENT: Final = Struct("<QQII")  # ino off namelen type
STATX_OUT: Final = Struct("<QI4x16xIIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIII112x")

# Flags of requests and replies
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11
FATTR_TIMES: Final = FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW
GETATTR_FH: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
OPEN_KILL_SUIDGID: Final = 1 << 0
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
FSYNC_FDATASYNC: Final = 1 << 0
POLL_SCHEDULE_NOTIFY: Final = 1 << 0
IOCTL_UNRESTRICTED: Final = 1 << 1
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6
FOPEN_PASSTHROUGH: Final = 1 << 7
BESIDE_PASSTHROUGH: Final = FOPEN_DIRECT_IO | FOPEN_NOFLUSH | FOPEN_PARALLEL_DIRECT_WRITES

STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
_S: Final = 1_000_000_000  # nanoseconds
_U32: Final = 0xFFFF_FFFF
_pack_attr: Final = ATTR_OUT.pack
_pack_entry: Final = ENTRY_OUT.pack


def seconds(timeout_s: float) -> tuple[int, int]:
    """A timeout as (seconds, nanoseconds)."""
    whole = int(timeout_s)
    return whole, int((timeout_s - whole) * _S)


# The two that nearly every request ends in take a stat_result by position, which is a third faster than by name:
# 0 mode, 3 nlink, 4 uid, 5 gid, 6 size, 7 8 9 atime mtime ctime in whole seconds.


def attr_out(nodeid: int, st: os.stat_result, valid: tuple[int, int]) -> bytes:
    """struct fuse_attr_out. `valid`: how long the kernel may keep it, as of seconds()."""
    return _pack_attr(
        valid[0], valid[1], 0,
        nodeid, st[6], st.st_blocks,
        st[7], st[8], st[9], st.st_atime_ns % _S, st.st_mtime_ns % _S, st.st_ctime_ns % _S,
        st[0], st[3], st[4], st[5], st.st_rdev & _U32, st.st_blksize, 0,
    )  # fmt: skip


def entry_out(entry: Entry, entry_valid: tuple[int, int], attr_valid: tuple[int, int]) -> bytes:
    """struct fuse_entry_out. Generation 0: a node id is given to another file only after the kernel forgot it.

    File handles need one (`with_generation`).
    """
    nodeid, st = entry
    return _pack_entry(
        nodeid, 0, entry_valid[0], attr_valid[0], entry_valid[1], attr_valid[1],
        nodeid, st[6], st.st_blocks,
        st[7], st[8], st[9], st.st_atime_ns % _S, st.st_mtime_ns % _S, st.st_ctime_ns % _S,
        st[0], st[3], st[4], st[5], st.st_rdev & _U32, st.st_blksize, 0,
    )  # fmt: skip


def with_generation(entry: bytes, generation: int) -> bytes:
    """A struct fuse_entry_out with this generation, which becomes a part of the file handles of the inode."""
    return entry[:8] + U64.pack(generation) + entry[16:]


A_TICK: Final = 0, 1
"""The shortest timeout there is: until the kernel's second tick from now, 8 ms at most where it has 250 a second."""


def forget_attributes(nodeid: int) -> bytes:
    """The whole message of a notification: the kernel asks again for the attributes of an inode, not for its data.

    It takes none of the inode's locks (fuse_reverse_inval_inode with a negative offset): allowed inside any handler.
    """
    return OUT_HEADER.pack(OUT_SIZE + INVAL_INODE_OUT.size, NOTIFY_INVAL_INODE, 0) + INVAL_INODE_OUT.pack(nodeid, -1, 0)


NO_ENTRY: Final = bytes(ENTRY_OUT.size)


def no_entry_out(entry_valid: tuple[int, int]) -> bytes:
    """struct fuse_entry_out for a name that does not exist, and how long the kernel may take that for granted."""
    return ENTRY_OUT.pack(0, 0, entry_valid[0], 0, entry_valid[1], *[0] * 17)


def open_out(opened: Opened) -> bytes:
    """struct fuse_open_out.

    NOFLUSH, because close(2) would otherwise take the inode's lock (fuse_flush), which a waiting truncate of the file
    holds: a holder could not answer its break by closing its handle.
    """
    fh, flags, backing_id = opened
    if backing_id:
        return OPEN_OUT.pack(fh, flags & BESIDE_PASSTHROUGH | FOPEN_PASSTHROUGH | FOPEN_NOFLUSH, backing_id)
    return OPEN_OUT.pack(fh, flags | FOPEN_NOFLUSH, 0)


def statfs_out(st: os.statvfs_result) -> bytes:
    """struct fuse_statfs_out."""
    return STATFS_OUT.pack(
        st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax, st.f_frsize
    )  # fmt: skip


def statx_out(nodeid: int, st: os.stat_result, btime_ns: int | None, valid: tuple[int, int]) -> bytes:
    """struct fuse_statx_out; without a time of birth its bit in the mask is missing."""
    atime_ns, mtime_ns, ctime_ns, birth_ns = st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns, btime_ns or 0
    return STATX_OUT.pack(
        valid[0], valid[1],
        STATX_BASIC_STATS | (0 if btime_ns is None else STATX_BTIME), st.st_blksize, 0,
        st.st_nlink, st.st_uid, st.st_gid, st.st_mode, nodeid, st.st_size, st.st_blocks, 0,
        atime_ns // _S, atime_ns % _S, birth_ns // _S, birth_ns % _S,
        ctime_ns // _S, ctime_ns % _S, mtime_ns // _S, mtime_ns % _S,
        os.major(st.st_rdev), os.minor(st.st_rdev), 0, 0,
    )  # fmt: skip


def attributes(fields: tuple[int, ...]) -> tuple[SetAttr, int | None]:
    """What a SETATTR wants changed, from its SETATTR_IN fields, and the handle it came through."""
    valid, _, fh, size, _, atime, mtime, _, atimensec, mtimensec, _, mode, _, uid, gid, _ = fields
    changes = SetAttr(
        mode if valid & FATTR_MODE else None,
        uid if valid & FATTR_UID else None,
        gid if valid & FATTR_GID else None,
        size if valid & FATTR_SIZE else None,
    )
    if valid & FATTR_TIMES:
        changes.atime_ns = _time(valid & FATTR_ATIME, valid & FATTR_ATIME_NOW, atime, atimensec)
        changes.mtime_ns = _time(valid & FATTR_MTIME, valid & FATTR_MTIME_NOW, mtime, mtimensec)
    if valid & FATTR_KILL_SUIDGID:
        changes.kill_suidgid = True
    return changes, fh if valid & FATTR_FH else None


def _time(is_set: int, is_now: int, whole: int, nanoseconds: int) -> int | None:
    if is_now:
        return NOW
    return whole * _S + nanoseconds if is_set else None


def name_of(body: memoryview, offset: int = 0) -> bytes:
    """The one NUL-terminated name at the end of a request. EINVAL: anything else."""
    name, end, rest = body[offset:].tobytes().partition(b"\0")
    if rest or not end:
        raise OSError(errno.EINVAL, "not one name")
    return name


def names_of(body: memoryview, offset: int) -> tuple[bytes, bytes]:
    """The two NUL-terminated names at the end of a request. EINVAL: anything else."""
    first, second, *rest = (*body[offset:].tobytes().split(b"\0"), b"")
    if rest != [b"", b""]:
        raise OSError(errno.EINVAL, "not two names")
    return first, second


class Listing:
    """The body of a READDIR or READDIRPLUS reply of at most `size` bytes, filled by add()."""

    __slots__ = ("_attr_valid_of", "_entry_out", "_entry_valid", "_plus", "_room", "parts")

    def __init__(
        self,
        size: int,
        plus: bool,
        entry_valid: tuple[int, int],
        attr_valid_of: Callable[[int], tuple[int, int]],
        entry_out: Callable[[Entry, tuple[int, int], tuple[int, int]], bytes] = entry_out,
    ) -> None:
        self.parts: list[bytes] = []
        self._room = size
        self._plus = plus
        self._entry_valid = entry_valid
        self._attr_valid_of = attr_valid_of
        self._entry_out = entry_out

    def add(self, name: bytes, next_offset: int, what: Entry | tuple[int, int]) -> bool:
        """Append one name, with its Entry or (st_ino, d_type). False: it does not fit any more."""
        padding = -len(name) % 8
        length = DIRENT.size + len(name) + padding + (ENTRY_OUT.size if self._plus else 0)
        if length > self._room:
            return False
        self._room -= length
        if isinstance(what, Entry):
            ino, kind, entry = what.nodeid, what.st.st_mode >> 12, self._entry(what)
        else:
            (ino, kind), entry = what, NO_ENTRY if self._plus else b""
        self.parts += (entry, DIRENT.pack(ino, next_offset, len(name), kind), name, bytes(padding))
        return True

    def _entry(self, entry: Entry) -> bytes:
        return self._entry_out(entry, self._entry_valid, self._attr_valid_of(entry.nodeid)) if self._plus else b""


def looked_up(listing: bytes) -> Iterator[int]:
    """The node ids that a READDIRPLUS reply counts a lookup for: of all its names but `.` and `..`."""
    at = 0
    while at < len(listing):
        (nodeid,) = U64.unpack_from(listing, at)
        _, _, length, _ = DIRENT.unpack_from(listing, at + ENTRY_OUT.size)
        at += ENTRY_OUT.size + DIRENT.size + length + -length % 8
        if nodeid:
            yield nodeid
