"""Intents in the journal: what a request is about to change, with what was there before (`pinfs.bridge.once`)."""

import os
from typing import Final

from pinfs.core.files import Files
from pinfs.fs.fast import Request
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.recorder import Recorder
from pinfs.journal.records import DONE_WORD, EXECUTED, Kind
from pinfs.journal.slots import WORD_BITS
from pinfs.linux.calls import Stat

Facts = tuple[int, int, int, int, int, int]
"""Of an intent: device, ino, other_device, other_ino, size, was_there."""
_INTENT: Final = int(Kind.INTENT)


class IntentWriter:
    """Writes the intents of one mount. Requests of the fast path are told to it directly. `pinned`: the files with
    pins."""

    def __init__(self, recorder: Recorder, inodes: InodeTable, pinned: Files) -> None:
        self.cuts: dict[int, int] = {}
        """The intents of requests that cut a file, by number."""
        self._recorder = recorder
        self._slots = recorder.slots
        self._inodes = inodes
        self._pinned = pinned

    def write(self, unique: int, opcode: int, facts: Facts) -> int:
        """Write an intent; its slot, 0: there was no room."""
        device, ino, other_device, other_ino, size, was_there = facts
        slot = self._begin(unique, opcode, size, was_there)
        if slot:
            self._lead_to(slot, device, ino, other_device, other_ino)
            self._slots.commit(slot, _INTENT)
        return slot

    def _begin(self, unique: int, opcode: int, size: int, was_there: int) -> int:
        """A slot with the fields of IntentRecord, word by word, but for its inodes: a request waits for it."""
        slot = self._recorder.take()
        if slot:
            words, at = self._slots.view, slot << WORD_BITS
            words[at + 1] = unique
            words[at + 2] = 0
            words[at + 3] = opcode
            words[at + 8] = size
            words[at + 9] = was_there
            words[at + DONE_WORD] = 0
        return slot

    def _lead_to(self, slot: int, device: int, ino: int, other_device: int, other_ino: int) -> None:
        words, at = self._slots.view, slot << WORD_BITS
        words[at + 4] = device
        words[at + 5] = ino
        words[at + 6] = other_device
        words[at + 7] = other_ino

    # Of the fast path

    def begin(self, request: Request, st: Stat | None, other: Stat | None) -> int:
        """Write down what the names of a request lead to, before it changes them."""
        slot = self._begin(request.unique, request.opcode, 0, 0)
        if slot:
            self._lead_to(
                slot,
                0 if st is None else st.st_dev,
                0 if st is None else st.st_ino,
                0 if other is None else other.st_dev,
                0 if other is None else other.st_ino,
            )
            self._slots.commit(slot, _INTENT)
        return slot

    def begin_cut(self, request: Request, size: int) -> int:
        """The same before it cuts a file of `size` bytes."""
        slot = self.write(request.unique, request.opcode, (0, 0, 0, 0, size, 1))
        if slot:
            self.cuts[request.unique] = slot
        return slot

    def begin_removing_attribute(self, request: Request) -> int:
        """The same before it removes an attribute, which is there."""
        return self.write(request.unique, request.opcode, (0, 0, 0, 0, 0, 1))

    def executed(self, request: Request, slot: int) -> None:
        """What comes next is the reply."""
        self._slots.view[EXECUTED] = request.unique
        self.drop(request, slot)

    def drop(self, request: Request, slot: int) -> None:
        """The request has failed, or is begun anew by its handler."""
        if self.cuts:
            self.cuts.pop(request.unique, None)
        self._slots.free(slot)

    # What the kernel and the next daemon need to find

    def keep(self, victim: Inode) -> None:
        """Before the last name of a file goes: a file that is in use must not go with this daemon."""
        if victim.fd < 0 and victim.file is None and victim.nodeid in self._pinned:
            self._inodes.fd(victim)
        self._recorder.nameless(victim)

    def has_attribute(self, inode: Inode, name: bytes) -> bool:
        """Whether an inode has this extended attribute."""
        try:
            os.getxattr(self._inodes.handle(inode), name)
        except OSError:
            return False
        return True

    def done(self, unique: int) -> None:
        """The cut of a request has been made."""
        if slot := self.cuts.get(unique, 0):
            self._slots.view[(slot << WORD_BITS) + DONE_WORD] = 1
