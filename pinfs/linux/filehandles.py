"""File handles: what names an inode of a file system for its whole life (name_to_handle_at(2))."""

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from struct import Struct
from typing import Final

from pinfs.linux.filesystems import BTRFS_MAGIC, EXT_MAGIC, F2FS_MAGIC, XFS_MAGIC
from pinfs.linux.libc import checked, libc, libc_quick
from pinfs.linux.syscalls import AT_EMPTY_PATH, file_system_magic

MAX_HANDLE_SZ: Final = 128  # bytes of f_handle

_HEADER: Final = Struct("=Ii")  # handle_bytes handle_type of struct file_handle
_SIZE: Final = _HEADER.size + MAX_HANDLE_SZ


class _Answer(threading.local):
    """What name_to_handle_at(2) fills in. Each thread has its own: a switch of threads may come before it is read."""

    def __init__(self) -> None:
        self.buffer: Final = ctypes.create_string_buffer(_SIZE)
        self._mount_id: Final = ctypes.c_int()
        self.at: Final = ctypes.addressof(self.buffer)
        self.mount_id_at: Final = ctypes.addressof(self._mount_id)


_answer: Final = _Answer()
_name_to_handle = libc_quick.name_to_handle_at
_name_to_handle.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def handle_of(fd: int, name: bytes = b"") -> bytes:
    """struct file_handle of what `fd` (O_PATH will do) refers to, or of `name` in that directory: the number of the
    inode and its generation, or what the file system has in their place. EOPNOTSUPP: it has no handles."""
    answer = _answer
    buffer, at = answer.buffer, answer.at
    _HEADER.pack_into(buffer, 0, MAX_HANDLE_SZ, 0)
    checked(_name_to_handle(fd, name, at, answer.mount_id_at, 0 if name else AT_EMPTY_PATH))
    return ctypes.string_at(at, _HEADER.size + _HEADER.unpack_from(buffer)[0])


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """A descriptor of the inode with this handle (of `handle_of`), on the file system that `mount_fd` lies on.

    `mount_fd` is a descriptor without O_PATH. ESTALE: the inode is gone. EPERM: no CAP_DAC_READ_SEARCH in the initial
    user namespace. EINVAL: not a handle.
    """
    if len(handle) < _HEADER.size or len(handle) - _HEADER.size != _HEADER.unpack_from(handle)[0]:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return checked(libc.open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC))


# Handles by number: what a file system decodes, or tells, of an inode of which nothing but the number is known.

_INO32_GEN: Final = Struct("=IiII")  # header, inode, generation (FILEID_INO32_GEN, type 1)
_XFS: Final = Struct("=IiQI")  # header, inode, generation (xfs_fid64, type 0x81; type 1 where numbers have 32 bits)
_BTRFS: Final = Struct("=IiQQI")  # header, inode, root of the subvolume, generation (btrfs_fid, type 0x4d)
_TYPE_INO32_GEN: Final = 1
_TYPE_XFS: Final = 0x81
_TYPE_BTRFS: Final = 0x4D

_BULKSTAT_REQUEST: Final = Struct("=QIIIIQQQQQ")  # xfs_bulk_ireq: ino flags icount ocount agno reserved
_BULKSTAT_SIZE: Final = 192  # struct xfs_bulkstat
_BULKSTAT_GENERATION: Final = 64  # bs_gen in it, after eight 64-bit fields, the first of which is bs_ino
_XFS_IOC_BULKSTAT: Final = 2 << 30 | _BULKSTAT_REQUEST.size << 16 | ord("X") << 8 | 127


def by_number(mount_fd: int) -> Callable[[int], bytes] | None:
    """How to make a handle that opens the inode with a number, on the file system that `mount_fd` (no O_PATH) lies on.

    None: only whole handles open anything (tmpfs, overlayfs). The function raises ESTALE for what cannot be a number.
    ext4, f2fs and btrfs decode generation 0 as any (ext4_nfs_get_inode()); xfs tells it (XFS_IOC_BULKSTAT).
    """
    kind, own = file_system_magic(mount_fd), handle_of(mount_fd)
    handle_type = _HEADER.unpack_from(own)[1]
    if kind in (EXT_MAGIC, F2FS_MAGIC) and (len(own), handle_type) == (_INO32_GEN.size, _TYPE_INO32_GEN):
        return lambda number: _ino32_handle(number, 0)
    if kind == BTRFS_MAGIC and (len(own), handle_type) == (_BTRFS.size, _TYPE_BTRFS):
        root = _BTRFS.unpack(own)[3]
        return lambda number: _BTRFS.pack(20, _TYPE_BTRFS, number, root, 0)
    if kind == XFS_MAGIC and _tells_generations(mount_fd):
        if handle_type == _TYPE_XFS:
            return lambda number: _XFS.pack(12, _TYPE_XFS, number, _xfs_generation(mount_fd, number))
        return lambda number: _ino32_handle(number, _xfs_generation(mount_fd, number))
    return None


def _ino32_handle(number: int, generation: int) -> bytes:
    if number >> 32:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return _INO32_GEN.pack(8, _TYPE_INO32_GEN, number, generation)


def _tells_generations(mount_fd: int) -> bool:
    """Whether this xfs tells generations: it does since Linux 5.3, with CAP_SYS_ADMIN."""
    try:
        _xfs_generation(mount_fd, os.fstat(mount_fd).st_ino)
    except OSError:
        return False
    return True


def _xfs_generation(mount_fd: int, number: int) -> int:
    """Of the inode in use with this number; ESTALE: there is none, or it is one of the file system's own."""
    answer = bytearray(_BULKSTAT_REQUEST.size + _BULKSTAT_SIZE)
    _BULKSTAT_REQUEST.pack_into(answer, 0, number, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(mount_fd, _XFS_IOC_BULKSTAT, answer, True)
    except OSError as e:
        if e.errno != errno.EINVAL:  # beyond the end of the file system
            raise
        answer[8:] = bytes(len(answer) - 8)
    count = _BULKSTAT_REQUEST.unpack_from(answer)[3]
    found = int.from_bytes(answer[_BULKSTAT_REQUEST.size :][:8], "little")
    if not count or found != number:  # the next one in use
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    at = _BULKSTAT_REQUEST.size + _BULKSTAT_GENERATION
    return int.from_bytes(answer[at : at + 4], "little")
