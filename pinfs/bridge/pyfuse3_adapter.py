"""pyfuse3 on the connection itself, without the bridge (`bridge=off`): the same Operations, behind pyfuse3's types.

The adapter has every operation that pyfuse3 can carry. Only this module imports pyfuse3, and only a mount with
`bridge=off` imports this module.
"""

import errno
import logging
import os
import select
import signal
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, RequestContext, SetattrFields, StatvfsData

from pinfs.fs.handles import FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NONSEEKABLE
from pinfs.fs.operations import Operations
from pinfs.fs.types import Entry, Opened, SetAttr
from pinfs.runtime.errors import errno_of, logged

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("pinfs.bridge")

LOST_WITHOUT_BRIDGE: Final = (
    "no fallocate (holes cannot be punched), no pins by ioctl, no SEEK_HOLE, no passthrough, "
    "and a waiting breaker cannot be interrupted"
)
READ_S: Final = 0.25  # what a read(2) may wait for a request that was taken back
WATCH_S: Final = 1.0
MAX_TASKS: Final = 1 << 30
"""No limit: waiting breakers must never take the last task, and policy limits their number at run time."""


_TIMES: Final = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
_COPIED: Final = (
    "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks", *_TIMES
)  # fmt: skip
_STATVFS: Final = (
    "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax"
)  # fmt: skip


