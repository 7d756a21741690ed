"""A file, held by its inode."""

import errno
import os
import stat
import threading
import weakref
from typing import Protocol


class HasFileno(Protocol):
    def fileno(self) -> int: ...


File = int | str | bytes | os.PathLike[str] | os.PathLike[bytes] | HasFileno


def descriptor_of(file: File) -> int | None:
    """The descriptor that `file` is or has; None for a path."""
    if isinstance(file, int):
        return file
    if isinstance(file, str | bytes | os.PathLike):
        return None
    return file.fileno()


class Inode:
    """An O_PATH descriptor, and the path by which attributes are reached through it.

    Such a descriptor opens nothing in the mount, outlives a rename or unlink of the file, and, unlike that of dup(2),
    its close does not drop the process's POSIX locks on the file. It does keep the mount busy.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.close = weakref.finalize(self, os.close, fd)
        st = os.fstat(fd)
        self.dev, self.ino = st.st_dev, st.st_ino
        self._regular = stat.S_ISREG(st.st_mode)

    def fileno(self) -> int:
        return self.fd

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"

    @property
    def name(self) -> str:
        """For messages."""
        return os.readlink(self.path)

    def require_regular(self) -> None:
        """Raises OSError EINVAL for what has no bytes to pin: a directory, a FIFO, a device."""
        if not self._regular:
            raise OSError(errno.EINVAL, "only regular files can be pinned", self.name)


_lock = threading.Lock()
_shared: "weakref.WeakValueDictionary[tuple[int, int], Inode]" = weakref.WeakValueDictionary()


def inode_of(file: File) -> Inode:
    """The inode of a path, descriptor, or object with fileno(): one descriptor for all pins of a file.

    (Device and inode number cannot come to mean another file while a descriptor is held.) Raises OSError as open(2)
    does, and EBADF for a descriptor that is not open.
    """
    fd = descriptor_of(file)
    fresh = Inode(_opened(file if fd is None else f"/proc/self/fd/{fd}", fd))  # type: ignore[arg-type]
    with _lock:
        return _shared.setdefault((fresh.dev, fresh.ino), fresh)


def _opened(path: str | bytes | os.PathLike[str] | os.PathLike[bytes], fd: int | None) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        if fd is not None:
            os.fstat(fd)  # EBADF, which says more than that /proc has no such name
        raise


def _forget() -> None:
    """Another thread may have held the lock when this process was forked."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
