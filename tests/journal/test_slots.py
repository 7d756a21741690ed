"""The journal of slots: what is written is found again, whole, however its writer ends."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from types import FrameType
from typing import Any

import pytest
from support import seeds

from pinfs.journal import slots as slots_module
from pinfs.journal.slots import (
    CHAIN,
    COLLECTED_AT_ONCE,
    HEAD_SLOTS,
    MAX_TEXT,
    SLOT,
    SLOT_NUMBER,
    SLOT_NUMBER_BITS,
    WORD_BITS,
    JournalError,
    JournalFullError,
    Slots,
    new_journal_file,
)

from .work import Change, Free, Put, State, Step, Writer, after, next_step, state_of

KILLS = 60
SMALL = HEAD_SLOTS + 64
ROOMY = HEAD_SLOTS + 256
"""Never filled by `next_step`."""
CHAIN_BYTES = SLOT - 24


@pytest.fixture
def fd() -> Iterator[int]:
    fd = new_journal_file()
    yield fd
    os.close(fd)


@pytest.fixture
def journal(fd: int) -> Iterator[Slots]:
    slots = Slots(fd, max_slots=SMALL)
    yield slots
    slots.close()


def record(id_: int, chain: int = 0, rest: bytes = b"") -> bytes:
    return id_.to_bytes(8, "little") + chain.to_bytes(8, "little") + rest


def reopened(fd: int) -> tuple[Slots, dict[int, dict[int, int]]]:
    """As the next daemon finds it."""
    slots = Slots(fd)
    return slots, slots.load()


# What is written is found


def test_a_record_comes_back_with_its_text(fd: int, journal: Slots) -> None:
    text = os.urandom(1000)
    journal.put(7, record(3, journal.put_text(text), b"the rest"))
    slots, found = reopened(fd)
    body = slots.body(found[7][3])
    assert body[16:24] == b"the rest"
    assert slots.text(int.from_bytes(body[8:16], "little")) == text
    slots.close()


@pytest.mark.parametrize("size", [1, CHAIN_BYTES - 1, CHAIN_BYTES, CHAIN_BYTES + 1, 3 * CHAIN_BYTES])
def test_texts_of_any_size(fd: int, journal: Slots, size: int) -> None:
    text = os.urandom(size)
    assert journal.text(journal.put_text(text)) == text


def test_no_text_takes_no_slot(journal: Slots) -> None:
    assert journal.put_text(b"") == 0
    assert journal.text(0) == b""
    assert len(journal) == 0


def test_a_word_changes_in_place(fd: int, journal: Slots) -> None:
    slot = journal.put(1, record(1, rest=bytes(8)))
    journal.words[(slot << WORD_BITS) + 3] = 77
    slots, found = reopened(fd)
    assert slots.words[(found[1][1] << WORD_BITS) + 3] == 77
    slots.close()


def test_what_is_freed_is_gone_with_its_chain(fd: int, journal: Slots) -> None:
    slot = journal.put(1, record(1, journal.put_text(bytes(500))))
    journal.free(slot)
    assert len(journal) == 0
    slots, found = reopened(fd)
    assert not found.get(1)
    assert len(slots) == 0
    slots.close()


def test_kinds_have_ids_of_their_own(fd: int, journal: Slots) -> None:
    first, second = journal.put(1, record(5)), journal.put(2, record(5))
    slots, found = reopened(fd)
    assert found == {1: {5: first}, 2: {5: second}}
    slots.close()


def test_the_next_writer_goes_on_where_the_last_one_ended(fd: int, journal: Slots) -> None:
    """Its records are younger than those that it finds."""
    slot = journal.put(1, record(1, rest=b"old"))
    slots, found = reopened(fd)
    slots.put(1, record(1, rest=b"new"))  # and is killed before it frees the old one
    slots.close()
    slots, found = reopened(fd)
    assert found[1][1] != slot
    assert slots.body(found[1][1])[16:19] == b"new"
    assert len(slots) == 1
    slots.close()


# Room


def test_it_grows_by_chunks_and_holds_a_great_many(fd: int) -> None:
    count = 3 * slots_module.CHUNK_SLOTS + 7
    slots = Slots(fd)
    for id_ in range(1, count + 1):
        slots.put(1, record(id_))
    assert len(slots) == count
    taken = os.fstat(fd).st_blocks * 512
    assert count * SLOT <= taken <= (count + slots_module.CHUNK_SLOTS + HEAD_SLOTS) * SLOT, "memory is taken as needed"
    slots.close()
    slots, found = reopened(fd)
    assert found[1].keys() == set(range(1, count + 1))
    slots.close()


def test_slots_are_used_again(fd: int) -> None:
    slots = Slots(fd, max_slots=SMALL)
    for id_ in range(10 * SMALL):
        slots.free(slots.put(1, record(id_, slots.put_text(bytes(300)))))
    assert len(slots) == 0
    slots.close()


def test_a_full_journal_says_so_and_keeps_what_it_has(fd: int, journal: Slots) -> None:
    written = [journal.put(1, record(id_, rest=b"%d" % id_)) for id_ in range(64)]
    with pytest.raises(JournalFullError, match=f"all {SMALL} slots"):
        journal.put(1, record(99))
    with pytest.raises(JournalFullError):
        journal.replace(written[0], 1, record(0, rest=b"another"))
    slots, found = reopened(fd)
    assert found[1] == dict(enumerate(written))
    assert slots.body(written[0])[16:17] == b"0", "the old one stands"
    slots.close()
    journal.free(written[5])
    assert journal.put(1, record(99)) == written[5]


def test_a_text_for_which_there_is_no_room_leaves_nothing(journal: Slots) -> None:
    written = [journal.put(1, record(id_)) for id_ in range(60)]
    with pytest.raises(JournalFullError):
        journal.put_text(bytes(5 * CHAIN_BYTES))
    assert len(journal) == len(written)
    assert journal.text(journal.put_text(bytes(4 * CHAIN_BYTES))) == bytes(4 * CHAIN_BYTES)


def test_a_text_beyond_the_limit(journal: Slots) -> None:
    with pytest.raises(JournalFullError, match="too many"):
        journal.put_text(bytes(MAX_TEXT + 1))


def test_a_machine_without_memory_is_told(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not end by SIGBUS when the memory is touched."""
    slots = Slots(fd)

    def none_left(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "posix_fallocate", none_left)
    with pytest.raises(JournalFullError, match="Cannot allocate memory"):
        slots.put(1, record(1))
    monkeypatch.undo()
    slots.put(1, record(1))
    slots.close()


