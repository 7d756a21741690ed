"""The source directory's side: backing files of open inodes, passthrough, and acting as the caller."""

import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from os import O_ACCMODE, O_RDONLY, O_WRONLY
from typing import Protocol, TypeVar

import trio

from pinfs.fs.evictions import Evictions
from pinfs.fs.inode import O_PATH_NOFOLLOW, Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.openfile import OpenFile
from pinfs.fs.seal import Seal
from pinfs.fs.types import CallerLike, os_error
from pinfs.linux import syscalls
from pinfs.linux.calls import set_fs_ids
from pinfs.linux.filesystems import IN_MEMORY, calls_may_stall, cuts_may_wait
from pinfs.linux.syscalls import file_system_magic
from pinfs.runtime.asitis import AS_IT_IS
from pinfs.runtime.descriptors import Budget
from pinfs.runtime.parking import park
from pinfs.runtime.threads import Threads

T = TypeVar("T")

log = logging.getLogger("pinfs.backing")

_of_thread = threading.local()


class BackingRegistry(Protocol):
    """Registers backing files with the kernel, which then reads, writes and maps them without the daemon."""

    unavailable_because: str
    """Empty where passthrough works."""

    def open(self, fd: int) -> int:
        """A backing id for the file behind `fd`; 0 where there is no passthrough (for this file)."""

    def close(self, backing_id: int) -> None:
        """Give an id back. Handles that are open keep using the file."""

    def adopt(self) -> None:
        """Count an id that the daemon before has registered."""


class NoPassthrough:
    """A registry that registers nothing: every read and write comes to the daemon."""

    unavailable_because = "there is none"

    def open(self, fd: int) -> int:
        return 0

    def close(self, backing_id: int) -> None:
        raise AssertionError("nothing was registered")

    def adopt(self) -> None:
        raise AssertionError("nothing was registered")


