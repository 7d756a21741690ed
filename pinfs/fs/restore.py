"""Builds the state of a mount from the journal of the daemon before (SPEC 13): inodes, open files, pins, breaks.

What cannot be restored is named in `Restored.lost`, and costs its user an error, never another file's data: an inode is
reached by its name and must have been born before the take-over, or by the descriptor that outlived the daemon.
"""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, cast
from weakref import WeakValueDictionary

import trio

from pinfs.core.owners import HandleId, Owner, ProcessId
from pinfs.core.pins import Break, Mode, Pin, PinRequest, PinSpec
from pinfs.enforce.eventfds import EventFds
from pinfs.enforce.guard import Guard
from pinfs.enforce.holders import Holders
from pinfs.enforce.processes import Process
from pinfs.fs.backing import Backing
from pinfs.fs.directories import DirectoryHandle
from pinfs.fs.handles import FileHandle, Handle, HandleTable
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.pendingpins import PendingPins
from pinfs.fs.recorder import Recorder
from pinfs.fs.uncached import UncachedFiles
from pinfs.journal import records
from pinfs.journal.records import HandleKind, HandleRecord, InodeRecord, IntentRecord, Kind, PinRecord
from pinfs.journal.slots import SLOT_NUMBER, SLOT_NUMBER_BITS
from pinfs.runtime.errors import logged

log = logging.getLogger("pinfs.journal")

AT_ONCE: Final = 4096
"""Pins that are restored before the first request is answered."""
ANSWER_S: Final = 1.0
"""How long a break goes on at least: its holder may have answered it while there was no daemon, and be waiting."""
MAX_LOST: Final = 64
"""How much of what is lost is named."""
_REOPENED_WITHOUT: Final = os.O_TRUNC | os.O_CREAT | os.O_EXCL

Records = Mapping[int, Mapping[int, int]]
"""The slots of all records, by kind and id (`Slots.load`)."""


@dataclass(slots=True)
class Restored:
    """What a take-over has found, and what the answers to resent requests need."""

    handles_by_unique: WeakValueDictionary[int, Handle] = field(default_factory=WeakValueDictionary)
    pins_by_unique: dict[int, Pin] = field(default_factory=dict)
    intents: dict[int, IntentRecord] = field(default_factory=dict)
    intent_slots: dict[int, int] = field(default_factory=dict)
    pollers: list[int] = field(default_factory=list)
    """The kernel's numbers of polled files: it asks again when those who wait are woken."""
    polled: list[Handle] = field(default_factory=list)
    """The handles of these."""
    eventfds: dict[tuple[int, int], int] = field(default_factory=dict)
    """Of pins and channels that are not restored yet, by the id of the pin and the number of the handle."""
    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def executed(self) -> frozenset[int]:
        """The requests of which no more is known than that they were executed."""
        return frozenset(unique for unique, record in self.intents.items() if record.opcode == records.WAS_EXECUTED)

    def lose(self, what: str, why: object) -> None:
        """Something cannot be restored."""
        self.counts["lost"] += 1
        log.warning("not restored: %s: %s", what, why)
        if len(self.lost) < MAX_LOST:
            self.lost.append(f"{what}: {why}")


@dataclass(slots=True)
class Parts:
    """What is restored into."""

    inodes: InodeTable
    backing: Backing
    handles: HandleTable
    uncached: UncachedFiles
    guard: Guard
    holders: Holders
    eventfds: EventFds


