"""Writes down, in the journal, what the next daemon needs to take over (SPEC 13): inodes, handles, pins, breaks.

The objects of this room and of the book call here as they change; where a mount does not outlive its daemon there is no
recorder. A record is written before the reply goes out that makes it matter to the kernel or to a program, so that a
daemon that is killed at any instruction leaves nothing that the kernel knows and the journal does not.

A journal without room for a record is marked: this mount can no longer be taken over, and goes on as if it never could.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Container
from time import time_ns
from typing import Final, Protocol

import trio

from pinfs.core.events import BookEvent
from pinfs.core.owners import ProcessId
from pinfs.core.pins import Break, Mode, Pin
from pinfs.fs.handles import Handle
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.types import CallerLike
from pinfs.journal import records
from pinfs.journal.records import (
    BACKING_ID_WORD,
    COUNTED,
    COUNTED_BY,
    FIRST_COUNTED,
    INLINE_LINK,
    INLINE_NAME,
    INLINE_PIN_NAME,
    LAST_HANDLE,
    LOOKUPS_WORD,
    MAX_COUNTED,
    HandleKind,
    Kind,
    pack_inode,
    pack_pin,
)
from pinfs.journal.slots import WORD_BITS, JournalFullError, Slots

log = logging.getLogger("pinfs.journal")

_NS: Final = 1_000_000_000
_OVER: Final = frozenset({"answered", "withdrawn", "released", "revoked"})
_NOBODY: Final = ProcessId(0, 0)
_DIRECTORY: Final = HandleKind.DIRECTORY
_HANDLE: Final = int(Kind.HANDLE)
_PIN: Final = int(Kind.PIN)
_INODE: Final = int(Kind.INODE)
"""Plain numbers: an IntEnum in an expression costs a call."""
_NAMED_PIN_OF_A_PROCESS: Final = records.HAS_NAME | records.HAS_PROCESS


class Store(Protocol):
    """Where descriptors outlive the daemon."""

    def keep(self, name: str, fd: int) -> bool: ...
    def drop(self, name: str) -> None: ...


class Recorder:
    """The writer of one journal. `store` keeps descriptors of inodes that nothing else leads to.

    `device`: st_dev of the source. `is_pinned`: whether an inode has pins.
    """

    def __init__(self, slots: Slots, store: Store, device: int, is_pinned: Callable[[int], bool]) -> None:
        self.slots = slots
        self.store = store
        self.broken_because = ""
        """Why the mount cannot be taken over any more; empty: it can."""
        self._device = device
        self._is_pinned = is_pinned
        self.to_monotonic_s = time.monotonic() - trio.current_time()
        self._pins: dict[int, int] = {}
        self._breaks: dict[int, int] = {}
        self._eventfds: dict[tuple[int, int], tuple[int, int]] = {}
        """The eventfds of pins and channels, and their slots, by the id of the pin and the number of the handle."""
        self._links: dict[tuple[Inode, Inode, bytes], int] = {}
        self._renaming: list[int] = []
        self._directories: Counter[int] = Counter()
        """Open handles of directories, by node id."""
        self._stored: dict[int, int] = {}
        """What the store has of inodes, by node id: duplicates of our own, so that nothing else closes them."""

    def close(self) -> None:
        """Close what is its own: the duplicates of what the store has, and the journal's mapping."""
        for fd in self._stored.values():
            os.close(fd)
        self._stored.clear()
        self.slots.close()

    # Slots

    def put(self, kind: int, body: bytes, old: int = 0) -> int:
        """Write a record in place of an `old` one (0: there is none); its slot. Where there is no room, that of the old
        one, which stands."""
        try:
            return self.slots.replace(old, kind, body) if old else self.slots.put(kind, body)
        except JournalFullError as e:
            self._break(str(e))
            return old

    def take(self) -> int:
        """A slot whose words the caller writes, and then commits; 0: there is no room."""
        try:
            return self.slots.take()
        except JournalFullError as e:
            self._break(str(e))
            return 0

    def put_text(self, text: bytes) -> int:
        """Write what does not fit into a record; its first slot, 0 where there was no room."""
        try:
            return self.slots.put_text(text)
        except JournalFullError as e:
            self._break(str(e))
            return 0

    def _break(self, why: str) -> None:
        if not self.broken_because:
            self.broken_because = why
            self.slots.words[records.BROKEN] = 1
            log.error("the mount would not survive the daemon any more: %s", why)

    def poll_refused(self) -> None:
        """The kernel is about to be told that poll(2) is not answered."""
        self.slots.words[records.POLL_REFUSED] = 1

    def serial(self) -> int:
        """An id for a record that has none of its own."""
        words = self.slots.words
        words[records.LAST_SERIAL] += 1
        return words[records.LAST_SERIAL]

    def ns(self, moment: float) -> int:
        """A time of trio's clock on CLOCK_MONOTONIC, in nanoseconds."""
        return max(0, int((moment + self.to_monotonic_s) * _NS))

    def moment(self, ns: int) -> float:
        """The same back, in seconds."""
        return ns / _NS - self.to_monotonic_s

    def moment_s(self, seconds: float) -> float:
        """A time of CLOCK_MONOTONIC, in seconds, on trio's clock."""
        return seconds - self.to_monotonic_s

    # Inodes

    def inode(self, inode: Inode) -> None:
        """It is new, or has another name."""
        parent, name = inode.parent, inode.name
        if parent is None or name is None:
            parent_id, name = 0, b""
        else:
            parent_id = parent.nodeid
        key = inode.key
        device, ino = (self._device, key) if isinstance(key, int) else key
        backing_id = 0 if inode.file is None else inode.file.backing_id or 0
        size = len(name)
        chain = self.put_text(name) if size > INLINE_NAME else 0
        body = pack_inode(
            inode.nodeid, chain, inode.lookups, parent_id, ino, device, backing_id, time_ns(), inode.kind >> 12, 0,
            size, name,
        )  # fmt: skip
        inode.slot = self.put(_INODE, body, inode.slot)

    def seen_ns(self, inode: Inode) -> int:
        """When a daemon last knew it to be what has its number, since the epoch."""
        return self.slots.words[(inode.slot << WORD_BITS) + records.SEEN_WORD]

    def lookups(self, inode: Inode) -> None:
        """The kernel's lookup count has changed."""
        self.slots.view[(inode.slot << WORD_BITS) + LOOKUPS_WORD] = inode.lookups

    def looked_up(self, inode: Inode, unique: int) -> None:
        """The count has grown by one, for the reply to this request; 0: it is not one that is simply executed again
        when its reply does not go out."""
        words = self.slots.view
        if unique:
            if words[COUNTED_BY] != unique:
                words[COUNTED] = 0
                words[COUNTED_BY] = unique
            count = words[COUNTED]
            if count < MAX_COUNTED:
                at = FIRST_COUNTED + 2 * count
                words[at] = inode.nodeid
                words[at + 1] = inode.lookups - 1
                words[COUNTED] = count + 1
        words[(inode.slot << WORD_BITS) + LOOKUPS_WORD] = inode.lookups

    def take_back_lookups(self, inodes: InodeTable, unanswered: Container[int]) -> None:
        """Set back what the daemon before had counted for one of these requests: the kernel has not got the entries."""
        words = self.slots.words
        if words[records.COUNTED_BY] in unanswered:
            for at in reversed(range(min(words[records.COUNTED], records.MAX_COUNTED))):
                nodeid, lookups = words[records.FIRST_COUNTED + 2 * at], words[records.FIRST_COUNTED + 2 * at + 1]
                inode = inodes.known(nodeid)
                if inode is not None and inode.lookups > lookups:
                    inodes.forget(nodeid, inode.lookups - lookups)
        words[records.COUNTED] = 0

    def backing_id(self, inode: Inode, backing_id: int) -> None:
        """Its backing file is registered with the kernel, or is no longer (0)."""
        self.slots.view[(inode.slot << WORD_BITS) + BACKING_ID_WORD] = backing_id

    def renamed(self, inode: Inode) -> None:
        """It has lost a name. Where that was the last one and something still uses the inode, the store keeps it: the
        descriptors of a daemon that is killed are closed, and the file would be gone."""
        if inode.name is not None:
            self.inode(inode)
        else:
            if inode.slot:
                self.slots.words[(inode.slot << WORD_BITS) + records.PARENT_WORD] = 0
            self.nameless(inode)

    def nameless(self, inode: Inode) -> None:
        """No name leads to it, or none will after the call that comes next."""
        file, nodeid = inode.file, inode.nodeid
        if (file is not None and file.opens) or nodeid in self._directories or self._is_pinned(nodeid):
            self._store(inode)

    def pinned(self, inode: Inode) -> None:
        """The next daemon finds it by a descriptor, whatever becomes of its name."""
        self._store(inode)

    def unpinned(self, inode: Inode) -> None:
        """The next daemon finds it by its name, if it has one."""
        if inode.name is not None:
            self._drop_stored(inode)

    def _drop_stored(self, inode: Inode) -> None:
        if (fd := self._stored.pop(inode.nodeid, -1)) >= 0:
            self.store.drop(_stored_name(inode))
            os.close(fd)

    def _store(self, inode: Inode) -> None:
        file = inode.file
        fd = inode.fd if inode.fd >= 0 or file is None else file.any_fd
        if fd < 0 or inode.nodeid in self._stored:
            return
        try:
            fd = os.dup(fd)
        except OSError as e:
            log.warning("a file without a name would not survive the daemon: %s", e.strerror)
            return
        if self.store.keep(_stored_name(inode), fd):
            self._stored[inode.nodeid] = fd
        else:
            os.close(fd)

    def link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """It has one more name."""
        self._links[inode, parent, name] = self._put_name(Kind.LINK, inode, parent, name)

    def _put_name(self, kind: Kind, inode: Inode, parent: Inode, name: bytes) -> int:
        size = len(name)
        chain = self.put_text(name) if size > INLINE_LINK else 0
        record = records.LinkRecord(self.serial(), chain, inode.nodeid, parent.nodeid, size, name)
        return self.put(kind, record.pack())

    def unlink(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """It has lost one of these names."""
        if slot := self._links.pop((inode, parent, name), 0):
            self.slots.free(slot)

    def renaming(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """The call that comes next gives it this name: where the daemon is killed before the table says so, what is
        open of it, or below it, is found all the same."""
        self._renaming.append(self._put_name(Kind.RENAMING, inode, parent, name))

    def rename_ended(self) -> None:
        """The table says what has come of it."""
        while self._renaming:
            if slot := self._renaming.pop():
                self.slots.free(slot)

    def inode_dropped(self, inode: Inode) -> None:
        """It has left the table."""
        self.slots.free(inode.slot)
        inode.slot = 0
        for parent, name in inode.links or ():
            self.unlink(inode, parent, name)
        self._drop_stored(inode)

    # What the daemon before has written, and this one keeps

    def adopt_link(self, inode: Inode, parent: Inode, name: bytes, slot: int) -> None:
        self._links[inode, parent, name] = slot

    def adopt_stored(self, inode: Inode, fd: int) -> None:
        """The store has this descriptor of it, which is the recorder's from now on."""
        self._stored[inode.nodeid] = fd

    def adopt_pin(self, pin_id: int, slot: int) -> None:
        self._pins[pin_id] = slot

    def adopt_break(self, pin_id: int, slot: int) -> None:
        self._breaks[pin_id] = slot

    # Handles

    def handle(self, handle: Handle, caller: CallerLike) -> None:
        """It is open."""
        inode = handle.inode
        if inode.name is None and inode.slot:
            self._store(inode)
        slots, number, kind = self.slots, handle.number, handle.record_kind
        slots.view[LAST_HANDLE] = number
        slot = handle.slot = self.take()
        if slot:  # the fields of HandleRecord, word by word: an open waits for it
            words, at = slots.view, slot << WORD_BITS
            words[at + 1] = number
            words[at + 2] = 0
            words[at + 3] = inode.nodeid
            words[at + 4] = getattr(caller, "unique", 0)
            words[at + 5] = 0
            words[at + 6] = handle.flags | kind << 32
            for word in range(at + 7, at + 16):
                words[word] = 0
            slots.commit(slot, _HANDLE)
        if kind is _DIRECTORY:
            self._directories[inode.nodeid] += 1

    def handle_closed(self, handle: Handle) -> None:
        """Its last reference is closed."""
        self.slots.free(handle.slot)
        if handle.record_kind is _DIRECTORY:
            self._directories[handle.inode.nodeid] -= 1
            if not self._directories[handle.inode.nodeid]:
                del self._directories[handle.inode.nodeid]

    def adopt_handle(self, handle: Handle, slot: int) -> None:
        """The daemon before has opened it."""
        handle.slot = slot
        if handle.record_kind is _DIRECTORY:
            self._directories[handle.inode.nodeid] += 1

    # Pins

    def pin(self, pin: Pin, caller: CallerLike) -> None:
        """It is registered, or replaced, by this request."""
        spec, process, name, owner = pin.spec, pin.process, pin.name, pin.owner
        if owner is process and name is not None and pin.proxy_uid is None:  # nearly always
            flags, handle, proxy_uid = _NAMED_PIN_OF_A_PROCESS, 0, 0
        else:
            flags = records.HAS_NAME * (name is not None) | records.HAS_PROCESS * (process is not None)
            flags |= records.HAS_PROXY * (pin.proxy_uid is not None)
            handle, proxy_uid = 0 if isinstance(owner, ProcessId) else owner, pin.proxy_uid or 0
            name = name or b""
        if spec.dirty:
            flags |= records.DIRTY
        size = len(name)
        chain = self.put_text(name + spec.note.encode()) if spec.note or size > INLINE_PIN_NAME else 0
        pid, start_time, _, incarnation = process or _NOBODY
        unique = getattr(caller, "unique", 0)
        body = pack_pin(
            pin.id, chain, pin.inode, spec.start, spec.length, pin.since + self.to_monotonic_s, pin.charged, handle,
            pid, pin.uid, start_time, incarnation, unique, proxy_uid, spec.mode is Mode.LEASE, spec.signal or 0, flags,
            size, name,
        )  # fmt: skip
        if spec.eventfd is not None or self._eventfds:  # first: without its pin it counts for nothing
            self.eventfd(pin.id, 0, spec.eventfd)
        pin_id, pins = pin.id, self._pins
        old = pins.get(pin_id)
        pins[pin_id] = self.put(_PIN, body, old or 0)
        if old is None:
            self.slots.words[records.LAST_PIN] = pin_id

    def pin_ended(self, pin: Pin, unique: int) -> None:
        """It is no longer; `unique`: the request that released it, 0: none did."""
        if slot := self._pins.pop(pin.id, 0):
            slots = self.slots
            if unique:
                words = slots.words
                words[(slot << WORD_BITS) + records.UNIQUE_WORD] = unique | records.RELEASED_BIT
                words[records.RELEASED] = unique
            slots.free(slot)
        if self._eventfds:
            self.eventfd(pin.id, 0, None)

    def executed(self, unique: int) -> int:
        """A request has been executed, and others will be before it is answered: then the word EXECUTED is of one of
        those. The slot, for `answered`; 0: there was no room."""
        return self.put(Kind.INTENT, records.executed(unique).pack())

    def answered(self, unique: int, slot: int) -> None:
        """What comes next is the reply."""
        self.slots.words[records.EXECUTED] = unique
        self.slots.free(slot)

    def eventfd(self, pin_id: int, fh: int, eventfd: int | None) -> None:
        """A pin, or the channel of a handle (the other is 0), is told by this eventfd, None: by none (any more)."""
        old, slot = self._eventfds.get((pin_id, fh), (None, 0))
        if eventfd is None:
            if slot:
                del self._eventfds[pin_id, fh]
                self.slots.free(slot)
        elif eventfd != old:
            record = records.EventFdRecord(self.serial(), 0, pin_id, fh, eventfd)
            self._eventfds[pin_id, fh] = eventfd, self.put(Kind.EVENTFD, record.pack(), slot)

    def adopt_eventfd(self, pin_id: int, fh: int, eventfd: int, slot: int) -> None:
        self._eventfds[pin_id, fh] = eventfd, slot

    # Breaks

    def event(self, event: BookEvent) -> None:
        """What the book tells, after it has been published."""
        breaking = event.breaking
        if breaking is None:
            return
        if event.kind == "break":
            self._break_begun(breaking)
        elif event.kind == "kill":
            self._kill(breaking)
        elif event.kind in _OVER:
            self._break_over(breaking)

    def _break_begun(self, breaking: Break) -> None:
        policy, host = breaking.policy, breaking.host
        chain = 0 if host is None else self.put_text(host.encode())
        record = records.BreakRecord(
            breaking.pin.id, chain, self.ns(breaking.since), self._deadline(breaking), breaking.start, breaking.end,
            breaking.seq, 0, policy.break_timeout_max, policy.retry_after, breaking.op.encode(),
            f"{policy.on_timeout} {policy.errno}".encode(),
        )  # fmt: skip
        self._breaks[breaking.pin.id] = self.put(Kind.BREAK, record.pack())

    def _deadline(self, breaking: Break) -> int:
        return 0 if breaking.deadline is None else self.ns(breaking.deadline)

    def extended(self, breaking: Break) -> None:
        """Its deadline has moved."""
        if slot := self._breaks.get(breaking.pin.id, 0):
            self.slots.words[(slot << WORD_BITS) + records.DEADLINE_WORD] = self._deadline(breaking)

    def _kill(self, breaking: Break) -> None:
        if slot := self._breaks.get(breaking.pin.id, 0):
            self.slots.words[(slot << WORD_BITS) + records.KILLED_WORD] = 1
            self.extended(breaking)

    def _break_over(self, breaking: Break) -> None:
        if slot := self._breaks.pop(breaking.pin.id, 0):
            self.slots.free(slot)


def _stored_name(inode: Inode) -> str:
    return f"n{inode.nodeid}"
