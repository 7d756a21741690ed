"""File handles: names of inodes that outlive descriptors, paths and the process (name_to_handle_at(2))."""

import ctypes
import os
from struct import Struct
from typing import Final

from pinfs.linux.libc import checked, libc
from pinfs.linux.syscalls import AT_EMPTY_PATH

MAX_HANDLE_SZ: Final = 128
_HEAD = Struct("<Ii")  # handle_bytes handle_type

libc.name_to_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def handle_of(fd: int) -> bytes:
    """The handle of what `fd` refers to, in the form that `open_handle` takes. EOPNOTSUPP: the file system has none."""
    buffer = ctypes.create_string_buffer(_HEAD.pack(MAX_HANDLE_SZ, 0), _HEAD.size + MAX_HANDLE_SZ)
    mount_id = ctypes.c_int()
    checked(libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount_id), AT_EMPTY_PATH))
    return buffer.raw[: _HEAD.size + _HEAD.unpack_from(buffer)[0]]


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """A descriptor, on the file system that `mount_fd` lies on. ESTALE: the inode is gone. EPERM: no
    CAP_DAC_READ_SEARCH in the initial user namespace. EINVAL: not a handle."""
    if len(handle) < _HEAD.size or len(handle) - _HEAD.size != _HEAD.unpack_from(handle)[0]:
        raise OSError(22, os.strerror(22))
    return checked(libc.open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC))