class Restoration:
    """One take-over. `kept`: the descriptors that outlived the daemon, by name. Those of inodes and eventfds are taken
    over."""

    def __init__(self, parts: Parts, recorder: Recorder, found: Records, kept: Mapping[str, int]) -> None:
        self.restored = Restored()
        self.pending = PendingPins(self._restore_pin, self._file_is_complete)
        self._parts = parts
        self._recorder = recorder
        self._slots = recorder.slots
        self._found = found
        self._kept = kept
        self._unnamed: list[tuple[Inode, InodeRecord]] = []
        self._processes: dict[ProcessId, Process | None] = {}
        self._breaks = dict(found.get(Kind.BREAK, {}))
        """The slots of breaks whose pins are not restored yet."""

    def _each(self, kind: Kind, restore: Callable[[int, bytes], None]) -> None:
        """Call `restore(slot, body)` for each record of a kind, oldest id first. One that is damaged costs what it
        stands for, not the mount."""
        slots = self._slots
        for id_, slot in sorted(self._found.get(kind, {}).items()):
            try:
                restore(slot, slots.body(slot))
            except Exception as e:
                self.restored.lose(f"{kind.name.lower()} {id_}", e)
                slots.free(slot)

    # Inodes

    def inodes(self) -> None:
        """All inodes, with their names."""
        self._parts.inodes.taken_over_ns = time.time_ns()
        self._each(Kind.INODE, self._inode)
        for inode, record in self._unnamed:  # in a round of its own: a directory may come after what lies in it
            parent = self._parts.inodes.known(record.parent)
            if record.name_size and parent is not None:
                name = self._text(record.chain, record.name, record.name_size)
                self._parts.inodes.restore_name(inode, parent, name, is_first=True)
        self._unnamed.clear()
        self._each(Kind.LINK, self._link)
        self._kept_descriptors()
        with logged("a rename that was under way"):
            self._renamed()

    def _inode(self, slot: int, body: bytes) -> None:
        record, inodes = records.unpack_inode(body), self._parts.inodes
        key = record.ino if record.device == inodes.device else (record.device, record.ino)
        inode = inodes.restore(record.nodeid, key, record.kind << 12)
        inode.slot, inode.lookups = slot, record.lookups
        self._unnamed.append((inode, record))
        self.restored.counts["inodes"] += 1

    def _text(self, chain: int, inline: bytes, size: int) -> bytes:
        return self._slots.text(chain) if chain else inline[:size]

    def _link(self, slot: int, body: bytes) -> None:
        record, inodes = records.unpack_link(body), self._parts.inodes
        inode, parent = inodes.known(record.nodeid), inodes.known(record.parent)
        name = self._text(record.chain, record.name, record.name_size)
        if inode is None or parent is None or (inode.parent is parent and inode.name == name):
            self._slots.free(slot)
            return
        inodes.restore_name(inode, parent, name, is_first=inode.name is None)
        self._recorder.adopt_link(inode, parent, name, slot)

    def _renamed(self) -> None:
        """The table learns of a call that the daemon before had made, and could not write down any more."""
        inodes, moves = self._parts.inodes, []
        for slot in self._found.get(Kind.RENAMING, {}).values():
            record = records.unpack_link(self._slots.body(slot))
            inode, parent = inodes.known(record.nodeid), inodes.known(record.parent)
            if inode is None or parent is None or inode.parent is None or inode.name is None:
                continue
            old, new = (inode.parent, inode.name), (parent, self._text(record.chain, record.name, record.name_size))
            if new != old and inodes.find_name(new) is inode and inodes.find_name(old) is not inode:
                moves.append((inode, old, new))
        moved = [inode for inode, _, _ in moves]
        for inode, old, new in moves:
            for other in list(inodes) if len(moves) == 1 else ():  # two change places; one takes it from another
                if other not in moved:
                    inodes.drop_name(other, *new)
            inodes.move(inode, old, new)
        for slot in self._found.get(Kind.RENAMING, {}).values():
            self._slots.free(slot)

    def _kept_descriptors(self) -> None:
        for name, fd in self._kept.items():
            if name.startswith("n") and name[1:].isdecimal():
                inode = self._parts.inodes.known(int(name[1:]))
                if inode is None:
                    self._recorder.store.drop(name)
                    os.close(fd)
                else:
                    inode.life = None
                    self._parts.inodes.descriptors.keep(inode, os.dup(fd))
                    self._recorder.adopt_stored(inode, fd)

    # Handles

    def handles(self) -> None:
        """Open files and directories."""
        self._each(Kind.HANDLE, self._handle)
        self._parts.handles.count_on(self._slots.words[records.LAST_HANDLE])
        self._give_back_idle_backing_ids()

    def _handle(self, slot: int, body: bytes) -> None:
        record = records.unpack_handle(body)
        handle = self._opened(record)
        if handle is not None:
            self._recorder.adopt_handle(handle, slot)
            self._parts.handles.restore(handle, record.fh)
            self.restored.counts["handles"] += 1
            if record.unique:
                self.restored.handles_by_unique[record.unique] = handle
        elif record.kind in (HandleKind.FILE, HandleKind.DIRECTORY):
            self._slots.free(slot)

    def _opened(self, record: HandleRecord) -> Handle | None:
        """None: it is of another kind, or lost."""
        inode = self._parts.inodes.known(record.nodeid)
        try:
            if record.kind == HandleKind.FILE and inode is not None:
                return self._file_handle(inode, record.flags)
            if record.kind == HandleKind.DIRECTORY and inode is not None:
                return DirectoryHandle(inode, record.flags, self._parts.backing.open_directory(inode))
        except OSError as e:
            what = "a directory" if record.kind == HandleKind.DIRECTORY else "a file"
            path = None if inode is None else inode.path()
            self.restored.lose(f"{what} that was open: {path or f'inode {record.nodeid}, without a name'}", e.strerror)
        return None

    def _file_handle(self, inode: Inode, flags: int) -> FileHandle:
        parts = self._parts
        is_first = inode.file is None
        file = parts.backing.open(inode, flags & ~_REOPENED_WITHOUT)
        if is_first:
            file.backing_id = self._backing_id(inode)
            if file.backing_id:
                parts.backing.passthrough.adopt()
                parts.uncached.add(inode.nodeid)
        return FileHandle(inode, flags)

    def _backing_id(self, inode: Inode) -> int:
        return records.unpack_inode(self._slots.body(inode.slot)).backing_id if inode.slot else 0

    def _give_back_idle_backing_ids(self) -> None:
        """Of files without handles: they get new ones when they are opened again."""
        for inode in self._parts.inodes:
            if inode.slot and (inode.file is None or not inode.file.opens) and (backing_id := self._backing_id(inode)):
                self._parts.backing.passthrough.adopt()
                self._parts.backing.passthrough.close(backing_id)
                self._recorder.backing_id(inode, 0)

    # Eventfds

    def eventfds(self) -> None:
        """Those of pins and channels, which find them in `Restored.eventfds`."""
        eventfds = self._parts.eventfds
        eventfds.begin_restore(self._kept)
        self._each(Kind.EVENTFD, self._eventfd)

    def _eventfd(self, slot: int, body: bytes) -> None:
        record = records.unpack_eventfd(body)
        if record.eventfd not in self._parts.eventfds:
            what = f"pin {record.pin_id}" if record.pin_id else f"the channel {record.fh}"
            self.restored.lose(f"the eventfd of {what}", "its descriptor was not kept")
            self._slots.free(slot)
            return
        self.restored.eventfds[record.pin_id, record.fh] = record.eventfd
        self._recorder.adopt_eventfd(record.pin_id, record.fh, record.eventfd, slot)

    def drop_unused_eventfds(self) -> None:
        """All pins and channels are there."""
        for pin_id, fh in self.restored.eventfds:
            self._recorder.eventfd(pin_id, fh, None)
        self.restored.eventfds.clear()
        self._parts.eventfds.end_restore()

    # Pins

    def pins(self) -> None:
        """Pins and their breaks. Those of owners that have ended go. With very many of them, those of a file come when
        it is first asked for, or in the background (`pending`)."""
        book = self._parts.guard.book
        book.table.count_on(self._slots.words[records.LAST_PIN])
        files, count = self._slots.values(Kind.PIN, records.PINNED_WORD)
        if count <= AT_ONCE:
            deque(self._collected(files), maxlen=0)
            for found in sorted(found for slots in files.values() for found in slots):
                self._restore_pin(found)
        else:
            for nodeid in files:
                book.files.of(nodeid)  # it is pinned, also before its pins are here
            self.pending.begin(files, self._collected(files))

    def _collected(self, files: dict[int, list[int]]) -> Iterator[None]:
        """Find the pins of all files, some at a time."""
        slots, first = self._slots, 0
        while first := slots.collect(Kind.PIN, records.PINNED_WORD, files, first):
            yield
        for pins in files.values():
            slots.put_in_order(pins)

    def _restore_pin(self, found: int) -> None:
        """One of what `Slots.collect` has found."""
        slot = found & SLOT_NUMBER
        try:
            self._pin(slot, self._slots.body(slot))
        except Exception as e:
            self.restored.lose(f"pin {found >> SLOT_NUMBER_BITS}", e)
            self._slots.free(slot)

    def _file_is_complete(self, nodeid: int) -> None:
        """Its pins are here; perhaps none is left, as their holders have ended."""
        self._parts.guard.book.files.drop_if_empty(nodeid)

    def drop_unused_breaks(self) -> None:
        """All pins are there: breaks without one are left from pins that had ended."""
        for slot in self._breaks.values():
            self._slots.free(slot)
        self._breaks.clear()

    def _pin(self, slot: int, body: bytes) -> None:
        book, record = self._parts.guard.book, records.unpack_pin(body)
        if record.unique & records.RELEASED_BIT:  # its end has been told
            self._was_executed(record.unique & ~records.RELEASED_BIT)
            self._free_pin(record.id, slot)
            book.ended["holder"] += 1
            return
        pin = self._as_registered(record)
        by = self._ended_by(pin, record)
        if by is None:
            book.table.restore(pin)
            if pin.spec.eventfd is not None:
                self._parts.eventfds.use(pin.spec.eventfd, pin.uid if pin.proxy_uid is None else pin.proxy_uid)
                del self.restored.eventfds[pin.id, 0]
            self._recorder.adopt_pin(pin.id, slot)
            self.restored.counts["pins"] += 1
            if record.unique:
                self.restored.pins_by_unique[record.unique] = pin
            if slot_of_break := self._breaks.pop(pin.id, 0):
                self._break(pin, slot_of_break)
        else:
            self._free_pin(pin.id, slot)
            book.restore_ended(pin, trio.current_time(), by)

    def _free_pin(self, pin_id: int, slot: int) -> None:
        self._slots.free(slot)
        self.restored.counts["pins ended"] += 1
        if slot_of_break := self._breaks.pop(pin_id, 0):
            self._slots.free(slot_of_break)

    def _as_registered(self, record: PinRecord) -> Pin:
        text = self._slots.text(record.chain) if record.chain else record.name[: record.name_size]
        name, note = text[: record.name_size], text[record.name_size :].decode()
        mode = Mode.LEASE if record.is_lease else Mode.DENY
        dirty = bool(record.flags & records.DIRTY)
        eventfd = self.restored.eventfds.get((record.id, 0))
        spec = PinSpec(record.start, record.length, mode, record.signal or None, dirty, note, eventfd)
        process_id = self._process_id(record)
        owner: Owner | None = HandleId(record.handle) if record.handle else process_id
        assert owner is not None
        process = self._process(process_id)
        request = PinRequest(
            record.nodeid,
            owner,
            process_id if process is not None or not record.handle else None,
            record.uid,
            name if record.flags & records.HAS_NAME else None,
            spec,
            record.proxy_uid if record.flags & records.HAS_PROXY else None,
        )
        own_key = (record.nodeid, name) if record.flags & records.HAS_NAME else record.id
        return Pin(record.id, request, self._recorder.moment_s(record.since_s), record.charged, own_key)

    def _process_id(self, record: PinRecord) -> ProcessId | None:
        if not record.flags & records.HAS_PROCESS:
            return None
        return ProcessId(record.pid, record.start_time, self._parts.holders.namespace, record.incarnation)

    def _process(self, process_id: ProcessId | None) -> Process | None:
        """The process, if it still lives. Looked up once, however many pins it has."""
        if process_id is None:
            return None
        known = self._processes.get(process_id)
        if process_id not in self._processes or (known is not None and not known.alive):
            process = self._parts.holders.process_of(process_id.pid)
            is_same = process is not None and process.id == process_id
            self._processes[process_id] = process if is_same else None
        return self._processes[process_id]

    def _ended_by(self, pin: Pin, record: PinRecord) -> str | None:
        """Why a pin is not restored; None: its owner lives, and its process is watched from here on."""
        if self._parts.inodes.known(pin.inode) is None:
            self.restored.lose(f"pin {pin.id}", "its file is not known")
            return "death"
        if record.handle and self._parts.handles.find(record.handle) is None:
            return "close"
        process = self._process(pin.process)
        if process is None:
            return None if record.handle else "death"
        try:
            self._parts.holders.hold(process)
        except OSError:  # it has just ended
            return "death"
        return None

    def _break(self, pin: Pin, slot: int) -> None:
        book, record = self._parts.guard.book, records.unpack_break(self._slots.body(slot))
        on_timeout, errno_name = record.on_timeout.decode().split()
        policy = replace(
            self._parts.guard.policy_for(self._parts.inodes.path_of(pin.inode)),
            on_timeout=cast(Literal["deny", "revoke", "kill"], on_timeout),
            errno=cast(Literal["EBUSY", "ETXTBSY"], errno_name),
            break_timeout_max=record.break_timeout_max,
            retry_after=record.retry_after,
        )
        since, deadline = self._recorder.moment(record.since_ns), self._recorder.moment(record.deadline_ns)
        at_least = trio.current_time() + ANSWER_S
        breaking = Break(pin, policy, since, record.op.decode(), record.start, record.end)
        breaking.killed, breaking.seq = bool(record.killed), record.seq
        breaking.host = self._slots.text(record.chain).decode() if record.chain else None
        book.breaks.restore(breaking, max(deadline, at_least))
        self._recorder.adopt_break(pin.id, slot)
        if deadline < at_least:
            self._recorder.extended(breaking)
        self.restored.counts["breaks"] += 1

    def unreferenced(self) -> None:
        """Drop inodes that the daemon before had just found, or was about to drop, when it ended."""
        inodes = self._parts.inodes
        for inode in list(inodes):
            if not inode.lookups and inodes.known(inode.nodeid) is inode:
                inodes.drop_if_unreferenced(inode)

    # Requests

    def requests(self) -> None:
        """What the answers to resent requests need."""
        self._each(Kind.INTENT, self._intent)
        words = self._slots.words
        for unique in {words[records.EXECUTED], words[records.RELEASED]} - {0}:
            self._was_executed(unique)

    def _intent(self, slot: int, body: bytes) -> None:
        record = records.unpack_intent(body)
        self.restored.intents[record.unique] = record
        self.restored.intent_slots[record.unique] = slot

    def _was_executed(self, unique: int) -> None:
        """Known until the request has been answered: the words are overwritten by the next one that is executed."""
        restored = self.restored
        record = restored.intents[unique] = records.executed(unique)
        old = restored.intent_slots.get(unique, 0)
        restored.intent_slots[unique] = self._recorder.put(Kind.INTENT, record.pack(), old)
