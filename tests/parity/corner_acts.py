"""What actors do in the corner tests, beside the standard library and support.acts. Standard library only."""

import ctypes
import errno
import fcntl
import mmap
import os
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parity.calls import AT, AT_FDCWD, RENAME, Flock, bits, checked, libc, long

libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long


def rename(old: str, new: str, flags: str) -> None:
    """renameat2(2)."""
    checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), bits(flags, RENAME)))


def link(old: str, new: str) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, which os.link cannot say: a name for an open file, by its magic link."""
    checked(libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), AT["SYMLINK_FOLLOW"]))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    checked(libc.fallocate(fd, mode, long(offset), long(length)))


def append_records(path: str, letter: bytes, records: int, length: int) -> None:
    """Appends records of one letter each."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for _ in range(records):
        assert os.write(fd, letter * length) == length
    os.close(fd)


def add_one(key_path: str, times: int) -> None:
    """Adds 1 to a counter in a shared mapping, under a lock of the file, so that none may get lost."""
    fd = os.open(key_path, os.O_RDWR)
    with mmap.mmap(fd, 8) as shared:
        for _ in range(times):
            fcntl.flock(fd, fcntl.LOCK_EX)
            (value,) = struct.unpack("Q", shared[:8])
            shared[:8] = struct.pack("Q", value + 1)
            fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def try_lock(fd: int, api: str, kind: str, start: int = 0, length: int = 0) -> bool:
    """Asks for a lock of kind RDLCK, WRLCK or UNLCK without waiting. `api`: flock, posix, ofd."""
    try:
        lock(fd, api, kind, start, length, wait=False)
    except (BlockingIOError, PermissionError):
        return False
    return True


def lock(fd: int, api: str, kind: str, start: int = 0, length: int = 0, wait: bool = True) -> None:
    """Takes or waits for a lock."""
    if api == "flock":
        how = {"RDLCK": fcntl.LOCK_SH, "WRLCK": fcntl.LOCK_EX, "UNLCK": fcntl.LOCK_UN}[kind]
        fcntl.flock(fd, how | (0 if wait else fcntl.LOCK_NB))
        return
    commands = {("posix", 0): fcntl.F_SETLK, ("posix", 1): fcntl.F_SETLKW}
    commands |= {("ofd", 0): fcntl.F_OFD_SETLK, ("ofd", 1): fcntl.F_OFD_SETLKW}
    fcntl.fcntl(fd, commands[api, wait], Flock.pack(kind, start, length))


