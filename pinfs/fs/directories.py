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
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import trio

from pinfs.fs.handles import Handle
from pinfs.fs.inode import ROOT_ID, Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.submounts import Submounts
from pinfs.fs.types import Entry, make_entry
from pinfs.journal.records import HandleKind
from pinfs.linux.calls import stat_of
from pinfs.runtime.parking import park

if TYPE_CHECKING:
    from pinfs.fs.streamrecords import StreamRecords

DT_UNKNOWN: Final = 0
DT_DIR: Final = stat.S_IFDIR >> 12
DT_REG: Final = stat.S_IFREG >> 12
DT_LNK: Final = stat.S_IFLNK >> 12
UNKNOWN_INO: Final = 0xFFFFFFFF
"""In the place of st_ino where only the name is known, as in libfuse: with 0, readdir(3) would skip it."""
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
    """An open directory: its own descriptor on the backing, and the snapshot.

    `was_listed_to`: at this offset the listing of the daemon before ended; it has left no names. `kept_fd`: of a file
    with the names, which outlives the daemon; -1: there is none.
    """

    __slots__ = ("fd", "kept_fd", "names", "was_listed_to")
    record_kind = HandleKind.DIRECTORY

    def __init__(self, inode: Inode, flags: int, fd: int) -> None:
        super().__init__(inode, flags)
        self.fd = fd
        self.names: Snapshot | None = None
        self.kept_fd = -1
        self.was_listed_to = 0

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
        self.records: StreamRecords | None = None
        """Writes down snapshots; None: the mount does not outlive the daemon."""
        self._snapshots: WeakValueDictionary[int, Snapshot] = WeakValueDictionary()
        """The latest large snapshot of each directory, while a handle has it."""

    async def read(self, handle: DirectoryHandle, offset: int, add: Add, plus: int | None) -> None:
        """Give the names from `offset` on to `add` until it says that the reply is full.

        With `plus`, the number of the request, each name but the dots comes with its entry, which counts as a lookup.
        """
        if offset and handle.names is None and offset >= handle.was_listed_to > 0:
            return
        names = handle.names if offset else None
        is_new = names is None
        if names is None:
            names = handle.names = self._shared(handle.inode.nodeid, await self.snapshot_of(handle))
            handle.was_listed_to = 0
        if offset < 2 and not self._add_dots(handle.inode, offset, add):
            given = 0
        else:
            given = self._add_names(handle, names, max(offset - 2, 0), add, plus)
        if is_new and self.records is not None:
            await self._write_down(self.records, handle, names, given)

    def _add_names(self, handle: DirectoryHandle, names: Snapshot, first: int, add: Add, plus: int | None) -> int:
        """Returns how many of the names have been given by now."""
        directory = handle.inode
        may_hide = directory.nodeid == ROOT_ID
        with_entries = plus is not None and self.with_entries and not self._submounts.may_hang(directory.nodeid)
        end = min(first + SLICE, len(names))  # the kernel asks for more
        for position in range(first, end):
            listed = names[position]
            name, ino, kind = listed
            if may_hide and self._is_hidden(ROOT_ID, name):
                continue
            if ino == UNKNOWN_INO and not (with_entries and name not in self._slow_names):
                found = _found(handle.fd, name)
                if found is None:
                    continue
                ino, kind = found
            what = self._looked_up(directory, listed, plus or 0) if with_entries else (ino, kind)
            if what is not None and not add(name, position + 3, what):
                if isinstance(what, Entry):
                    self._inodes.forget(what.nodeid, 1)
                return position
        return end

    async def _write_down(self, records: "StreamRecords", handle: DirectoryHandle, names: Snapshot, given: int) -> None:
        """The next daemon goes on with a listing that is longer than one reply."""
        records.no_snapshot(handle)
        if given < len(names):
            await records.snapshot(handle, names)
        else:
            records.listed(handle, len(names) + 2)

    def restore_snapshot(self, handle: DirectoryHandle, names: bytes, listed_to: int) -> None:
        """What the daemon before had begun to list: `names`, each with a NUL behind it, or `listed_to` as
        `was_listed_to`."""
        handle.was_listed_to = listed_to
        if names:
            handle.names = Snapshot((name, UNKNOWN_INO, DT_UNKNOWN) for name in names[:-1].split(b"\0"))

    def closed(self, handle: DirectoryHandle) -> None:
        """Its last reference was closed."""
        handle.close()
        if self.records is not None:
            self.records.directory_closed(handle)

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

    def _looked_up(self, directory: Inode, listed: Listed, unique: int) -> Entry | tuple[int, int] | None:
        """The entry of a name, or what is `listed` of it where it cannot be looked up (a submount whose server has
        ended, another user's FUSE mount): then only a lookup of it fails. None: it was removed."""
        name = listed[0]
        if name in self._slow_names:
            return listed[1:]
        try:
            st = os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
            inode = self._inodes.intern(directory, name, stat_of(st))
        except FileNotFoundError:
            return None
        except OSError:
            return listed[1:]
        self._inodes.looked_up(inode, unique)
        return make_entry((inode.nodeid, st))


def _found(fd: int, name: bytes) -> tuple[int, int] | None:
    """st_ino and d_type of a name in a directory; None: it was removed."""
    try:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN_INO, DT_UNKNOWN
    return st.st_ino, st.st_mode >> 12


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
