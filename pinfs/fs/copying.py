"""copy_file_range(2) between files that may be pinned."""

import os
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from pinfs.enforce.guard import Guard
from pinfs.fs.backing import Backing
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable

STEP: Final = 8 << 20
"""Bytes that one call copies at most: between two calls the kernel sees whether the caller was interrupted."""
SMALL: Final = 65536
"""Bytes that are copied in less time than it takes to start a thread."""


class Place(NamedTuple):
    """A file and an offset in it, in bytes."""

    inode: Inode
    offset: int


class Copies:
    """Copies bytes so that no pinned byte changes its storage (SPEC 2).

    copy_file_range(2) may share blocks (reflinks). That would replace those of a pinned target; and a pinned source
    would get new ones with its next write, because the shared ones are no longer its own. So where either range is
    pinned, the bytes go through memory. So do many bytes where other hosts could pin them meanwhile.
    """

    def __init__(self, inodes: InodeTable, backing: Backing, guard: Guard) -> None:
        self._inodes = inodes
        self._backing = backing
        self._guard = guard
        self._book = guard.book
        self._small = SMALL if backing.threads is None else -1

    async def copy(self, source: Place, target: Place, length: int) -> int:
        """Copy at most `length` bytes; how many were copied. Errors of copy_file_range(2)."""
        length = min(length, STEP)
        reader, writer = self._backing.reader(source.inode), self._backing.writer(target.inode)
        args = (reader, writer, length, source.offset, target.offset)
        if self._is_pinned(source, length) or self._is_pinned(target, length):
            if length <= self._small:
                return _through_memory(*args)
            return await self._apart(_through_memory, source.inode, target.inode, args)
        if length <= self._small:
            return os.copy_file_range(*args)
        if self._guard.hosts is not None:
            return await self._apart(_through_memory, source.inode, target.inode, args)
        with self._book.reserved(target.inode.nodeid, target.offset, target.offset + length):  # no pin comes meanwhile
            return await self._apart(os.copy_file_range, source.inode, target.inode, args)

    async def _apart(self, copy: Callable[..., int], source: Inode, target: Inode, args: tuple[int, ...]) -> int:
        """In a thread. Both files stay open until it is over: its caller may leave and close them before."""
        threads = self._backing.threads
        if threads is None:
            return await self._backing.off_thread(copy, *args)
        for inode in (source, target):
            self._backing.use(inode)

        def used() -> None:
            for inode in (source, target):
                self._backing.release(inode)
                self._inodes.drop_if_unreferenced(inode)

        return await threads.run(target.nodeid, partial(copy, *args), finished=used)

    def _is_pinned(self, place: Place, length: int) -> bool:
        nodeid, offset = place.inode.nodeid, place.offset
        return not self._guard.is_untouched(nodeid, offset, offset + length)


def _through_memory(reader: int, writer: int, length: int, offset_in: int, offset_out: int) -> int:
    return os.pwrite(writer, os.pread(reader, length, offset_in), offset_out)
