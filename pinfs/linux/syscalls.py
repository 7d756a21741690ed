"""System calls that Python's os module does not offer, or not in the form needed here.

Each raises OSError with the errno of its man page, unless its own text says otherwise.
"""

import ctypes
import errno
import os
import signal
import struct
from typing import Final

from pinfs.linux.libc import checked, libc, libc_quick

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_FORCE_SYNC: Final = 0x2000
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
CAP_FSETID: Final = 4
CAP_SYS_RESOURCE: Final = 24
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATX_ATTR_IMMUTABLE: Final = 0x10
STATX_ATTR_APPEND: Final = 0x20

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 0x1, 0x2, 0x4, 0x8, 0x400
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

_CLOSE_RANGE_UNSHARE = 1 << 1
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_GET_SECUREBITS = 27
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_SI_QUEUE = -1
_SIGINFO = struct.Struct("=iiii iI Q 96x")
"""siginfo_t of a queued signal on 64-bit Linux: signo, errno, code, padding, pid, uid, value (sigaction(2))."""
_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_CLOSE_RANGE = 436
"""The same numbers on all architectures (system calls since 5.0 share one table)."""


_IOCB = struct.Struct("=Q4xiHhIQQqQII")
"""data, rw_flags, opcode, reqprio, fildes, buf, nbytes, offset, reserved, flags, resfd (struct iocb, little-endian)."""
_IOCB_CMD_PREAD = 0
_IOCB_FLAG_RESFD = 1
_EVENT_BYTES = 32
_SYS_IO = (4, 2) if os.uname().machine in ("aarch64", "armv8l") else (208, 209)
"""io_getevents, io_submit."""


class Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))


libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
libc.ftruncate.argtypes = (ctypes.c_int, ctypes.c_int64)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
libc.setfsuid.argtypes = (ctypes.c_uint,)
libc.setfsgid.argtypes = (ctypes.c_uint,)
libc.syncfs.argtypes = (ctypes.c_int,)
libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_tgkill = libc_quick.tgkill
_tgkill.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int)
_syscall = libc_quick.syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_syscall.restype = ctypes.c_long
asynchronous_io = libc_quick["syscall"]  # by index: a function of its own, with its own types
"""A system call of io_setup(2) and its like: its number, and its arguments."""
asynchronous_io.argtypes = (ctypes.c_long, *(ctypes.c_void_p,) * 5)
asynchronous_io.restype = ctypes.c_long


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """rename(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    checked(libc.renameat2(old_fd, old, new_fd, new, flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2): offset and length in bytes."""
    checked(libc.fallocate(fd, mode, offset, length))


def ftruncate(fd: int, size: int) -> None:
    """ftruncate(2) to `size` bytes. EINTR: unlike os.ftruncate, it is not made again after a signal (PEP 475)."""
    checked(libc.ftruncate(fd, size))


def utimens(path: bytes, atime_ns: int | None, mtime_ns: int | None, *, now: int) -> None:
    """utimensat(2) on a path (followed): nanoseconds, the value of `now` for the present, None: leave a time alone."""
    times = (Timespec * 2)(_timespec(atime_ns, now), _timespec(mtime_ns, now))
    checked(libc.utimensat(AT_FDCWD, path, ctypes.byref(times), 0))


def _timespec(ns: int | None, now: int) -> Timespec:
    if ns is None:
        return Timespec(0, UTIME_OMIT)
    if ns == now:
        return Timespec(0, UTIME_NOW)
    return Timespec(*divmod(ns, 1_000_000_000))


def _statx(fd: int, mask: int, flags: int = 0) -> bytes:
    """struct statx of what `fd` (O_PATH will do) refers to: mask at byte 0, attributes at 8, birth time at 80, the
    attributes that the file system knows at 56 (statx(2))."""
    result = ctypes.create_string_buffer(256)
    checked(libc.statx(fd, b"", AT_EMPTY_PATH | flags, mask, result))
    return result.raw


def attributes_of(fd: int) -> int:
    """STATX_ATTR_* that `fd` (O_PATH will do) has; the bit of one that the backing does not know is 0."""
    return int.from_bytes(_statx(fd, 0)[8:16], "little")


def known_attributes_of(fd: int) -> int:
    """STATX_ATTR_* of which the file system below `fd` can tell whether a file has them (stx_attributes_mask)."""
    return int.from_bytes(_statx(fd, 0)[56:64], "little")


def wait_for_attributes(fd: int) -> None:
    """Have the server of a file system answer for what `fd` (O_PATH will do) refers to, without the cache."""
    _statx(fd, STATX_BASIC_STATS, AT_STATX_FORCE_SYNC)


