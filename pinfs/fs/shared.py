"""Files of a source that other hosts serve as well: what they are called there, and names that keep their bytes
(SPEC 14)."""

import errno
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from pinfs.fs.backing import Backing
from pinfs.fs.identity import FileNames, open_directory
from pinfs.fs.inode import FOREIGN_IDS, Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.reaching import Reaching
from pinfs.fs.types import os_error
from pinfs.linux.syscalls import wait_for_attributes

T = TypeVar("T")

HELD: Final = "held"
"""A directory in that of `pinfs.fs.identity`, for links to files whose last name has gone while other hosts may have
them pinned (policy `unlink` = `defer`). An open descriptor would not do: it keeps nothing on the server of a network
file system, and nothing beyond the life of its host."""
MAX_HELD: Final = 10_000
"""Names that are looked at at a time."""
HELD_NAME: Final = re.compile(r"[0-9a-f]{1,16}(\.[0-9a-f]{1,16})?-[0-9a-f]{16}")
"""What hosts call the file, and a number: a name that seems to be there already may be the one that is about to go, or
one that another host has just taken back."""


class SharedFiles:
    """By node id, as the guard has it. `reaching`: where the source may never answer; the operations' own, so that both
    hear of names that lead nowhere any more."""

    numbers_end: Final = FOREIGN_IDS

    def __init__(self, inodes: InodeTable, backing: Backing, source_fd: int) -> None:
        self._inodes = inodes
        self._backing = backing
        self._source_fd = source_fd
        self._names = FileNames(source_fd)
        self.reaching: Reaching | None = None

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
        if self.reaching is not None:
            await self.reaching.reach(inode)
        fd = inode.file.any_fd if inode.file is not None else self._inodes.fd(inode)
        return self._names.name(fd, self.number(nodeid))

    async def ask_server(self, nodeid: int) -> None:
        """Has the kernel ask the server for the size of a file: it may believe what it has heard a minute ago, and
        another host has cut the file since. Errors of statx(2)."""
        if self.reaching is not None:
            await self.reaching.call(self._inodes.get(nodeid), _ask_server)

    async def hold(self, nodeid: int) -> None:
        """Gives the file one more name, in HELD, until no host has it pinned. Errors of link(2); EPERM: users could
        take that away."""
        inode = self._inodes.get(nodeid)
        name = await self.name(nodeid)
        if self.reaching is None:
            self._link(name, inode)
        else:
            await self.reaching.call(inode, partial(self._link, name))

    def _link(self, name: str, view: Inode) -> None:
        fd = view.file.any_fd if view.file is not None else self._inodes.fd(view)
        held = open_held(self._source_fd, create=True)
        try:
            os.link(f"/proc/self/fd/{fd}", f"{name}-{secrets.token_hex(8)}", dst_dir_fd=held, follow_symlinks=True)
        finally:
            os.close(held)

    async def held(self) -> list[str]:
        """The names in HELD, some of very many: of what hosts call the file, a dash, and more. Errors of open(2)."""
        return await self._call(self._list)

    def _list(self) -> list[str]:
        try:
            held = open_held(self._source_fd)
        except FileNotFoundError:
            return []
        try:
            with os.scandir(held) as entries:
                return [entry.name for entry in islice(entries, MAX_HELD) if HELD_NAME.fullmatch(entry.name)]
        finally:
            os.close(held)

    async def let_go(self, name: str) -> None:
        """Removes a name in HELD: no host has its file pinned."""
        await self._call(self._unlink, name)

    def _unlink(self, name: str) -> None:
        held = open_held(self._source_fd)
        try:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=held)
        finally:
            os.close(held)

    async def _call(self, call: Callable[..., T], *args: object) -> T:
        return call(*args) if self.reaching is None else await self._backing.off_thread(call, *args)


def _ask_server(view: Inode) -> None:
    wait_for_attributes(view.fd)


def open_held(source_fd: int, *, create: bool = False) -> int:
    """A descriptor of HELD. Errors as `open_directory`."""
    directory = open_directory(source_fd, create=create)
    try:
        return open_directory(directory, HELD, create=create)
    finally:
        os.close(directory)
