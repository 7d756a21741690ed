"""A journal of fixed slots in shared memory, which outlives the only process that writes it.

A slot has 128 bytes. Its first word (8 bytes) commits it: a sequence number and the kind of the record; 0: the slot is
free. The word is stored last, by one aligned store, so that a writer that is killed leaves a record whole or not at
all. A record that changes is written to a new slot, and then the old one is freed; of two slots of one kind with the
same id the younger one counts. A word inside of a record may be changed in place: a store is never torn.

The second word is the id of the record among those of its kind. The third is the first slot of a chain with bytes that
do not fit into the record, 0: there is none. The rest is the record's own (`pinfs.journal.records`).

The file is sparse; memory is reserved for it a chunk at a time, so that a machine without memory refuses a write
(`JournalFullError`) and does not kill the daemon with SIGBUS. What is mapped is never given back before the mount ends.
"""

import mmap
import os
from collections import defaultdict
from struct import Struct
from typing import Final

SLOT: Final = 128  # bytes
SLOT_BITS: Final = 7
WORD_BITS: Final = 4  # words of a slot, as a shift
_SLOT_BITS, _WORD_BITS = SLOT_BITS, WORD_BITS  # numbers of C
HEAD_SLOTS: Final = 32  # the first page
CHUNK_SLOTS: Final = 8192  # 1 MiB
SLOT_NUMBER_BITS: Final = 24
SLOT_NUMBER: Final = (1 << SLOT_NUMBER_BITS) - 1
MAX_SLOTS: Final = 1 << SLOT_NUMBER_BITS  # 2 GiB, of which only what is used takes memory
COLLECTED_AT_ONCE: Final = 16384  # some milliseconds
MAX_TEXT: Final = 64 << 20  # bytes of one chain

MAGIC: Final = int.from_bytes(b"pinfsjrn", "little")
VERSION: Final = 1
"""Of the layouts of slots and records. A daemon takes over journals of this version only."""

CHAIN: Final = 255
"""The kind of the slots of a chain."""
_CHAIN_HEAD: Final = Struct("<QQ")  # next slot, bytes in this one
_CHAIN_DATA: Final = SLOT - 8 - _CHAIN_HEAD.size

# Words of the first page.
_MAGIC_WORD, _VERSION_WORD, _USED_WORD = 0, 1, 2
FIRST_OWN_WORD: Final = 8
"""From here on the words of the first page are the user's."""


class JournalError(Exception):
    """This is not a journal that can be read; the text is for people."""


class JournalFullError(Exception):
    """There is no room, or no memory, for another record."""


