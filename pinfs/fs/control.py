"""The control directory `.pinfs` in the root of the mount: can be looked up, is not listed (SPEC 7)."""

import errno
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import trio

from pinfs.fs.directories import DT_DIR, DT_REG, Add
from pinfs.fs.events import EventQueue, ReadLimit
from pinfs.fs.handles import FOPEN_DIRECT_IO, FOPEN_NONSEEKABLE, FOPEN_STREAM, ByteHandle, Handle, Wake
from pinfs.fs.inodes import ROOT_ID, Inode, stale
from pinfs.fs.types import CallerLike, Entry, SetAttr
from pinfs.interface.names import CONTROL
from pinfs.journal.records import HandleKind
from pinfs.runtime.parking import OneShot, park

log = logging.getLogger("pinfs.control")

CONTROL_NAME: Final = CONTROL.encode()
CONTROL_ID: Final = 1 << 62  # node ids of the directory and, counting on, its files
MAX_COMMANDS_BYTES: Final = 64 << 10
MAX_READ: Final = 16 << 10  # bytes of a stream in one read: longer ones would hold up all other requests
MAX_CHANNELS: Final = 4096
MAX_CHANNELS_PER_USER: Final = 512  # root excepted: one user must not take them all
MAX_LISTS_PER_USER: Final = 16  # root excepted: each list of a million pins takes 10 MB while it is read

POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM = 0x1, 0x4, 0x40, 0x100


class ControlFile(Protocol):
    """One file of the directory: its permissions, and what an open gives."""

    mode: int

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> "ControlHandle": ...


class ControlHandle(ByteHandle):
    """An open control file. Reads and writes go by the kernel's page cache."""

    __slots__ = ()
    fopen_flags = FOPEN_DIRECT_IO

    async def read(self, offset: int, size: int) -> bytes:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    async def write(self, offset: int, data: bytes) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def poll(self, wake: Wake | None) -> int:
        return POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM

    def close(self) -> None:
        """The last reference has gone."""


class Snapshot(ControlHandle):
    """A text as it was at open."""

    __slots__ = ("_text",)
    record_kind = HandleKind.TEXT

    def __init__(self, inode: Inode, flags: int, text: bytes) -> None:
        super().__init__(inode, flags)
        self._text = text

    async def read(self, offset: int, size: int) -> bytes:
        return self._text[offset : offset + size]


class Stream(ControlHandle):
    """Lines that are made as they are read, from the first to the last. `on_close` is called when the reader has
    gone."""

    __slots__ = ("_at", "_lines", "_on_close", "_rest")
    record_kind = HandleKind.PINS
    fopen_flags = FOPEN_DIRECT_IO | FOPEN_NONSEEKABLE

    def __init__(self, inode: Inode, flags: int, lines: Iterator[bytes], on_close: Callable[[], None]) -> None:
        super().__init__(inode, flags)
        self._lines = lines
        self._on_close = on_close
        self._rest = b""
        self._at = 0

    async def read(self, offset: int, size: int) -> bytes:
        """ESPIPE: not where the last read ended."""
        if offset != self._at:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        size = min(size, MAX_READ)
        parts, room = [self._rest], size - len(self._rest)
        while room > 0 and (line := next(self._lines, b"")):
            parts.append(line)
            room -= len(line)
        text = b"".join(parts)
        self._rest = text[size:]
        self._at += min(len(text), size)
        return text[:size]

    def close(self) -> None:
        self._on_close()


def check_read_only(flags: int) -> None:
    """EACCES, for root as well: the file's mode does not stop root."""
    if flags & os.O_ACCMODE != os.O_RDONLY:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


class TextFile:
    """A file whose text is made anew for each open."""

    def __init__(self, mode: int, text: Callable[[CallerLike], bytes]) -> None:
        self.mode = mode
        self._text = text

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        check_read_only(flags)
        return Snapshot(inode, flags, self._text(ctx))


