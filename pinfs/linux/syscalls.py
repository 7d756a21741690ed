"""System calls that Python's os module does not offer, or not in the form needed here. Each raises OSError."""

import ctypes
import os
from typing import Final

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
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

_PR_SET_SECUREBITS = 28
_PR_GET_SECUREBITS = 27
_SECBIT_NO_SETUID_FIXUP = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))


_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_libc.setfsuid.argtypes = (ctypes.c_uint,)
_libc.setfsgid.argtypes = (ctypes.c_uint,)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """rename(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    _checked(_libc.renameat2(old_fd, old, new_fd, new, flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2): offset and length in bytes."""
    _checked(_libc.fallocate(fd, mode, offset, length))


def utimens(path: bytes, atime_ns: int | None, mtime_ns: int | None, *, now: int) -> None:
    """utimensat(2) on a path (followed): nanoseconds, `now` for the present, None to leave a time alone."""
    times = (Timespec * 2)(_timespec(atime_ns, now), _timespec(mtime_ns, now))
    _checked(_libc.utimensat(AT_FDCWD, path, ctypes.byref(times), 0))


def _timespec(ns: int | None, now: int) -> Timespec:
    if ns is None:
        return Timespec(0, UTIME_OMIT)
    if ns == now:
        return Timespec(0, UTIME_NOW)
    return Timespec(*divmod(ns, 1_000_000_000))


def _statx(fd: int, mask: int) -> bytes:
    """struct statx of what `fd` (O_PATH will do) refers to."""
    result = ctypes.create_string_buffer(256)
    _checked(_libc.statx(fd, b"", AT_EMPTY_PATH, mask, result))
    return result.raw


def attributes_of(fd: int) -> int:
    """STATX_ATTR_* that `fd` (O_PATH will do) has; the bit of one that the backing does not know is 0."""
    return int.from_bytes(_statx(fd, 0)[8:16], "little")


def birth_time_ns(fd: int) -> int | None:
    """The creation time of what `fd` (O_PATH will do) refers to; None where the backing has none."""
    buffer = _statx(fd, STATX_BTIME)
    if not int.from_bytes(buffer[0:4], "little") & STATX_BTIME:
        return None
    seconds = int.from_bytes(buffer[80:88], "little", signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(buffer[88:92], "little")


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    _checked(_libc.syncfs(fd))


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class Privileges:
    """Capabilities of this thread (and those it starts later) that are only there when they are needed."""

    def __init__(self) -> None:
        self._header = ctypes.byref(_CapHeader(0x20080522, 0))
        self._all = (_CapData * 2)()
        self._fewer: ctypes.Array[_CapData] | None = None

    def lower(self, *numbers: int) -> None:
        """From now on act without these (capset(2)), but inside of `with`; nothing changes where there are none."""
        fewer = (_CapData * 2)()
        _checked(_libc.capget(self._header, self._all))
        _checked(_libc.capget(self._header, fewer))
        for number in numbers:
            fewer[number // 32].effective &= ~(1 << number % 32)
        _checked(_libc.capset(self._header, fewer))
        self._fewer = fewer

    def __enter__(self) -> None:
        if self._fewer is not None:
            _checked(_libc.capset(self._header, self._all))

    def __exit__(self, *_: object) -> None:
        if self._fewer is not None:
            _checked(_libc.capset(self._header, self._fewer))


def set_fs_ids(uid: int, gid: int) -> None:
    """Who owns what this thread creates from now on (setfsuid(2), setfsgid(2); they cannot report an error)."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)


def keep_capabilities_across_fs_ids() -> bool:
    """Let set_fs_ids change owners only, and not drop CAP_DAC_OVERRIDE and its like (capabilities(7), securebits).

    The kernel has already checked the caller's permissions with all of the caller's groups, which a request does
    not carry. False where it is not allowed (CAP_SETPCAP).
    """
    bits = _libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
    return bits >= 0 and not _libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
