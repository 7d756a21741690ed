"""The control directory `.pinfs` in the root of the mount: can be looked up, is not listed (SPEC 7)."""

import errno
import logging
import math
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final, Protocol

import trio

from pinfs.core.owners import ProcessId
from pinfs.fs.directories import DT_DIR, DT_REG, Add
from pinfs.fs.events import EventQueue, ReadLimit
from pinfs.fs.handles import FOPEN_DIRECT_IO, FOPEN_NONSEEKABLE, FOPEN_STREAM, ByteHandle, Handle, Wake
from pinfs.fs.inode import ROOT_ID, Inode, stale
from pinfs.fs.linerecords import LineRecords
from pinfs.fs.polling import READY, WRITABLE
from pinfs.fs.types import CallerLike, Entry, SetAttr
from pinfs.interface.names import CONTROL
from pinfs.journal import records
from pinfs.journal.records import HandleKind, HandleRecord
from pinfs.runtime.parking import OneShot, park

if TYPE_CHECKING:
    from pinfs.fs.streamrecords import StreamRecords

log = logging.getLogger("pinfs.control")

CONTROL_NAME: Final = CONTROL.encode()
CONTROL_ID: Final = 1 << 62  # node ids of the directory and, counting on, its files
MAX_COMMANDS_BYTES: Final = 64 << 10
MAX_CHANNELS: Final = 4096
MAX_CHANNELS_PER_USER: Final = 512  # root excepted: one user must not take them all
MAX_LISTS_PER_USER: Final = 16  # root excepted: each list of a million pins takes 10 MB while it is read


class ControlFile(Protocol):
    """One file of the directory: its permissions, and what an open gives."""

    mode: int

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> "ControlHandle": ...

    def restore(self, inode: Inode, record: HandleRecord, recorded: bytes) -> "ControlHandle":
        """What was open in the daemon before; `recorded`: as `ControlHandle.recorded`."""


class ControlHandle(ByteHandle):
    """An open control file. Reads and writes go by the kernel's page cache.

    `unique`: the number of the request, which is the same when the next daemon gets it again; 0: not known.
    """

    __slots__ = ("records",)
    fopen_flags = FOPEN_DIRECT_IO
    lines: "LineRecords | None" = None

    def __init__(self, inode: Inode, flags: int) -> None:
        super().__init__(inode, flags)
        self.records: StreamRecords | None = None
        """Writes down what changes; None: the mount does not outlive the daemon."""

    async def read(self, offset: int, size: int, unique: int = 0) -> bytes:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    async def write(self, offset: int, data: bytes, unique: int = 0) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    @property
    def process(self) -> ProcessId | None:
        """Whose events it shows; None: of no process."""
        return None

    def recorded(self) -> bytes:
        """What its record holds besides: a text, or where its reader is."""
        return b""

    def begin_records(self, streams: "StreamRecords") -> None:
        """From now on write down what changes."""
        self.records = streams

    def poll(self, wake: Wake | None) -> int:
        return READY

    def close(self) -> None:
        """The last reference has gone."""


class Snapshot(ControlHandle):
    """A text as it was at open."""

    __slots__ = ("_text",)
    record_kind = HandleKind.TEXT

    def __init__(self, inode: Inode, flags: int, text: bytes) -> None:
        super().__init__(inode, flags)
        self._text = text

    async def read(self, offset: int, size: int, unique: int = 0) -> bytes:
        return self._text[offset : offset + size]

    def recorded(self) -> bytes:
        return self._text


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

    def restore(self, inode: Inode, record: HandleRecord, recorded: bytes) -> ControlHandle:
        return Snapshot(inode, record.flags, recorded)


_TEXT_SIZE: Final = Struct("<Q")


class PolicyHandle(Snapshot):
    """Reads the policy in force; a write is a new one, whole."""

    __slots__ = ("_apply", "_written")
    record_kind = HandleKind.POLICY

    def __init__(
        self, inode: Inode, flags: int, text: bytes, apply: Callable[[bytes], None], written: bytes = b""
    ) -> None:
        super().__init__(inode, flags, text)
        self._apply = apply
        self._written = written

    async def write(self, offset: int, data: bytes, unique: int = 0) -> int:
        """EINVAL: not a policy; the old one stays in force and the log says why. EFBIG: beyond 64 KiB.

        The same write again makes no difference: the next daemon may get it once more.
        """
        before = self._written[:offset] if offset <= len(self._written) else b""
        if len(before) + len(data) > MAX_COMMANDS_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._written = before + data
        if self.records is not None:
            self.records.changed(self)
        self._apply(self._written)
        return len(data)

    def recorded(self) -> bytes:
        return _TEXT_SIZE.pack(len(self._text)) + self._text + self._written


class PolicyFile:
    """`.pinfs/policy`: everyone may read it, root write."""

    mode = 0o644

    def __init__(self, text: Callable[[], bytes], apply: Callable[[bytes, int], None]) -> None:
        self._text = text
        self._apply = apply

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        return PolicyHandle(inode, flags, self._text(), partial(self._replace, ctx.uid))

    def restore(self, inode: Inode, record: HandleRecord, recorded: bytes) -> ControlHandle:
        (size,) = _TEXT_SIZE.unpack_from(recorded)
        text, written = recorded[_TEXT_SIZE.size :][:size], recorded[_TEXT_SIZE.size + size :]
        return PolicyHandle(inode, record.flags, text, partial(self._replace, record.uid), written)

    def _replace(self, uid: int, text: bytes) -> None:
        self._apply(text, uid)


