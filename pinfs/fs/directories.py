"""Reading directories that change while they are read.

An open directory is a snapshot of names, taken when reading starts (and again after rewinddir). An offset is a position
in the snapshot, so telldir and seekdir stay true whatever is created or removed meanwhile. Each name that is there all
the time is seen exactly once. A name that is removed before its turn is left out. Whether a name that was added or
removed since is returned is unspecified (readdir(3)).
"""

import os
import stat
from collections.abc import Callable
from typing import Final

from pinfs.fs.handles import Handle
from pinfs.fs.inodes import Inode, InodeTable
from pinfs.fs.types import Entry

DT_UNKNOWN: Final = 0
DT_DIR: Final = stat.S_IFDIR >> 12
DT_REG: Final = stat.S_IFREG >> 12
DT_LNK: Final = stat.S_IFLNK >> 12

Add = Callable[[bytes, int, Entry | tuple[int, int]], bool]
"""add(name, next_offset, entry or (st_ino, d_type)) -> whether it still fitted into the reply."""

Listed = tuple[bytes, int, int]  # name, st_ino, d_type


class DirectoryHandle(Handle):
    """An open directory: its own descriptor on the backing, and the snapshot."""

    __slots__ = ("fd", "names")

    def __init__(self, inode: Inode, flags: int, fd: int) -> None:
        super().__init__(inode, flags)
        self.fd = fd
        self.names: list[Listed] | None = None

    def snapshot(self, *, fresh: bool) -> list[Listed]:
        """All names but the dots, as they were when reading started, or as they are now (`fresh`)."""
        if fresh or self.names is None:
            with os.scandir(self.fd) as entries:
                self.names = [(os.fsencode(entry.name), entry.inode(), _type(entry)) for entry in entries]
        return self.names

    def close(self) -> None:
        os.close(self.fd)


class DirectoryReader:
    """Answers readdir. Names for which `is_hidden(nodeid of the directory, name)` holds are left out."""

    def __init__(self, inodes: InodeTable, is_hidden: Callable[[int, bytes], bool]) -> None:
        self._inodes = inodes
        self._is_hidden = is_hidden

    def read(self, handle: DirectoryHandle, offset: int, plus: bool, add: Add) -> None:
        """Give the names from `offset` on to `add` until it says that the reply is full.

        With `plus` each name but the dots comes with its entry, which counts as a lookup.
        """
        directory = handle.inode
        names = handle.snapshot(fresh=offset == 0)
        if offset < 2 and not self._add_dots(directory, offset, add):
            return
        for position in range(max(offset - 2, 0), len(names)):
            name, ino, kind = names[position]
            if self._is_hidden(directory.nodeid, name):
                continue
            next_offset = position + 3
            fitted = self._add_plus(directory, name, next_offset, add) if plus else add(name, next_offset, (ino, kind))
            if not fitted:
                return

    def _add_dots(self, directory: Inode, offset: int, add: Add) -> bool:
        own = self._inodes.stat(directory).st_ino
        parent = directory.parent
        above = own if parent is None else self._inodes.stat(parent).st_ino
        if offset == 0 and not add(b".", 1, (own, DT_DIR)):
            return False
        return add(b"..", 2, (above, DT_DIR))

    def _add_plus(self, directory: Inode, name: bytes, next_offset: int, add: Add) -> bool:
        try:
            st = os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
        except FileNotFoundError:
            return True
        inode = self._inodes.intern(directory, name, st)
        inode.lookups += 1
        if add(name, next_offset, Entry(inode.nodeid, st)):
            return True
        self._inodes.forget(inode.nodeid, 1)
        return False


def _type(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return DT_LNK
    if entry.is_dir(follow_symlinks=False):
        return DT_DIR
    return DT_REG if entry.is_file(follow_symlinks=False) else DT_UNKNOWN
