"""The loop that reads requests, and the fast path: requests that are answered by plain functions.

Between two requests the caller's program runs, and fills the caches with what is its own: each step of the interpreter
costs some 15 ns then. So nothing is made for a request that its reply does not need: no coroutine, no tuple, no view of
the buffer. Each handler here decodes a request, calls `FastOperations` and sends the reply; where it answers False, the
request has changed nothing, and goes the way of all others (`pinfs.bridge.handlers`).
"""

from collections.abc import Callable, Sized
from typing import Final

from pinfs.bridge import wire
from pinfs.bridge.channel import Channel
from pinfs.bridge.handlers import Handlers, sized
from pinfs.bridge.wire import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_TIMES,
    FATTR_UID,
    FOPEN_NOFLUSH,
    FOPEN_PASSTHROUGH,
    FSYNC_FDATASYNC,
    IN_SIZE,
    OPEN_KILL_SUIDGID,
    WRITE_KILL_SUIDGID,
)
from pinfs.fs.fast import FastOperations
from pinfs.fs.handles import FileHandle
from pinfs.fs.inode import Inode
from pinfs.fs.removals import JudgedTruncate
from pinfs.interface.attributes import PREFIX
from pinfs.linux.calls import NOW, clock
from pinfs.runtime.parking import OneShot

_OPCODES: Final = 64
_S: Final = 1_000_000_000  # nanoseconds
_CHANGES: Final = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_TIMES | FATTR_KILL_SUIDGID
_TICK_S, _TICK_NS = wire.A_TICK
_PASSTHROUGH: Final = FOPEN_PASSTHROUGH | FOPEN_NOFLUSH
_RENAME2_IN: Final = wire.RENAME2_IN.size
_SETXATTR_IN: Final = wire.SETXATTR_IN.size
_WRITE_IN: Final = wire.WRITE_IN.size


class Flag:
    """Something that is to be noticed soon."""

    __slots__ = ("yes",)

    def __init__(self) -> None:
        self.yes = False


class Loop:
    """Reads requests and has them answered: by `fast`, or else by `slow(size)`. `read_failed(errno)` raises where there
    will be no more requests. `woken`: trio is to have its turn. `resumable`: handlers that are to be resumed, by
    `resume`."""

    def __init__(
        self,
        channel: Channel,
        slow: Callable[[int], None],
        read_failed: Callable[[int], None],
        woken: Flag,
        resumable: Sized,
        resume: Callable[[], None],
    ) -> None:
        self.fast: FastHandlers | None = None
        """None: the fast path may not be used (now)."""
        self.answered_fast = 0
        """Requests since this was last set to 0."""
        self._channel = channel
        self._slow = slow
        self._read_failed = read_failed
        self._woken = woken
        self._resumable = resumable
        self._resume = resume

    def run(self, turn_ms: int) -> bool:
        """Answer requests until there are no more (False) or trio should get a turn (True)."""
        channel, woken, resumable = self._channel, self._woken, self._resumable
        until = clock() + turn_ms / 1000
        wait_ms = 0  # trio comes first: another of its tasks may be waited for
        while True:
            got = channel.take(wait_ms)
            if not got:
                return False
            wait_ms = turn_ms
            if got < 0:
                self._read_failed(channel.error)
                continue
            fast = self.fast
            if fast is not None and fast.answer():
                self.answered_fast += 1
            else:
                self._slow(channel.size)
            if resumable:
                self._resume()
            if woken.yes or clock() > until:
                return True


class _WaitingTruncate:
    """What is left of a request that waits: the dispatcher resumes it like a coroutine, and ends it like one."""

    __slots__ = ("_handlers", "_truncate")

    def __init__(self, handlers: "FastHandlers", truncate: JudgedTruncate) -> None:
        self._handlers = handlers
        self._truncate = truncate

    def send(self, value: None) -> None:
        """Its turn has come: StopIteration has the reply."""
        self._truncate.cut()
        raise StopIteration(self._handlers.reply_of(self._truncate.inode))

    def throw(self, failure: BaseException) -> None:
        """The caller was interrupted."""
        self._truncate.leave()
        raise failure

    def close(self) -> None:
        """The connection ends."""
        self._truncate.leave()


