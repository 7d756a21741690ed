"""What the bridge answers: decode a request, call the operation, encode the reply. One short function each.

The table at the end has all opcodes but INIT and INTERRUPT, which the dispatcher answers itself. An opcode that is not
in the table is answered ENOSYS, and the kernel never sends it again: unknown opcodes, and FLUSH, because nothing has to
be done when one of the descriptors of a handle is closed.

A handler returns the body of the reply, or None for requests that get none. It must have taken everything out of `body`
before it waits for a OneShot; a slice of `body` stays valid in a task, because the dispatcher leaves the buffer to a
handler that becomes one.
"""

import errno
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from pinfs.bridge import wire
from pinfs.fs.operations import Operations
from pinfs.fs.types import Caller, Entry, Opened, make_caller

Work = Coroutine[Any, Any, bytes | None]
Handler = Callable[[int, Caller, memoryview], Work]
EntryOut = Callable[[Entry, tuple[int, int], tuple[int, int]], bytes]
MAX_COPY: Final = 0x7FFF_F000  # bytes: COPY_FILE_RANGE answers in 32 bits


class Route(NamedTuple):
    """A handler, and the least that its request holds, in bytes, header included."""

    handler: Handler
    shortest: int


class PollWake:
    """Wakes the pollers of the file that the kernel numbers `kh`, so that it asks again.

    The kernel takes no inode's lock then (fuse_notify_poll_wakeup): it may be called inside any handler.
    """

    __slots__ = ("_notify", "kh")

    def __init__(self, notify: Callable[[bytes], None], kh: int) -> None:
        self._notify = notify
        self.kh = kh

    def __call__(self) -> None:
        self._notify(wire.OUT_HEADER.pack(wire.OUT_SIZE + 8, wire.NOTIFY_POLL, 0) + wire.U64.pack(self.kh))


