"""All operations of the file system: a plain passthrough to the source directory, with one line more where bytes are
taken away.

Whoever calls (the bridge's dispatcher, pyfuse3, a test) gets results as plain types and errors as OSError. Names come
from the kernel one at a time; permissions have been checked by the kernel (mount option default_permissions), with
all groups of the caller, which a request does not carry: what happens here is reaching the right inode, creating
things as the caller's, and asking the guard.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Final, TypeVar

import trio

from pinfs.core.owners import HandleId
from pinfs.core.ranges import END
from pinfs.enforce.guard import Guard, RemovalCall
from pinfs.fs import fileflags
from pinfs.fs.backing import Backing
from pinfs.fs.control import CONTROL_NAME, Control, ControlDirectory, ControlHandle
from pinfs.fs.directories import DT_DIR, Add, DirectoryHandle
from pinfs.fs.handles import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, ByteHandle, FileHandle, Handle, Wake
from pinfs.fs.inodes import Inode, InodeTable
from pinfs.fs.pins import PinVerbs
from pinfs.fs.types import NOW, CallerLike, Entry, Opened, SetAttr, make_entry, make_opened
from pinfs.interface.attributes import PREFIX
from pinfs.linux import syscalls
from pinfs.runtime.parking import park

T = TypeVar("T")

POLLIN, POLLPRI, POLLOUT = 0x1, 0x2, 0x4
POLLRDNORM, POLLWRNORM = 0x40, 0x100
FILE_READY: Final = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM

COPY_STEP: Final = 8 << 20  # bytes copied between two looks at whether the caller still wants it
SMALL: Final = 65536  # bytes that are copied faster than a thread is found
SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
SUID_SGID_EXEC: Final = stat.S_ISGID | stat.S_IXGRP

_TAKES_RANGE: Final = {
    syscalls.FALLOC_FL_PUNCH_HOLE: "punch_hole",
    syscalls.FALLOC_FL_ZERO_RANGE: "zero_range",
}
_TAKES_TAIL: Final = {
    syscalls.FALLOC_FL_COLLAPSE_RANGE: "collapse_range",
    syscalls.FALLOC_FL_INSERT_RANGE: "insert_range",
}


KEEPS_VICTIM: Final = syscalls.RENAME_EXCHANGE | syscalls.RENAME_NOREPLACE
FIXED: Final = syscalls.STATX_ATTR_IMMUTABLE | syscalls.STATX_ATTR_APPEND
HIDDEN: Final = (PREFIX, b"trusted.")
ACCESS_ACL: Final = b"system.posix_acl_access"
_AT_ONCE: Final[AbstractContextManager[None]] = nullcontext()


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _component(name: bytes) -> bytes:
    """One name, never a way: the kernel sends no other, and nobody else shall."""
    if b"/" in name or name in (b"", b".", b".."):
        raise error(errno.EINVAL)
    return name


def _creation_flags(flags: int) -> int:
    """O_TRUNC is left to the guard; O_APPEND and O_DIRECT are the kernel's business, which gives every position."""
    return (flags & ~(os.O_TRUNC | os.O_APPEND | os.O_DIRECT)) | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def _is_there(directory_fd: int, name: bytes) -> bool:
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        return True
    return False


def _or_same(number: int | None) -> int:
    return -1 if number is None else number


def _copy_bytes(source: int, target: int, length: int, offset_in: int, offset_out: int) -> int:
    """Copy through memory. copy_file_range(2) may share blocks: it would replace those of a pinned target, and the next
    write those of a pinned source, which are its own no more."""
    data = os.pread(source, length, offset_in)
    return os.pwrite(target, data, offset_out)


