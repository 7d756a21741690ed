"""Gives readers of control files and of directories back what they had (SPEC 13), and the book its orphans and silent
holders: what `streamrecords` has written.

A line of events counts if its number does. Lines that the last read has taken are kept for the same request, in case
its reply was not written.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from pinfs.core.book import PinBook
from pinfs.core.owners import HandleId, Owner, ProcessId
from pinfs.core.removals import Orphan
from pinfs.enforce.holders import Holders
from pinfs.fs.control import ChannelHandle, Control, ControlHandle
from pinfs.fs.directories import DirectoryHandle, DirectoryReader
from pinfs.fs.events import EventHub
from pinfs.fs.handles import Handle, HandleTable
from pinfs.fs.linerecords import Line, LineRecords
from pinfs.fs.pins import PinVerbs
from pinfs.fs.restore import Records, Restored
from pinfs.fs.streamrecords import StreamRecords
from pinfs.journal import records
from pinfs.journal.records import HandleKind, HandleRecord, Kind, LineRecord, TextId

CONTROL_KINDS: Final = frozenset(HandleKind) - {HandleKind.FILE, HandleKind.DIRECTORY}


@dataclass(slots=True)
class StreamParts:
    """What is restored into."""

    control: Control
    directories: DirectoryReader
    handles: HandleTable
    hub: EventHub
    verbs: PinVerbs
    book: PinBook
    holders: Holders


class StreamRestoration:
    """A part of one take-over. Files and directories that are open are restored before `handles`, pins after it, as
    readers are told of those that have ended; `settle` comes when all of them are there.

    `kept`: the descriptors that outlived the daemon, by name. Those of directories are taken over.
    """

    def __init__(
        self, parts: StreamParts, streams: StreamRecords, found: Records, restored: Restored, kept: Mapping[str, int]
    ) -> None:
        self._parts = parts
        self._streams = streams
        self._recorder = streams.recorder
        self._slots = streams.recorder.slots
        self._found = found
        self._restored = restored
        self._kept = kept
        self._last_seq: dict[ProcessId, int] = {}
        self._orphans: list[Orphan] = []
        """Those whose pins were breaking."""
        self._lines: defaultdict[int, list[tuple[LineRecord, int]]] = defaultdict(list)

    def _each(self, kind: Kind, restore: Callable[[int, bytes], None]) -> None:
        """As `Restoration`: a record that is damaged costs what it stands for."""
        for id_, slot in sorted(self._found.get(kind, {}).items()):
            try:
                restore(slot, self._slots.body(slot))
            except Exception as e:
                self._restored.lose(f"{kind.name.lower()} {id_}", e)
                self._slots.free(slot)

    def _process_id(self, pid: int, start_time: int, incarnation: int) -> ProcessId | None:
        return ProcessId(pid, start_time, self._parts.holders.namespace, incarnation) if pid else None

    # Texts

    def texts(self) -> dict[TextId, bytes]:
        """The policy, the counters..."""
        texts: dict[TextId, bytes] = {}

        def restore(slot: int, body: bytes) -> None:
            id_, chain = records.unpack_text(body)
            texts[TextId(id_)] = text = self._slots.text(chain)
            self._streams.adopt_text(TextId(id_), slot, text)

        self._each(Kind.TEXT, restore)
        return texts

    # Handles

    def handles(self) -> None:
        """Control files, with the events that wait, and what open directories are to list."""
        self._each(Kind.STREAM, self._sequence)
        self._parts.hub.restore_numbers(self._last_seq, self._slots.words[records.TRACE_SEQ])
        self._each(Kind.LINE, self._line)
        self._each(Kind.HANDLE, self._handle)
        for lines in self._lines.values():  # their readers have gone
            for _, slot in lines:
                self._slots.free(slot)
        for name in self._kept:
            if name.startswith("d") and name[1:].isdecimal():
                self._drop_if_unused(name)

    def _sequence(self, slot: int, body: bytes) -> None:
        record = records.unpack_stream(body)
        process = self._process_id(record.pid, record.start_time, record.incarnation)
        if process is not None:
            self._last_seq[process] = record.seq
            self._streams.adopt_sequence(process, slot)

    def _line(self, slot: int, body: bytes) -> None:
        record = records.unpack_line(body)
        self._lines[record.fh].append((record, slot))

    def _handle(self, slot: int, body: bytes) -> None:
        record = records.unpack_handle(body)
        if record.kind in CONTROL_KINDS:
            handle: Handle | None = self._control_handle(record, slot)
        else:
            handle = self._parts.handles.find(record.fh)
            if isinstance(handle, DirectoryHandle):
                self._directory(handle, record)
        if handle is not None and record.polled:
            self._streams.set_word(slot, records.POLLED_WORD, 0)
            self._restored.pollers.append(record.polled)
            self._restored.polled.append(handle)

    def _control_handle(self, record: HandleRecord, slot: int) -> Handle:
        recorded = self._slots.text(record.chain) if record.chain else b""
        handle = self._parts.control.restore(record, recorded)
        handle.slot = slot
        if isinstance(handle, ControlHandle):
            handle.records = self._streams
        if isinstance(handle, ChannelHandle):
            self._channel(handle, record, slot)
        self._parts.handles.restore(handle, record.fh)
        self._restored.counts["control files"] += 1
        if record.unique:
            self._restored.handles_by_unique[record.unique] = handle
        return handle

    def _channel(self, handle: ChannelHandle, record: HandleRecord, slot: int) -> None:
        process = handle.process
        told = self._slots.words[records.TRACE_SEQ] if process is None else self._last_seq.get(process, 0)
        waiting: list[Line] = []
        taken: list[Line] = []
        texts: list[bytes] = []
        again: list[bytes] = []
        for line, line_slot in self._lines.pop(record.fh, ()):
            if line.seq > told:
                self._slots.free(line_slot)
                continue
            text = self._slots.text(line.chain)
            was_taken = line.serial <= record.taken_to
            (taken if was_taken else waiting).append(Line(line.serial, line_slot, len(text)))
            (again if was_taken else texts).append(text)
        lines = LineRecords(self._streams, record.fh)
        lines.slot = slot
        lines.restore(waiting, taken, record.taken_by, b"".join(again))
        handle.restore_lines(lines, texts)
        if (eventfd := self._restored.eventfds.pop((0, record.fh), None)) is not None:
            self._parts.verbs.eventfds.use(eventfd, record.uid)
            handle.restore_eventfd(eventfd)

    def _directory(self, handle: DirectoryHandle, record: HandleRecord) -> None:
        name = f"d{record.fh}"
        if name in self._kept:
            handle.kept_fd = self._kept[name]
            names = _whole_file(handle.kept_fd)
        else:
            names = self._slots.text(record.chain) if record.chain else b""
        self._parts.directories.restore_snapshot(handle, names, record.taken_to)

    def _drop_if_unused(self, name: str) -> None:
        handle = self._parts.handles.find(int(name[1:]))
        if not isinstance(handle, DirectoryHandle):
            self._recorder.store.drop(name)
            os.close(self._kept[name])

    # The book

    def book(self) -> None:
        """What breakers have left behind, and holders that are not notified for a while."""
        self._each(Kind.ORPHAN, self._orphan)
        self._each(Kind.SILENT, self._silent)

    def _orphan(self, slot: int, body: bytes) -> None:
        record, reservations = records.unpack_orphan(body), self._parts.book.reservations
        process = self._process_id(record.pid, record.start_time, record.incarnation)
        orphan = Orphan(record.nodeid, record.start, record.end, process)
        self._streams.adopt_orphan(orphan, slot)
        reservations.restore_orphan(orphan)
        if record.deadline_ns:
            reservations.cool_down(orphan, self._recorder.moment(record.deadline_ns))
        else:
            self._orphans.append(orphan)
        self._restored.counts["orphans"] += 1

    def settle(self) -> None:
        """All pins and breaks are there."""
        for orphan in self._orphans:
            if orphan.breaks_pins:
                self._parts.book.watch_or_cool_down(orphan, trio.current_time())
        for process in self._last_seq:
            if not self._parts.holders.knows(process):
                self._parts.hub.forget(process)

    def _silent(self, slot: int, body: bytes) -> None:
        record = records.unpack_silent(body)
        process = self._process_id(record.pid, record.start_time, record.incarnation)
        owner: Owner = HandleId(record.handle) if process is None else process
        until = self._recorder.moment(record.until_ns)
        self._streams.adopt_silent(owner, slot)
        self._parts.book.silent.restore(owner, until)
        self._parts.book.silent.sweep(trio.current_time())
        self._restored.counts["silent holders"] += 1


def _whole_file(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