class Handlers:
    """The handlers of one mount. `notify` writes an unsolicited message to the kernel."""

    def __init__(self, ops: Operations, notify: Callable[[bytes], None]) -> None:
        self._ops = ops
        self._notify = notify
        self.entry_valid = wire.seconds(ops.entry_timeout_s)
        self.attr_valid = wire.seconds(ops.attr_timeout_s)
        self._entry_out: EntryOut = wire.entry_out
        self.uncached = ops.uncached
        self.exports = ops.exports
        ops.uncached.on_entered = lambda nodeid: notify(wire.forget_attributes(nodeid))
        self._nothing = wire.no_entry_out(self.entry_valid)

    @property
    def directory_flags(self) -> int:
        """FOPEN_* of open directories."""
        return self._ops.directory_flags

    def _valid(self, nodeid: int) -> tuple[int, int]:
        """How long the kernel may cache the attributes of an inode (see `UncachedFiles`)."""
        return wire.A_TICK if nodeid in self.uncached else self.attr_valid

    # Names

    async def lookup(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        try:
            entry = await self._ops.lookup(nodeid, wire.name_of(body), ctx)
        except FileNotFoundError:
            return self._nothing
        return self._entry_out(entry, self.entry_valid, self._valid(entry.nodeid))

    async def forget(self, nodeid: int, ctx: Caller, body: memoryview) -> None:
        self._ops.forget([(nodeid, *wire.U64.unpack_from(body))])

    async def batch_forget(self, nodeid: int, ctx: Caller, body: memoryview) -> None:
        count, _ = wire.BATCH_FORGET_IN.unpack_from(body)
        self._ops.forget(wire.FORGET_ONE.iter_unpack(_exactly(body[8:], count * wire.FORGET_ONE.size)))

    async def mknod(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        mode, rdev, umask, _ = wire.MKNOD_IN.unpack_from(body)
        entry = await self._ops.mknod(nodeid, wire.name_of(body, 16), mode, rdev, _with_umask(ctx, umask))
        return self._entry_out(entry, self.entry_valid, self.attr_valid)

    async def mkdir(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        mode, umask = wire.MKDIR_IN.unpack_from(body)
        entry = await self._ops.mkdir(nodeid, wire.name_of(body, 8), mode, _with_umask(ctx, umask))
        return self._entry_out(entry, self.entry_valid, self.attr_valid)

    async def symlink(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        name, target = wire.names_of(body, 0)
        entry = await self._ops.symlink(nodeid, name, target, ctx)
        return self._entry_out(entry, self.entry_valid, self.attr_valid)

    async def link(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        (old_nodeid,) = wire.U64.unpack_from(body)
        entry = await self._ops.link(old_nodeid, nodeid, wire.name_of(body, 8), ctx)
        return self._entry_out(entry, self.entry_valid, self._valid(entry.nodeid))

    async def readlink(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        return await self._ops.readlink(nodeid, ctx)

    async def unlink(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        await self._ops.unlink(nodeid, wire.name_of(body), ctx)
        return b""

    async def rmdir(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        await self._ops.rmdir(nodeid, wire.name_of(body), ctx)
        return b""

    async def rename(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        (new_parent,) = wire.U64.unpack_from(body)
        name, new_name = wire.names_of(body, 8)
        await self._ops.rename(nodeid, name, new_parent, new_name, 0, ctx)
        return b""

    async def rename2(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        new_parent, flags, _ = wire.RENAME2_IN.unpack_from(body)
        name, new_name = wire.names_of(body, 16)
        await self._ops.rename(nodeid, name, new_parent, new_name, flags, ctx)
        return b""

    # Attributes

    async def getattr(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        flags, _, fh = wire.GETATTR_IN.unpack_from(body)
        st = await self._ops.getattr(nodeid, ctx, fh if flags & wire.GETATTR_FH else None)
        return wire.attr_out(nodeid, st, self._valid(nodeid))

    async def setattr(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        changes, fh = wire.attributes(wire.SETATTR_IN.unpack_from(body))
        st = await self._ops.setattr(nodeid, changes, fh, ctx)
        return wire.attr_out(nodeid, st, self._valid(nodeid))

    async def statx(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        flags, _, fh, _, _ = wire.STATX_IN.unpack_from(body)
        st, btime_ns = await self._ops.statx_btime(nodeid, fh if flags & wire.GETATTR_FH else None)
        return wire.statx_out(nodeid, st, btime_ns, self._valid(nodeid))

    async def access(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        mask, _ = wire.ACCESS_IN.unpack_from(body)
        await self._ops.access(nodeid, mask, ctx)
        return b""

    # Files

    async def open(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        flags, open_flags = wire.OPEN_IN.unpack_from(body)
        return wire.open_out(await self._ops.open(nodeid, flags, ctx, bool(open_flags & wire.OPEN_KILL_SUIDGID)))

    async def create(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        flags, mode, umask, open_flags = wire.CREATE_IN.unpack_from(body)
        name, kill = wire.name_of(body, 16), bool(open_flags & wire.OPEN_KILL_SUIDGID)
        return self.created(
            *await self._ops.create(nodeid, name, mode, flags, _with_umask(ctx, umask), kill_suidgid=kill)
        )

    async def tmpfile(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
        return self.created(*await self._ops.tmpfile(nodeid, mode, flags, _with_umask(ctx, umask)))

    def created(self, opened: Opened, entry: Entry) -> bytes:
        """The reply to CREATE and TMPFILE."""
        return self._entry_out(entry, self.entry_valid, self._valid(entry.nodeid)) + wire.open_out(opened)

    async def read(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        fh, offset, size, *_ = wire.READ_IN.unpack_from(body)
        return await self._ops.read(fh, offset, size, ctx[4])

    async def write(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        fh, offset, size, flags, *_ = wire.WRITE_IN.unpack_from(body)
        data = _exactly(body[wire.WRITE_IN.size :], size)
        kill = bool(flags & wire.WRITE_KILL_SUIDGID)
        written = await self._ops.write(fh, offset, data, kill_suidgid=kill, unique=ctx[4])
        return wire.WRITE_OUT.pack(written, 0)

    async def release(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        await self._ops.release(wire.RELEASE_IN.unpack_from(body)[0])
        return b""

    async def fsync(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
        await self._ops.fsync(fh, bool(flags & wire.FSYNC_FDATASYNC))
        return b""

    async def fallocate(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        fh, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
        await self._ops.fallocate(fh, mode, offset, length, ctx)
        return b""

    async def lseek(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        fh, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
        return wire.U64.pack(await self._ops.lseek(fh, offset, whence))

    async def copy_file_range(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        return wire.WRITE_OUT.pack(await self._copy(ctx, body), 0)

    async def copy_file_range_64(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        return wire.U64.pack(await self._copy(ctx, body))

    async def _copy(self, ctx: Caller, body: memoryview) -> int:
        fh_in, off_in, _, fh_out, off_out, length, _ = wire.COPY_FILE_RANGE_IN.unpack_from(body)
        return await self._ops.copy_file_range(fh_in, off_in, fh_out, off_out, min(length, MAX_COPY), ctx)

    async def ioctl(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        """The restricted form: the number of the command says how much data goes each way."""
        fh, flags, cmd, _, in_size, out_size = wire.IOCTL_IN.unpack_from(body)
        if flags & wire.IOCTL_UNRESTRICTED:  # for CUSE only
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        data = _exactly(body[wire.IOCTL_IN.size :], in_size).tobytes()
        answer = await self._ops.ioctl(fh, cmd, data, out_size, ctx)
        return wire.IOCTL_OUT.pack(0, 0, 0, 0) + answer[:out_size]

    async def poll(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        fh, kh, flags, events = wire.POLL_IN.unpack_from(body)
        wake = PollWake(self._notify, kh) if flags & wire.POLL_SCHEDULE_NOTIFY else None
        return wire.POLL_OUT.pack(await self._ops.poll(fh, events, wake), 0)

    # Directories

    async def opendir(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        return wire.open_out(await self._ops.opendir(nodeid, ctx))

    async def readdir(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        return await self._listing(body, ctx, plus=False)

    async def readdirplus(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        return await self._listing(body, ctx, plus=True)

    async def _listing(self, body: memoryview, ctx: Caller, plus: bool) -> bytes:
        fh, offset, size, *_ = wire.READ_IN.unpack_from(body)
        listing = wire.Listing(size, plus, self.entry_valid, self._valid, self._entry_out)
        await self._ops.readdir(fh, offset, plus, listing.add, ctx.unique)
        return b"".join(listing.parts)

    async def releasedir(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        await self._ops.releasedir(wire.RELEASE_IN.unpack_from(body)[0])
        return b""

    async def fsyncdir(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
        await self._ops.fsyncdir(fh, bool(flags & wire.FSYNC_FDATASYNC))
        return b""

    # Extended attributes

    async def setxattr(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        size, flags = wire.SETXATTR_IN.unpack_from(body)
        name, value = _name_and_value(body[8:], size)
        await self._ops.setxattr(nodeid, name, value, flags, ctx)
        return b""

    async def setxattr_ext(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        """SETXATTR in its long form."""
        size, flags, more, _ = wire.SETXATTR_EXT_IN.unpack_from(body)
        name, value = _name_and_value(body[16:], size)
        await self._ops.setxattr(nodeid, name, value, flags, ctx, kill_sgid=more & wire.SETXATTR_ACL_KILL_SGID != 0)
        return b""

    async def getxattr(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        return sized(await self._ops.getxattr(nodeid, wire.name_of(body, 8), ctx, size), size)

    async def listxattr(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        names = await self._ops.listxattr(nodeid, ctx)
        return sized(b"".join([name + b"\0" for name in names]), size)

    async def removexattr(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        await self._ops.removexattr(nodeid, wire.name_of(body), ctx)
        return b""

    # The file system

    async def statfs(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        return wire.statfs_out(await self._ops.statfs(ctx, nodeid))

    async def syncfs(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        await self._ops.syncfs(nodeid)
        return b""

    async def destroy(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        """The kernel sends it at the unmount of a block device only (fuse_conn_destroy), and waits for the reply."""
        return b""

    def on_foreign(self, opcode: int, nodeid: int, work: Work) -> Work:
        """For requests on node ids from FOREIGN_IDS up: a file system that does not answer holds up its own only."""
        if opcode in NEVER_WAIT or self._ops.in_threads or not self._ops.submounts.may_hang(nodeid):
            return work
        return self._after_answer(nodeid, work)

    async def _after_answer(self, nodeid: int, work: Work) -> bytes | None:
        try:
            await self._ops.submounts.reach(nodeid)
        except BaseException:
            work.close()
            raise
        return await work

    def route_of_setxattr_ext(self) -> Route:
        """For SETXATTR, where SETXATTR_EXT is negotiated."""
        return Route(self.setxattr_ext, wire.IN_SIZE + wire.SETXATTR_EXT_IN.size + 2)

    def routes(self) -> dict[int, Route]:
        """Opcode to handler, with the least that the body of a request holds, in bytes."""
        shortest_bodies: dict[int, tuple[Handler, int]] = {
            wire.LOOKUP: (self.lookup, 2),
            wire.FORGET: (self.forget, 8),
            wire.BATCH_FORGET: (self.batch_forget, wire.BATCH_FORGET_IN.size),
            wire.GETATTR: (self.getattr, wire.GETATTR_IN.size),
            wire.SETATTR: (self.setattr, wire.SETATTR_IN.size),
            wire.STATX: (self.statx, wire.STATX_IN.size),
            wire.ACCESS: (self.access, wire.ACCESS_IN.size),
            wire.MKNOD: (self.mknod, wire.MKNOD_IN.size + 2),
            wire.MKDIR: (self.mkdir, wire.MKDIR_IN.size + 2),
            wire.SYMLINK: (self.symlink, 4),
            wire.LINK: (self.link, 8 + 2),
            wire.READLINK: (self.readlink, 0),
            wire.UNLINK: (self.unlink, 2),
            wire.RMDIR: (self.rmdir, 2),
            wire.RENAME: (self.rename, 8 + 4),
            wire.RENAME2: (self.rename2, wire.RENAME2_IN.size + 4),
            wire.OPEN: (self.open, wire.OPEN_IN.size),
            wire.CREATE: (self.create, wire.CREATE_IN.size + 2),
            wire.TMPFILE: (self.tmpfile, wire.CREATE_IN.size),
            wire.READ: (self.read, wire.READ_IN.size),
            wire.WRITE: (self.write, wire.WRITE_IN.size),
            wire.RELEASE: (self.release, wire.RELEASE_IN.size),
            wire.FSYNC: (self.fsync, wire.FSYNC_IN.size),
            wire.FALLOCATE: (self.fallocate, wire.FALLOCATE_IN.size),
            wire.LSEEK: (self.lseek, wire.LSEEK_IN.size),
            wire.COPY_FILE_RANGE: (self.copy_file_range, wire.COPY_FILE_RANGE_IN.size),
            wire.COPY_FILE_RANGE_64: (self.copy_file_range_64, wire.COPY_FILE_RANGE_IN.size),
            wire.IOCTL: (self.ioctl, wire.IOCTL_IN.size),
            wire.POLL: (self.poll, wire.POLL_IN.size),
            wire.OPENDIR: (self.opendir, wire.OPEN_IN.size),
            wire.READDIR: (self.readdir, wire.READ_IN.size),
            wire.READDIRPLUS: (self.readdirplus, wire.READ_IN.size),
            wire.RELEASEDIR: (self.releasedir, wire.RELEASE_IN.size),
            wire.FSYNCDIR: (self.fsyncdir, wire.FSYNC_IN.size),
            wire.SETXATTR: (self.setxattr, wire.SETXATTR_IN.size + 2),
            wire.GETXATTR: (self.getxattr, wire.GETXATTR_IN.size + 2),
            wire.LISTXATTR: (self.listxattr, wire.GETXATTR_IN.size),
            wire.REMOVEXATTR: (self.removexattr, 2),
            wire.STATFS: (self.statfs, 0),
            wire.SYNCFS: (self.syncfs, 0),
            wire.DESTROY: (self.destroy, 0),
        }
        return {
            opcode: Route(handler, wire.IN_SIZE + shortest) for opcode, (handler, shortest) in shortest_bodies.items()
        }


def _unknown(nodeid: int, ctx: Caller, body: memoryview) -> Work:
    raise AssertionError("no request is as long as that")


NO_ROUTE: Final = Route(_unknown, sys.maxsize)
"""For opcodes that no handler answers."""

UNANSWERED: Final = frozenset({wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT, wire.NOTIFY_REPLY})
"""Requests that get no reply."""


NEVER_WAIT: Final = UNANSWERED | {wire.RELEASE, wire.RELEASEDIR}


def _with_umask(ctx: Caller, umask: int) -> Caller:
    return make_caller((ctx[0], ctx[1], ctx[2], umask, ctx[4]))


def _exactly(data: memoryview, size: int) -> memoryview:
    """EINVAL: the request holds less or more than it says."""
    if len(data) != size:
        raise OSError(errno.EINVAL, "not as many bytes as announced")
    return data


def _name_and_value(text: memoryview, size: int) -> tuple[bytes, bytes]:
    """EINVAL: not a NUL-terminated name and `size` bytes."""
    name, end, value = text.tobytes().partition(b"\0")
    if not end or len(value) != size:
        raise OSError(errno.EINVAL, "not a name and a value")
    return name, value


def sized(value: bytes, size: int) -> bytes:
    """The reply to GETXATTR and LISTXATTR: the value, or how large it is when the caller only asks. ERANGE."""
    if not size:
        return wire.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value