class PolicyHandle(Snapshot):
    """Reads the policy in force; a write is a new one, whole."""

    __slots__ = ("_apply", "_written")
    record_kind = HandleKind.POLICY

    def __init__(self, inode: Inode, flags: int, text: bytes, apply: Callable[[bytes], None]) -> None:
        super().__init__(inode, flags, text)
        self._apply = apply
        self._written = b""

    async def write(self, offset: int, data: bytes) -> int:
        """EINVAL: not a policy; the old one stays in force and the log says why. EFBIG: beyond 64 KiB."""
        if offset != len(self._written):
            self._written = b""
        if len(self._written) + len(data) > MAX_COMMANDS_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._written += data
        self._apply(self._written)
        return len(data)


class PolicyFile:
    """`.pinfs/policy`: everyone may read it, root write."""

    mode = 0o644

    def __init__(self, text: Callable[[], bytes], apply: Callable[[bytes, CallerLike], None]) -> None:
        self._text = text
        self._apply = apply

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        return PolicyHandle(inode, flags, self._text(), lambda text: self._apply(text, ctx))


class Channel(Protocol):
    """What an open event file reads from, and writes to."""

    queue: EventQueue

    async def command(self, line: str) -> None:
        """EBADF: takes no commands. Else as each command says."""

    def close(self) -> None:
        """The reader has gone."""