# A writer that is killed


@pytest.mark.interpreted
def test_killed_at_any_instruction(fd: int) -> None:
    """After each of its instructions the journal holds what it held before the step, or what it holds after it."""
    slots = Slots(fd, max_slots=ROOMY)
    writer, rng = Writer(slots), random.Random(seeds.SEED)
    state: State = {}
    steps: list[Step] = [
        Put((1, 1), b"a"),
        Put((1, 1), bytes(300)),
        Change((1, 1), 5),
        Put((1, 1), b"b" * 150),
        Free((1, 1)),
    ]
    copies = 0
    for number in range(60):
        step = steps[number] if number < len(steps) else next_step(rng, state)
        following = after(state, step)
        for copy in Copies(fd, writer, step).made():
            found = state_of(copy)
            os.close(copy)
            assert found in (state, following), f"in the midst of {step}"
            copies += 1
        state = following
    assert state_of(fd) == state
    assert copies > 200
    slots.close()


class Copies:
    """Copies of a journal, made at each instruction of pinfs/journal/slots.py while a step is done."""

    def __init__(self, fd: int, writer: Writer, step: Step) -> None:
        self._fd = fd
        self._do = (writer.do, step)
        self._images: list[bytes] = []

    def made(self) -> Iterator[int]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            do, step = self._do
            do(step)
        finally:
            sys.settrace(before)
        for image in dict.fromkeys(self._images):
            copy = new_journal_file()
            os.ftruncate(copy, ROOMY * SLOT)
            os.pwrite(copy, image, 0)
            yield copy

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != slots_module.__file__:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._at

    def _at(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._images.append(os.pread(self._fd, ROOMY * SLOT, 0))
        return self._at


def test_killed_at_random() -> None:
    program = [sys.executable, "-m", "journal.torture", str(seeds.SEED), str(KILLS)]
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": tests}
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=100, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_killed_between_the_new_record_and_the_end_of_the_old_one(fd: int, journal: Slots) -> None:
    journal.put(1, record(1, journal.put_text(b"old" * 99)))
    journal.put(1, record(1, journal.put_text(b"new" * 99)))
    slots, found = reopened(fd)
    body = slots.body(found[1][1])
    assert slots.text(int.from_bytes(body[8:16], "little")) == b"new" * 99
    assert len(slots) == 1 + 3, "the old one has left nothing"
    slots.close()


def test_killed_between_a_text_and_its_record(fd: int, journal: Slots) -> None:
    journal.put_text(bytes(500))
    slots, found = reopened(fd)
    assert not any(found.values())
    assert len(slots) == 0
    slots.close()


# Files that are no journal, or a damaged one


def refused(fd: int) -> str:
    with pytest.raises(JournalError) as refusal:
        Slots(fd)
    return str(refusal.value)


def test_a_file_that_has_been_cut(fd: int, journal: Slots) -> None:
    journal.put(1, record(1))
    os.ftruncate(fd, 100)
    assert refused(fd) == "a journal of 100 bytes has been cut"


def test_a_file_that_has_been_cut_between_two_slots(fd: int) -> None:
    slots = Slots(fd)
    slots.put(1, record(1))
    slots.close()
    os.ftruncate(fd, (HEAD_SLOTS + 5) * SLOT)
    assert "damaged" in refused(fd)


def test_a_file_of_something_else(fd: int) -> None:
    os.pwrite(fd, b"text" * 4096, 0)
    assert refused(fd) == "this is not a journal of pinfs"


def test_a_hole(fd: int) -> None:
    os.ftruncate(fd, 1 << 20)
    assert refused(fd) == "this is not a journal of pinfs"


def test_another_version(fd: int, journal: Slots) -> None:
    journal.words[1] = 99
    assert refused(fd) == "the journal has version 99, and this pinfs reads version 1"


@pytest.mark.parametrize("used", [0, HEAD_SLOTS - 1, SMALL + 1, 1 << 63])
def test_a_number_of_slots_that_cannot_be(fd: int, journal: Slots, used: int) -> None:
    journal.words[2] = used
    assert "damaged" in refused(fd)


@pytest.mark.parametrize("first", [1, HEAD_SLOTS - 1, SMALL, 1 << 40, (1 << 64) - 1])
def test_a_chain_that_leads_nowhere(fd: int, journal: Slots, first: int) -> None:
    slot = journal.put(1, record(1, journal.put_text(bytes(10))))
    other = journal.put(1, record(2))
    journal.words[(slot << WORD_BITS) + 2] = first
    slots, found = reopened(fd)
    with pytest.raises(JournalError, match="nowhere"):
        slots.text(first)
    slots.free(found[1][1])
    assert slots.put(1, record(3)) != other
    slots.close()


def test_a_chain_that_leads_to_a_record(fd: int, journal: Slots) -> None:
    """Freeing the one does not free the other."""
    other = journal.put(1, record(2))
    journal.put(1, record(1, other))
    slots, found = reopened(fd)
    with pytest.raises(JournalError, match="nowhere"):
        slots.text(other)
    slots.free(found[1][1])
    assert found[1][2] == other
    assert slots.put(1, record(3)) != other
    slots.close()
    assert reopened(fd)[1][1].keys() == {2, 3}


def test_a_chain_in_a_circle(fd: int, journal: Slots) -> None:
    chain = journal.put_text(bytes(3 * CHAIN_BYTES))
    last = chain
    while following := journal.words[(last << WORD_BITS) + 1]:
        last = following
    journal.words[(last << WORD_BITS) + 1] = chain
    journal.put(1, record(1, chain))
    slots, found = reopened(fd)
    with pytest.raises(JournalError, match="circle"):
        slots.text(chain)
    slots.free(found[1][1])
    assert len(slots) == 0
    slots.close()


def test_two_records_with_one_chain(fd: int, journal: Slots) -> None:
    """No slot is given twice after both are freed."""
    chain = journal.put_text(bytes(200))
    journal.put(1, record(1, chain))
    journal.put(1, record(2, chain))
    slots, found = reopened(fd)
    for slot in found[1].values():
        slots.free(slot)
    assert len(slots) == 0
    given = [slots.put(1, record(id_)) for id_ in range(64)]
    assert len(set(given)) == 64
    slots.close()


def test_any_garbage(fd: int) -> None:
    """Is refused or read: it neither hangs nor crashes, and what is freed can be used."""
    rng = random.Random(seeds.SEED)
    slots = Slots(fd, max_slots=SMALL)
    image = os.pread(fd, SMALL * SLOT, 0)
    for _ in range(200):
        os.pwrite(fd, image, 0)
        for _ in range(40):
            at = rng.randrange(HEAD_SLOTS, SMALL) * SLOT
            kind = rng.choice((1, 2, CHAIN, CHAIN))
            words = (rng.getrandbits(8) << 8 | kind, *(rng.randrange(SMALL + 2) for _ in range(3)))
            os.pwrite(fd, b"".join(word.to_bytes(8, "little") for word in words), at)
        _use_up(fd)
    slots.close()


def _use_up(fd: int) -> None:
    slots, found = reopened(fd)
    for slot_of in found.values():
        for slot in slot_of.values():
            with suppress(JournalError):
                slots.text(slots.words[(slot << WORD_BITS) + 2])
            slots.free(slot)
    assert len(slots) == 0
    assert len({slots.put(1, record(id_)) for id_ in range(64)}) == 64
    slots.close()


# Groups

NUMBER = Struct("<QQQQ")
"""Of a record with a word to group by: id, chain, that word, and another one."""
GROUPED_WORD = 3


def numbered(slots: Slots, id_: int, group: int, text: bytes = b"") -> int:
    return slots.put(7, NUMBER.pack(id_, slots.put_text(text) if text else 0, group, 0))


def groups_of(fd: int) -> tuple[dict[int, list[int]], Slots]:
    """The ids of each group, and the next writer."""
    slots = Slots(fd)
    assert 7 not in slots.load(without=7)
    found = collected(slots)
    return {group: [member >> SLOT_NUMBER_BITS for member in members] for group, members in found.items()}, slots


def collected(slots: Slots, between: Callable[[], object] = lambda: None) -> dict[int, list[int]]:
    """All records of the kind. `between`: called before each step."""
    groups, count = slots.values(7, GROUPED_WORD)
    assert not any(groups.values())
    wanted = set(groups)
    first = 0
    while True:
        between()
        first = slots.collect(7, GROUPED_WORD, groups, first)
        if not first:
            break
    assert set(groups) == wanted
    assert sum(map(len, groups.values())) == count
    for group in groups.values():
        slots.put_in_order(group)
    return groups


def test_records_are_grouped_by_a_word_the_newest_first(fd: int) -> None:
    slots = Slots(fd)
    for id_ in range(1, 100):
        numbered(slots, id_, id_ % 3)
        slots.put(8, NUMBER.pack(id_, 0, 5, 0))
    slots.close()
    groups, slots = groups_of(fd)
    assert groups == {group: [id_ for id_ in range(99, 0, -1) if id_ % 3 == group] for group in range(3)}
    assert len(slots) == 198
    slots.close()


def test_slots_that_were_used_again_are_in_order_all_the_same(fd: int) -> None:
    slots = Slots(fd)
    taken = [numbered(slots, id_, 1) for id_ in range(1, 50)]
    for slot in taken[:40]:
        slots.free(slot)
    for id_ in range(50, 90):
        numbered(slots, id_, id_ % 2)
    slots.close()
    groups, slots = groups_of(fd)
    assert groups == {
        0: list(range(88, 49, -2)),
        1: [*range(89, 50, -2), *range(49, 40, -1)],
    }
    slots.close()


@pytest.mark.parametrize("reuses", [False, True])
def test_of_two_records_of_one_id_the_older_one_is_freed_with_its_chain(fd: int, reuses: bool) -> None:
    """As a writer leaves them that is killed while it replaces one."""
    slots = Slots(fd)
    spare = numbered(slots, 1, 9)
    for id_ in (0, 2, 3):
        numbered(slots, id_, 9, b"old" * 100)
    if reuses:  # the newer one lies before the older one
        slots.free(spare)
    new = numbered(slots, 2, 9, b"new" * 100)
    slots.close()
    groups, slots = groups_of(fd)
    assert groups == {9: [3, 2, 0] if reuses else [3, 2, 1, 0]}
    (found,) = [member for member in collected(slots)[9] if member >> SLOT_NUMBER_BITS == 2]
    assert found & SLOT_NUMBER == new
    assert slots.text(slots.words[(new << WORD_BITS) + 2]) == b"new" * 100
    assert len(slots) == len(groups[9]) + 3 * 3
    slots.close()


def test_what_is_written_meanwhile_is_not_among_them(fd: int) -> None:
    slots = Slots(fd)
    for id_ in range(1, COLLECTED_AT_ONCE + 100):
        numbered(slots, id_, 1)
    slots.close()
    slots, new = Slots(fd), []
    slots.load(without=7)
    numbers = iter(range(COLLECTED_AT_ONCE + 100, 2 * COLLECTED_AT_ONCE))
    groups = collected(slots, lambda: new.append(numbered(slots, next(numbers), 1)))
    assert len(new) == 2
    assert len(groups[1]) == COLLECTED_AT_ONCE + 99
    assert not {found & SLOT_NUMBER for found in groups[1]} & set(new)
    slots.close()
