"""Reading directories that change while they are read.

An open directory is a snapshot of names, taken when reading starts (and again after rewinddir). An offset is a place
in the snapshot, so telldir and seekdir stay true whatever is created or removed meanwhile: each name that was there
all the time is seen exactly once, and a name that has gone is left out when its turn comes (readdir(3): whether a
name added or removed since is returned is unspecified).
"""

import os
import stat
from collections.abc import Callable
from typing import Final

from pinfs.fs.handles import Handle
from pinfs.fs.inodes import Inode
from pinfs.fs.types import Entry

DT_UNKNOWN: Final = 0
DT_DIR: Final = stat.S_IFDIR >> 12
DT_REG: Final = stat.S_IFREG >> 12
DT_LNK: Final = stat.S_IFLNK >> 12

Add = Callable[[bytes, int, Entry | tuple[int, int]], bool]
"""add(name, next_offset, entry or (st_ino, d_type)) -> whether it still fitted into the reply."""

Name = tuple[bytes, int, int]  # name, st_ino, d_type


class DirectoryHandle(Handle):
    """An open directory: its own descriptor on the backing, and the snapshot."""

    __slots__ = ("fd", "names")

    def __init__(self, inode: Inode, flags: int, fd: int) -> None:
        super().__init__(inode, flags)
        self.fd = fd
        self.names: list[Name] | None = None

    def snapshot(self, *, fresh: bool) -> list[Name]:
        if fresh or self.names is None:
            with os.scandir(self.fd) as entries:
                self.names = [(os.fsencode(entry.name), entry.inode(), _type(entry)) for entry in entries]
        return self.names

    def close(self) -> None:
        os.close(self.fd)


def _type(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return DT_LNK
    if entry.is_dir(follow_symlinks=False):
        return DT_DIR
    return DT_REG if entry.is_file(follow_symlinks=False) else DT_UNKNOWN
