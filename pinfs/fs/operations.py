"""All operations of the file system: a plain passthrough to the source directory, with one line more where bytes are
taken away.

The callers (the bridge's dispatcher, the pyfuse3 adapter, tests) get results as plain types and errors as OSError.
Names come from the kernel one at a time. The kernel has checked permissions (mount option default_permissions) with
all groups of the caller, which a request does not carry. What is left to do here: reach the right inode, create things
as the caller's, and ask the guard.
"""

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from pinfs.enforce.guard import Guard
from pinfs.fs import fileflags
from pinfs.fs.attributes import Attributes
from pinfs.fs.backing import Backing
from pinfs.fs.control import CONTROL_NAME, Control, ControlDirectory, ControlHandle
from pinfs.fs.copying import Copies, Place
from pinfs.fs.directories import Add, DirectoryHandle, DirectoryReader
from pinfs.fs.exports import Exports
from pinfs.fs.fast import Collaborators, FastOperations
from pinfs.fs.handles import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, ByteHandle, FileHandle, Handle, Wake
from pinfs.fs.inode import ROOT_ID, Inode, component
from pinfs.fs.inodes import InodeTable
from pinfs.fs.names import KEEPS_VICTIM, Names
from pinfs.fs.opens import Opens
from pinfs.fs.pins import PinVerbs
from pinfs.fs.polling import POLLPRI, READY, Polling, PollMode
from pinfs.fs.removals import Removals
from pinfs.fs.set_ids import SetIds
from pinfs.fs.submounts import Submounts
from pinfs.fs.types import CallerLike, Entry, Opened, SetAttr, Timeouts, make_entry, os_error
from pinfs.fs.uncached import UncachedFiles
from pinfs.interface.attributes import PREFIX
from pinfs.linux import syscalls
from pinfs.linux.calls import Stat, stat_of

HIDDEN: Final = (PREFIX, b"trusted.")


