"""Writes down, in the journal, what readers of control files and of long directories have been given (SPEC 13), and
what else of a mount changes seldom: orphans, silent holders, the policy, the counters.

A line of events is written down before its number is; a line whose number is not there yet counts for nothing. A read
takes lines, and they stay in the journal until the next read: a daemon that is killed before its reply is written gives
them again to the same request.
"""

import os
from collections.abc import Sequence
from typing import Final

import trio

from pinfs.core.owners import Owner, ProcessId
from pinfs.core.removals import Orphan
from pinfs.fs.control import ControlHandle
from pinfs.fs.directories import DirectoryHandle
from pinfs.fs.recorder import Recorder
from pinfs.fs.types import CallerLike
from pinfs.journal import records
from pinfs.journal.records import Kind, TextId, pack_handle
from pinfs.journal.slots import WORD_BITS
from pinfs.runtime.parking import park

MAX_LINES_BYTES: Final = 256 << 20
"""Of all lines that wait in the journal. Of those beyond it only the number is written down."""
CHAINED_UP_TO: Final = 64 << 10
"""Bytes of the names of a directory that lie in the journal; more lie in a file of their own, with the keeper."""
NAMES_IN_A_SLICE: Final = 8192
NOBODY: Final = ProcessId(0, 0)


class StreamRecords:
    """Beside the Recorder of inodes, handles and pins, in the same journal."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.line_bytes = 0
        """Of all lines that are written down."""
        self._slots = recorder.slots
        self._words = recorder.slots.words
        self._sequences: dict[ProcessId, int] = {}
        self._orphans: dict[Orphan, int] = {}
        self._silent: dict[Owner, int] = {}
        self._texts: dict[TextId, tuple[int, bytes]] = {}

    def set_word(self, slot: int, word: int, value: int) -> None:
        """Change a record in place. Nothing, where there was no room for the record."""
        if slot:
            self._words[(slot << WORD_BITS) + word] = value

    def free(self, slot: int) -> None:
        """A record is not needed any more."""
        if slot:
            self._slots.free(slot)

    # Open control files

    def opened(self, handle: ControlHandle, caller: CallerLike) -> None:
        """A control file is open: its record has all that its reader can get."""
        process = handle.process or NOBODY
        chain = self.recorder.put_text(handle.recorded())
        handle.begin_records(self)  # the lines of a channel first: without the handle they count for nothing
        unique, fopen_flags = getattr(caller, "unique", 0), handle.fopen_flags
        body = pack_handle(
            handle.number, chain, handle.inode.nodeid, unique, process.incarnation, handle.flags, handle.record_kind,
            fopen_flags, caller.uid, process.start_time, 0, 0, 0, process.pid, 0, 0, 0,
        )  # fmt: skip
        self._words[records.LAST_HANDLE] = handle.number
        handle.slot = self.recorder.put(Kind.HANDLE, body)
        if handle.lines is not None:
            handle.lines.slot = handle.slot

    def changed(self, handle: ControlHandle) -> None:
        """Its reader is somewhere else, or has written."""
        self._put_chain(handle, handle.recorded())

    def _put_chain(self, handle: ControlHandle | DirectoryHandle, text: bytes) -> None:
        if handle.slot:
            chain = self.recorder.put_text(text)
            body = records.with_chain(self._slots.body(handle.slot), chain)
            handle.slot = self.recorder.put(Kind.HANDLE, body, handle.slot)

    # Events

    def has_room_for(self, line: bytes) -> bool:
        """Whether a line may be written down."""
        return self.line_bytes + len(line) <= MAX_LINES_BYTES

    def channel_eventfd(self, fh: int, eventfd: int | None) -> None:
        """The channel of this handle writes to this eventfd, None: to none (any more)."""
        self.recorder.eventfd(0, fh, eventfd)

    def put_line(self, serial: int, fh: int, seq: int, line: bytes, old: int = 0) -> int:
        """Write down a line that waits for the reader of a handle, in place of an `old` one; its slot."""
        self.line_bytes += len(line)
        chain = self.recorder.put_text(line)
        return self.recorder.put(Kind.LINE, records.LineRecord(serial, chain, fh, seq).pack(), old)

    def sequence(self, process: ProcessId, seq: int) -> None:
        """The events of a process up to this number have been told."""
        slot = self._sequences.get(process)
        if slot is None:
            pid, start_time, _, incarnation = process
            record = records.StreamRecord(self.recorder.serial(), 0, seq, pid, start_time, incarnation)
            self._sequences[process] = self.recorder.put(Kind.STREAM, record.pack())
        else:
            self.set_word(slot, records.SEQ_WORD, seq)

    def forget_sequence(self, process: ProcessId) -> None:
        """Its next event is number 1 again."""
        self.free(self._sequences.pop(process, 0))

    def trace_sequence(self, seq: int) -> None:
        """The events of all pins up to this number have been told."""
        self._words[records.TRACE_SEQ] = seq

    # Directories

    async def snapshot(self, handle: DirectoryHandle, names: Sequence[tuple[bytes, int, int]]) -> None:
        """A reader has begun with these names, and there are more than one reply holds.

        A short list lies in the journal: another file would cost more. A long one would stop all else, and journals
        never shrink: it lies in a file with the keeper, written in slices.
        """
        if len(names) <= NAMES_IN_A_SLICE and len(text := _joined(names)) <= CHAINED_UP_TO:
            self._put_chain(handle, text)
        else:
            await self._put_file(handle, names)

    async def _put_file(self, handle: DirectoryHandle, names: Sequence[tuple[bytes, int, int]]) -> None:
        fd = os.memfd_create("pinfs-directory", os.MFD_CLOEXEC)
        try:
            for start in range(0, len(names), NAMES_IN_A_SLICE):
                os.write(fd, _joined(names[start : start + NAMES_IN_A_SLICE]))
                await park()
                await trio.lowlevel.checkpoint()
            self._drop_file(handle)  # of another reader
            if handle.slot and self.recorder.store.keep(_file_name(handle), fd):  # else it was closed meanwhile
                handle.kept_fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)

    def no_snapshot(self, handle: DirectoryHandle) -> None:
        """A reader begins anew."""
        self._drop_file(handle)
        if handle.slot:
            self.set_word(handle.slot, records.TAKEN_TO_WORD, 0)
            if self._words[(handle.slot << WORD_BITS) + 2]:
                self._put_chain(handle, b"")

    def listed(self, handle: DirectoryHandle, end: int) -> None:
        """The one reply that was needed ends at this offset."""
        self.set_word(handle.slot, records.TAKEN_TO_WORD, end)

    def directory_closed(self, handle: DirectoryHandle) -> None:
        """Its last reference is closed."""
        self._drop_file(handle)

    def _drop_file(self, handle: DirectoryHandle) -> None:
        if handle.kept_fd >= 0:
            self.recorder.store.drop(_file_name(handle))
            os.close(handle.kept_fd)
            handle.kept_fd = -1

    # Orphans, silent holders

    def orphan(self, orphan: Orphan) -> None:
        """A breaker has left it, or its cool-down has begun."""
        process = orphan.process or NOBODY
        deadline_ns = 0 if orphan.deadline is None else self.recorder.ns(orphan.deadline)
        record = records.OrphanRecord(
            self.recorder.serial(), 0, orphan.inode, orphan.start, orphan.end, deadline_ns, process.pid,
            process.start_time, process.incarnation,
        )  # fmt: skip
        self._orphans[orphan] = self.recorder.put(Kind.ORPHAN, record.pack(), self._orphans.get(orphan, 0))

    def orphan_gone(self, orphan: Orphan) -> None:
        """It is over."""
        self.free(self._orphans.pop(orphan, 0))

    def silent(self, owner: Owner, until: float | None) -> None:
        """A holder is not notified before `until`; None: it is, again."""
        old = self._silent.pop(owner, 0)
        if until is None:
            self.free(old)
            return
        process, handle = (owner, 0) if isinstance(owner, ProcessId) else (NOBODY, owner)
        pid, start_time, _, incarnation = process
        record = records.SilentRecord(
            self.recorder.serial(), 0, self.recorder.ns(until), handle, pid, start_time, incarnation
        )
        self._silent[owner] = self.recorder.put(Kind.SILENT, record.pack(), old)

    # Texts

    def text(self, id_: TextId, text: bytes) -> None:
        """Write down a text in place of the one before, if it is another."""
        slot, last = self._texts.get(id_, (0, b""))
        if not slot or text != last:
            body = records.pack_text(id_, self.recorder.put_text(text))
            self._texts[id_] = self.recorder.put(Kind.TEXT, body, slot), text

    # What the daemon before has written, and this one keeps

    def adopt_sequence(self, process: ProcessId, slot: int) -> None:
        self._sequences[process] = slot

    def adopt_orphan(self, orphan: Orphan, slot: int) -> None:
        self._orphans[orphan] = slot

    def adopt_silent(self, owner: Owner, slot: int) -> None:
        self._silent[owner] = slot

    def adopt_text(self, id_: TextId, slot: int, text: bytes) -> None:
        self._texts[id_] = slot, text


def _joined(names: Sequence[tuple[bytes, int, int]]) -> bytes:
    """No name holds a NUL."""
    return b"".join([name + b"\0" for name, _, _ in names])


def _file_name(handle: DirectoryHandle) -> str:
    return f"d{handle.number}"
