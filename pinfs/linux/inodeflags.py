"""The flags of an inode that chattr(1) sets (ioctl_iflags(2))."""

import fcntl
import os
from struct import Struct
from typing import Final

from pinfs.linux.ioctl import FS_IOC_GETFLAGS, FS_IOC_SETFLAGS

APPEND: Final = 0x20
"""FS_APPEND_FL: the kernel refuses to cut, remove, rename or link the file. Setting or clearing it needs
CAP_LINUX_IMMUTABLE in the initial user namespace."""

_INT = Struct("<I4x")  # the number says long, the kernel reads and writes an int


def get_flags(fd: int) -> int:
    """FS_*_FL of the file behind `fd` (no O_PATH). ENOTTY, EOPNOTSUPP: the file system has none."""
    buffer = bytearray(_INT.size)
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, buffer, True)
    return int(_INT.unpack(buffer)[0])


def set_flags(fd: int, flags: int) -> None:
    """Set all of them. EPERM: not the owner, or no CAP_LINUX_IMMUTABLE. EROFS: mounted read-only."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, _INT.pack(flags))


def clear_append(path: str | os.PathLike[str]) -> bool:
    """Take the flag from a file (a symlink is not followed); whether it had it. OSError: as `set_flags`, open(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = get_flags(fd)
        if flags & APPEND:
            set_flags(fd, flags & ~APPEND)
        return bool(flags & APPEND)
    finally:
        os.close(fd)