class Operations:
    """The file system of one mount. Every method may raise OSError with the errno for the caller.

    `setattr`, `open`, `create`, `fallocate`, `unlink` and `rename` may be removals (SPEC 2): they also fail as
    `Removals` says.
    """

    in_threads = False
    """Whether most requests wait for threads: the dispatcher waits for these and for the kernel alike then."""
    needs_entries = False
    """Whether each name of a listing that is asked for with entries has to have one (pyfuse3 cannot do without)."""

    def __init__(
        self,
        inodes: InodeTable,
        backing: Backing,
        guard: Guard,
        pins: PinVerbs,
        control: Control,
        timeouts: Timeouts,
    ) -> None:
        self.submounts = Submounts(inodes)
        self._slow_names = self.submounts.names
        self.entry_timeout_s, self.attr_timeout_s, is_shared = timeouts
        self.directory_flags = 0 if is_shared else FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE
        self.handles = pins.handles
        self.uncached = UncachedFiles(inodes.open)
        inodes.on_dropped = self.uncached.discard
        self._backing = backing
        self._in_kernel = guard.cuts.inodes
        self._inodes = inodes
        self._known = inodes.known
        self._pins = pins
        self._control = control
        self._set_ids = SetIds(inodes, backing.privileges, backing.seal)
        self._attributes = Attributes(inodes, backing, self._set_ids)
        self._removals = Removals(inodes, backing, guard, self._set_ids)
        self._names = Names(inodes, backing)
        self._opens = Opens(inodes, backing, pins.handles, self.uncached, timeouts)
        self._copies = Copies(inodes, backing, guard)
        self.directories = DirectoryReader(inodes, control.owns, self.submounts)
        self.directories.with_entries = not is_shared or self.entry_timeout_s > 0  # else they are forgotten at once
        self.polling = Polling(PollMode.AUTO)
        self.exports: Exports | None = None
        parts = self._names, self._opens, self._removals, self._attributes, self._set_ids, self.uncached
        fast = Collaborators(inodes, backing, pins, *parts, self._slow_names)
        self.fast: FastOperations | None = FastOperations(fast, self._in_kernel, guard.book.table.by_owner)
        """The fast path; None where every call may have to be waited for."""

    # Names

    async def lookup(self, parent: int, name: bytes, ctx: CallerLike) -> Entry:
        """ENOENT, ENOTDIR, ESTALE; adds one to the lookup count."""
        directory = self._known(parent)
        if directory is None or name == CONTROL_NAME:
            if self._control.owns(parent, name):
                return self._control.lookup(parent, name)
            directory = self._inodes.get(parent)
        if name in self._slow_names:
            await self.submounts.reach_name(directory, name)
        return self._entry(directory, component(name), getattr(ctx, "unique", 0))

    def _entry(self, directory: Inode, name: bytes, unique: int = 0) -> Entry:
        st = os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
        inode = self._inodes.intern(directory, name, stat_of(st))
        self._inodes.looked_up(inode, unique)
        return make_entry((inode.nodeid, st))

    def known_by_name(self, parent: int, name: bytes) -> int | None:
        """The node id that a name leads to, if it is known; None also where it cannot be looked at."""
        directory = self._known(parent)
        with suppress(OSError):
            inode = None if directory is None else self._inodes.find_name((directory, name))
            return None if inode is None else inode.nodeid
        return None

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        """Take (node id, count) from the lookup counts. Never fails."""
        for nodeid, nlookup in forgets:
            self._inodes.forget(nodeid, nlookup)

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: CallerLike) -> Entry:
        """mknod(2)."""
        directory = self._writable_directory(parent, name)
        directory_fd = self._inodes.fd(directory)
        with self._backing.creating_as(ctx):
            os.mknod(name, mode, rdev, dir_fd=directory_fd)
        return self._entry(directory, name)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: CallerLike) -> Entry:
        """mkdir(2)."""
        directory = self._writable_directory(parent, name)
        directory_fd = self._inodes.fd(directory)
        with self._backing.creating_as(ctx):
            os.mkdir(name, mode, dir_fd=directory_fd)
        return self._entry(directory, name)

    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: CallerLike) -> Entry:
        """symlink(2)."""
        directory = self._writable_directory(parent, name)
        directory_fd = self._inodes.fd(directory)
        with self._backing.creating_as(ctx):
            os.symlink(target, name, dir_fd=directory_fd)
        return self._entry(directory, name)

    async def link(self, nodeid: int, new_parent: int, new_name: bytes, ctx: CallerLike) -> Entry:
        """link(2). EPERM: a name in .pinfs."""
        inode = self._inode(nodeid)
        directory = self._writable_directory(new_parent, new_name)
        if self._in_kernel:
            await self._removals.until_unlocked(inode)
        self._names.link(inode, directory, new_name)
        return self._entry(directory, new_name)

    async def readlink(self, nodeid: int, ctx: CallerLike) -> bytes:
        """readlink(2)."""
        return os.readlink(b"", dir_fd=self._inodes.fd(self._inode(nodeid)))

    async def unlink(self, parent: int, name: bytes, ctx: CallerLike) -> None:
        """unlink(2). A removal where it is the file's last name: policy `unlink` (SPEC 2)."""
        directory = self._writable_directory(parent, name)
        if name in self._slow_names:
            await self.submounts.reach_name(directory, name)
        st = Stat()
        victim = self._inodes.hold_for_unlink(directory, name, st)
        if self._in_kernel:
            await self._removals.until_unlocked(victim)
        if victim is None:
            self._removals.check_unknown(st)
            self._names.unlink_unknown(directory, name)
        elif self._removals.takes_all(victim):
            async with self._removals.unlink(victim, (directory, name), ctx):
                self._removals.check_still_there(victim, (directory, name))
                self._inodes.keep_reachable(victim, directory, name)
                self._names.unlink(victim, directory, name)
        else:
            self._names.unlink(victim, directory, name)

    async def rmdir(self, parent: int, name: bytes, ctx: CallerLike) -> None:
        """rmdir(2)."""
        directory = self._writable_directory(parent, name)
        if name in self._slow_names:
            await self.submounts.reach_name(directory, name)
        victim = self._inodes.hold_for_unlink(directory, name)
        os.rmdir(name, dir_fd=self._inodes.fd(directory))
        if victim is not None:
            self._inodes.drop_name(victim, directory, name)

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: CallerLike
    ) -> None:
        """renameat2(2). A removal where the new name is the last one of another file: policy `unlink` (SPEC 2)."""
        old = self._writable_directory(parent, name), name
        new = self._writable_directory(new_parent, new_name), new_name
        for directory, one in (old, new):
            if one in self._slow_names:
                await self.submounts.reach_name(directory, one)
        moved, victim = self._inodes.find_name(old), self._inodes.find_name(new)
        if self._in_kernel:
            await self._removals.until_unlocked(moved, victim)
        if victim is None and not flags & KEEPS_VICTIM:
            self._removals.check_unknown_name(new)
        if flags & KEEPS_VICTIM or victim is None or victim is moved or not self._removals.takes_all(victim):
            self._names.rename(old, new, flags, moved, victim)
            return
        async with self._removals.replace(victim, new, moved, old, ctx):
            self._removals.check_still_there(victim, new)
            self._names.rename(old, new, flags, moved, victim)

    def _writable_directory(self, parent: int, name: bytes) -> Inode:
        component(name)
        directory = self._known(parent)
        if directory is None or name == CONTROL_NAME:
            if self._control.owns(parent, name):
                raise os_error(errno.EPERM)
            return self._inodes.get(parent)
        return directory

    def _inode(self, nodeid: int) -> Inode:
        """An inode of the backing. EPERM: it is one of .pinfs. ESTALE: it is not in the table."""
        inode = self._known(nodeid)
        if inode is None:
            if self._control.is_control(nodeid):
                raise os_error(errno.EPERM)
            return self._inodes.get(nodeid)
        return inode

    # Attributes

    async def getattr(self, nodeid: int, ctx: CallerLike, fh: int | None = None) -> os.stat_result:
        """fstatat(2). ESTALE: it is not in the table, or the source changed behind pinfs."""
        inode = self._known(nodeid)
        if inode is None:
            return self._control.stat(nodeid)
        if nodeid in self.uncached:
            self.uncached.recheck(inode)
        return self._inodes.stat(inode)

    async def statx_btime(self, nodeid: int, fh: int | None) -> tuple[os.stat_result, int | None]:
        """The attributes and the time of birth (nanoseconds; None where the backing has none)."""
        if self._control.is_control(nodeid):
            return self._control.stat(nodeid), None
        inode = self._inodes.get(nodeid)
        if nodeid in self.uncached:
            self.uncached.recheck(inode)
        fd = self._inodes.fd(inode)
        return os.fstat(fd), syscalls.birth_time_ns(fd)

    async def setattr(self, nodeid: int, changes: SetAttr, fh: int | None, ctx: CallerLike) -> os.stat_result:
        """truncate, chmod, chown, utimensat in one. A removal when it shrinks the file."""
        inode = self._known(nodeid)
        if inode is None:
            return self._control.setattr(nodeid, changes)
        if changes.size is not None:
            handle = None if fh is None else self.handles.get(fh, FileHandle)
            await self._removals.truncate(inode, changes.size, "truncate", ctx, handle)
        if self._in_kernel:
            await self._removals.until_unlocked(inode)
        return self._attributes.change(inode, changes, ctx)

    # Files

    async def open(self, nodeid: int, flags: int, ctx: CallerLike, kill_suidgid: bool = False) -> Opened:
        """open(2) of an existing file. A removal with O_TRUNC.

        `kill_suidgid`: the caller may not keep the set-id bits of a file that it cuts.
        """
        inode = self._known(nodeid)
        if inode is None:
            handle = self._control.open(nodeid, flags, ctx)
            return Opened(self.handles.add_control(handle, ctx), handle.fopen_flags, 0)
        self._backing.close_idle_if_moved(inode)
        try:
            self._backing.open(inode, flags)
        except BlockingIOError:
            await self._opens.open_after_lease(inode, flags)
        try:
            if flags & os.O_TRUNC:
                await self._removals.truncate(inode, 0, "open_trunc", ctx, nonblock=bool(flags & os.O_NONBLOCK))
            if kill_suidgid:
                self._set_ids.drop(inode)
            return self._opens.opened(inode, flags, ctx)
        except BaseException:
            self._backing.release(inode)
            raise

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: CallerLike, kill_suidgid: bool = False
    ) -> tuple[Opened, Entry]:
        """open(2) with O_CREAT. A removal with O_TRUNC, where the file was there. `kill_suidgid`: as open()."""
        directory = self._writable_directory(parent, name)
        kill_suidgid = kill_suidgid and self._opens.is_there(directory, name)  # a new file keeps what it was given
        try:
            inode, st = self._opens.create(directory, name, mode, flags, ctx)
        except BlockingIOError:
            inode, st = await self._opens.create_after_lease(directory, name, mode, flags, ctx)
        try:
            if flags & os.O_TRUNC and st.st_size:  # it was there already
                await self._removals.truncate(inode, 0, "open_trunc", ctx, nonblock=bool(flags & os.O_NONBLOCK))
                st = self._inodes.stat(inode)
            if kill_suidgid:
                self._set_ids.drop(inode)
                st = self._inodes.stat(inode)
            return self._opens.opened(inode, flags, ctx, with_entry=True), make_entry((inode.nodeid, st))
        except BaseException:
            self._opens.abandon(inode)
            raise

    async def tmpfile(self, parent: int, mode: int, flags: int, ctx: CallerLike) -> tuple[Opened, Entry]:
        """open(2) with O_TMPFILE."""
        inode, st = self._opens.create_nameless(self._inode(parent), mode, flags, ctx)
        try:
            return self._opens.opened(inode, flags, ctx, with_entry=True), Entry(inode.nodeid, st)
        except BaseException:
            self._opens.abandon(inode)
            raise

    async def read(self, fh: int, offset: int, size: int, unique: int = 0) -> bytes:
        """pread(2), for files that the kernel does not read by itself. `unique`: the number of the request."""
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, ControlHandle):
            return await handle.read(offset, size, unique)
        if self._in_kernel:
            await self._removals.until_unlocked(handle.inode)
        return os.pread(self._backing.reader(handle.inode), size, offset)

    async def write(
        self, fh: int, offset: int, data: bytes | memoryview, *, kill_suidgid: bool = False, unique: int = 0
    ) -> int:
        """pwrite(2). Never asks the guard: data changes in place (SPEC 2). `unique`: the number of the request."""
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, ControlHandle):
            return await handle.write(offset, bytes(data), unique)
        if self._in_kernel:
            await self._removals.until_unlocked(handle.inode)
        if kill_suidgid:
            self._set_ids.drop(handle.inode)
        return os.pwrite(self._backing.writer(handle.inode), data, offset)

    async def flush(self, fh: int) -> None:
        """close(2) of one of perhaps many references: there is nothing to do, data is in the backing already."""

    async def release(self, fh: int) -> None:
        """The last reference to a handle was closed: its pins go with it (SPEC 4). EBADF: no such handle."""
        handle = self.handles.pop(fh)
        if isinstance(handle, FileHandle):
            try:  # each step, whatever becomes of those before it: the number is gone, and nothing leads here again
                self._pins.handle_closed(handle)
                while handle.inode.nodeid in self._in_kernel:  # close(2) may need the lock, and nothing waits for it
                    with suppress(OSError):
                        await self._removals.until_unlocked(handle.inode)
            finally:
                try:
                    self._backing.release(handle.inode)
                finally:
                    self._inodes.drop_if_unreferenced(handle.inode)
        elif isinstance(handle, ControlHandle):
            handle.close()
        elif isinstance(handle, DirectoryHandle):
            self.directories.closed(handle)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """fsync(2), fdatasync(2), also of what a device has written into a pinned range."""
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, FileHandle):
            await self._backing.off_thread(os.fdatasync if datasync else os.fsync, self._backing.any_fd(handle.inode))

    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA and SEEK_HOLE; the kernel does the others itself."""
        handle = self.handles.get(fh, FileHandle)
        if self._in_kernel:
            await self._removals.until_unlocked(handle.inode)
        return os.lseek(self._backing.any_fd(handle.inode), offset, whence)

    async def fallocate(self, fh: int, mode: int, offset: int, length: int, ctx: CallerLike) -> None:
        """fallocate(2), all modes that the kernel passes on. A removal in all but 0 and KEEP_SIZE."""
        handle = self.handles.get(fh, FileHandle)
        if not handle.writable:
            raise os_error(errno.EBADF)
        await self._removals.fallocate(handle, mode, offset, length, ctx)
        if ctx.uid:  # the request does not say whether the caller may keep the bits
            self._set_ids.drop(handle.inode)

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int, ctx: CallerLike
    ) -> int:
        """copy_file_range(2), at most 8 MiB a call. Pinned bytes are copied, never shared (SPEC 2)."""
        source = self.handles.get(fh_in, FileHandle).inode
        target = self.handles.get(fh_out, FileHandle).inode
        if self._in_kernel:
            await self._removals.until_unlocked(source, target)
        if ctx.uid:  # the request does not say whether the caller may keep the bits
            self._set_ids.drop(target)
        return await self._copies.copy(Place(source, offset_in), Place(target, offset_out), length)

    async def poll(self, fh: int, events: int, wake: Wake | None) -> int:
        """poll(2): POLLPRI while a pin of this handle is being broken. `wake` is called once, when that may change.
        NotServedError: as `Polling.check`."""
        handle = self.handles.get(fh, ByteHandle)
        self.polling.check(handle, events)
        if wake is not None:
            self.handles.polled(handle, wake)
        if isinstance(handle, ControlHandle):
            return handle.poll(wake)
        assert isinstance(handle, FileHandle)
        return READY | (POLLPRI if self._pins.is_urgent(handle, wake) else 0)

    async def ioctl(self, fh: int, cmd: int, data: bytes, out_size: int, ctx: CallerLike) -> bytes:
        """The ioctl interface (SPEC 6), and the file flags of chattr(1). ENOTTY: unknown number."""
        handle = self.handles.get(fh, Handle)
        if cmd in fileflags.COMMANDS and isinstance(handle, FileHandle | DirectoryHandle):
            await self._removals.until_unlocked(handle.inode)
            if isinstance(handle, DirectoryHandle):
                return fileflags.ioctl(handle.fd, cmd, data, ctx.uid)
            return self._attributes.flags_ioctl(handle.inode, cmd, data, ctx.uid)
        if not isinstance(handle, FileHandle):
            raise os_error(errno.ENOTTY)
        return await self._pins.ioctl(handle, cmd, data, out_size, ctx)

    # Directories

    async def opendir(self, nodeid: int, ctx: CallerLike) -> Opened:
        """opendir(3)."""
        if self._control.is_control(nodeid):
            return Opened(self.handles.add(self._control.open_directory(nodeid), ctx), 0, 0)
        inode = self._inodes.get(nodeid)
        fd = self._backing.open_directory(inode)
        fh = self.handles.add(DirectoryHandle(inode, os.O_RDONLY, fd), ctx)
        return Opened(fh, self.directory_flags, 0)

    async def readdir(self, fh: int, offset: int, plus: bool, add: Add, unique: int = 0) -> None:
        """Give names from `offset` on to `add` until the reply is full; with `plus` each with its entry, a lookup.
        `unique`: the number of the request."""
        handle = self.handles.get(fh, Handle)
        if isinstance(handle, ControlDirectory):
            self._control.readdir(offset, plus, add)
            return
        if not isinstance(handle, DirectoryHandle):
            raise os_error(errno.EBADF)
        await self.directories.read(handle, offset, add, unique if plus else None)

    async def releasedir(self, fh: int) -> None:
        """closedir(3)."""
        await self.release(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """fsync(2) of a directory."""
        handle = self.handles.get(fh, Handle)
        if isinstance(handle, DirectoryHandle):
            await self._backing.off_thread(os.fdatasync if datasync else os.fsync, handle.fd)

    # The file system as a whole

    async def statfs(self, ctx: CallerLike, nodeid: int = ROOT_ID) -> os.statvfs_result:
        """statvfs(3) of the source, or of the submount that an inode lies on."""
        return self._backing.statvfs(self._known(nodeid))

    async def syncfs(self, nodeid: int) -> None:
        """syncfs(2)."""
        await self._backing.sync()

    async def access(self, nodeid: int, mask: int, ctx: CallerLike) -> None:
        """access(2). With default_permissions the kernel answers it without a request."""

    # Extended attributes: user.pinfs.* are the verbs of pins, all others are the backing's

    async def setxattr(
        self, nodeid: int, name: bytes, value: bytes, flags: int, ctx: CallerLike, kill_sgid: bool = False
    ) -> None:
        """setxattr(2). `kill_sgid`: it is an ACL, and the caller may not keep the file's set-group-id bit."""
        inode = self._inode(nodeid)
        if name.startswith(PREFIX):
            await self._pins.set(inode, name, value, flags, ctx)
        else:
            if self._in_kernel:
                await self._removals.until_unlocked(inode)
            self._attributes.set_extended(inode, name, value, flags)
            if kill_sgid:
                self._set_ids.drop_group(inode)

    async def getxattr(self, nodeid: int, name: bytes, ctx: CallerLike, size: int | None = None) -> bytes:
        """getxattr(2). `size` is the caller's buffer in bytes (0: it only asks for the size; None: not known)."""
        inode = self._known(nodeid)
        if inode is None:
            self._control.stat(nodeid)  # ESTALE: it is no file of .pinfs either
            raise os_error(errno.ENODATA)
        if name.startswith(PREFIX):
            return await self._pins.get(inode, name, ctx, size)
        return os.getxattr(self._inodes.handle(inode), name)

    async def listxattr(self, nodeid: int, ctx: CallerLike) -> list[bytes]:
        """listxattr(2); never lists a pin."""
        if self._control.is_control(nodeid):
            return []
        names = os.listxattr(self._inodes.magic_path(self._inodes.get(nodeid)))
        hidden = HIDDEN if ctx.uid else (PREFIX,)  # trusted.* is for CAP_SYS_ADMIN (xattr(7)), which the daemon has
        return [encoded for name in names if not (encoded := os.fsencode(name)).startswith(hidden)]

    async def removexattr(self, nodeid: int, name: bytes, ctx: CallerLike) -> None:
        """removexattr(2)."""
        inode = self._inode(nodeid)
        if name.startswith(PREFIX):
            await self._pins.remove(inode, name, ctx)
        else:
            if self._in_kernel:
                await self._removals.until_unlocked(inode)
            self._attributes.remove_extended(inode, name, ctx)
