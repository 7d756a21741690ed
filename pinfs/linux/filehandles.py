"""File handles: what names an inode of a file system for its whole life (name_to_handle_at(2))."""

import ctypes
import errno
import os
from struct import Struct
from typing import Final

from pinfs.linux.libc import checked, libc, libc_quick
from pinfs.linux.syscalls import AT_EMPTY_PATH

MAX_HANDLE_SZ: Final = 128  # bytes of f_handle

_HEADER: Final = Struct("=Ii")  # handle_bytes handle_type of struct file_handle
_SIZE: Final = _HEADER.size + MAX_HANDLE_SZ
_buffer: Final = ctypes.create_string_buffer(_SIZE)
_mount_id: Final = ctypes.c_int()
_BUFFER: Final = ctypes.addressof(_buffer)
_MOUNT_ID: Final = ctypes.addressof(_mount_id)

_name_to_handle = libc_quick.name_to_handle_at
_name_to_handle.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def handle_of(fd: int) -> bytes:
    """struct file_handle of what `fd` (O_PATH will do) refers to: the number of the inode and its generation, or what
    the file system has in their place. EOPNOTSUPP: it has no handles. Only on one thread at a time."""
    _HEADER.pack_into(_buffer, 0, MAX_HANDLE_SZ, 0)
    checked(_name_to_handle(fd, b"", _BUFFER, _MOUNT_ID, AT_EMPTY_PATH))
    return ctypes.string_at(_BUFFER, _HEADER.size + _HEADER.unpack_from(_buffer)[0])


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """A descriptor of the inode with this handle (of `handle_of`), on the file system that `mount_fd` lies on.

    ESTALE: the inode is gone. EPERM: no CAP_DAC_READ_SEARCH in the initial user namespace. EINVAL: not a handle.
    """
    if len(handle) < _HEADER.size or len(handle) - _HEADER.size != _HEADER.unpack_from(handle)[0]:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return checked(libc.open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC))
