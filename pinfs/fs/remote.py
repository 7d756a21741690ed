"""The operations on a source that may never answer (NFS, CIFS, FUSE and their like): its calls are made in threads.

Each request waits outside of the event loop, so that a server that is slow or dead, or one of its files, holds up the
requests that need it and no other: `.pinfs`, other files, interrupts, and the end of the mount are served meanwhile.
Sources in memory and on disks know nothing of this (`calls_may_stall`).

Requests whose calls overlap meet the inode table as changes behind pinfs do, for which it is made: names are checked
against inodes before they are used. What a thread works on are views (`fs/reaching.py`) and files that it counts as
open (`_using`). The kernel keeps calls apart that change the same directory or file, and forgets no inode while a
request for it is under way. An interrupted call may still be done: its outcome enters the table then (`undo`).

Calls that stay on the event loop, right after a thread has been answered for the same file: the size of a file that is
pinned or whose pin is moved; the open before the flush of a dirty pin that no handle has open. And all that a mount
begins with, as there are no requests so far.
"""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, TypeVar

from pinfs.enforce.guard import Guard, Removing
from pinfs.fs import fileflags
from pinfs.fs.backing import Backing
from pinfs.fs.control import CONTROL_NAME, Control, ControlHandle
from pinfs.fs.copying import Place
from pinfs.fs.creating import Created, create_file, is_there, masked
from pinfs.fs.directories import Add, DirectoryHandle, DirectoryReader, Snapshot, snapshot
from pinfs.fs.handles import ByteHandle, FileHandle, Handle
from pinfs.fs.inode import ROOT_ID, Inode, Name, component
from pinfs.fs.inodes import InodeTable
from pinfs.fs.leases import with_patience
from pinfs.fs.names import KEEPS_VICTIM
from pinfs.fs.openfile import OpenFile
from pinfs.fs.operations import HIDDEN, Operations
from pinfs.fs.pins import PinVerbs
from pinfs.fs.reaching import Found, Reaching, found_at
from pinfs.fs.types import Caller, CallerLike, Entry, Opened, SetAttr, Timeouts, make_entry, os_error
from pinfs.interface.attributes import PREFIX
from pinfs.linux import syscalls
from pinfs.linux.calls import stat_of
from pinfs.runtime.threads import Threads

T = TypeVar("T")

ROOT: Final = Caller(0, 0, 0)
SOME: Final = 64
"""Names that are looked up for one request, where entries are needed."""


class _Directories(DirectoryReader):
    """Reads directories in threads, without entries: these would be as many looks at the source."""

    with_entries = False
    threads: Threads

    async def snapshot_of(self, handle: DirectoryHandle) -> Snapshot:
        """All names of a directory, as they are now."""
        handle.names = None
        fd = os.dup(handle.fd)
        return await self.threads.run(handle.number, partial(snapshot, fd), finished=partial(os.close, fd))


