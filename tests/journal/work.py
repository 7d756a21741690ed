"""Random work on a journal, with an account of what the journal must hold, for tests that end its writer."""

from __future__ import annotations

import random
from struct import Struct
from typing import Final, NamedTuple

from pinfs.journal.slots import WORD_BITS, Slots

KINDS: Final = (1, 2, 3)
IDS: Final = range(1, 13)
IN_PLACE_WORD: Final = 3
_RECORD: Final = Struct("<QQQQ80s")
"""Id, chain, a word that is changed in place, the size of the text, and bytes that follow from all of them."""

Key = tuple[int, int]
"""Kind and id."""
State = dict[Key, tuple[int, bytes]]
"""The word and the text of each record."""


class Put(NamedTuple):
    """Write a record, or write it anew."""

    key: Key
    text: bytes


class Free(NamedTuple):
    key: Key


class Change(NamedTuple):
    """Change a word in place."""

    key: Key
    word: int


Step = Put | Free | Change


def next_step(rng: random.Random, state: State) -> Step:
    key = rng.choice(KINDS), rng.choice(IDS)
    choice = rng.random()
    if key in state and choice < 0.25:
        return Free(key)
    if key in state and choice < 0.5:
        return Change(key, rng.getrandbits(64))
    return Put(key, rng.randbytes(rng.choice((0, 0, 1, 103, 104, 105, 300))))


def after(state: State, step: Step) -> State:
    match step:
        case Put(key, text):
            return {**state, key: (0, text)}
        case Change(key, word):
            return {**state, key: (word, state[key][1])}
    return {key: value for key, value in state.items() if key != step.key}


class Writer:
    """Does the steps on a journal that may hold something already."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        found = slots.load()
        self.begun_with = _read(slots, found)
        self._slot_of = {(kind, id_): slot for kind, slot_of in found.items() for id_, slot in slot_of.items()}

    def do(self, step: Step) -> None:
        """JournalFullError."""
        match step:
            case Put(key, text):
                self._put(key, text)
            case Free(key):
                self.slots.free(self._slot_of.pop(key))
            case Change(key, word):
                self.slots.words[(self._slot_of[key] << WORD_BITS) + IN_PLACE_WORD] = word

    def _put(self, key: Key, text: bytes) -> None:
        kind, id_ = key
        chain = self.slots.put_text(text)
        body = _RECORD.pack(id_, chain, 0, len(text), _filling(key, text))
        if key in self._slot_of:
            self._slot_of[key] = self.slots.replace(self._slot_of[key], kind, body)
        else:
            self._slot_of[key] = self.slots.put(kind, body)


def state_of(fd: int) -> State:
    """What a journal holds, as the next daemon finds it. AssertionError: a record is torn."""
    slots = Slots(fd)
    try:
        return _read(slots, slots.load())
    finally:
        slots.close()


def _read(slots: Slots, found: dict[int, dict[int, int]]) -> State:
    state: State = {}
    for kind, slot_of in found.items():
        for id_, slot in slot_of.items():
            own_id, chain, word, size, filling = _RECORD.unpack_from(slots.body(slot))
            text = slots.text(chain)
            assert own_id == id_, f"the record {kind}, {id_} has the id {own_id}"
            assert len(text) == size, f"the text of {kind}, {id_} has {len(text)} bytes in place of {size}"
            assert filling == _filling((kind, id_), text), f"the record {kind}, {id_} is torn"
            state[kind, id_] = word, text
    return state


def _filling(key: Key, text: bytes) -> bytes:
    return bytes((*key, len(text) & 0xFF, sum(text) & 0xFF)) * 20
