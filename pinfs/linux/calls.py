"""System calls that say what went wrong by its errno, for the fast path, where an exception would cost more than the
call.

Where pinfs is compiled, `calls.pyx` is imported in place of this module; the two behave alike
(tests/linux/test_calls.py).
"""

import fcntl
import os
import select
from struct import Struct
from time import perf_counter
from typing import Final

from pinfs.linux import syscalls
from pinfs.linux.ioctl import FUSE_DEV_IOC_BACKING_CLOSE, FUSE_DEV_IOC_BACKING_OPEN

NOW: Final = 1 << 64
"""For a time in nanoseconds: that of the call. No file can have it as its time."""
_BACKING_MAP: Final = Struct("<iIQ")  # fd flags padding
_BACKING_ID: Final = Struct("<I")

clock = perf_counter
"""Seconds, as trio's clock counts them but for its start."""


class Stat:
    """What stat(2) has told of a file: one object, filled again and again. The names are those of os.stat_result."""

    __slots__ = ("_result", "st_ctime_ns", "st_dev", "st_gid", "st_ino", "st_mode", "st_nlink", "st_size", "st_uid")

    def __init__(self) -> None:
        self.st_dev = self.st_ino = self.st_mode = self.st_nlink = self.st_uid = self.st_gid = self.st_size = 0
        self.st_ctime_ns = 0
        self._result: os.stat_result | None = None

    @property
    def result(self) -> os.stat_result:
        """All of it."""
        assert self._result is not None
        return self._result

    def fill(self, result: os.stat_result) -> None:
        """Take over what os.stat() has told."""
        self._result = result
        self.st_mode, self.st_ino, self.st_dev, self.st_nlink, self.st_uid, self.st_gid, self.st_size = result[:7]
        self.st_ctime_ns = result.st_ctime_ns


def call_at_once_here() -> None:
    """The thread that calls this is the event loop. Its calls do not let other threads run meanwhile, where pinfs is
    compiled: to let go of the interpreter costs as much as fstat(2), and all that others do is done for the loop."""


def stat_of(result: os.stat_result) -> Stat:
    """What os.stat() has told."""
    st = Stat()
    st.fill(result)
    return st


def stat_at(directory_fd: int, name: bytes, st: Stat) -> int:
    """fstatat(2) of a name itself, whatever it is. Returns 0, or the errno."""
    try:
        st.fill(os.stat(name, dir_fd=directory_fd, follow_symlinks=False))
    except OSError as e:
        return e.errno or 0
    return 0


def stat_fd(fd: int, st: Stat) -> int:
    """fstat(2). Returns 0, or the errno."""
    try:
        st.fill(os.fstat(fd))
    except OSError as e:
        return e.errno or 0
    return 0


def is_readable(fd: int) -> bool:
    """Whether poll(2) finds something to read: of a pidfd, that its process has ended."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


# The same as in `syscalls`


def attributes_of(fd: int) -> int:
    """STATX_ATTR_* that `fd` (O_PATH will do) has. OSError."""
    return syscalls.attributes_of(fd)


def queue_signal(pidfd: int, signo: int, value: int) -> bool:
    """Send `signo` with `value` (64 bits) in si_value, si_code SI_QUEUE. False: the process has ended, or may not be
    signalled by this one."""
    return syscalls.queue_signal(pidfd, signo, value)


def read_and_signal(context: int, empty_fd: int, eventfd: int) -> None:
    """Read an empty file through an io_setup(2) context, which adds 1 to the counter of an eventfd. OSError: EBADF,
    EINVAL (no eventfd), EAGAIN, ENOMEM."""
    syscalls.read_and_signal(context, empty_fd, eventfd)


# The same as in `os`, with the name in a directory that a descriptor stands for. Each raises OSError.


def close_fd(fd: int) -> None:
    """close(2)."""
    os.close(fd)


def open_at(directory_fd: int, name: bytes, flags: int, mode: int) -> int:
    """openat(2), with O_CLOEXEC."""
    return os.open(name, flags, mode, dir_fd=directory_fd)


def unlink_at(directory_fd: int, name: bytes) -> None:
    """unlinkat(2)."""
    os.unlink(name, dir_fd=directory_fd)


def rmdir_at(directory_fd: int, name: bytes) -> None:
    """unlinkat(2) with AT_REMOVEDIR."""
    os.rmdir(name, dir_fd=directory_fd)


def mkdir_at(directory_fd: int, name: bytes, mode: int) -> None:
    """mkdirat(2)."""
    os.mkdir(name, mode, dir_fd=directory_fd)


def rename_at(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    syscalls.renameat2(old_fd, old, new_fd, new, flags)


def set_fs_ids(uid: int, gid: int) -> None:
    """The owner of what this thread creates from now on (setfsuid(2), setfsgid(2); they cannot report an error)."""
    syscalls.set_fs_ids(uid, gid)


# Of what a descriptor stands for; `is_path`: it was opened with O_PATH


def set_mode(fd: int, is_path: bool, mode: int) -> None:
    """chmod(2)."""
    os.chmod(b"/proc/self/fd/%d" % fd if is_path else fd, mode)


def set_times(fd: int, is_path: bool, atime_ns: int, mtime_ns: int) -> None:
    """utimensat(2), nanoseconds; both NOW: the time of the call."""
    where = b"/proc/self/fd/%d" % fd if is_path else fd
    if atime_ns == NOW:
        os.utime(where)
    else:
        os.utime(where, ns=(atime_ns, mtime_ns))


# Extended attributes. `where`: a descriptor, or a path


def set_attribute(where: int | bytes, name: bytes, value: bytes, flags: int) -> None:
    """setxattr(2)."""
    os.setxattr(where, name, value, flags)


def remove_attribute(where: int | bytes, name: bytes) -> None:
    """removexattr(2)."""
    os.removexattr(where, name)


# FUSE passthrough


def open_backing(connection_fd: int, fd: int) -> int:
    """FUSE_DEV_IOC_BACKING_OPEN: the id of a backing file."""
    request = bytearray(_BACKING_MAP.pack(fd, 0, 0))
    return int(fcntl.ioctl(connection_fd, FUSE_DEV_IOC_BACKING_OPEN, request, True))


def close_backing(connection_fd: int, backing_id: int) -> None:
    """FUSE_DEV_IOC_BACKING_CLOSE."""
    fcntl.ioctl(connection_fd, FUSE_DEV_IOC_BACKING_CLOSE, bytearray(_BACKING_ID.pack(backing_id)), True)