class RemoteOperations(Operations):
    """`Operations` with the calls on the source in threads. Raises OSError as those do."""

    in_threads = True

    def __init__(
        self,
        inodes: InodeTable,
        backing: Backing,
        guard: Guard,
        pins: PinVerbs,
        control: Control,
        timeouts: Timeouts,
    ) -> None:
        super().__init__(inodes, backing, guard, pins, control, timeouts)
        assert backing.threads is not None
        self.fast = None
        self._threads = backing.threads
        os.umask(0)  # all threads share one: what is created is masked by hand (`masked`)
        self.reaching = Reaching(inodes, self._threads)
        self._removals.open_writer = self._open_writer
        self._shared = guard.hosts is not None
        self.directories = _Directories(inodes, control.owns, self.submounts)
        self.directories.threads = self._threads

    async def _using(self, inode: Inode, call: Callable[..., T], *args: object) -> T:
        """`call` on descriptors of the backing file, which stays open meanwhile."""
        self._backing.use(inode)
        return await self._threads.run(inode.nodeid, partial(call, *args), finished=partial(self._used, inode))

    def _close(self, fd: int) -> None:
        """Close what comes too late, outside of the event loop: close(2) may write back."""
        self._backing.close_descriptor(fd)

    def _used(self, inode: Inode) -> None:
        self._backing.release(inode)
        self._inodes.drop_if_unreferenced(inode)

    # Names

    async def lookup(self, parent: int, name: bytes, ctx: CallerLike) -> Entry:
        directory = self._known(parent)
        if directory is None or (name == CONTROL_NAME and parent == ROOT_ID):
            return await super().lookup(parent, name, ctx)
        where = directory, component(name)
        return self._entry_of(where, await self.reaching.look(where))

    def _entry_of(self, name: Name, found: Found) -> Entry:
        inode = self.reaching.intern(name, found)
        self._inodes.looked_up(inode)
        return make_entry((inode.nodeid, found.st))

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: CallerLike) -> Entry:
        def make(fd: int) -> None:
            os.mknod(name, masked(fd, mode, ctx), rdev, dir_fd=fd)

        return await self._make(parent, name, ctx, make)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: CallerLike) -> Entry:
        return await self._make(parent, name, ctx, lambda fd: os.mkdir(name, masked(fd, mode, ctx), dir_fd=fd))

    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: CallerLike) -> Entry:
        return await self._make(parent, name, ctx, lambda fd: os.symlink(target, name, dir_fd=fd))

    async def _make(self, parent: int, name: bytes, ctx: CallerLike, make: Callable[[int], None]) -> Entry:
        directory = self._writable_directory(parent, name)

        def made(view: Inode) -> Found:
            with self._backing.owned_by(ctx):
                make(view.fd)
            return found_at(name, view.fd)

        return self._entry_of((directory, name), await self.reaching.call(directory, made, undo=Found.close))

    async def link(self, nodeid: int, new_parent: int, new_name: bytes, ctx: CallerLike) -> Entry:
        inode = self._inode(nodeid)
        directory = self._writable_directory(new_parent, new_name)

        def linked(view: Inode, into: Inode) -> Found:
            path = self._inodes.magic_path(view)
            os.link(path, new_name, dst_dir_fd=into.fd, follow_symlinks=True)
            return found_at(new_name, into.fd)

        found = await self.reaching.call(inode, linked, directory, undo=Found.close)
        return self._entry_of((directory, new_name), found)

    async def readlink(self, nodeid: int, ctx: CallerLike) -> bytes:
        return await self.reaching.call(self._inode(nodeid), lambda view: os.readlink(b"", dir_fd=view.fd))

    async def unlink(self, parent: int, name: bytes, ctx: CallerLike) -> None:
        await self._take_name(parent, name, ctx, os.unlink)

    async def rmdir(self, parent: int, name: bytes, ctx: CallerLike) -> None:
        await self._take_name(parent, name, ctx, os.rmdir)

    async def _take_name(self, parent: int, name: bytes, ctx: CallerLike, take: Callable[..., None]) -> None:
        directory = self._writable_directory(parent, name)
        found = await self.reaching.look((directory, name))
        victim = self.reaching.known(found)

        def taken(_: object = None) -> None:
            if victim is not None:
                self._names.lose(victim, directory, name)

        def call(view: Inode) -> None:
            take(name, dir_fd=view.fd)

        def call_unseen(view: Inode) -> None:
            self._removals.check_no_file_apart(name, view.fd)
            call(view)

        def checked(removing: Removing, victim: Inode, view: Inode) -> None:
            self._removals.check_apart(victim, self._life(found), name, view.fd, removing)
            call(view)

        try:
            if victim is None:
                self._removals.check_unknown_apart(found.st)
            if victim is not None and self._removals.takes_all_of(victim, found.st):
                await self.reaching.call(victim, self._removals.check_may_go, directory)
                async with self._removals.checked(victim, found.st, "unlink", ctx) as removing:
                    take_checked = partial(checked, removing, victim)
                    await self.reaching.call(
                        directory, take_checked, undo=taken, finished=self._removals.hold(removing)
                    )
                    taken()
            else:
                over = self._removals.begin_unseen()
                await self.reaching.call(directory, call_unseen, undo=taken, finished=over)
                taken()
        finally:
            if victim is None:
                self._backing.close_descriptor(found.fd)

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: CallerLike
    ) -> None:
        old = self._writable_directory(parent, name), name
        new = self._writable_directory(new_parent, new_name), new_name
        fds: list[int] = []
        over, is_begun = self._removals.begin_unseen(), False
        try:
            moved, _ = await self._find(old, fds)
            victim, found = await self._find(new, fds, afresh=self._shared)
            st = None if found is None else found.st
            if victim is None and st is not None and not flags & KEEPS_VICTIM:
                self._removals.check_unknown_apart(st)
            keeps = st is None or victim is None or victim is moved or flags & KEEPS_VICTIM
            if keeps or found is None or victim is None or not self._removals.takes_all_of(victim, found.st):
                is_begun = True
                await self._rename((old, new), flags, moved, victim, over)
            else:
                over()
                known = () if moved is None else (moved,)
                await self.reaching.call(victim, self._check_may_replace, new[0], old[0], *known)
                async with self._removals.checked(victim, found.st, "rename", ctx) as removing:
                    check = partial(self._removals.check_apart, victim, self._life(found), removing=removing)
                    await self._rename((old, new), flags, moved, victim, self._removals.hold(removing), check)
        finally:
            if not is_begun:
                over()
            for fd in fds:
                self._backing.close_descriptor(fd)

    def _life(self, found: Found) -> bytes:
        """For `Removals.check_apart`."""
        return found.life if self.reaching.tells_lives else b""

    async def _find(self, name: Name, fds: list[int], *, afresh: bool = False) -> tuple[Inode | None, Found | None]:
        """What a name leads to; `fds` gets a descriptor of an inode that the table does not know."""
        try:
            found = await self.reaching.look(name, afresh=afresh)
        except FileNotFoundError:
            return None, None
        inode = self.reaching.known(found)
        if inode is None:
            fds.append(found.fd)
        return inode, found

    def _check_may_replace(self, victim: Inode, directory: Inode, source: Inode, *moved: Inode) -> None:
        self._removals.check_may_replace(victim, directory, moved[0] if moved else None, source)

    async def _rename(
        self,
        names: tuple[Name, Name],
        flags: int,
        moved: Inode | None,
        victim: Inode | None,
        finished: Callable[[], None],
        check: Callable[[bytes, int], None] = lambda name, directory_fd: None,
    ) -> None:
        """`finished`: as `Threads.run`. `check`: right before the call, where the victim goes with its bytes."""
        old, new = names

        def call(source: Inode, target: Inode) -> None:
            check(new[1], target.fd)
            syscalls.renameat2(source.fd, old[1], target.fd, new[1], flags)

        def renamed(_: object = None) -> None:
            self._names.renamed(old, new, flags, moved, victim)

        await self.reaching.call(old[0], call, new[0], undo=renamed, finished=finished)
        renamed()

    # Attributes

    async def getattr(self, nodeid: int, ctx: CallerLike, fh: int | None = None) -> os.stat_result:
        inode = self._known(nodeid)
        if inode is None:
            return self._control.stat(nodeid)
        await self._recheck(inode)
        return await self.reaching.call(inode, self._inodes.stat)

    async def _recheck(self, inode: Inode) -> None:
        if inode.nodeid in self.uncached and not _is_written(inode):
            await self.reaching.call(inode, self.uncached.recheck)

    async def statx_btime(self, nodeid: int, fh: int | None) -> tuple[os.stat_result, int | None]:
        if self._control.is_control(nodeid):
            return self._control.stat(nodeid), None
        inode = self._inodes.get(nodeid)
        await self._recheck(inode)
        return await self.reaching.call(inode, lambda view: (os.fstat(view.fd), syscalls.birth_time_ns(view.fd)))

    async def setattr(self, nodeid: int, changes: SetAttr, fh: int | None, ctx: CallerLike) -> os.stat_result:
        inode = self._known(nodeid)
        if inode is None:
            return self._control.setattr(nodeid, changes)
        if changes.size is not None:
            handle = None if fh is None else self.handles.get(fh, FileHandle)
            await self._removals.truncate(inode, changes.size, "truncate", ctx, handle)
        caller = ROOT if _is_written(inode) else ctx  # a view has no file to tell that (SetIds.check_may_drop)
        return await self.reaching.call(inode, lambda view: self._attributes.change(view, changes, caller))

    # Files

    async def open(self, nodeid: int, flags: int, ctx: CallerLike, kill_suidgid: bool = False) -> Opened:
        inode = self._known(nodeid)
        if inode is None:
            return await super().open(nodeid, flags, ctx, kill_suidgid)
        file = await self.reaching.call(
            inode, partial(self._open_apart, flags), undo=lambda late: late.close(self._close)
        )
        self._backing.take_over(inode, file)
        try:
            if flags & os.O_TRUNC:
                await self._removals.truncate(inode, 0, "open_trunc", ctx, nonblock=bool(flags & os.O_NONBLOCK))
            if kill_suidgid:
                await self.reaching.call(inode, self._set_ids.drop)
            st = None if self._backing.passthrough_id(inode) else await self.reaching.call(inode, self._inodes.stat)
            return self._opens.opened(inode, flags, ctx, st=st)
        except BaseException:
            self._backing.release(inode)
            raise

    def _open_apart(self, flags: int, view: Inode) -> OpenFile:
        return with_patience(partial(self._backing.open_apart, view, flags), view.fd, flags)

    async def _open_writer(self, inode: Inode, nonblock: bool) -> AbstractContextManager[int]:
        """`Removals.open_writer`."""
        if _is_written(inode):
            return self._backing.writing(inode)
        flags = os.O_WRONLY | (os.O_NONBLOCK if nonblock else 0)

        def opened(view: Inode) -> int:
            return with_patience(partial(self._inodes.open, view, os.O_WRONLY), view.fd, flags)

        return self._backing.writing_by(await self.reaching.call(inode, opened, undo=self._close))

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: CallerLike, kill_suidgid: bool = False
    ) -> tuple[Opened, Entry]:
        directory = self._writable_directory(parent, name)

        def call(view: Inode) -> tuple[Created, bool]:
            was_there = kill_suidgid and is_there(name, view.fd)  # a new file keeps what it was given
            return create_file(self._backing, view.fd, name, mode, flags, ctx), was_there

        made, kill_suidgid = await self.reaching.call(directory, call, undo=lambda late: late[0].close(self._close))
        st = made.found.st
        inode = self.reaching.intern((directory, name), made.found)
        self._backing.take_over(inode, made.file)
        self._inodes.looked_up(inode)
        try:
            changed = kill_suidgid
            if flags & os.O_TRUNC and st.st_size:
                await self._removals.truncate(inode, 0, "open_trunc", ctx, nonblock=bool(flags & os.O_NONBLOCK))
                changed = True
            if kill_suidgid:
                await self.reaching.call(inode, self._set_ids.drop)
            if changed:
                st = await self.reaching.call(inode, self._inodes.stat)
            return self._opens.opened(inode, flags, ctx, with_entry=True, st=st), make_entry((inode.nodeid, st))
        except BaseException:
            self._opens.abandon(inode)
            raise

    async def tmpfile(self, parent: int, mode: int, flags: int, ctx: CallerLike) -> tuple[Opened, Entry]:
        def create(view: Inode) -> tuple[int, os.stat_result]:
            given = masked(view.fd, mode, ctx)
            with self._backing.owned_by(ctx):
                fd = os.open(b".", flags | os.O_TMPFILE | os.O_CLOEXEC, given, dir_fd=view.fd)
            self._backing.check_room(fd)
            return fd, os.fstat(fd)

        fd, st = await self.reaching.call(self._inode(parent), create, undo=lambda late: self._close(late[0]))
        inode = self._inodes.intern_nameless(stat_of(st), fd)
        self._backing.take_over(inode, OpenFile.over(fd, flags))
        self._inodes.looked_up(inode)
        try:
            return self._opens.opened(inode, flags, ctx, with_entry=True, st=st), Entry(inode.nodeid, st)
        except BaseException:
            self._opens.abandon(inode)
            raise

    async def read(self, fh: int, offset: int, size: int, unique: int = 0) -> bytes:
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, ControlHandle):
            return await handle.read(offset, size, unique)
        return await self._using(handle.inode, os.pread, self._backing.reader(handle.inode), size, offset)

    async def write(
        self, fh: int, offset: int, data: bytes | memoryview, *, kill_suidgid: bool = False, unique: int = 0
    ) -> int:
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, ControlHandle):
            return await handle.write(offset, bytes(data), unique)
        if kill_suidgid:
            await self.reaching.call(handle.inode, self._set_ids.drop)
        return await self._using(handle.inode, os.pwrite, self._backing.writer(handle.inode), data, offset)

    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self.handles.get(fh, ByteHandle)
        if isinstance(handle, FileHandle):
            sync = os.fdatasync if datasync else os.fsync
            await self._using(handle.inode, sync, self._backing.any_fd(handle.inode))

    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        inode = self.handles.get(fh, FileHandle).inode
        return await self._using(inode, os.lseek, self._backing.any_fd(inode), offset, whence)

    async def fallocate(self, fh: int, mode: int, offset: int, length: int, ctx: CallerLike) -> None:
        handle = self.handles.get(fh, FileHandle)
        if not handle.writable:
            raise os_error(errno.EBADF)
        await self._removals.fallocate(handle, mode, offset, length, ctx)
        if ctx.uid:
            await self.reaching.call(handle.inode, self._set_ids.drop)

    async def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int, ctx: CallerLike
    ) -> int:
        source = self.handles.get(fh_in, FileHandle).inode
        target = self.handles.get(fh_out, FileHandle).inode
        if ctx.uid:
            await self.reaching.call(target, self._set_ids.drop)
        return await self._copies.copy(Place(source, offset_in), Place(target, offset_out), length)

    async def ioctl(self, fh: int, cmd: int, data: bytes, out_size: int, ctx: CallerLike) -> bytes:
        handle = self.handles.get(fh, Handle)
        if cmd not in fileflags.COMMANDS or not isinstance(handle, FileHandle | DirectoryHandle):
            if isinstance(handle, FileHandle):
                await self.reaching.call(handle.inode, self._know_size)
            return await super().ioctl(fh, cmd, data, out_size, ctx)
        if isinstance(handle, FileHandle):
            return await self._using(handle.inode, self._attributes.flags_ioctl, handle.inode, cmd, data, ctx.uid)
        fd = os.dup(handle.fd)
        call = partial(fileflags.ioctl, fd, cmd, data, ctx.uid)
        return await self._threads.run(handle.number, call, finished=partial(os.close, fd))

    # Directories

    async def opendir(self, nodeid: int, ctx: CallerLike) -> Opened:
        if self._control.is_control(nodeid):
            return await super().opendir(nodeid, ctx)
        inode = self._inodes.get(nodeid)
        fd = await self.reaching.call(inode, self._backing.open_directory, undo=self._close)
        fh = self.handles.add(DirectoryHandle(inode, os.O_RDONLY, fd), ctx)
        return Opened(fh, self.directory_flags, 0)

    async def readdir(self, fh: int, offset: int, plus: bool, add: Add, unique: int = 0) -> None:
        handle = self.handles.get(fh, Handle)
        if not plus or not self.needs_entries or not isinstance(handle, DirectoryHandle):
            await super().readdir(fh, offset, plus, add, unique)
            return
        listed: list[tuple[bytes, int, Entry | tuple[int, int]]] = []

        def collect(name: bytes, next_offset: int, what: Entry | tuple[int, int]) -> bool:
            listed.append((name, next_offset, what))
            return len(listed) < SOME

        await super().readdir(fh, offset, False, collect)
        for name, next_offset, what in listed:
            entry = what if name in (b".", b"..") else await self._looked_up(handle.inode, name)
            if entry is not None and not add(name, next_offset, entry):
                if isinstance(entry, Entry):
                    self.forget([(entry.nodeid, 1)])
                return

    async def _looked_up(self, directory: Inode, name: bytes) -> Entry | None:
        """None: it was removed, or cannot be looked at."""
        try:
            return self._entry_of((directory, name), await self.reaching.look((directory, name)))
        except OSError:
            return None

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        handle = self.handles.get(fh, Handle)
        if isinstance(handle, DirectoryHandle):
            fd = os.dup(handle.fd)
            call = partial(os.fdatasync if datasync else os.fsync, fd)
            await self._threads.run(handle.number, call, finished=partial(os.close, fd))

    # The file system as a whole

    async def statfs(self, ctx: CallerLike, nodeid: int = ROOT_ID) -> os.statvfs_result:
        return await self.reaching.call(self._known(nodeid) or self._inodes.root, self._backing.statvfs)

    # Extended attributes

    async def setxattr(
        self, nodeid: int, name: bytes, value: bytes, flags: int, ctx: CallerLike, kill_sgid: bool = False
    ) -> None:
        inode = self._inode(nodeid)
        if name.startswith(PREFIX):
            await self.reaching.call(inode, self._know_size)
            await self._pins.set(inode, name, value, flags, ctx)
            return

        def call(view: Inode) -> None:
            with self._set_ids.keeping_from(name):
                os.setxattr(self._inodes.magic_path(view), name, value, flags)
            if kill_sgid:
                self._set_ids.drop_group(view)

        await self.reaching.call(inode, call)

    def _know_size(self, view: Inode) -> None:
        """Which a pin needs. Another host may have made the file larger a moment ago."""
        if self._shared:
            syscalls.wait_for_attributes(view.fd)
        else:
            self._inodes.stat(view)

    async def getxattr(self, nodeid: int, name: bytes, ctx: CallerLike, size: int | None = None) -> bytes:
        inode = self._known(nodeid)
        if inode is None or name.startswith(PREFIX):
            return await super().getxattr(nodeid, name, ctx, size)
        return await self.reaching.call(inode, lambda view: os.getxattr(self._inodes.magic_path(view), name))

    async def listxattr(self, nodeid: int, ctx: CallerLike) -> list[bytes]:
        if self._control.is_control(nodeid):
            return []
        names = await self.reaching.call(
            self._inodes.get(nodeid), lambda view: os.listxattr(self._inodes.magic_path(view))
        )
        hidden = HIDDEN if ctx.uid else (PREFIX,)
        return [encoded for name in names if not (encoded := os.fsencode(name)).startswith(hidden)]

    async def removexattr(self, nodeid: int, name: bytes, ctx: CallerLike) -> None:
        inode = self._inode(nodeid)
        if name.startswith(PREFIX):
            await self._pins.remove(inode, name, ctx)
        else:

            def call(view: Inode) -> None:
                with self._set_ids.keeping_without(name, view, ctx):
                    os.removexattr(self._inodes.magic_path(view), name)

            await self.reaching.call(inode, call)


def _is_written(inode: Inode) -> bool:
    return inode.file is not None and inode.file.writer >= 0
