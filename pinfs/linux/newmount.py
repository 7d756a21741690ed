"""Mounts that stand nowhere in the tree: the mount system calls of Linux 5.2 (fsopen(2), fsmount(2))."""

import ctypes
import os
from typing import Final

from pinfs.linux.libc import checked, libc

_SYS_FSOPEN: Final = 430  # the same numbers on all architectures
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_CLOEXEC: Final = 1
_SET_STRING: Final = 1
_CMD_CREATE: Final = 6

libc.syscall.restype = ctypes.c_long


def detached_mount(fstype: str, options: dict[str, str]) -> int:
    """A descriptor of the root of a new mount that no path leads to; it goes with its last descriptor.

    EPERM: no CAP_SYS_ADMIN. ENOSYS: Linux before 5.2, or a seccomp filter.
    """
    fs = _call(_SYS_FSOPEN, fstype.encode(), _CLOEXEC)
    try:
        for key, value in options.items():
            _call(_SYS_FSCONFIG, fs, _SET_STRING, key.encode(), value.encode(), 0)
        _call(_SYS_FSCONFIG, fs, _CMD_CREATE, None, None, 0)
        return _call(_SYS_FSMOUNT, fs, _CLOEXEC, 0)
    finally:
        os.close(fs)


def _call(number: int, *args: int | bytes | None) -> int:
    return checked(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args)))