class Slots:
    """The slots of one journal. `fd` stays the caller's."""

    def __init__(self, fd: int, *, max_slots: int = MAX_SLOTS) -> None:
        """Begins an empty file, or goes on with what is in it. Raises JournalError, JournalFullError."""
        self._fd = fd
        self._max_slots = max_slots
        self._sequence = self._loaded = 0
        self._free: list[int] = []
        size = os.fstat(fd).st_size
        if not size:
            os.ftruncate(fd, max_slots * SLOT)
            _reserve(fd, 0, HEAD_SLOTS)
        elif size < HEAD_SLOTS * SLOT or size % SLOT:
            raise JournalError(f"a journal of {size} bytes has been cut")
        else:
            self._max_slots = size // SLOT
        self._map = mmap.mmap(fd, self._max_slots * SLOT)
        self.words = memoryview(self._map).cast("Q")
        """All words; word `i` of a slot is `words[(slot << WORD_BITS) + i]`."""
        self.view = self.words
        """The same, for what is compiled."""
        if not size:
            self.words[_USED_WORD] = HEAD_SLOTS
            self.words[_VERSION_WORD] = VERSION
            self.words[_MAGIC_WORD] = MAGIC
        else:
            self._check()

    def _check(self) -> None:
        if self.words[_MAGIC_WORD] != MAGIC:
            raise JournalError("this is not a journal of pinfs")
        if (found := self.words[_VERSION_WORD]) != VERSION:
            raise JournalError(f"the journal has version {found}, and this pinfs reads version {VERSION}")
        if not HEAD_SLOTS <= self.words[_USED_WORD] <= self._max_slots:
            raise JournalError("the journal is damaged: it uses more slots than it has")

    def __len__(self) -> int:
        """Slots in use, those of chains included."""
        return self.words[_USED_WORD] - HEAD_SLOTS - len(self._free)

    @property
    def reserved(self) -> int:
        """Slots that memory is reserved for, those of the first page included."""
        return self.words[_USED_WORD]

    def close(self) -> None:
        self.view = None  # type: ignore[assignment]  # it holds on to the next two
        self.words.release()
        self._map.close()

    # Writing

    def put(self, kind: int, body: bytes) -> int:
        """Write a record, and return its slot. `body` begins with the id and the first slot of its chain (0: none).
        JournalFullError: the chain is freed as well."""
        slot = self._free.pop() if self._free else self._more(kind, body)
        at = (slot << _SLOT_BITS) + 8
        self._map[at : at + len(body)] = body
        self.commit(slot, kind)
        return slot

    def take(self) -> int:
        """A slot whose words the caller writes, before `commit`. JournalFullError."""
        return self._free.pop() if self._free else self._more(CHAIN, b"")

    def commit(self, slot: int, kind: int) -> None:
        """The record in this slot is whole."""
        sequence = self._sequence = self._sequence + 256
        self.view[slot << _WORD_BITS] = sequence | kind

    def free(self, slot: int) -> None:
        """The record, and its chain, are no longer."""
        word = slot << _WORD_BITS
        words = self.view
        words[word] = 0
        chain = words[word + 2]
        self._free.append(slot)
        if chain:
            self._free_chain(chain)

    def replace(self, slot: int, kind: int, body: bytes) -> int:
        """Write a record anew; the old one stands until the new one does. JournalFullError: the old one stands."""
        new = self.put(kind, body)
        self.free(slot)
        return new

    def put_text(self, text: bytes) -> int:
        """Write a chain, and return its first slot for a record that is written next. JournalFullError."""
        if len(text) > MAX_TEXT:
            raise JournalFullError(f"{len(text)} bytes are too many for one record")
        slot = 0
        for start in range((len(text) - 1) // _CHAIN_DATA * _CHAIN_DATA, -1, -_CHAIN_DATA):
            part = text[start : start + _CHAIN_DATA]
            try:
                slot = self.put(CHAIN, _CHAIN_HEAD.pack(slot, len(part)) + part)
            except JournalFullError:
                self._free_chain(slot)
                raise
        return slot

    def _free_chain(self, slot: int) -> None:
        """Each slot only once, and none that is not of a chain, however damaged the journal is."""
        while self._is_chained(slot):
            word = slot << _WORD_BITS
            following = self.words[word + 1]
            self.words[word] = 0
            self._free.append(slot)
            slot = following

    def _is_chained(self, slot: int) -> bool:
        return HEAD_SLOTS <= slot < self.words[_USED_WORD] and self.words[slot << _WORD_BITS] & 0xFF == CHAIN

    def _more(self, kind: int, body: bytes) -> int:
        """Take another chunk into use; one slot of it, for this record."""
        used = self.words[_USED_WORD]
        end = min(used + CHUNK_SLOTS, self._max_slots)
        try:
            if used >= end:
                raise JournalFullError(f"all {self._max_slots} slots are in use")
            _reserve(self._fd, used, end)
        except JournalFullError:
            if kind != CHAIN:
                self._free_chain(int.from_bytes(body[8:16], "little"))
            raise
        self.words[_USED_WORD] = end
        self._free.extend(range(end - 1, used, -1))
        return used

    # Reading

    def text(self, slot: int) -> bytes:
        """What the chain that begins with this slot holds. Raises JournalError."""
        parts: list[bytes] = []
        while slot:
            if not self._is_chained(slot):
                raise JournalError("the journal is damaged: a chain leads nowhere")
            if len(parts) > MAX_TEXT // _CHAIN_DATA:
                raise JournalError("the journal is damaged: a chain goes in a circle")
            at = (slot << _SLOT_BITS) + 8
            slot, size = _CHAIN_HEAD.unpack_from(self._map, at)
            at += _CHAIN_HEAD.size
            parts.append(self._map[at : at + min(size, _CHAIN_DATA)])
        return b"".join(parts)

    def body(self, slot: int) -> bytes:
        """A record without its first word, as `put` has got it."""
        at = slot << _SLOT_BITS
        return self._map[at + 8 : at + SLOT]

    def load(self, without: int = 0) -> dict[int, dict[int, int]]:
        """The slots of all records, by kind and id; called once, before anything is written.

        Older records of an id, and chains without a record, are what a writer that was killed has left: they are freed.
        `without`: a kind that is left out, for `collect`: of a million records the dictionary alone would take long.
        """
        words, used, sequence = self.words, self.words[_USED_WORD], 0
        kinds: defaultdict[int, dict[int, int]] = defaultdict(dict)
        free: list[int] = []
        left: list[int] = []
        chained: list[int] = []
        heads: list[int] = []
        for slot in range(used - 1, HEAD_SLOTS - 1, -1):
            word = slot << _WORD_BITS
            commit = words[word]
            if commit == 0:
                free.append(slot)
                continue
            sequence = max(sequence, commit)
            kind = commit & 0xFF
            if kind == CHAIN:
                chained.append(slot)
                continue
            if words[word + 2] != 0:
                heads.append(slot)
            if kind != without:
                slots = kinds[kind]
                other = slots.setdefault(words[word + 1], slot)
                if other != slot:
                    is_older = words[other << _WORD_BITS] < commit
                    left.append(other if is_older else slot)
                    if is_older:
                        slots[words[word + 1]] = slot
        self._sequence = sequence & ~0xFF
        self._loaded = sequence
        self._free = free
        self._free_left(left, chained, heads)
        return kinds

    def _free_left(self, left: list[int], chained: list[int], heads: list[int]) -> None:
        """Free what a writer that was killed has left: older records, and of all slots of chains those that none of
        `heads` leads to."""
        for slot in left:
            self.words[slot << _WORD_BITS] = 0
        in_use: set[int] = set()
        for slot in heads:
            if self.words[slot << _WORD_BITS]:
                self._add_chain(in_use, self.words[(slot << _WORD_BITS) + 2])
        left += [slot for slot in chained if slot not in in_use]
        for slot in left:
            self.words[slot << _WORD_BITS] = 0
        if left:
            self._free = sorted(self._free + left, reverse=True)

    def values(self, kind: int, word: int) -> tuple[dict[int, list[int]], int]:
        """Of the records of a kind that `load` has left out: an empty list for each value of one of their words, and
        how many they are."""
        words, used = self.words, self.words[_USED_WORD]
        groups: dict[int, list[int]] = {}
        count = last = 0
        for slot in range(HEAD_SLOTS, used):
            at = slot << _WORD_BITS
            commit = words[at]
            if commit != 0 and commit & 0xFF == kind:
                value = words[at + word]
                if value != last or not count:  # records of one group mostly follow each other
                    last = value
                    groups.setdefault(value, [])
                count += 1
        return groups, count

    def collect(self, kind: int, word: int, groups: dict[int, list[int]], first: int) -> int:
        """Add the slots of these records to `groups`, each with id << SLOT_NUMBER_BITS: some, from the slot `first` on
        (0: from the beginning). The slot to go on from; 0: these were the last. What was written since `load` is not
        among them; `put_in_order` comes after it."""
        words, used, loaded = self.words, self.words[_USED_WORD], self._loaded
        group: list[int] = []
        last = 0
        first = max(first, HEAD_SLOTS)
        end = min(first + COLLECTED_AT_ONCE, used)
        for slot in range(first, end):
            at = slot << _WORD_BITS
            commit = words[at]
            if commit == 0 or commit & 0xFF != kind or commit > loaded:
                continue
            value = words[at + word]
            if value != last or not group:
                last = value
                group = groups.setdefault(value, [])
            group.append(words[at + 1] << SLOT_NUMBER_BITS | slot)
        return end if end < used else 0

    def put_in_order(self, group: list[int]) -> None:
        """The newest id first. Of two records of one id the older one is freed."""
        before = 0
        for number in range(len(group)):
            here = group[number]
            if number and here >> SLOT_NUMBER_BITS <= before >> SLOT_NUMBER_BITS:
                group.sort(reverse=True)
                self._free_older(group)
                return
            before = here
        group.reverse()

    def _free_older(self, group: list[int]) -> None:
        """Of two records of one id the older one goes, which a writer that was killed has left."""
        before: int = group[-1]
        for number in range(len(group) - 2, -1, -1):
            here: int = group[number]
            if here >> SLOT_NUMBER_BITS == before >> SLOT_NUMBER_BITS:
                newer, older = (here & SLOT_NUMBER), (before & SLOT_NUMBER)
                if self.words[newer << _WORD_BITS] < self.words[older << _WORD_BITS]:
                    newer, older = older, newer
                self.free(older)
                del group[number]
                here = group[number] = here >> SLOT_NUMBER_BITS << SLOT_NUMBER_BITS | newer
            before = here

    def _add_chain(self, in_use: set[int], slot: int) -> None:
        while slot not in in_use and self._is_chained(slot):
            in_use.add(slot)
            slot = self.words[(slot << _WORD_BITS) + 1]


def _reserve(fd: int, first: int, end: int) -> None:
    try:
        os.posix_fallocate(fd, first * SLOT, (end - first) * SLOT)
    except OSError as e:
        raise JournalFullError(f"no memory for the journal: {e.strerror}") from e


def new_journal_file() -> int:
    """A descriptor of an empty file in memory, for `Slots`."""
    return os.memfd_create("pinfs-journal", os.MFD_CLOEXEC)
