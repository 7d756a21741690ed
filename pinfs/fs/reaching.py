"""How threads work on inodes: with views of these, apart from the inode table.

The table belongs to the event loop. A thread gets a *view* of an inode: its number, and a descriptor (O_PATH) of its
own. What is written for inodes works on a view as well, changes nothing in the table, and is not disturbed by what
happens to the inode meanwhile: that may be renamed, forgotten, or opened by others. What the thread has found enters
the table on the event loop, without a system call.

On a file system of several hosts (NFS) an open descriptor does not keep an inode: another host removes the file, and
its number is given to the next one at once. There the handles are compared. And the kernel believes for up to a minute
what it has heard of a name (acdirmax of nfs(5)). As in open(2) itself, ESTALE ends that: what is looked up next is
asked of the server.
"""

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, TypeVar

from pinfs.fs.identity import handles_are_alike
from pinfs.fs.inode import O_PATH_NOFOLLOW, Inode, Name, stale
from pinfs.fs.inodes import InodeTable
from pinfs.fs.lives import life_of, settled_ctime_ns
from pinfs.linux.calls import stat_of
from pinfs.linux.syscalls import wait_for_attributes
from pinfs.runtime.threads import Threads

T = TypeVar("T")

NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
MAX_DOUBTED: Final = 4096
"""Inodes of which ESTALE was heard, and whose names have not been looked up since."""


class Found(NamedTuple):
    """What a name leads to: a descriptor (O_PATH), its attributes, and what `life_of` says of it."""

    fd: int
    st: os.stat_result
    life: bytes

    def close(self) -> None:
        os.close(self.fd)


def found_at(name: bytes, directory_fd: int) -> Found:
    """Look a name up. Errors of open(2)."""
    return found_as(os.open(name, O_PATH_NOFOLLOW, dir_fd=directory_fd))


def found_afresh(name: bytes, directory_fd: int) -> Found:
    """The same, as the server has it now: a directory that has changed shows that, and then the kernel asks for the
    name as well. Errors of statx(2) and open(2)."""
    wait_for_attributes(directory_fd)
    return found_at(name, directory_fd)


def found_as(fd: int) -> Found:
    """What `fd` (O_PATH, taken over) refers to."""
    try:
        return Found(fd, os.fstat(fd), life_of(fd))
    except BaseException:
        os.close(fd)
        raise


