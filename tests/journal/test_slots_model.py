"""Any work on a journal, with any number of writers after each other, against a dictionary."""

from __future__ import annotations

import os

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pinfs.journal.slots import HEAD_SLOTS, JournalFullError, Slots, new_journal_file

from .work import IDS, KINDS, Change, Free, Put, State, Step, Writer, after, state_of

MAX_SLOTS = HEAD_SLOTS + 24

keys = st.tuples(st.sampled_from(KINDS), st.sampled_from(IDS))
texts = st.binary(max_size=320)
words = st.integers(0, (1 << 64) - 1)


class Journal(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fd = new_journal_file()
        self.slots = Slots(self.fd, max_slots=MAX_SLOTS)
        self.writer = Writer(self.slots)
        self.state: State = {}

    def _do(self, step: Step) -> None:
        try:
            self.writer.do(step)
        except JournalFullError:
            return  # and nothing has changed
        self.state = after(self.state, step)

    @rule(key=keys, text=texts)
    def put(self, key: tuple[int, int], text: bytes) -> None:
        self._do(Put(key, text))

    @precondition(lambda self: self.state)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self._do(Free(data.draw(st.sampled_from(sorted(self.state)))))

    @precondition(lambda self: self.state)
    @rule(data=st.data(), word=words)
    def change(self, data: st.DataObject, word: int) -> None:
        self._do(Change(data.draw(st.sampled_from(sorted(self.state))), word))

    @rule()
    def the_next_writer(self) -> None:
        self.slots.close()
        self.slots = Slots(self.fd)
        self.writer = Writer(self.slots)
        assert self.writer.begun_with == self.state

    @invariant()
    def holds_what_was_written(self) -> None:
        copy = new_journal_file()
        os.ftruncate(copy, os.fstat(self.fd).st_size)
        os.pwrite(copy, os.pread(self.fd, os.fstat(self.fd).st_size, 0), 0)
        assert state_of(copy) == self.state
        os.close(copy)

    @invariant()
    def counts_what_is_in_use(self) -> None:
        chains = sum(-(-len(text) // 104) for _, text in self.state.values())
        assert len(self.slots) == len(self.state) + chains

    def teardown(self) -> None:
        self.slots.close()
        os.close(self.fd)


TestJournal = Journal.TestCase