def birth_time_ns(fd: int) -> int | None:
    """The creation time of what `fd` (O_PATH will do) refers to; None where the backing has none."""
    buffer = _statx(fd, STATX_BTIME)
    if not int.from_bytes(buffer[0:4], "little") & STATX_BTIME:
        return None
    seconds = int.from_bytes(buffer[80:88], "little", signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(buffer[88:92], "little")


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    checked(libc.syncfs(fd))


def file_system_magic(fd: int) -> int:
    """f_type of statfs(2), as in linux/magic.h."""
    result = ctypes.create_string_buffer(256)
    checked(libc.fstatfs(fd, result))
    return int.from_bytes(result.raw[:8], "little") & 0xFFFF_FFFF


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """mount(2): `flags` MS_*, `data` options of the file system, between commas."""
    checked(libc.mount(*map(os.fsencode, (source, target, fstype)), flags, os.fsencode(data)), target)


def umount2(target: str, flags: int) -> None:
    """umount2(2): `flags` MNT_* and UMOUNT_NOFOLLOW. Waits for the file system, but with MNT_FORCE or MNT_DETACH."""
    checked(libc.umount2(os.fsencode(target), flags), target)


def queue_signal(pidfd: int, signo: int, value: int) -> bool:
    """Send `signo` with `value` (64 bits) in si_value, si_code SI_QUEUE (rt_sigqueueinfo(2), pidfd_send_signal(2)).

    False: the process has ended, or may not be signalled by this one.
    """
    info = _SIGINFO.pack(signo, 0, _SI_QUEUE, 0, os.getpid(), os.getuid(), value)
    return bool(_syscall(_SYS_PIDFD_SEND_SIGNAL, pidfd, signo, info, 0) == 0)


def close_in_own_table(fd: int) -> None:
    """Give this thread a table of descriptors of its own, without this one (close_range(2), CLOSE_RANGE_UNSHARE)."""
    checked(libc.syscall(ctypes.c_long(_SYS_CLOSE_RANGE), *map(ctypes.c_uint, (fd, fd, _CLOSE_RANGE_UNSHARE))))


def read_and_signal(context: int, empty_fd: int, eventfd: int) -> None:
    """Read an empty file through an io_setup(2) context whose ring has room for one, which adds 1 to the counter of an
    eventfd, and reap it. OSError: EBADF, EINVAL (no eventfd), EAGAIN, ENOMEM (io_submit(2))."""
    iocb = ctypes.create_string_buffer(
        _IOCB.pack(0, 0, _IOCB_CMD_PREAD, 0, empty_fd, 0, 0, 0, 0, _IOCB_FLAG_RESFD, eventfd)
    )
    iocbs, done = (ctypes.c_void_p * 1)(ctypes.addressof(iocb)), ctypes.create_string_buffer(_EVENT_BYTES)
    getevents, submit = _SYS_IO
    try:
        checked(asynchronous_io(submit, context, 1, ctypes.addressof(iocbs), None, None))
    finally:
        asynchronous_io(getevents, context, 0, 1, ctypes.addressof(done), None)


def is_thread_of(pid: int, tid: int) -> bool:
    """Whether process `pid` has a thread `tid` (tgkill(2) with no signal).

    EPERM: there is one that may not be signalled; the kernel compares the thread group before it looks at permissions.
    """
    return not _tgkill(pid, tid, 0) or ctypes.get_errno() == errno.EPERM


def signal_thread(pid: int, tid: int, signo: int) -> bool:
    """tgkill(2). False: the process has no such thread (any more)."""
    return not _tgkill(pid, tid, signo)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class Privileges:
    """Capabilities of this thread (and those it starts later), some of them in force only inside of `with`."""

    def __init__(self) -> None:
        self._header = ctypes.byref(_CapHeader(0x20080522, 0))
        self._all = (_CapData * 2)()
        self._fewer: ctypes.Array[_CapData] | None = None

    def lower(self, *numbers: int) -> None:
        """From now on act without these CAP_* (capset(2)), but inside of `with`. Does nothing where there are none."""
        fewer = (_CapData * 2)()
        checked(libc.capget(self._header, self._all))
        checked(libc.capget(self._header, fewer))
        for number in numbers:
            fewer[number // 32].effective &= ~(1 << number % 32)
        checked(libc.capset(self._header, fewer))
        self._fewer = fewer

    def __enter__(self) -> None:
        if self._fewer is not None:
            checked(libc.capset(self._header, self._all))

    def __exit__(self, *_: object) -> None:
        if self._fewer is not None:
            checked(libc.capset(self._header, self._fewer))


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when the thread that forked it ends; at once where `parent`, its process, has ended
    (PR_SET_PDEATHSIG, prctl(2))."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def set_fs_ids(uid: int, gid: int) -> None:
    """The owner of what this thread creates from now on (setfsuid(2), setfsgid(2); they cannot report an error)."""
    libc.setfsgid(gid)
    libc.setfsuid(uid)


def keep_capabilities_across_fs_ids() -> bool:
    """Let set_fs_ids change owners only, and not drop CAP_DAC_OVERRIDE and its like (capabilities(7), securebits).

    The kernel has already checked the caller's permissions with all of the caller's groups, which a request does
    not carry. False where it is not allowed (CAP_SETPCAP).
    """
    bits = libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
    return bits >= 0 and not libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