class Reaching:
    """Calls on the inodes of one table, in threads. Calls with O_PATH descriptors close these without waiting."""

    def __init__(self, inodes: InodeTable, threads: Threads) -> None:
        self._inodes = inodes
        self._threads = threads
        self._doubted: set[int] = set()
        self.tells_lives = handles_are_alike(inodes.root.fd)
        """Whether the handles are the server's: then `Found.life` tells two files of one number apart."""

    async def call(
        self,
        inode: Inode,
        call: Callable[..., T],
        *others: Inode,
        undo: Callable[[T], object] = lambda _: None,
        finished: Callable[[], None] = lambda: None,
    ) -> T:
        """`call` with views of the inode and of the `others`. ESTALE: nothing leads to one of them any more.

        `undo`, `finished`: as `Threads.run`.
        """
        try:
            for each in (inode, *others):
                await self.reach(each)
            while (lost := next((each for each in (inode, *others) if each.fd < 0), None)) is not None:
                await self.reach(lost)
            views = [_view(each) for each in (inode, *others)]
        except BaseException:
            finished()
            raise

        def ended() -> None:
            _close([view.fd for view in views])
            finished()

        try:
            return await self._threads.run(inode.nodeid, partial(call, *views), finished=ended, undo=undo)
        except OSError as e:
            if e.errno == errno.ESTALE:
                self._doubt(inode, *others)
            raise

    async def look(self, name: Name, *, afresh: bool = False) -> Found:
        """Look a name up. `afresh`: as the server has it now. Errors of open(2)."""
        directory, _ = name
        if directory.nodeid in self._doubted:
            afresh = True
        try:
            found = await self._look(name, found_afresh if afresh else found_at)
            known = self._inodes.find(stat_of(found.st))
            if not afresh and known is not None and known.nodeid in self._doubted:
                found.close()
                found = await self._look(name, found_afresh)
        except OSError as e:
            if e.errno == errno.ESTALE:
                self._doubt(directory)
            raise
        self._doubted.discard(directory.nodeid)
        if known is not None:
            self._doubted.discard(known.nodeid)
        return found

    async def _look(self, name: Name, look: Callable[[bytes, int], Found]) -> Found:
        directory, component = name
        await self.reach(directory)
        fd = os.dup(directory.fd)
        return await self._threads.run(
            name, partial(look, component, fd), finished=partial(_close, [fd]), undo=Found.close
        )

    def _doubt(self, *inodes: Inode) -> None:
        """What the kernel believes of their names may be old."""
        if len(self._doubted) > MAX_DOUBTED:
            self._doubted.clear()  # a caller may hear ESTALE once more
        self._doubted.update(inode.nodeid for inode in inodes)

    def intern(self, name: Name, found: Found) -> Inode:
        """`InodeTable.intern` of what `look` has found, without a system call. The inode keeps the descriptor."""
        table, st = self._inodes, stat_of(found.st)
        inode = table.find(st)
        if inode is None:
            inode = table.add(st)
        elif self._is_another(inode, found):
            inode = table.add_again(inode, st)
        table.add_name(inode, *name, st.st_nlink)
        self._keep(inode, found)
        return inode

    def known(self, found: Found) -> Inode | None:
        """The inode of what `look` has found, if the table has it: it keeps the descriptor then."""
        inode = self._inodes.find(stat_of(found.st))
        if inode is None or not self._is_found_as(inode, found):
            return None
        self._keep(inode, found)
        return inode

    def _is_found_as(self, inode: Inode, found: Found) -> bool:
        st = stat_of(found.st)
        if self._inodes.key_of(st) != inode.key or stat.S_IFMT(st.st_mode) != inode.kind:
            return False
        return not self._is_another(inode, found)

    def _is_another(self, inode: Inode, found: Found) -> bool:
        """Whether what was found has got the number of this inode since."""
        fd = inode.fd if inode.fd >= 0 or inode.file is None else inode.file.any_fd
        if fd >= 0:
            return self.tells_lives and life_of(fd) != found.life
        return inode.life not in (None, found.life)

    def _keep(self, inode: Inode, found: Found) -> None:
        """The life is noted at once, not when the descriptor is closed: that happens on the event loop."""
        if inode.fd >= 0:
            found.close()
            return
        if inode.life is None:
            inode.life = found.life
        inode.ctime_ns = settled_ctime_ns(found.st)
        self._inodes.descriptors.keep(inode, found.fd)

    async def reach(self, inode: Inode) -> None:
        """Return when the inode has a descriptor, which it keeps for a while. ESTALE."""
        while inode.fd < 0:
            await self._reach_directories(inode)
            if inode.fd < 0:
                await self._open(inode)

    async def _reach_directories(self, inode: Inode) -> None:
        above = [inode]
        while (parent := above[-1].parent) is not None and parent.fd < 0:
            above.append(parent)
        for directory in reversed(above[1:]):
            if directory.fd < 0:
                await self._open(directory)

    async def _open(self, inode: Inode) -> None:
        """By one of its names."""
        for directory, component in tuple(self._inodes.names_of(inode)):
            try:
                found = await self.look((directory, component))
            except OSError as e:
                if e.errno in NOT_THERE:
                    continue
                raise
            if self._is_found_as(inode, found):
                self._keep(inode, found)
                return
            found.close()
        if inode.file is None and (inode.name is not None or self._inodes.exports is None):
            raise stale()
        self._inodes.fd(inode)  # by its backing file, which is open: no server is asked; or by its handle


def _view(inode: Inode) -> Inode:
    view = Inode(inode.nodeid, inode.key, inode.kind)
    view.fd = os.dup(inode.fd)
    return view


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