class Channel(Protocol):
    """What an open event file reads from, and writes to."""

    queue: EventQueue
    eventfd: int | None
    """The daemon's number of the eventfd that is written to when there is news."""

    @property
    def process(self) -> ProcessId | None:
        """Whose events come; None: those of all pins."""

    async def command(self, line: str, unique: int) -> None:
        """EBADF: takes no commands. Else as each command says."""

    def news(self) -> None:
        """A line has been added."""

    def recorded(self) -> None:
        """The journal, where there is one, has the eventfd: the one before is no longer needed."""

    def close(self) -> None:
        """The reader has gone."""


class ChannelHandle(ControlHandle):
    """A stream of events, and the way back for commands."""

    __slots__ = ("_channel", "_commanded", "_ended", "_queue", "_read_limit", "_readers", "_wakes", "lines")
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
        self._commanded = (0, 0)
        """The write that was under way when the daemon before ended, and how many of its lines it had done."""
        self.lines: LineRecords | None = None
        """Writes down the lines that wait; None: the mount does not outlive the daemon."""
        self._queue.on_news = self._wake_readers

    @property
    def process(self) -> ProcessId | None:
        return self._channel.process

    def begin_records(self, streams: "StreamRecords") -> None:
        """From now on write down what changes: lines wait for their reader in the journal as well."""
        self.records = streams
        self.lines = LineRecords(streams, self.number)
        self._queue.write_down(self.lines)

    def restore(self, record: HandleRecord) -> None:
        """Go on where the reader of the daemon before was."""
        self._ended = bool(record.ended)
        self._commanded = (record.commanded_by, record.commanded)

    def restore_eventfd(self, eventfd: int) -> None:
        """It is written to, as before: also for lines whose news the daemon before did not live to tell."""
        self._channel.eventfd = eventfd
        if self._queue:
            self._channel.news()

    def restore_lines(self, lines: LineRecords, waiting: list[bytes]) -> None:
        """Lines that have not been taken."""
        self.lines = lines
        self._queue.restore(lines, waiting)

    def _wake_readers(self) -> None:
        self._channel.news()
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.set()
        wakes, self._wakes = self._wakes, []
        for wake in wakes:
            wake()

    async def read(self, offset: int, size: int, unique: int = 0) -> bytes:
        """Whole lines, waiting for the first. EAGAIN: none, and O_NONBLOCK. EINVAL: the first does not fit.

        Nothing, once `end` was written: close(2) does not end a read that waits in another thread.
        """
        if self.lines is not None and (again := self.lines.again(unique)):
            return again
        while not self._queue:
            if self._ended:
                return b""
            if self.nonblocking:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            await self._wait()
        lines = self._queue.take(size, unique)
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

    async def write(self, offset: int, data: bytes, unique: int = 0) -> int:
        """Commands, one a line. The first that fails ends the write with its errno; those before it stand, and are not
        done once more for the same request."""
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
        commanded_by, commanded = self._commanded
        done = commanded if unique and unique == commanded_by else 0
        self._note(records.COMMANDED_WORD, done)
        self._note(records.COMMANDED_BY_WORD, unique)
        for number, line in enumerate(lines[done:], done + 1):
            await self._command(line, unique)
            self._note(records.COMMANDED_WORD, number)
        return len(data)

    async def _command(self, line: str, unique: int) -> None:
        if line == "end":
            self._ended = True
            self._note(records.ENDED_WORD, 1)
            self._wake_readers()
        else:
            await self._channel.command(line, unique)
            if self.records is not None and self._channel.eventfd is not None:
                self.records.channel_eventfd(self.number, self._channel.eventfd)
            self._channel.recorded()

    def _note(self, word: int, value: int) -> None:
        if self.records is not None:
            self.records.set_word(self.slot, word, value)

    def poll(self, wake: Wake | None) -> int:
        if self._queue:
            return READY
        if wake is not None:
            self._wakes = [*self._wakes[-15:], wake]
        return WRITABLE

    def close(self) -> None:
        """The queue must not refer to the handle any more: a cycle would keep both, for no search finds it (see
        serve.daemon about the garbage collector)."""
        self._queue.on_news = _ignore
        if self.lines is not None:
            self.lines.closed()
        if self.records is not None:
            self.records.channel_eventfd(self.number, None)
        self._channel.close()


def _ignore() -> None:
    """No reader waits."""


class ControlDirectory(Handle):
    """The open directory `.pinfs`."""

    __slots__ = ()
    record_kind = HandleKind.CONTROL_DIRECTORY


class Control:
    """The directory itself: names, attributes, and opening.

    Node ids count on in the order of `files`: the next daemon goes on with them, so new files come last.
    """

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

    def restore(self, record: HandleRecord, recorded: bytes) -> Handle:
        """What was open in the daemon before. ESTALE: there is no such file any more. OSError: as opening it."""
        if record.kind == HandleKind.CONTROL_DIRECTORY:
            return self.open_directory(record.nodeid)
        inode = Inode(record.nodeid, 0, stat.S_IFREG)
        return self._file(record.nodeid).restore(inode, record, recorded)

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