class Backing:
    """Backing files: one OpenFile for all handles of an inode, registered with the kernel once."""

    def __init__(self, inodes: InodeTable, passthrough: BackingRegistry, share: Budget, seal: Seal) -> None:
        self.passthrough = passthrough
        self.seal = seal
        self.privileges = syscalls.Privileges()
        """All that the daemon has, for calls that the kernel has already allowed the caller."""
        self.open_files = 0
        """Inodes with handles."""
        self.in_memory = file_system_magic(inodes.root.fd) in IN_MEMORY
        self.evictions = Evictions()
        """Last closes that may wait."""
        self.threads = Threads() if calls_may_stall(inodes.root.fd) else None
        """For calls on a source that may never answer; None where they are made on the event loop."""
        self._source_may_wait = cuts_may_wait(inodes.root.fd)
        self._may_wait: dict[int, bool] = {}
        """The same of other devices below the source, by st_dev."""
        self._inodes = inodes
        self._first_spare = share.files
        self._first_spare_of_holders = share.holders
        self._idle_files = share.idle_files if self.threads is None else 0
        self._changes_owner = os.geteuid() == 0
        if self._changes_owner and not syscalls.keep_capabilities_across_fs_ids():
            log.warning("no CAP_SETPCAP: new files are created without the caller's supplementary groups")
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._fallocate_modes: dict[tuple[int, int], bool] = {}
        self._idle: dict[Inode, None] = {}
        """Inodes whose backing file is open without a handle, least recently used first: opening and registering one
        costs more than all the rest of an open."""
        inodes.on_forgotten = self._close_if_idle
        self._close_in_threads(self._source_may_wait)

    # Opening and closing

    def open(self, inode: Inode, flags: int) -> OpenFile:
        """Open the backing file of an inode for one handle more. Errors of open(2)."""
        file = inode.file or OpenFile()
        self._idle.pop(inode, None)
        access = flags & O_ACCMODE
        try:
            if access != O_RDONLY and file.writer < 0:
                with self.seal.lifted(inode):
                    self._open_writer(inode, file, flags)
            if access != O_WRONLY and file.reader < 0:
                file.read_by(self._open_to_keep(inode, O_RDONLY))
        except BaseException:
            if inode.file is None:
                file.close()
            elif not file.opens:
                self._idle[inode] = None
            raise
        inode.file = file
        file.opens += 1
        self.open_files += file.opens == 1
        return file

    def open_apart(self, view: Inode, flags: int) -> OpenFile:
        """In a thread: open the backing file of an inode for `take_over`. Errors of open(2)."""
        file = OpenFile()
        access = flags & os.O_ACCMODE
        try:
            if access != os.O_RDONLY:
                self._open_writer(view, file, flags)
            if access != os.O_WRONLY and file.reader < 0:
                file.read_by(self._open_to_keep(view, os.O_RDONLY))
        except BaseException:
            file.close()
            raise
        return file

    def take_over(self, inode: Inode, opened: OpenFile) -> None:
        """Count what a thread has opened as one handle more. What is open already stays."""
        file = inode.file
        if file is None:
            file = inode.file = opened
        else:
            spare = {opened.reader, opened.writer}
            if file.writer < 0 <= opened.writer:
                file.write_by(opened.writer)
            if file.reader < 0 <= opened.reader:
                file.read_by(opened.reader)
            for fd in spare - {file.reader, file.writer, -1}:
                self.close_descriptor(fd)
        file.opens += 1
        self.open_files += file.opens == 1

    def check_room(self, fd: int) -> None:
        """Close a descriptor that is one too many for a handle, and raise EMFILE."""
        if fd >= self._first_spare:
            os.close(fd)
            raise os_error(errno.EMFILE)

    def use(self, inode: Inode) -> None:
        """A thread begins to use the backing file: it counts one handle more until `release`. EBADF: it is not open."""
        if inode.file is None:
            raise os_error(errno.EBADF)
        inode.file.opens += 1

    def adopt(self, inode: Inode, fd: int, flags: int) -> None:
        """Count `fd`, just made by open(O_CREAT), as one handle more, and take the descriptor over.

        Errors of open(2); the descriptor remains the caller's then.
        """
        if inode.file is not None:
            self.open(inode, flags & ~os.O_CREAT)
            os.close(fd)
            return
        if fd >= self._first_spare:
            self._make_room()
            spare, fd = fd, os.dup(fd)
            os.close(spare)
        file = OpenFile()
        access = flags & O_ACCMODE
        file.any_fd = fd
        if access != O_RDONLY:
            file.writer = fd
        if access != O_WRONLY:
            file.reader = fd
        inode.file = file
        file.opens = 1
        self.open_files += 1

    def open_directory(self, inode: Inode) -> int:
        """A descriptor for a handle of a directory. EMFILE when only the last spare ones are left: directories can be
        listed when files have taken their share."""
        fd = self._inodes.open(inode, os.O_RDONLY | os.O_DIRECTORY)
        if fd >= self._first_spare_of_holders:
            os.close(fd)
            raise os_error(errno.EMFILE)
        return fd

    def _open_to_keep(self, inode: Inode, flags: int) -> int:
        """A descriptor for a handle. EMFILE when only spare ones are left: the kernel gives the lowest number that is
        free."""
        while (fd := self._inodes.open(inode, flags)) >= self._first_spare:
            os.close(fd)
            self._make_room()
        return fd

    def _make_room(self) -> None:
        if not self._idle:
            raise os_error(errno.EMFILE)
        self.close_idle(next(iter(self._idle)))

    def _open_writer(self, inode: Inode, file: OpenFile, flags: int) -> None:
        """One descriptor to read and write where the backing allows it; an append-only file needs O_APPEND.

        The kernel itself does the rest of the caller's flags: O_APPEND elsewhere, O_DIRECT, O_SYNC.
        """
        append = flags & os.O_APPEND
        for attempt in (os.O_RDWR, os.O_WRONLY, os.O_WRONLY | append):
            try:
                file.write_by(self._open_to_keep(inode, attempt))
            except PermissionError:
                if attempt == os.O_WRONLY | append:
                    raise
                continue
            if attempt == os.O_RDWR and file.reader < 0:
                file.read_by(file.writer)
            return

    def release(self, inode: Inode) -> None:
        """One handle fewer. After the last one the backing file is closed, or stays idle for the next open.

        A file that has been open for writing does not stay: it could not be executed meanwhile (ETXTBSY). Nor does one
        without a name: it would keep its space. Nor one on a submount of the source: it could not be unmounted.
        """
        file = inode.file
        if file is None:
            return
        file.opens -= 1
        if file.opens:
            return
        self.open_files -= 1
        if file.writer >= 0 or inode.name is None or not isinstance(inode.key, int):
            self._close(inode, file)
            return
        self._idle[inode] = None
        if len(self._idle) > self._idle_files:
            self.close_idle(next(iter(self._idle)))

    def close_idle_if_moved(self, inode: Inode) -> None:
        """An idle backing file must not serve an inode to which no name leads (it was replaced behind pinfs)."""
        if inode.file is not None and not inode.file.opens and not self._inodes.leads_to(inode):
            self.close_idle(inode)

    def close_idle(self, inode: Inode) -> None:
        """Close the backing file of an inode if it has no handle."""
        if inode.file is not None and not inode.file.opens:
            self._close_if_idle(inode)
            self._inodes.drop_if_unreferenced(inode)

    def _close_if_idle(self, inode: Inode) -> None:
        if inode.file is not None and not inode.file.opens:
            self._idle.pop(inode, None)
            self._close(inode, inode.file)

    def _close(self, inode: Inode, file: OpenFile) -> None:
        try:
            if file.backing_id:
                self.passthrough.close(file.backing_id)
                self._record_backing_id(inode, 0)
            self._inodes.prepare_close(inode, not file.backing_id)
        finally:
            inode.file = None
            file.close(self._inodes.descriptors.close_last)

    @property
    def close_descriptor(self) -> Callable[[int], None]:
        """Closes a descriptor of a backing file, perhaps its last one."""
        return self._inodes.descriptors.close_last

    def outliving_name(self, directory: Inode, name: bytes) -> AbstractContextManager[None]:
        """Inside of it a name may go: the last close of the inode behind it happens at the end, as that of others.

        An inode that nothing has open would be evicted by unlink(2) and rename(2) themselves, on the event loop.
        """
        if self._inodes.descriptors.close_elsewhere is None:
            return AS_IT_IS
        try:
            fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=self._inodes.fd(directory))
        except OSError:  # what it is, the call itself will tell
            return AS_IT_IS
        return _Open(fd, self.close_descriptor)

    def passthrough_id(self, inode: Inode) -> int:
        """The backing id of an open inode, one for all its handles (fuse_inode_uncached_io_start()); 0: none."""
        file = inode.file
        if file is None:
            return 0
        if file.backing_id is None:
            file.backing_id = self.passthrough.open(file.any_fd)
            self._record_backing_id(inode, file.backing_id)
        return file.backing_id

    def _record_backing_id(self, inode: Inode, backing_id: int) -> None:
        if inode.slot and self._inodes.recorder is not None:
            self._inodes.recorder.backing_id(inode, backing_id)

    # Descriptors to work with

    def reader(self, inode: Inode) -> int:
        """EBADF: no handle is open for reading."""
        return _valid(inode.file.reader if inode.file else -1)

    def writer(self, inode: Inode) -> int:
        """EBADF: no handle is open for writing."""
        return _valid(inode.file.writer if inode.file else -1)

    def any_fd(self, inode: Inode) -> int:
        """EBADF: there is no handle."""
        return _valid(inode.file.any_fd if inode.file else -1)

    def writing(self, inode: Inode) -> "_Writing":
        """A descriptor to cut the file with: that of its handles, or a temporary one (truncate(2) needs no handle).
        EAGAIN: another process has a lease on the file.

        Inside of it the file counts one handle more: a breaker may wait there, while the last handle closes.
        """
        if inode.file is not None and inode.file.writer >= 0:
            inode.file.opens += 1
            return _Writing(inode.file.writer, self, inode)
        with self.seal.lifted(inode):
            return _Writing(self._inodes.open(inode, os.O_WRONLY | os.O_NONBLOCK), self)

    def writing_by(self, fd: int) -> "_Writing":
        """The same with a descriptor that a thread has opened; it is closed at the end."""
        return _Writing(fd, self)

    def may_wait(self, inode: Inode) -> bool:
        """Whether the kernel may make a call wait without limit that cuts this file (`cuts_may_wait`)."""
        key = inode.key
        if type(key) is int or self.threads is not None:
            return self._source_may_wait
        device = self._inodes.stat(inode).st_dev
        known = self._may_wait.get(device)
        if known is None:
            known = self._may_wait[device] = cuts_may_wait(self._inodes.fd(inode))
            self._close_in_threads(known)
        return known

    def _close_in_threads(self, may_wait: bool) -> None:
        """On a source that is in memory or on a disk, closing stays as plain as it can be."""
        if may_wait:
            self._inodes.descriptors.close_elsewhere = self.evictions.close

    async def off_thread(self, call: Callable[..., T], *args: object) -> T:
        """Run what may wait for a disk in a thread of its own; on a backing in memory that would only cost time."""
        if self.in_memory:
            return call(*args)
        if self.threads is not None:
            return await self.threads.run(args, partial(call, *args))
        await park()
        return await trio.to_thread.run_sync(partial(call, *args))

    # Creating things that belong to the caller

    def creating_as(self, ctx: CallerLike) -> AbstractContextManager[None]:
        """What is created inside belongs to the caller (or the directory's group, where that is set-group-id)."""
        uid, gid, umask = ctx.uid, ctx.gid, ctx.umask
        if umask != self._umask:
            os.umask(umask)
            self._umask = umask
        return _AsCaller(uid, gid) if self._changes_owner and (uid or gid) else AS_IT_IS

    def owned_by(self, ctx: CallerLike) -> AbstractContextManager[None]:
        """The same in a thread, but for the umask, which all threads share."""
        if not self._changes_owner or not (ctx.uid or ctx.gid):
            return AS_IT_IS
        if not hasattr(_of_thread, "keeps_capabilities"):  # a thread may be older than the mount
            _of_thread.keeps_capabilities = syscalls.keep_capabilities_across_fs_ids()
        return _AsCaller(ctx.uid, ctx.gid)

    def lower_privileges(self) -> None:
        """Act as any user would: set-user-id bits are dropped when a file is written, and quotas hold.

        With passthrough the kernel writes with the daemon's capabilities in place of the writer's, so they must never
        be more than an ordinary user's. The price: root's writes drop the bits and keep to quotas as well.
        """
        self.privileges.lower(syscalls.CAP_FSETID, syscalls.CAP_SYS_RESOURCE)

    # The file system as a whole

    def statvfs(self, inode: Inode | None) -> os.statvfs_result:
        """statvfs(3) of the source, or of the submount that an inode lies on."""
        if inode is None or isinstance(inode.key, int):
            inode = self._inodes.root
        return os.fstatvfs(self._inodes.fd(inode))

    async def sync(self) -> None:
        """syncfs(2) of the source."""
        await self.off_thread(_sync, self._inodes.root.fd)

    # What the backing can do

    def must_support_fallocate(self, fd: int, mode: int) -> None:
        """EOPNOTSUPP where the backing does not know this mode: a holder is not bothered for a call that would fail."""
        key = os.fstat(fd).st_dev, mode
        if key not in self._fallocate_modes:
            self._fallocate_modes[key] = self._try_fallocate(mode)
        if not self._fallocate_modes[key]:
            raise os_error(errno.EOPNOTSUPP)

    def _try_fallocate(self, mode: int) -> bool:
        """Try it on an O_TMPFILE in the source; where the backing has none, the real call will tell."""
        with suppress(OSError):
            probe = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._inodes.root.fd)
            try:
                block = os.fstatvfs(probe).f_bsize
                os.ftruncate(probe, 4 * block)
                syscalls.fallocate(probe, mode, block, block)
            except OSError as e:
                return e.errno != errno.EOPNOTSUPP
            finally:
                os.close(probe)
        return True


def _sync(root_fd: int) -> None:
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)


# Classes rather than @contextmanager, which would cost more than what happens inside.


class _Writing:
    __slots__ = ("_backing", "_fd", "_inode")

    def __init__(self, fd: int, backing: Backing, inode: Inode | None = None) -> None:
        self._fd = fd
        self._backing = backing
        self._inode = inode

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._inode is None:
            self._backing.close_descriptor(self._fd)
        else:
            self._backing.release(self._inode)


class _Open:
    """A descriptor that is closed at the end."""

    __slots__ = ("_close", "_fd")

    def __init__(self, fd: int, close: Callable[[int], None]) -> None:
        self._fd = fd
        self._close = close

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._close(self._fd)


class _AsCaller:
    __slots__ = ("_gid", "_uid")

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid

    def __enter__(self) -> None:
        set_fs_ids(self._uid, self._gid)

    def __exit__(self, *_: object) -> None:
        set_fs_ids(0, 0)


def _valid(fd: int) -> int:
    if fd < 0:
        raise os_error(errno.EBADF)
    return fd
