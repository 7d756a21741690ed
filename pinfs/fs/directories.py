"""Reading directories that change while they are read.

An open directory is a snapshot of names, taken when reading starts (and again after rewinddir). An offset is a position
in the snapshot, so telldir and seekdir stay true whatever is created or removed meanwhile. Each name that is there all
the time is seen exactly once. A name that is removed before its turn is left out. Whether a name that was added or
removed since is returned is unspecified (readdir(3)).
"""

import os
import stat
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import chain, islice
from typing import Final
from weakref import WeakValueDictionary

import trio

from pinfs.fs.handles import Handle
from pinfs.fs.inodes import ROOT_ID, Inode, InodeTable
from pinfs.fs.submounts import Submounts
from pinfs.fs.types import Entry, make_entry
from pinfs.runtime.parking import park

DT_UNKNOWN: Final = 0
DT_DIR: Final = stat.S_IFDIR >> 12
DT_REG: Final = stat.S_IFREG >> 12
DT_LNK: Final = stat.S_IFLNK >> 12
SLICE: Final = 1024
"""Names that are read or returned in one go, which takes some milliseconds: other requests come between."""

Add = Callable[[bytes, int, Entry | tuple[int, int]], bool]
"""add(name, next_offset, entry or (st_ino, d_type)) -> whether it still fitted into the reply."""

Listed = tuple[bytes, int, int]  # name, st_ino, d_type


class Snapshot(list[Listed]):
    """The names of a directory. Handles with the same names share one where there are many."""

    __slots__ = ("__weakref__",)


SHARED_FROM: Final = 256  # names


class DirectoryHandle(Handle):
    """An open directory: its own descriptor on the backing, and the snapshot."""

    __slots__ = ("fd", "names")

    def __init__(self, inode: Inode, flags: int, fd: int) -> None:
        super().__init__(inode, flags)
        self.fd = fd
        self.names: Snapshot | None = None

    async def take_snapshot(self) -> Snapshot:
        """All names but the dots, as they are now. Others have their turn between the slices of a large directory."""
        self.names = None
        names = Snapshot()
        with closing(_slices(self.fd)) as slices:
            for some in slices:
                names += some
                if len(some) == SLICE:
                    await park()
                    await trio.lowlevel.checkpoint()
        return names

    def close(self) -> None:
        os.close(self.fd)


class DirectoryReader:
    """Answers readdir. Names for which `is_hidden(nodeid of the directory, name)` holds are left out."""

    with_entries = True
    """Whether names come with their entries where the kernel asks for these: each is a look at the source."""

    def __init__(self, inodes: InodeTable, is_hidden: Callable[[int, bytes], bool], submounts: Submounts) -> None:
        self._inodes = inodes
        self._submounts = submounts
        self._slow_names = submounts.names
        self._is_hidden = is_hidden
        self._snapshots: WeakValueDictionary[int, Snapshot] = WeakValueDictionary()
        """The latest large snapshot of each directory, while a handle has it."""

    async def read(self, handle: DirectoryHandle, offset: int, plus: bool, add: Add) -> None:
        """Give the names from `offset` on to `add` until it says that the reply is full.

        With `plus` each name but the dots comes with its entry, which counts as a lookup.
        """
        directory = handle.inode
        names = handle.names if offset else None
        if names is None:
            names = handle.names = self._shared(directory.nodeid, await self.snapshot_of(handle))
        if offset < 2 and not self._add_dots(directory, offset, add):
            return
        first = max(offset - 2, 0)
        may_hide = directory.nodeid == ROOT_ID
        with_entries = plus and self.with_entries and not self._submounts.may_hang(directory.nodeid)
        for position in range(first, min(first + SLICE, len(names))):  # the kernel asks for more
            name, ino, kind = names[position]
            if may_hide and self._is_hidden(ROOT_ID, name):
                continue
            next_offset = position + 3
            what = self._looked_up(directory, names[position]) if with_entries else (ino, kind)
            if what is not None and not add(name, next_offset, what):
                if isinstance(what, Entry):
                    self._inodes.forget(what.nodeid, 1)
                return

    async def snapshot_of(self, handle: DirectoryHandle) -> Snapshot:
        """All names of a directory, as they are now."""
        return await handle.take_snapshot()

    def _shared(self, nodeid: int, names: Snapshot) -> Snapshot:
        if len(names) < SHARED_FROM:
            return names
        known = self._snapshots.get(nodeid)
        if known == names:
            return known
        self._snapshots[nodeid] = names
        return names

    def _add_dots(self, directory: Inode, offset: int, add: Add) -> bool:
        own = _ino(directory)
        above = own if directory.parent is None else _ino(directory.parent)
        if offset == 0 and not add(b".", 1, (own, DT_DIR)):
            return False
        return add(b"..", 2, (above, DT_DIR))

    def _looked_up(self, directory: Inode, listed: Listed) -> Entry | tuple[int, int] | None:
        """The entry of a name, or what is `listed` of it where it cannot be looked up (a submount whose server has
        ended, another user's FUSE mount): then only a lookup of it fails. None: it was removed."""
        name = listed[0]
        if name in self._slow_names:
            return listed[1:]
        try:
            st = os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
            inode = self._inodes.intern(directory, name, st)
        except FileNotFoundError:
            return None
        except OSError:
            return listed[1:]
        inode.lookups += 1
        return make_entry((inode.nodeid, st))


def _ino(inode: Inode) -> int:
    return inode.key if isinstance(inode.key, int) else inode.key[1]


def snapshot(fd: int) -> Snapshot:
    """All names of a directory but the dots."""
    return Snapshot(chain.from_iterable(_slices(fd)))


def _slices(fd: int) -> Generator[list[Listed], None, None]:
    """The names of a directory but the dots, SLICE at a time; the last slice holds fewer."""
    with os.scandir(fd) as entries:
        while True:
            some = [(os.fsencode(entry.name), entry.inode(), _type(entry)) for entry in islice(entries, SLICE)]
            yield some
            if len(some) < SLICE:
                return


def _type(entry: os.DirEntry[str]) -> int:
    try:
        if entry.is_file(follow_symlinks=False):
            return DT_REG
        if entry.is_dir(follow_symlinks=False):
            return DT_DIR
        if entry.is_symlink():
            return DT_LNK
    except OSError:  # of lstat(2), on a file system that does not tell types
        pass
    return DT_UNKNOWN