class ChannelHandle(ControlHandle):
    """A stream of events, and the way back for commands."""

    __slots__ = ("_channel", "_ended", "_queue", "_read_limit", "_readers", "_wakes")
    record_kind = HandleKind.CHANNEL
    fopen_flags = FOPEN_DIRECT_IO | FOPEN_NONSEEKABLE | FOPEN_STREAM

    def __init__(self, inode: Inode, flags: int, read_limit: ReadLimit, channel: Channel) -> None:
        super().__init__(inode, flags)
        self._read_limit = read_limit
        self._channel = channel
        self._queue = channel.queue
        self._wakes: list[Wake] = []
        self._readers: list[OneShot] = []
        """Reads that wait."""
        self._ended = False
        self._queue.on_news = self._wake_readers

    def _wake_readers(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.set()
        wakes, self._wakes = self._wakes, []
        for wake in wakes:
            wake()

    async def read(self, offset: int, size: int) -> bytes:
        """Whole lines, waiting for the first. EAGAIN: none, and O_NONBLOCK. EINVAL: the first does not fit.

        Nothing, once `end` was written: close(2) does not end a read that waits in another thread.
        """
        while not self._queue:
            if self._ended:
                return b""
            if self.nonblocking:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            await self._wait()
        lines = self._queue.take(size)
        if lines is None:
            raise OSError(errno.EINVAL, "buffer too small for an event")
        return lines

    async def _wait(self) -> None:
        """As long as the read limit of this mount allows: EINTR then, and EAGAIN where too many reads wait already."""
        limit = self._read_limit
        if limit.waiting >= limit.readers:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        reader = OneShot()
        self._readers.append(reader)
        limit.waiting += 1
        try:
            if limit.seconds == math.inf:
                await reader.wait()  # in no task of its own: there may be thousands
                return
            await park()
            with trio.move_on_after(limit.seconds):
                await reader.wait()
        finally:
            limit.waiting -= 1
            if reader in self._readers:
                self._readers.remove(reader)
        if not reader.is_set:
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    async def write(self, offset: int, data: bytes) -> int:
        """Commands, one a line. The first that fails ends the write with its errno; those before it stand."""
        if not self.writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if len(data) > MAX_COMMANDS_BYTES:
            raise OSError(errno.EINVAL, "too many commands")
        try:
            lines = data.decode("ascii").splitlines()
        except UnicodeDecodeError:
            raise OSError(errno.EINVAL, "not a command") from None
        if not lines:
            raise OSError(errno.EINVAL, "not a command")
        for line in lines:
            if line == "end":
                self._ended = True
                self._wake_readers()
            else:
                await self._channel.command(line)
        return len(data)

    def poll(self, wake: Wake | None) -> int:
        if self._queue:
            return POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM
        if wake is not None:
            self._wakes = [*self._wakes[-15:], wake]
        return POLLOUT | POLLWRNORM

    def close(self) -> None:
        """The queue must not refer to the handle any more: a cycle would keep both, for no search finds it (see
        serve.daemon about the garbage collector)."""
        self._queue.on_news = _ignore
        self._channel.close()


def _ignore() -> None:
    """No reader waits."""


class ControlDirectory(Handle):
    """The open directory `.pinfs`."""

    __slots__ = ()
    record_kind = HandleKind.CONTROL_DIRECTORY


class Control:
    """The directory itself: names, attributes, and opening."""

    def __init__(self, files: dict[bytes, ControlFile]) -> None:
        self.root = Inode(CONTROL_ID, 0, stat.S_IFDIR)
        self._files = list(files.items())
        self._ids = {name: CONTROL_ID + number for number, name in enumerate(files, 1)}
        self._born_ns = time.time_ns()

    def owns(self, parent: int, name: bytes) -> bool:
        """Whether a name is, or lies in, the control directory."""
        return (parent >= CONTROL_ID and self.is_control(parent)) or (parent == ROOT_ID and name == CONTROL_NAME)

    def is_control(self, nodeid: int) -> bool:
        return CONTROL_ID <= nodeid <= CONTROL_ID + len(self._files)

    def lookup(self, parent: int, name: bytes) -> Entry:
        """ENOENT, ENOTDIR."""
        if parent == ROOT_ID:
            nodeid = CONTROL_ID
        elif parent != CONTROL_ID:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        elif name in self._ids:
            nodeid = self._ids[name]
        else:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return Entry(nodeid, self.stat(nodeid))

    def stat(self, nodeid: int) -> os.stat_result:
        """ESTALE: a node id that was never given out, or that was forgotten."""
        if nodeid == CONTROL_ID:
            mode, links = stat.S_IFDIR | 0o555, 2
        else:
            mode, links = stat.S_IFREG | self._file(nodeid).mode, 1
        seconds = self._born_ns // 1_000_000_000
        fields = (mode, nodeid, 0, links, os.geteuid(), os.getegid(), 0, seconds, seconds, seconds)
        times = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), self._born_ns)
        return os.stat_result(fields, {**times, "st_blocks": 0, "st_blksize": 4096, "st_rdev": 0})

    def setattr(self, nodeid: int, changes: SetAttr) -> os.stat_result:
        """A shell's `>` cuts a file before it writes: accepted, and means nothing. EPERM: all other changes."""
        st = self.stat(nodeid)
        if changes.mode is not None or changes.uid is not None or changes.gid is not None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return st

    def open(self, nodeid: int, flags: int, ctx: CallerLike) -> ControlHandle:
        if nodeid == CONTROL_ID:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return self._file(nodeid).open(Inode(nodeid, 0, stat.S_IFREG), flags, ctx)

    def open_directory(self, nodeid: int) -> Handle:
        if nodeid != CONTROL_ID:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return ControlDirectory(self.root, os.O_RDONLY)

    def readdir(self, offset: int, plus: bool, add: Add) -> None:
        """The files of the directory (the directory itself is not listed in the root)."""
        names = [(b".", CONTROL_ID, DT_DIR), (b"..", ROOT_ID, DT_DIR)]
        names += [(name, nodeid, DT_REG) for name, nodeid in self._ids.items()]
        for place in range(offset, len(names)):
            name, nodeid, kind = names[place]
            entry = Entry(nodeid, self.stat(nodeid)) if plus and kind == DT_REG else (nodeid, kind)
            if not add(name, place + 1, entry):
                return

    def _file(self, nodeid: int) -> ControlFile:
        if not self.is_control(nodeid):
            raise stale()
        return self._files[nodeid - CONTROL_ID - 1][1]