def delayed_extents(path: str) -> int:
    """How many extents of a file have no place on the disk yet (FIEMAP_EXTENT_DELALLOC, linux/fiemap.h)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        answer = bytearray(struct.pack("QQIIII", 0, 2**64 - 1, 0, 0, 64, 0) + bytes(56 * 64))
        fcntl.ioctl(fd, 0xC020660B, answer)  # FS_IOC_FIEMAP
    finally:
        os.close(fd)
    (mapped,) = struct.unpack_from("I", answer, 20)
    flags = [struct.unpack_from("I", answer, 32 + 56 * i + 40)[0] for i in range(mapped)]
    return sum(1 for flag in flags if flag & 4)


class Directory:
    """A directory stream of the C library, with telldir and seekdir."""

    def __init__(self, path: str) -> None:
        self._stream = ctypes.c_void_p(libc.opendir(os.fsencode(path)))
        if not self._stream.value:
            raise OSError(ctypes.get_errno(), path)

    def next(self) -> bytes | None:
        """The next name, None at the end."""
        ctypes.set_errno(0)
        entry = libc.readdir(self._stream)
        if not entry:
            if ctypes.get_errno():
                raise OSError(ctypes.get_errno(), "readdir")
            return None
        return ctypes.string_at(entry + 19)  # d_name of struct dirent64

    def names(self) -> Iterator[bytes]:
        """All names from here on."""
        while (name := self.next()) is not None:
            yield name

    def tell(self) -> int:
        return int(libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        libc.rewinddir(self._stream)

    def close(self) -> None:
        libc.closedir(self._stream)


@contextmanager
def directory(path: str) -> Iterator[Directory]:
    """A stream that is closed in the end."""
    stream = Directory(path)
    try:
        yield stream
    finally:
        stream.close()


def swap_often(one: str, other: str, times: int) -> None:
    """Exchanges two names again and again."""
    for _ in range(times):
        rename(one, other, "EXCHANGE")


def try_reach(path: str, times: int) -> list[str]:
    """What a hostile user does meanwhile: looks for a way to read or create below a name. Returns what succeeded."""
    reached = []
    for turn in range(times):
        for attempt in (_read, _create, _list):
            try:
                reached.append(f"{attempt.__name__} {attempt(path, turn)!r}")
            except OSError as failure:
                assert failure.errno in (errno.EACCES, errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP), failure
    return reached


def _read(path: str, _: int) -> bytes:
    with open(f"{path}/secret", "rb") as file:
        return file.read()


def _list(path: str, _: int) -> list[str]:
    return os.listdir(path)


def _create(path: str, turn: int) -> None:
    os.close(os.open(f"{path}/new{turn}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def drop_capabilities() -> None:
    """Root without privileges: all capability sets of this process emptied (capset(2))."""
    header = struct.pack("Ii", 0x20080522, 0)
    checked(libc.capset(header, bytes(24)))


def errno_as(uid: int, what: str, path: str) -> int | None:
    """The errno of a call made with another file system uid (setfsuid(2)), None when it succeeds."""
    libc.setfsgid(uid)
    libc.setfsuid(uid)
    try:
        os.close(os.open(path, os.O_RDONLY)) if what == "open" else os.stat(path)
    except OSError as failure:
        return failure.errno
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)
    return None


def try_write(path: str, times: int) -> None:
    """Overwrites and changes a file again and again; refusals are fine."""
    for _ in range(times):
        try:
            with open(path, "r+b", buffering=0) as file:
                file.write(b"overwritten")
                os.fchmod(file.fileno(), 0o666)
            os.truncate(path, 3)
        except OSError as failure:
            assert failure.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE, errno.ELOOP), failure


def fill(fd: int, length: int) -> None:
    """Writes that many bytes, in pieces."""
    for _ in range(0, length, 65536):
        os.write(fd, b"x" * 65536)


def write_beyond_limit(path: str, limit: int) -> int | None:
    """Writes past RLIMIT_FSIZE. Returns the errno (Python ignores SIGXFSZ)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        assert os.write(fd, b"x" * (limit + 1)) == limit
        os.write(fd, b"x")
    except OSError as failure:
        return failure.errno
    finally:
        os.close(fd)
    return None


def turmoil(root: str, seed: int, times: int) -> None:
    """Makes, uses, moves and removes a few names in a disorderly way."""
    draw = random.Random(seed)
    for _ in range(times):
        one, other = (f"{root}/{'/'.join(draw.choices('abc', k=draw.randint(1, 3)))}" for _ in range(2))
        try:
            draw.choice(_DISORDER)(one, other)
        except OSError as failure:
            assert failure.errno != errno.EIO, failure


def _use(one: str, _: str) -> None:
    fd = os.open(one, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
    try:
        os.write(fd, b"x" * 5000)
        os.ftruncate(fd, 100)
        os.pread(fd, 4096, 0)
        os.fstat(fd)
    finally:
        os.close(fd)


_DISORDER: tuple[Callable[[str, str], object], ...] = (
    _use,
    lambda one, _: os.mkdir(one),
    lambda one, _: os.listdir(one),
    lambda one, _: os.unlink(one),
    lambda one, _: shutil.rmtree(one),
    lambda one, other: os.symlink(os.path.basename(other), one),
    os.rename,
    os.link,
    lambda one, other: rename(one, other, "EXCHANGE"),
    lambda one, _: os.chmod(one, 0o700),
    lambda one, _: os.setxattr(one, "user.a", b"v"),
    lambda one, _: list(os.walk(one)),
)