class Operations:
    """The file system of one mount. Every method may raise OSError with the errno that the caller shall see."""

    def __init__(
        self,
        backing: Backing,
        inodes: InodeTable,
        guard: Guard,
        pins: PinVerbs,
        control: Control,
        *,
        entry_timeout_s: float = 60.0,
        attr_timeout_s: float = 60.0,
    ) -> None:
        self.entry_timeout_s = entry_timeout_s
        self.attr_timeout_s = attr_timeout_s
        self.handles = pins.handles
        self.uncached = inodes.uncached  # whose attributes nobody may remember
        self._backing = backing
        self._inodes = inodes
        self._known = inodes.known
        self._guard = guard
        self._pins = pins
        self._control = control
        self._guarded = guard.book.files  # an inode is in it iff pins or removals are about

    # Names

    async def lookup(self, parent: int, name: bytes, ctx: CallerLike) -> Entry:
        """ENOENT, ENOTDIR, ESTALE; adds one to the lookup count."""
        directory = self._known(parent)
        if directory is None or name == CONTROL_NAME:
            if self._control.owns(parent, name):
                return self._control.lookup(parent, name)
            directory = self._inodes.get(parent)
        return self._entry(directory, _component(name))

    def _entry(self, directory: Inode, name: bytes) -> Entry:
        st = os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
        inode = self._inodes.intern(directory, name, st)
        inode.lookups += 1
        return make_entry((inode.nodeid, st))

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        """Take (node id, count) from the lookup counts. Never fails."""
        for nodeid, nlookup in forgets:
            self._inodes.forget(nodeid, nlookup)

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: CallerLike) -> Entry:
        """mknod(2)."""
        directory = self._writable_directory(parent, name)
        with self._backing.creating_as(ctx):
            os.mknod(name, mode, rdev, dir_fd=self._inodes.fd(directory))
        return self._entry(directory, name)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: CallerLike) -> Entry:
        """mkdir(2)."""
        directory = self._writable_directory(parent, name)
        with self._backing.creating_as(ctx):
            os.mkdir(name, mode, dir_fd=self._inodes.fd(directory))
        return self._entry(directory, name)

    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: CallerLike) -> Entry:
        """symlink(2)."""
        directory = self._writable_directory(parent, name)
        with self._backing.creating_as(ctx):
            os.symlink(target, name, dir_fd=self._inodes.fd(directory))
        return self._entry(directory, name)

    async def link(self, nodeid: int, new_parent: int, new_name: bytes, ctx: CallerLike) -> Entry:
        """link(2). EPERM: a name in .pinfs."""
        inode = self._inode(nodeid)
        directory = self._writable_directory(new_parent, new_name)
        directory_fd = os.dup(self._inodes.fd(directory))  # the next line may close the table's own
        try:
            os.link(self._inodes.magic_path(inode), new_name, dst_dir_fd=directory_fd, follow_symlinks=True)
        finally:
            os.close(directory_fd)
        return self._entry(directory, new_name)

    async def readlink(self, nodeid: int, ctx: CallerLike) -> bytes:
        """readlink(2)."""
        return os.readlink(b"", dir_fd=self._inodes.fd(self._inode(nodeid)))

    async def unlink(self, parent: int, name: bytes, ctx: CallerLike) -> None:
        """unlink(2). EBUSY, ETXTBSY, EINTR, EAGAIN: pins, policy `unlink` (SPEC 2)."""
        directory = self._writable_directory(parent, name)
        victim = self._inodes.hold_for_unlink(directory, name)
        if victim is None:
            os.unlink(name, dir_fd=self._inodes.fd(directory))
        elif self._takes_all(victim):
            check = partial(self._check_may_go, victim, directory)
            async with self._removal(victim, "unlink", 0, None, ctx, check=check):
                self._check_still_there(victim, directory, name)
                self._inodes.keep_reachable(victim, directory, name)
                self._unlink(victim, directory, name)
        else:
            self._unlink(victim, directory, name)

    def _unlink(self, victim: Inode, directory: Inode, name: bytes) -> None:
        os.unlink(name, dir_fd=self._inodes.fd(directory))
        self._lose_name(victim, directory, name)

    def _lose_name(self, victim: Inode, directory: Inode, name: bytes) -> None:
        self._inodes.drop_name(victim, directory, name)
        if victim.name is None:
            self._backing.close_idle(victim)

    async def rmdir(self, parent: int, name: bytes, ctx: CallerLike) -> None:
        """rmdir(2)."""
        directory = self._writable_directory(parent, name)
        victim = self._inodes.hold_for_unlink(directory, name)
        os.rmdir(name, dir_fd=self._inodes.fd(directory))
        if victim is not None:
            self._inodes.drop_name(victim, directory, name)

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: CallerLike
    ) -> None:
        """renameat2(2). EBUSY and its like: the file that the new name takes away is pinned (policy `unlink`)."""
        old = self._writable_directory(parent, name), name
        new = self._writable_directory(new_parent, new_name), new_name
        moved, victim = self._victim(*old), self._victim(*new)
        if flags & KEEPS_VICTIM or victim is None or victim is moved or not self._takes_all(victim):
            self._rename(old, new, flags, moved, victim)
            return
        check = partial(self._check_may_replace, victim, new[0], moved, old[0])
        async with self._removal(victim, "rename", 0, None, ctx, check=check):
            self._check_still_there(victim, *new)
            self._rename(old, new, flags, moved, victim)

    def _rename(
        self, old: tuple[Inode, bytes], new: tuple[Inode, bytes], flags: int, moved: Inode | None, victim: Inode | None
    ) -> None:
        if victim is not None and victim is not moved:
            self._inodes.keep_reachable(victim, *new)
        old_fd = os.dup(self._inodes.fd(old[0]))  # the next line may close the table's own
        try:
            syscalls.renameat2(old_fd, old[1], self._inodes.fd(new[0]), new[1], flags)
        finally:
            os.close(old_fd)
        if victim is moved:  # unknown both, or two names of one inode: rename(2) does nothing then
            return
        if flags & syscalls.RENAME_EXCHANGE:
            self._exchange_names(old, new, moved, victim)
            return
        if victim is not None:
            self._lose_name(victim, *new)
        if moved is not None:
            self._inodes.move(moved, old, new)

    def _exchange_names(
        self, old: tuple[Inode, bytes], new: tuple[Inode, bytes], moved: Inode | None, victim: Inode | None
    ) -> None:
        if moved is not None:
            self._inodes.move(moved, old, new)
        if victim is not None:
            self._inodes.move(victim, new, old)

    def _victim(self, directory: Inode, name: bytes) -> Inode | None:
        """The known inode behind a name that is about to go; None where nobody knows it."""
        try:
            st = os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self._inodes.find(st)

    # Whether a name could go if nobody had pinned anything: as the kernel's may_delete() would see it in the backing.

    def _check_may_go(self, victim: Inode, directory: Inode) -> None:
        """EROFS, EPERM."""
        directory_fd = self._inodes.fd(directory)
        if os.fstatvfs(directory_fd).f_flag & os.ST_RDONLY:
            raise error(errno.EROFS)
        if (syscalls.attributes_of(directory_fd) | self._attributes(victim)) & FIXED:
            raise error(errno.EPERM)

    def _check_may_replace(self, victim: Inode, directory: Inode, moved: Inode | None, source: Inode) -> None:
        """The same for a rename over it. EXDEV, ENOTDIR."""
        if self._inodes.stat(source).st_dev != self._inodes.stat(directory).st_dev:
            raise error(errno.EXDEV)
        self._check_may_go(victim, directory)
        if moved is not None:
            self._check_may_go(moved, source)
            if moved.kind == stat.S_IFDIR:
                raise error(errno.ENOTDIR)

    def _attributes(self, inode: Inode) -> int:
        return syscalls.attributes_of(self._inodes.fd(inode))

    def _check_still_there(self, victim: Inode, directory: Inode, name: bytes) -> None:
        """ESTALE: the wait was for another file than the one that somebody has put there behind the mount's back."""
        if self._asks(victim) and self._victim(directory, name) is not victim:
            raise error(errno.ESTALE)

    def _writable_directory(self, parent: int, name: bytes) -> Inode:
        _component(name)
        directory = self._known(parent)
        if directory is None or name == CONTROL_NAME:
            if self._control.owns(parent, name):
                raise error(errno.EPERM)
            return self._inodes.get(parent)
        return directory

    def _inode(self, nodeid: int) -> Inode:
        """EPERM: not of the backing, but of .pinfs. ESTALE: the kernel knows more than we do."""
        inode = self._known(nodeid)
        if inode is None:
            if self._control.is_control(nodeid):
                raise error(errno.EPERM)
            return self._inodes.get(nodeid)
        return inode

    # Attributes

    async def getattr(self, nodeid: int, ctx: CallerLike, fh: int | None = None) -> os.stat_result:
        """fstatat(2). ESTALE: changed behind pinfs."""
        inode = self._known(nodeid)
        if inode is None:
            return self._control.stat(nodeid)
        if nodeid in self.uncached:
            self._backing.recheck(inode)
        return self._inodes.stat(inode)

    async def statx_btime(self, nodeid: int, fh: int | None) -> tuple[os.stat_result, int | None]:
        """The attributes and the time of birth (nanoseconds; None: the backing has none)."""
        if self._control.is_control(nodeid):
            return self._control.stat(nodeid), None
        inode = self._inodes.get(nodeid)
        if nodeid in self.uncached:
            self._backing.recheck(inode)
        fd = self._inodes.fd(inode)
        return os.fstat(fd), syscalls.birth_time_ns(fd)

    async def setattr(self, nodeid: int, changes: SetAttr, fh: int | None, ctx: CallerLike) -> os.stat_result:
        """truncate, chmod, chown, utimensat in one. EBUSY and its like: pins, when it shrinks the file (SPEC 2)."""
        inode = self._known(nodeid)
        if inode is None:
            return self._control.setattr(nodeid, changes)
        if changes.size is not None:
            handle = None if fh is None else self.handles.get(fh, FileHandle)
            await self._truncate(inode, changes.size, "truncate", ctx, handle=handle)
        if changes.kill_suidgid:
            self._drop_set_ids(inode)
        is_nothing = changes.is_nothing
        if is_nothing:
            self._check_may_drop_set_ids(inode, ctx)
        if changes.uid is not None or changes.gid is not None or is_nothing:
            with self._keeping_set_ids(inode):
                os.chown(self._inodes.handle(inode), _or_same(changes.uid), _or_same(changes.gid))
        if changes.mode is not None:
            self._chmod(inode, stat.S_IMODE(changes.mode))
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            self._set_times(inode, changes.atime_ns, changes.mtime_ns)
        return self._inodes.stat(inode)

    def _set_times(self, inode: Inode, atime_ns: int | None, mtime_ns: int | None) -> None:
        if atime_ns is None or mtime_ns is None or (atime_ns == NOW) != (mtime_ns == NOW):
            syscalls.utimens(self._inodes.magic_path(inode), atime_ns, mtime_ns, now=NOW)
        elif atime_ns == NOW:
            os.utime(self._inodes.handle(inode))
        else:
            os.utime(self._inodes.handle(inode), ns=(atime_ns, mtime_ns))

    def _check_may_drop_set_ids(self, inode: Inode, ctx: CallerLike) -> None:
        """EPERM: chown(-1, -1) of somebody else's set-id file.

        It comes in the same words as what a passed-through write drops the bits by, and that must not fail: so only
        where nobody has the file open for writing.
        """
        if inode.file is not None and inode.file.writer >= 0:
            return
        st = self._inodes.stat(inode)
        drops = st.st_mode & stat.S_ISUID or st.st_mode & SUID_SGID_EXEC == SUID_SGID_EXEC
        if drops and stat.S_ISREG(st.st_mode) and ctx.uid not in (0, st.st_uid):
            raise error(errno.EPERM)

    def _drop_set_ids(self, inode: Inode) -> None:
        """What write(2) and truncate(2) by an ordinary user do: here the daemon, who may keep the bits, is to do it."""
        mode = stat.S_IMODE(self._inodes.stat(inode).st_mode)
        kept = mode & ~stat.S_ISUID
        if mode & SUID_SGID_EXEC == SUID_SGID_EXEC:
            kept &= ~stat.S_ISGID
        if kept != mode:
            self._chmod(inode, kept)

    def _drop_set_gid(self, inode: Inode) -> None:
        mode = stat.S_IMODE(self._inodes.stat(inode).st_mode)
        if mode & stat.S_ISGID:
            self._chmod(inode, mode & ~stat.S_ISGID)

    def _keeping_set_ids(self, inode: Inode) -> AbstractContextManager[None]:
        """For calls that would drop set-id bits on our behalf: it is the caller who counts, and the kernel tells us."""
        return self._backing.privileges if self._inodes.stat(inode).st_mode & SET_IDS else _AT_ONCE

    def _chmod(self, inode: Inode, mode: int) -> None:
        """The kernel has already asked whether the caller may set these bits (S_ISGID: of a group it is in)."""
        if mode & stat.S_ISGID:
            with self._backing.privileges:
                os.chmod(self._inodes.handle(inode), mode)
        else:
            os.chmod(self._inodes.handle(inode), mode)

    # Removals: the only ways by which bytes leave a file

    async def _truncate(
        self,
        inode: Inode,
        size: int,
        op: str,
        ctx: CallerLike,
        *,
        handle: FileHandle | None = None,
        nonblock: bool = False,
    ) -> None:
        if not self._asks(inode):
            with self._keeping_set_ids(inode):
                os.truncate(self._backing.to_cut(inode), size)
            return
        with self._backing.writing(inode) as fd:
            if size >= os.fstat(fd).st_size:
                self._cut(inode, fd, size)
                return
            check = partial(self._check_may_lose, inode, syscalls.STATX_ATTR_APPEND)
            async with self._removal(inode, op, size, None, ctx, handle, nonblock=nonblock, check=check):
                self._cut(inode, fd, size)

    def _cut(self, inode: Inode, fd: int, size: int) -> None:
        with self._keeping_set_ids(inode):
            os.ftruncate(fd, size)

    async def fallocate(self, fh: int, mode: int, offset: int, length: int, ctx: CallerLike) -> None:
        """fallocate(2), all modes the kernel passes on. EBUSY and its like: pins (SPEC 2)."""
        handle = self.handles.get(fh, FileHandle)
        if not handle.writable:
            raise error(errno.EBADF)
        inode = handle.inode
        with self._backing.writing(inode) as fd:
            taken = self._taken_by_fallocate(fd, mode, offset, length) if self._asks(inode) else None
            if taken is None:
                self._fallocate(inode, fd, mode, offset, length, ctx)
                return
            self._backing.must_support_fallocate(fd, mode)
            op, start, end = taken
            check = partial(self._check_may_lose, inode, FIXED)
            async with self._removal(inode, op, start, end, ctx, handle, check=check):
                self._fallocate(inode, fd, mode, offset, length, ctx)

    def _check_may_lose(self, inode: Inode, attributes: int) -> None:
        """EPERM: the file has become append-only or immutable since it was opened (do_ftruncate(), vfs_fallocate())."""
        if self._attributes(inode) & attributes:
            raise error(errno.EPERM)

    def _fallocate(self, inode: Inode, fd: int, mode: int, offset: int, length: int, ctx: CallerLike) -> None:
        with self._keeping_set_ids(inode):
            syscalls.fallocate(fd, mode, offset, length)
        if ctx.uid:  # here the kernel does not tell
            self._drop_set_ids(inode)

    @staticmethod
    def _taken_by_fallocate(fd: int, mode: int, offset: int, length: int) -> tuple[str, int, int | None] | None:
        """Which bytes [start, end) a fallocate takes away (None: to the end); None where it takes nothing."""
        if offset < 0 or length <= 0 or offset >= os.fstat(fd).st_size:
            return None
        for flag, op in _TAKES_RANGE.items():
            if mode & flag:
                return op, offset, offset + length
        for flag, op in _TAKES_TAIL.items():
            if mode & flag:
                return op, offset, None
        return None

    def _asks(self, inode: Inode) -> bool:
        """Whether a removal has anybody to ask: nearly always not, and then it goes straight on."""
        return inode.nodeid in self._guarded or self._guard.minds_mappings

    def _takes_all(self, victim: Inode) -> bool:
        """Whether a name that goes takes bytes with it that may be pinned: it is the last one of its file."""
        return self._asks(victim) and victim.is_file and self._inodes.stat(victim).st_nlink == 1

    def _removal(
        self,
        inode: Inode,
        op: str,
        start: int,
        end: int | None,
        ctx: CallerLike,
        handle: FileHandle | None = None,
        *,
        check: Callable[[], None],
        nonblock: bool = False,
    ) -> AbstractAsyncContextManager[None]:
        nonblock = nonblock or (handle is not None and handle.nonblocking)
        end = END if end is None else end
        owner = None if handle is None else HandleId(handle.number)
        return self._guard.removal(
            RemovalCall(inode.nodeid, inode.path, op, start, end, ctx, check, handle=owner, nonblock=nonblock)
        )

    # Files

    async def open(self, nodeid: int, flags: int, ctx: CallerLike) -> Opened:
        """open(2) of an existing file. With O_TRUNC a removal: EBUSY and its like."""
        inode = self._known(nodeid)
        if inode is None:
            return self._opened_control(self._control.open(nodeid, flags, ctx))
        self._backing.close_idle_if_moved(inode)
        self._backing.open(inode, flags)
        try:
            if flags & os.O_TRUNC:
                await self._truncate(inode, 0, "open_trunc", ctx, nonblock=bool(flags & os.O_NONBLOCK))
        except BaseException:
            self._backing.release(inode)
            raise
        return self._opened(inode, flags)

    def _opened(self, inode: Inode, flags: int) -> Opened:
        fh = self.handles.add(FileHandle(inode, flags))
        backing_id = self._backing.passthrough_id(inode)
        if backing_id and flags & os.O_ACCMODE == os.O_RDWR:
            self.uncached.add(inode.nodeid)
        return make_opened((fh, 0 if backing_id else FOPEN_KEEP_CACHE, backing_id))

    def _opened_control(self, handle: ControlHandle) -> Opened:
        return Opened(self.handles.add(handle), handle.fopen_flags, 0)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: CallerLike, *, kill_suidgid: bool = False
    ) -> tuple[Opened, Entry]:
        """open(2) with O_CREAT. `kill_suidgid`: the caller may not keep the set-id bits of a file that it cuts."""
        directory = self._writable_directory(parent, name)
        directory_fd = self._inodes.fd(directory)
        kill_suidgid = kill_suidgid and _is_there(directory_fd, name)  # a new file keeps what it was given
        with self._backing.creating_as(ctx):
            fd = os.open(name, _creation_flags(flags), mode, dir_fd=directory_fd)
        try:
            st = os.fstat(fd)
            inode = self._inodes.intern(directory, name, st)
            self._backing.adopt(inode, fd, flags)
        except BaseException:
            os.close(fd)
            raise
        inode.lookups += 1
        if flags & os.O_TRUNC and st.st_size:  # it was there already
            await self._cut_created(inode, flags, ctx)
            st = self._inodes.stat(inode)
        if kill_suidgid:
            self._drop_set_ids(inode)
            st = self._inodes.stat(inode)
        return self._opened(inode, flags), make_entry((inode.nodeid, st))

    async def _cut_created(self, inode: Inode, flags: int, ctx: CallerLike) -> None:
        try:
            await self._truncate(inode, 0, "open_trunc", ctx, nonblock=bool(flags & os.O_NONBLOCK))
        except BaseException:
            self._backing.release(inode)
            self._inodes.forget(inode.nodeid, 1)
            raise

    async def tmpfile(self, parent: int, mode: int, flags: int, ctx: CallerLike) -> tuple[Opened, Entry]:
        """open(2) with O_TMPFILE."""
        directory_fd = self._inodes.fd(self._inode(parent))
        with self._backing.creating_as(ctx):
            fd = os.open(b".", flags | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=directory_fd)
        try:
            st = os.fstat(fd)
            inode = self._inodes.intern_nameless(st, fd)
            self._backing.adopt(inode, fd, flags)
        except BaseException:
            os.close(fd)
            raise
        inode.lookups += 1
        return self._opened(inode, flags), Entry(inode.nodeid, st)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """pread(2), for files that the kernel does not read by itself."""
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, ControlHandle):
            return await handle.read(offset, size)
        return os.pread(self._backing.reader(handle.inode), size, offset)

    async def write(self, fh: int, offset: int, data: bytes | memoryview, *, kill_suidgid: bool = False) -> int:
        """pwrite(2). Never asks the guard: data changes in place (SPEC 2)."""
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, ControlHandle):
            return await handle.write(offset, bytes(data))
        if kill_suidgid:
            self._drop_set_ids(handle.inode)
        return os.pwrite(self._backing.writer(handle.inode), data, offset)

    async def flush(self, fh: int) -> None:
        """close(2) of one of perhaps many references: nothing to do, data is in the backing already."""

    async def release(self, fh: int) -> None:
        """The last reference of a handle has gone: its pins go with it. Never fails for a handle that exists."""
        handle = self.handles.pop(fh)
        if isinstance(handle, FileHandle):
            self._pins.handle_closed(handle)
            self._backing.release(handle.inode)
            self._inodes.drop_if_unreferenced(handle.inode)
        elif isinstance(handle, ControlHandle):
            handle.close()

    async def fsync(self, fh: int, datasync: bool) -> None:
        """fsync(2), fdatasync(2). A pinned file's bytes that a device has written go with it."""
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, FileHandle):
            await self._off_thread(os.fdatasync if datasync else os.fsync, self._backing.any_fd(handle.inode))

    async def _off_thread(self, call: Callable[..., T], *args: object) -> T:
        """Run what may wait for a disk in a thread; in memory it would only cost time."""
        if self._backing.in_memory:
            return call(*args)
        await park()
        return await trio.to_thread.run_sync(partial(call, *args))

    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA and SEEK_HOLE; the kernel does the others itself."""
        handle = self.handles.get(fh, FileHandle)
        return os.lseek(self._backing.any_fd(handle.inode), offset, whence)

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int, flags: int, ctx: CallerLike
    ) -> int:
        """copy_file_range(2), at the most 8 MiB a call. Where bytes are pinned they are copied, never shared."""
        source = self.handles.get(fh_in, FileHandle).inode
        target = self.handles.get(fh_out, FileHandle).inode
        if ctx.uid:  # here the kernel does not tell
            self._drop_set_ids(target)
        length = min(length, COPY_STEP)
        args = (self._backing.reader(source), self._backing.writer(target), length, offset_in, offset_out)
        if self._is_pinned(source, offset_in, length) or self._is_pinned(target, offset_out, length):
            return _copy_bytes(*args) if length <= SMALL else await self._off_thread(_copy_bytes, *args)
        if length <= SMALL:
            return os.copy_file_range(*args)
        with self._guard.book.reserved(target.nodeid, offset_out, offset_out + length):  # no pin comes meanwhile
            return await self._off_thread(os.copy_file_range, *args)

    def _is_pinned(self, inode: Inode, offset: int, length: int) -> bool:
        return inode.nodeid in self._guarded and self._guard.book.touches(inode.nodeid, offset, offset + length)

    async def poll(self, fh: int, events: int, wake: Wake | None) -> int:
        """poll(2): POLLPRI while a pin of this handle is being broken. `wake` is called once when that may change."""
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, ControlHandle):
            return handle.poll(wake)
        assert isinstance(handle, FileHandle)
        return FILE_READY | (POLLPRI if self._pins.is_urgent(handle, wake) else 0)

    async def ioctl(self, fh: int, cmd: int, data: bytes, out_size: int, ctx: CallerLike) -> bytes:
        """The ioctl interface (SPEC 6), and the file flags of chattr(1). ENOTTY: unknown number."""
        handle = self.handles.get(fh, Handle)
        if cmd in fileflags.COMMANDS and isinstance(handle, FileHandle | DirectoryHandle):
            fd = handle.fd if isinstance(handle, DirectoryHandle) else self._backing.any_fd(handle.inode)
            return fileflags.ioctl(fd, cmd, data, ctx.uid)
        if not isinstance(handle, FileHandle):
            raise error(errno.ENOTTY)
        return await self._pins.ioctl(handle, cmd, data, out_size, ctx)

    # Directories

    async def opendir(self, nodeid: int, ctx: CallerLike) -> Opened:
        """opendir(3)."""
        if self._control.is_control(nodeid):
            return Opened(self.handles.add(self._control.open_directory(nodeid)), 0, 0)
        inode = self._inodes.get(nodeid)
        fd = self._inodes.open(inode, os.O_RDONLY | os.O_DIRECTORY)
        fh = self.handles.add(DirectoryHandle(inode, os.O_RDONLY, fd))
        return Opened(fh, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE, 0)

    async def readdir(self, fh: int, offset: int, plus: bool, add: Add) -> None:
        """Give names from `offset` on to `add` until it says that the reply is full.

        With `plus` each name comes with its entry, which counts as a lookup.
        """
        handle = self.handles.get(fh, Handle)
        if isinstance(handle, ControlDirectory):
            self._control.readdir(offset, plus, add)
            return
        if not isinstance(handle, DirectoryHandle):
            raise error(errno.EBADF)
        names = handle.snapshot(fresh=offset == 0)
        if offset < 2 and not self._add_dots(handle.inode, offset, add):
            return
        directory = handle.inode
        for place in range(max(offset - 2, 0), len(names)):
            name, ino, kind = names[place]
            if self._control.owns(directory.nodeid, name):
                continue
            more = self._add_plus(directory, name, place + 3, add) if plus else add(name, place + 3, (ino, kind))
            if not more:
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

    async def releasedir(self, fh: int) -> None:
        """closedir(3)."""
        handle = self.handles.pop(fh)
        if isinstance(handle, DirectoryHandle):
            handle.close()

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """fsync(2) of a directory."""
        handle = self.handles.get(fh, Handle)
        if isinstance(handle, DirectoryHandle):
            await self._off_thread(os.fdatasync if datasync else os.fsync, handle.fd)

    # The file system as a whole

    async def statfs(self, ctx: CallerLike) -> os.statvfs_result:
        """statvfs(3) of the source."""
        return os.fstatvfs(self._inodes.root.fd)

    async def syncfs(self, nodeid: int) -> None:
        """syncfs(2)."""
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._inodes.root.fd)
        try:
            await self._off_thread(syscalls.syncfs, fd)
        finally:
            os.close(fd)

    async def access(self, nodeid: int, mask: int, ctx: CallerLike) -> None:
        """Never asked with default_permissions; the kernel has all it needs."""

    # Extended attributes: user.pinfs.* are the verbs of pins, all others are the backing's

    async def setxattr(
        self, nodeid: int, name: bytes, value: bytes, flags: int, ctx: CallerLike, *, kill_sgid: bool = False
    ) -> None:
        """setxattr(2). `kill_sgid`: it is an ACL, set by somebody who may not keep the file's set-group-id bit."""
        inode = self._inode(nodeid)
        if name.startswith(PREFIX):
            await self._pins.set(inode, name, value, flags, ctx)
        else:
            with self._backing.privileges if name == ACCESS_ACL else _AT_ONCE:  # it may keep S_ISGID
                os.setxattr(self._inodes.handle(inode), name, value, flags)
            if kill_sgid:
                self._drop_set_gid(inode)

    async def getxattr(self, nodeid: int, name: bytes, ctx: CallerLike, size: int | None = None) -> bytes:
        """getxattr(2). `size` is the caller's buffer in bytes (0: only asks how large; None: not known)."""
        inode = self._known(nodeid)
        if inode is None:
            self._control.stat(nodeid)  # ESTALE: it is none of its files
            raise error(errno.ENODATA)
        if name.startswith(PREFIX):
            return await self._pins.get(inode, name, ctx, size)
        return os.getxattr(self._inodes.handle(inode), name)

    async def listxattr(self, nodeid: int, ctx: CallerLike) -> list[bytes]:
        """listxattr(2); never lists a pin."""
        if self._control.is_control(nodeid):
            return []
        names = os.listxattr(self._inodes.magic_path(self._inodes.get(nodeid)))
        hidden = HIDDEN if ctx.uid else (PREFIX,)  # xattr(7): trusted.* is for CAP_SYS_ADMIN, which the daemon has
        return [encoded for name in names if not (encoded := os.fsencode(name)).startswith(hidden)]

    async def removexattr(self, nodeid: int, name: bytes, ctx: CallerLike) -> None:
        """removexattr(2)."""
        inode = self._inode(nodeid)
        if name.startswith(PREFIX):
            await self._pins.remove(inode, name, ctx)
        else:
            os.removexattr(self._inodes.handle(inode), name)
