"""The file flags of chattr(1): ioctls that the kernel passes on and the backing answers (ioctl_iflags(2))."""

import errno
import fcntl
import os
import struct
from typing import Final

from pinfs.fs.types import os_error
from pinfs.linux.inodeflags import APPEND
from pinfs.linux.ioctl import FS_IOC_FSGETXATTR as FSGETXATTR
from pinfs.linux.ioctl import FS_IOC_FSSETXATTR as FSSETXATTR
from pinfs.linux.ioctl import FS_IOC_GETFLAGS as GETFLAGS
from pinfs.linux.ioctl import FS_IOC_SETFLAGS as SETFLAGS

COMMANDS: Final = frozenset({GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR})
SETTING: Final = frozenset({SETFLAGS, FSSETXATTR})

_SIZES: Final = {GETFLAGS: 4, SETFLAGS: 4, FSGETXATTR: 28, FSSETXATTR: 28}
_FOR_ROOT: Final = {SETFLAGS: 0x30, FSSETXATTR: 0x18}  # append-only and immutable, by either command
_FLAGS = struct.Struct("<I")
_XFLAG_APPEND: Final = 0x10  # FS_XFLAG_APPEND


def ioctl(fd: int, cmd: int, data: bytes, uid: int) -> bytes:
    """Ask the backing file behind `fd`, on behalf of `uid`.

    EPERM: `uid` is not the owner, or not root where append-only or immutable would change. The kernel has checked the
    same before; older ones (5.12) have not.
    """
    size = _SIZES[cmd]
    buffer = bytearray(data[:size].ljust(size, b"\0"))
    if cmd in _FOR_ROOT:
        _check(fd, cmd, buffer, uid)
    fcntl.ioctl(fd, cmd, buffer, True)
    return bytes(buffer)


def without_append(cmd: int, answer: bytes) -> bytes:
    """The answer to a GET, without the flag that pinfs has set. That to a SET tells nothing."""
    if cmd in SETTING:
        return answer
    flags = _FLAGS.unpack_from(answer)[0] & ~(_XFLAG_APPEND if cmd == FSGETXATTR else APPEND)
    return _FLAGS.pack(flags) + answer[_FLAGS.size :]


def _check(fd: int, cmd: int, wanted: bytearray, uid: int) -> None:
    if uid == 0:
        return
    now = bytearray(_SIZES[cmd])
    fcntl.ioctl(fd, GETFLAGS if cmd == SETFLAGS else FSGETXATTR, now, True)
    changed = _FLAGS.unpack_from(now)[0] ^ _FLAGS.unpack_from(wanted)[0]
    if uid != os.fstat(fd).st_uid or changed & _FOR_ROOT[cmd]:
        raise os_error(errno.EPERM)
