"""Open handles: what the kernel's file handle numbers stand for."""

import errno
import os
from typing import Final, Protocol, TypeVar

from pinfs.fs.inodes import Inode

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_STREAM: Final = 1 << 4

H = TypeVar("H", bound="Handle")


def bad_handle() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


class Handle:
    """An open file description, as the kernel sees it: one for each open(2), shared by fork and SCM_RIGHTS."""

    __slots__ = ("__weakref__", "flags", "inode", "number")

    def __init__(self, inode: Inode, flags: int) -> None:
        self.inode = inode
        self.flags = flags
        self.number = 0

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def nonblocking(self) -> bool:
        return bool(self.flags & os.O_NONBLOCK)


class ByteHandle(Handle):
    """What read(2), write(2) and poll(2) work on."""

    __slots__ = ()


class FileHandle(ByteHandle):
    """A handle of a regular file; `wake` tells the kernel that poll(2) has news (set while somebody polls)."""

    __slots__ = ("wakes",)

    def __init__(self, inode: Inode, flags: int) -> None:
        self.inode = inode  # not by super(): one is made for each open
        self.flags = flags
        self.wakes: list[Wake] = []


class Wake(Protocol):
    def __call__(self) -> None: ...


class HandleTable:
    """File handle numbers, counted from 1 and never used again."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: Handle) -> int:
        number = self._last = handle.number = self._last + 1
        self._handles[number] = handle
        return number

    def get(self, fh: int, kind: type[H]) -> H:
        """EBADF: no such handle, or not of this kind."""
        handle = self._handles.get(fh)
        if handle is None or not isinstance(handle, kind):
            raise bad_handle()
        return handle

    def find(self, fh: int) -> Handle | None:
        """The handle of a number; None: it is closed."""
        return self._handles.get(fh)

    def pop(self, fh: int) -> Handle:
        """EBADF: no such handle."""
        try:
            return self._handles.pop(fh)
        except KeyError:
            raise bad_handle() from None

    def drain(self) -> list[Handle]:
        handles = list(self._handles.values())
        self._handles.clear()
        return handles
