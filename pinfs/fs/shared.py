"""Files of a source that other hosts serve as well: what they are called there, and names that keep their bytes
(SPEC 14)."""

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from pinfs.fs.backing import Backing
from pinfs.fs.identity import DIRECTORY, FileNames
from pinfs.fs.inode import FOREIGN_IDS, Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.reaching import Reaching
from pinfs.fs.types import os_error

T = TypeVar("T")

HELD: Final = f"{DIRECTORY}/held"
"""A directory for links to files whose last name has gone while other hosts may have them pinned (policy `unlink` =
`defer`). An open descriptor would not do: it keeps nothing on the server of a network file system, and nothing beyond
the life of its host."""
MAX_HELD: Final = 10_000
"""Names that are looked at at a time."""
FILE: Final = re.compile(r"[0-9a-f]+(\.[0-9a-f]+)?")


class SharedFiles:
    """By node id, as the guard has it. `reaching`: where the source may never answer."""

    numbers_end: Final = FOREIGN_IDS

    def __init__(self, inodes: InodeTable, backing: Backing, source_fd: int) -> None:
        self._inodes = inodes
        self._backing = backing
        self._source_fd = source_fd
        self._names = FileNames(source_fd)
        self._reaching = None if backing.threads is None else Reaching(inodes, backing.threads)

    def number(self, nodeid: int) -> int:
        """The inode number, as all hosts have it; 0 for files of other file systems below the source."""
        if nodeid < FOREIGN_IDS:
            return nodeid
        key = self._inodes.get(nodeid).key
        return key if isinstance(key, int) else 0

    def path(self, nodeid: int) -> str | None:
        return self._inodes.path_of(nodeid)

    async def name(self, nodeid: int) -> str:
        """What all hosts call the file. EOPNOTSUPP: it lies on another file system below the source, of which other
        hosts may have another one there. Errors of open(2)."""
        if not self.number(nodeid):
            raise os_error(errno.EOPNOTSUPP)
        inode = self._inodes.get(nodeid)
        if self._reaching is not None:
            await self._reaching.reach(inode)
        return self._name(inode)

    def _name(self, inode: Inode) -> str:
        fd = inode.file.any_fd if inode.file is not None else self._inodes.fd(inode)
        return self._names.name(fd, self.number(inode.nodeid))

    async def hold(self, nodeid: int) -> None:
        """Gives the file one more name, in HELD, until no host has it pinned. Errors of link(2)."""
        inode = self._inodes.get(nodeid)
        name = await self.name(nodeid)
        if self._reaching is None:
            self._link(name, inode)
        else:
            await self._reaching.call(inode, partial(self._link, name))

    def _link(self, name: str, view: Inode) -> None:
        fd = view.file.any_fd if view.file is not None else self._inodes.fd(view)
        held = open_held(self._source_fd, create=True)
        try:
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=held, follow_symlinks=True)
        except FileExistsError:
            return
        finally:
            os.close(held)

    async def held(self) -> list[str]:
        """The files that have names in HELD, some of very many. Errors of open(2)."""
        return await self._call(self._list)

    def _list(self) -> list[str]:
        try:
            held = open_held(self._source_fd)
        except FileNotFoundError:
            return []
        try:
            with os.scandir(held) as entries:
                return [entry.name for entry in islice(entries, MAX_HELD) if FILE.fullmatch(entry.name)]
        finally:
            os.close(held)

    async def let_go(self, name: str) -> None:
        """Removes the name of a file in HELD: no host has it pinned."""
        await self._call(self._unlink, name)

    def _unlink(self, name: str) -> None:
        held = open_held(self._source_fd)
        try:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=held)
        finally:
            os.close(held)

    async def _call(self, call: Callable[..., T], *args: object) -> T:
        return call(*args) if self._reaching is None else await self._backing.off_thread(call, *args)


def open_held(source_fd: int, *, create: bool = False) -> int:
    """A descriptor of HELD. Errors of open(2) and mkdir(2)."""
    if create:
        for directory in (DIRECTORY, HELD):
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700, dir_fd=source_fd)
    return os.open(HELD, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=source_fd)