def _answer(
    method: Callable[Concatenate["Pyfuse3Adapter", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Pyfuse3Adapter", P], Coroutine[Any, Any, T]]:
    """What a handler raises becomes FUSEError, the one exception that does not end pyfuse3's main loop."""

    async def answered(self: "Pyfuse3Adapter", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as e:
            raise pyfuse3.FUSEError(errno_of(e, method.__name__)) from e

    update_wrapper(answered, method)
    return answered


class Pyfuse3Adapter(pyfuse3.Operations):
    """Converts arguments, results and errors between pyfuse3 and Operations.

    `enable_acl`: the backing has ACLs, and the kernel shall check them. flush is left out, so that it is answered
    ENOSYS. pyfuse3 does not say what a poll(2) asks for: each counts as one for POLLPRI.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, ops: Operations, *, enable_acl: bool = False) -> None:
        super().__init__()
        self.enable_acl = enable_acl
        self._ops = ops
        ops.needs_entries = True
        ops.directories.with_entries |= not ops.in_threads

    def _attributes(self, nodeid: int, st: os.stat_result) -> EntryAttributes:
        result = EntryAttributes()
        for name in _COPIED:
            setattr(result, name, getattr(st, name))
        result.st_ino = nodeid
        result.entry_timeout = self._ops.entry_timeout_s
        result.attr_timeout = self._ops.attr_timeout_s
        return result

    def _entry(self, entry: Entry) -> EntryAttributes:
        return self._attributes(entry.nodeid, entry.st)

    # Names

    @_answer
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """The kernel may remember for entry_timeout that a name does not exist: node id 0."""
        try:
            return self._entry(await self._ops.lookup(parent_inode, name, ctx))
        except FileNotFoundError:
            nothing = EntryAttributes()
            nothing.st_ino = 0
            nothing.entry_timeout = self._ops.entry_timeout_s
            return nothing

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        with logged("forget"):  # which has no reply, so that not even FUSEError may come out of it
            self._ops.forget(inode_list)

    @_answer
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ops.mknod(parent_inode, name, mode, rdev, ctx))

    @_answer
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ops.mkdir(parent_inode, name, mode, ctx))

    @_answer
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ops.symlink(parent_inode, name, target, ctx))

    @_answer
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._ops.link(inode, new_parent_inode, new_name, ctx))

    @_answer
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._ops.readlink(inode, ctx)

    @_answer
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._ops.unlink(parent_inode, name, ctx)

    @_answer
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._ops.rmdir(parent_inode, name, ctx)

    @_answer
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._ops.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    # Attributes

    @_answer
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(inode, await self._ops.getattr(inode, ctx))

    @_answer
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        return self._attributes(inode, await self._ops.setattr(inode, _changes(attr, fields), fh, ctx))

    @_answer
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        await self._ops.access(inode, mode, ctx)
        return True

    # Files

    @_answer
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        kill = bool(flags & os.O_TRUNC and ctx.uid)  # pyfuse3 does not pass on FUSE_OPEN_KILL_SUIDGID
        return _file_info(await self._ops.open(inode, flags, ctx, kill))

    @_answer
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        kill = bool(flags & os.O_TRUNC and ctx.uid)  # here the kernel does not tell
        opened, entry = await self._ops.create(parent_inode, name, mode, flags, ctx, kill_suidgid=kill)
        return _file_info(opened), self._entry(entry)

    @_answer
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._ops.read(fh, off, size)

    @_answer
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._ops.write(fh, off, buf)

    @_answer
    async def release(self, fh: int) -> None:
        await self._ops.release(fh)

    @_answer
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._ops.fsync(fh, datasync)

    @_answer
    async def poll(self, inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None, ctx: RequestContext) -> int:
        return await self._ops.poll(fh, select.POLLPRI, poll_handle.notify if poll_handle else None)

    # Directories

    @_answer
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return (await self._ops.opendir(inode, ctx)).fh

    @_answer
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        def add(name: bytes, next_offset: int, what: Entry | tuple[int, int]) -> bool:
            attributes = self._entry(what) if isinstance(what, Entry) else _bare(*what)
            return bool(pyfuse3.readdir_reply(token, name, attributes, next_offset))

        await self._ops.readdir(fh, start_id, True, add)

    @_answer
    async def releasedir(self, fh: int) -> None:
        await self._ops.releasedir(fh)

    @_answer
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._ops.fsyncdir(fh, datasync)

    # Extended attributes; pyfuse3 itself checks XATTR_CREATE and XATTR_REPLACE

    @_answer
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._ops.setxattr(inode, name, value, 0, ctx)

    @_answer
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await self._ops.getxattr(inode, name, ctx)

    @_answer
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return await self._ops.listxattr(inode, ctx)

    @_answer
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._ops.removexattr(inode, name, ctx)

    # The file system

    @_answer
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = await self._ops.statfs(ctx)
        result = StatvfsData()
        for name in _STATVFS:
            setattr(result, name, getattr(answer, name))
        return result


def _file_info(opened: Opened) -> FileInfo:
    return FileInfo(
        fh=opened.fh,
        direct_io=bool(opened.flags & FOPEN_DIRECT_IO),
        keep_cache=bool(opened.flags & FOPEN_KEEP_CACHE),
        nonseekable=bool(opened.flags & FOPEN_NONSEEKABLE),
    )


def _bare(ino: int, kind: int) -> EntryAttributes:
    """`.` and `..`: no lookup, only a number and a type."""
    result = EntryAttributes()
    result.st_ino = ino
    result.st_mode = kind << 12
    return result


def _changes(attr: EntryAttributes, fields: SetattrFields) -> SetAttr:
    return SetAttr(
        mode=attr.st_mode if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        size=attr.st_size if fields.update_size else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
    )


class _TooLate(logging.Filter):
    """Drops what pyfuse3 logs as an error when the mount has ended, or the caller has, before its reply: ENOENT of
    write(2) on /dev/fuse."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().endswith(f"fuse_reply_* failed with {os.strerror(errno.ENOENT)}")


_TOO_LATE: Final = _TooLate()


class Plain:
    """The transport that is pyfuse3 alone. RuntimeError, OSError: libfuse does not take the connection."""

    usable = True  # libfuse does not tell when INIT has been answered
    unusable_because = ""

    def __init__(self, fd: int, ops: Operations, *, posix_acl: bool) -> None:
        self._poll = select.poll()
        self._poll.register(fd, 0)
        os.set_blocking(fd, True)  # EAGAIN of a read would end pyfuse3.main: see _reads_interrupted
        logging.getLogger("pyfuse3").addFilter(_TOO_LATE)
        pyfuse3.init(Pyfuse3Adapter(ops, enable_acl=posix_acl), f"/dev/fd/{fd}", set())

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until the connection ends."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_connection, nursery.cancel_scope)
            with _reads_interrupted():
                await pyfuse3.main(1, MAX_TASKS)
            nursery.cancel_scope.cancel()

    async def _watch_connection(self, serving: trio.CancelScope) -> None:
        """pyfuse3.main does not return before its last handler does, and a handler may wait for a holder's answer."""
        while not self._poll.poll(0):  # POLLERR: the connection is over
            await trio.sleep(WATCH_S)
        serving.cancel()

    def wake_pollers(self, numbers: Iterable[int]) -> None:
        """pyfuse3 takes no connection over."""

    def knows(self, nodeid: int) -> bool:
        """Nor does it ask."""
        return True

    def close(self) -> None:
        """Let go of the connection: libfuse closes the descriptor."""
        pyfuse3.close(unmount=False)


@contextmanager
def _reads_interrupted() -> Iterator[None]:
    """No read(2) of the connection blocks the event loop for longer than READ_S.

    The kernel takes back the request of a caller that is killed. Where that happens between pyfuse3's poll(2) and its
    read(2), the read finds nothing: with O_NONBLOCK pyfuse3 would take EAGAIN for the end of the mount, and without it
    the read waits for the next request, with the interpreter's lock held. EINTR, which a timer brings, is all that
    pyfuse3 goes on after.
    """
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, READ_S, READ_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