class FastHandlers:
    """`handlers`: those of all other requests, which know how long the kernel may remember what. `failed(e)` answers a
    request whose handler has raised; `undelivered()` hears of a reply that the kernel did not take. `park(work, event)`
    keeps the rest of the request until the event is set.
    """

    def __init__(
        self,
        channel: Channel,
        ops: FastOperations,
        handlers: Handlers,
        failed: Callable[[BaseException], None],
        undelivered: Callable[[], None],
        park: Callable[["_WaitingTruncate", OneShot], None],
    ) -> None:
        self.setxattr_at = _SETXATTR_IN
        """Where the name of a SETXATTR begins, in bytes of the body."""
        self._channel = channel
        self._ops = ops
        self._exports = handlers.exports
        self._uncached = handlers.uncached
        self._entry_s, self._entry_ns = handlers.entry_valid
        self._attr_s, self._attr_ns = handlers.attr_valid
        self._directory_flags = handlers.directory_flags | FOPEN_NOFLUSH
        self._failed = failed
        self._undelivered = undelivered
        self._park = park
        self._handlers: list[Callable[[], bool] | None] = [None] * _OPCODES
        self._shortest = [0] * _OPCODES
        for opcode, (handler, shortest) in self._table().items():
            self._handlers[opcode] = handler
            self._shortest[opcode] = IN_SIZE + shortest

    def answer(self) -> bool:
        """Whether the request has been answered."""
        channel, ops = self._channel, self._ops
        opcode = channel.opcode
        if opcode >= _OPCODES:
            return False
        handler = self._handlers[opcode]
        if handler is None or channel.size < self._shortest[opcode]:
            return False
        try:
            answered = handler()
        except Exception as e:
            ops.drop_intent(channel)
            self._failed(e)
            return True
        if not answered:
            ops.drop_intent(channel)
            return False
        if channel.error:
            self._undelivered()
        return True

    def _table(self) -> dict[int, tuple[Callable[[], bool], int]]:
        """Opcode to handler, with the least that the body of a request holds, in bytes."""
        return {
            wire.LOOKUP: (self.lookup, 2),
            wire.FORGET: (self.forget, 8),
            wire.MKDIR: (self.mkdir, wire.MKDIR_IN.size + 2),
            wire.SYMLINK: (self.symlink, 4),
            wire.LINK: (self.link, 8 + 2),
            wire.UNLINK: (self.unlink, 2),
            wire.RMDIR: (self.rmdir, 2),
            wire.RENAME: (self.rename, 8 + 4),
            wire.RENAME2: (self.rename2, wire.RENAME2_IN.size + 4),
            wire.GETATTR: (self.getattr, wire.GETATTR_IN.size),
            wire.SETATTR: (self.setattr, wire.SETATTR_IN.size),
            wire.OPEN: (self.open, wire.OPEN_IN.size),
            wire.CREATE: (self.create, wire.CREATE_IN.size + 2),
            wire.RELEASE: (self.release, wire.RELEASE_IN.size),
            wire.READ: (self.read, wire.READ_IN.size),
            wire.WRITE: (self.write, wire.WRITE_IN.size),
            wire.STATFS: (self.statfs, 0),
            wire.FSYNC: (self.fsync, wire.FSYNC_IN.size),
            wire.OPENDIR: (self.opendir, wire.OPEN_IN.size),
            wire.SETXATTR: (self.setxattr, wire.SETXATTR_IN.size + 2),
            wire.GETXATTR: (self.getxattr, wire.GETXATTR_IN.size + 2),
            wire.REMOVEXATTR: (self.removexattr, 2),
        }

    # Names

    def lookup(self) -> bool:
        channel = self._channel
        inode = self._ops.lookup(channel.nodeid, channel.name(0), channel)
        if inode is not None:
            return self._entry(inode)
        return self._ops.is_missing and channel.no_entry(self._entry_s, self._entry_ns)

    def _entry(self, inode: Inode, handle: FileHandle | None = None) -> bool:
        """The reply with the attributes that the operation has found; `handle`: and with one of this file."""
        channel, ops, nodeid, generation = self._channel, self._ops, inode.nodeid, 0
        if self._exports is not None:
            generation = self._exports.generation(nodeid)
        attr_s, attr_ns = self._attr_s, self._attr_ns
        if nodeid in self._uncached:
            attr_s, attr_ns = _TICK_S, _TICK_NS
        if handle is None:
            return channel.entry(nodeid, generation, ops.st, self._entry_s, self._entry_ns, attr_s, attr_ns)
        backing_id = ops.backing_id(inode)
        return channel.created(
            nodeid, generation, ops.st, self._entry_s, self._entry_ns, attr_s, attr_ns,
            handle.number, self._open_flags(handle, backing_id, True), backing_id,
        )  # fmt: skip

    def forget(self) -> bool:
        channel = self._channel
        self._ops.forget(channel.nodeid, channel.u64(0))
        return True

    def mkdir(self) -> bool:
        channel = self._channel
        channel.umask = channel.u32(4)
        inode = self._ops.mkdir(channel.nodeid, channel.name(8), channel.u32(0), channel)
        return inode is not None and self._entry(inode)

    def symlink(self) -> bool:
        channel = self._channel
        name, target = channel.two(0)
        if b"/" in name or not target:
            return False
        inode = self._ops.symlink(channel.nodeid, name, target, channel)
        return inode is not None and self._entry(inode)

    def link(self) -> bool:
        channel = self._channel
        inode = self._ops.link(channel.u64(0), channel.nodeid, channel.name(8), channel)
        return inode is not None and self._entry(inode)

    def unlink(self) -> bool:
        channel = self._channel
        return self._ops.unlink(channel.nodeid, channel.name(0), channel) and channel.done()

    def rmdir(self) -> bool:
        channel = self._channel
        return self._ops.rmdir(channel.nodeid, channel.name(0), channel) and channel.done()

    def rename(self) -> bool:
        return self._rename(8, 0)

    def rename2(self) -> bool:
        return self._rename(_RENAME2_IN, self._channel.u32(8))

    def _rename(self, names_at: int, flags: int) -> bool:
        channel = self._channel
        name, new_name = channel.two(names_at)
        if b"/" in name or b"/" in new_name:
            return False
        return self._ops.rename(channel.nodeid, name, channel.u64(0), new_name, flags, channel) and channel.done()

    # Attributes

    def getattr(self) -> bool:
        inode = self._ops.getattr(self._channel.nodeid)
        return inode is not None and self._attributes(inode)

    def _attributes(self, inode: Inode) -> bool:
        nodeid = inode.nodeid
        if nodeid in self._uncached:
            return self._channel.attributes(nodeid, self._ops.st, _TICK_S, _TICK_NS)
        return self._channel.attributes(nodeid, self._ops.st, self._attr_s, self._attr_ns)

    def setattr(self) -> bool:
        """One change at a time; chown(2) is none of them."""
        channel, ops = self._channel, self._ops
        valid = channel.u32(0) & _CHANGES
        if valid == FATTR_SIZE:
            return self._truncate(channel.u64(16))
        if valid == FATTR_MODE:
            inode = ops.chmod(channel.nodeid, channel.u32(68))
        elif valid and not valid & ~FATTR_TIMES:
            atime_ns = self._time(valid & FATTR_ATIME, valid & FATTR_ATIME_NOW, 32, 56)
            mtime_ns = self._time(valid & FATTR_MTIME, valid & FATTR_MTIME_NOW, 40, 60)
            inode = ops.utimes(channel.nodeid, atime_ns, mtime_ns)
        else:
            return False
        return inode is not None and self._attributes(inode)

    def _truncate(self, size: int) -> bool:
        channel, ops = self._channel, self._ops
        inode = ops.truncate(channel.nodeid, size, channel)
        if inode is None:
            if channel.u32(0) & FATTR_FH:
                return False
            truncate = ops.judge_truncate(channel.nodeid, size, channel)
            if truncate is None:
                return False
            turn = OneShot()
            if truncate.waits(turn.set):
                self._park(_WaitingTruncate(self, truncate), turn)
                return True
            truncate.cut()
            return channel.data(self.reply_of(truncate.inode))
        return self._attributes(inode)

    def reply_of(self, inode: Inode) -> bytes:
        """The attributes of an inode, for a request that is answered later."""
        valid = wire.A_TICK if inode.nodeid in self._uncached else (self._attr_s, self._attr_ns)
        return wire.attr_out(inode.nodeid, self._ops.stat(inode), valid)

    def _time(self, is_set: int, is_now: int, seconds_at: int, nanoseconds_at: int) -> int | None:
        if is_now:
            return NOW
        return self._channel.i64(seconds_at) * _S + self._channel.u32(nanoseconds_at) if is_set else None

    # Files

    def open(self) -> bool:
        channel = self._channel
        kill_suidgid = channel.u32(4) & OPEN_KILL_SUIDGID != 0
        handle = self._ops.open(channel.nodeid, channel.u32(0), kill_suidgid, channel)
        if handle is None:
            return False
        backing_id = self._ops.backing_id(handle.inode)
        return channel.opened(handle.number, self._open_flags(handle, backing_id, False), backing_id)

    def _open_flags(self, handle: FileHandle, backing_id: int, with_entry: bool) -> int:
        if backing_id:
            return _PASSTHROUGH
        return self._ops.cache_flags(handle.inode, with_entry) | FOPEN_NOFLUSH

    def create(self) -> bool:
        channel = self._channel
        channel.umask = channel.u32(8)
        kill_suidgid = channel.u32(12) & OPEN_KILL_SUIDGID != 0
        handle = self._ops.create(
            channel.nodeid, channel.name(16), channel.u32(4), channel.u32(0), kill_suidgid, channel
        )
        return handle is not None and self._entry(handle.inode, handle)

    def release(self) -> bool:
        return self._ops.release(self._channel.u64(0)) and self._channel.done()

    def read(self) -> bool:
        channel = self._channel
        data = self._ops.read(channel.u64(0), channel.i64(8), channel.u32(16))
        return data is not None and channel.data(data)

    def write(self) -> bool:
        channel, size = self._channel, self._channel.u32(16)
        if channel.u32(20) & WRITE_KILL_SUIDGID or channel.size != IN_SIZE + _WRITE_IN + size:
            return False
        written = self._ops.write(channel.u64(0), channel.i64(8), channel.view(_WRITE_IN))
        return written >= 0 and channel.data(wire.WRITE_OUT.pack(written, 0))

    def statfs(self) -> bool:
        st = self._ops.statfs(self._channel.nodeid)
        return st is not None and self._channel.data(wire.statfs_out(st))

    def fsync(self) -> bool:
        channel = self._channel
        return self._ops.fsync(channel.u64(0), channel.u32(8) & FSYNC_FDATASYNC != 0) and channel.done()

    def opendir(self) -> bool:
        fh = self._ops.opendir(self._channel.nodeid, self._channel)
        return fh != 0 and self._channel.opened(fh, self._directory_flags, 0)

    # Extended attributes

    def setxattr(self) -> bool:
        channel, at = self._channel, self.setxattr_at
        if at > _SETXATTR_IN and channel.u32(8):
            return False
        name, value = channel.name_and_value(at, channel.u32(0))
        if not name:
            return False
        return self._ops.setxattr(channel.nodeid, name, value, channel.u32(4), channel) and channel.done()

    def getxattr(self) -> bool:
        channel, size = self._channel, self._channel.u32(0)
        name = channel.name(8)
        if name.startswith(PREFIX):
            text = self._ops.pin_text(channel.nodeid, name, size, channel)
            return text is not None and channel.data(sized(text, size))
        where = self._ops.getxattr(channel.nodeid) if name else None
        return where is not None and channel.attribute(where, name, size)

    def removexattr(self) -> bool:
        channel = self._channel
        name = channel.name(0)
        return name != b"" and self._ops.removexattr(channel.nodeid, name, channel) and channel.done()
