"""What opening and creating files have in common: backing file, handle, lookup count, and how to undo these."""

import errno
import os
import time
from contextlib import suppress
from os import O_ACCMODE, O_RDWR
from stat import S_IFREG
from typing import Final

from pinfs.fs.backing import Backing
from pinfs.fs.handles import FOPEN_KEEP_CACHE, FileHandle, HandleTable
from pinfs.fs.inode import KIND_BITS, O_PATH_NOFOLLOW, Inode, Name, stale
from pinfs.fs.inodes import InodeTable
from pinfs.fs.leases import after_lease
from pinfs.fs.lives import settled_ctime_ns
from pinfs.fs.nonblocking import AT_ONCE, open_error
from pinfs.fs.types import CallerLike, Opened, StatLike, Timeouts, make_opened
from pinfs.fs.uncached import UncachedFiles
from pinfs.linux.calls import Stat, open_at, stat_of

_CREATES: Final = os.O_CREAT | os.O_NOFOLLOW
_NOT_AT_CREATION: Final = os.O_TRUNC | os.O_APPEND | os.O_DIRECT


class Opens:
    """Opens in two halves.

    The first half opens the backing file (`Backing.open`, or `create` here); the second gives the handle (`opened`).
    What lies between them may fail: then `Backing.release`, or `abandon`, undoes the first.
    """

    def __init__(
        self,
        inodes: InodeTable,
        backing: Backing,
        handles: HandleTable,
        uncached: UncachedFiles,
        timeouts: Timeouts,
    ) -> None:
        self._inodes = inodes
        self._backing = backing
        self._handles = handles
        self._uncached = uncached
        self._attr_timeout_ns = int(timeouts.attr_s * 1e9)
        self._is_shared = timeouts.is_shared

    def opened(
        self,
        inode: Inode,
        flags: int,
        caller: CallerLike,
        *,
        with_entry: bool = False,
        st: os.stat_result | None = None,
    ) -> Opened:
        """A handle for an inode whose backing file is open. `with_entry`: the reply also carries attributes; `st`: the
        present ones, where they are known."""
        handle = self.handle(inode, flags, caller, with_entry)
        backing_id = self._backing.passthrough_id(inode)
        if backing_id:
            return make_opened((handle.number, 0, backing_id))
        if st is None:
            st = os.fstat(self._backing.any_fd(inode))
        return make_opened((handle.number, self.cache_flags(inode, with_entry, st), 0))

    def handle(self, inode: Inode, flags: int, caller: CallerLike, with_entry: bool) -> FileHandle:
        """The first part of `opened`: the handle, and the decision about passthrough."""
        backing_id = self._backing.passthrough_id(inode)
        if backing_id and flags & O_ACCMODE == O_RDWR and inode.nodeid not in self._uncached:
            self._uncached.enter(inode.nodeid, with_entry)
        handle = FileHandle(inode, flags)
        self._handles.add(handle, caller)
        return handle

    def cache_flags(self, inode: Inode, with_entry: bool, st: StatLike) -> int:
        """The second, without passthrough: FOPEN_KEEP_CACHE if the file has not changed since it was last opened.

        Else the kernel drops the pages that it has cached. Attributes that it cached before the change go as well:
        a size that is too small would cut off what is read.
        """
        if self._is_shared:
            if self._attr_timeout_ns and not with_entry:
                self._uncached.on_entered(inode.nodeid)
            return 0
        known, inode.data_ctime_ns = inode.data_ctime_ns, settled_ctime_ns(st)
        if known and known == inode.data_ctime_ns:
            return FOPEN_KEEP_CACHE
        if not with_entry and (known or time.time_ns() - st.st_ctime_ns < self._attr_timeout_ns):
            self._uncached.on_entered(inode.nodeid)
        return 0

    async def open_after_lease(self, inode: Inode, flags: int) -> None:
        """`Backing.open`, after it has failed with EAGAIN. Errors of open(2); EAGAIN with O_NONBLOCK only."""
        path_fd = self._inodes.open(inode, O_PATH_NOFOLLOW)
        await after_lease(lambda: self._backing.open(inode, flags), path_fd, flags)

    def is_there(self, directory: Inode, name: bytes) -> bool:
        """Whether `create` will find a file instead of creating one."""
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
            return True
        return False

    def create(
        self, directory: Inode, name: bytes, mode: int, flags: int, caller: CallerLike
    ) -> tuple[Inode, os.stat_result]:
        """open(2) with O_CREAT: the inode counts one lookup and one handle more.

        Without O_TRUNC, which is a removal; and without O_APPEND and O_DIRECT, which the kernel does itself. ESTALE:
        something else than a regular file has got the name behind pinfs.
        """
        fd = self.make(directory, name, mode, flags, caller)
        try:
            st = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        return self.made(directory, name, flags, fd, stat_of(st)), st

    def make(self, directory: Inode, name: bytes, mode: int, flags: int, caller: CallerLike) -> int:
        """The first part of `create`: open(2). The descriptor is the caller's, until `made`."""
        flags = flags & ~_NOT_AT_CREATION | _CREATES
        directory_fd = self._inodes.fd(directory)  # opened as the daemon
        with self._backing.creating_as(caller):
            try:
                return open_at(directory_fd, name, flags | AT_ONCE, mode)
            except OSError as e:
                return self._open_sealed(e, (directory, name), flags, mode)

    def made(self, directory: Inode, name: bytes, flags: int, fd: int, st: Stat) -> Inode:
        """The second: the inode of `fd`, which is taken over, or closed. `st`: of it."""
        try:
            if st.st_mode & KIND_BITS != S_IFREG:
                raise stale()
            inode = self._inodes.intern(directory, name, st)
            self._backing.adopt(inode, fd, flags)
        except BaseException:
            self._discard(fd)
            raise
        self._inodes.looked_up(inode)
        return inode

    def _open_sealed(self, failure: OSError, name: Name, flags: int, mode: int) -> int:
        """After open(2) with O_CREAT has failed. EPERM: there is a file, which pinfs itself may have sealed."""
        sealed = self._inodes.find_name(name) if failure.errno == errno.EPERM else None
        if sealed is None or not self._backing.seal.hides_append(sealed):
            raise open_error(failure) from failure
        directory_fd = self._inodes.fd(name[0])
        with self._backing.seal.lifted(sealed):
            return os.open(name[1], flags | AT_ONCE, mode, dir_fd=directory_fd)

    async def create_after_lease(
        self, directory: Inode, name: bytes, mode: int, flags: int, caller: CallerLike
    ) -> tuple[Inode, os.stat_result]:
        """`create`, after it has failed with EAGAIN: the file is there, and has a lease."""
        path_fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=self._inodes.fd(directory))
        return await after_lease(lambda: self.create(directory, name, mode, flags, caller), path_fd, flags)

    def create_nameless(
        self, directory: Inode, mode: int, flags: int, caller: CallerLike
    ) -> tuple[Inode, os.stat_result]:
        """open(2) with O_TMPFILE: the inode counts one lookup and one handle more."""
        directory_fd = self._inodes.fd(directory)
        with self._backing.creating_as(caller):
            fd = os.open(b".", flags | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=directory_fd)
        try:
            st = os.fstat(fd)
            inode = self._inodes.intern_nameless(stat_of(st), fd)
            self._backing.adopt(inode, fd, flags)
        except BaseException:
            self._discard(fd)
            raise
        self._inodes.looked_up(inode)
        return inode, st

    def _discard(self, fd: int) -> None:
        """Close what was created but not adopted, and drop the inode that was interned for it."""
        inode = self._inodes.find(stat_of(os.fstat(fd)))
        os.close(fd)
        if inode is not None:
            self._inodes.drop_if_unreferenced(inode)

    def abandon(self, inode: Inode) -> None:
        """Undo `create` and `create_nameless`. What was created stays in the source, as after any failed open(2)."""
        self._backing.release(inode)
        self._inodes.forget(inode.nodeid, 1)
