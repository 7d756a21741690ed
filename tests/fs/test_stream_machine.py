"""Readers of one process's events, a daemon that dies at any time, and requests that come again: a model says which
lines each reader has (SPEC 13)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pinfs.fs import streamrecords
from pinfs.fs.types import Caller
from pinfs.journal.records import Kind
from pinfs.journal.slots import new_journal_file
from pinfs.runtime.parking import run_straight

from .surviving import Survivor, surviving

SIZE = 4096
"""Bytes of the file."""


class DeathError(BaseException):
    """The daemon ends here."""


class Channels(RuleBasedStateMachine):
    """The events are numbered 1, 2, 3...; each reader has got some of them, in their order, each once."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.journal = new_journal_file()
        self.survivor = Survivor(Path(self.directory.name), [], self.journal)
        self.nodeid = run_straight(self.survivor.file("f", SIZE))
        self.readers: dict[int, int] = {}
        """By handle: the number of the event that comes next."""
        self.told = 0
        self.pinned: list[str] = []
        self.names = 0

    def teardown(self) -> None:
        for fh in self.readers:
            run_straight(self.survivor.ops.release(fh))
        for name in self.pinned:
            self.release_pin(name, self.survivor.request())
        left = self.survivor.records(Kind.LINE, Kind.HANDLE, Kind.PIN)
        self.survivor.stop()
        os.close(self.journal)
        self.directory.cleanup()
        assert left == {}

    def release_pin(self, name: str, ctx: Caller) -> None:
        run_straight(self.survivor.ops.removexattr(self.nodeid, f"user.pinfs.pin.{name}".encode(), ctx))

    @rule()
    def pin(self) -> None:
        self.names += 1
        self.pinned.append(f"p{self.names}")
        run_straight(self.survivor.pin(self.nodeid, self.pinned[-1], "0:10", self.survivor.request()))

    @precondition(lambda self: len(self.readers) < 3)
    @rule()
    def open(self) -> None:
        flags = os.O_RDWR | os.O_NONBLOCK
        opened = run_straight(self.survivor.control("events", flags, self.survivor.request()))
        self.readers[opened.fh] = self.told + 1

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        fh = data.draw(st.sampled_from(sorted(self.readers)))
        run_straight(self.survivor.ops.release(fh))
        del self.readers[fh]

    @precondition(lambda self: self.pinned)
    @rule(dies_after=st.none() | st.integers(0, 12))
    def release(self, dies_after: int | None) -> None:
        """The daemon may die after any of the words that it writes; then the same request comes again."""
        name, ctx, is_heard = self.pinned.pop(0), self.survivor.request(), bool(self.readers)
        if dies_after is not None:
            with pytest.MonkeyPatch.context() as patched, suppress(DeathError):
                _die_after(dies_after, patched, self.survivor)
                self.release_pin(name, ctx)
            self.die()
            if name.encode() not in {pin.name for pin in self.survivor.fs.guard.book.table.by_id.values()}:
                self.told += is_heard
                return
            self.told = max(self.told, self._last_number())  # told, and then the pin was still there: told again
        self.release_pin(name, ctx)
        self.told += is_heard

    def _last_number(self) -> int:
        return max(self.survivor.fs.hub._last_seq.values(), default=0)

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), size=st.integers(200, 1000), deaths=st.integers(0, 2))
    def read(self, data: Any, size: int, deaths: int) -> None:
        """The daemon dies after it has taken lines and before it has answered."""
        fh = data.draw(st.sampled_from(sorted(self.readers)))
        unique = self.survivor.request().unique
        try:
            text = run_straight(self.survivor.ops.read(fh, 0, size, unique))
        except BlockingIOError:
            assert self.readers[fh] == self.told + 1
            return
        for _ in range(deaths):
            self.die()
            assert run_straight(self.survivor.ops.read(fh, 0, size, unique)) == text
        for line in map(json.loads, text.splitlines()):
            assert line["seq"] == self.readers[fh]
            self.readers[fh] += 1

    @rule()
    def die(self) -> None:
        assert self.survivor.die().lost == []
        if not self.readers and not self.survivor.fs.guard.book.table.by_id:
            self.told = 0  # the process holds nothing

    @invariant()
    def records_are_few(self) -> None:
        waiting = sum(self.told + 1 - following for following in self.readers.values())
        assert self.survivor.records(Kind.LINE).get("LINE", 0) <= waiting + 8 * len(self.readers)


def _die_after(words: int, patched: pytest.MonkeyPatch, survivor: Survivor) -> None:
    """Every `put`, `free` and word counts."""
    left = [words]

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                raise DeathError
            left[0] -= 1
            return call(*args, **kwargs)

        return counted

    for name in ("put", "free"):
        patched.setattr(survivor.slots, name, counting(getattr(survivor.slots, name)))
    patched.setattr(streamrecords.StreamRecords, "set_word", counting(streamrecords.StreamRecords.set_word))


@pytest.mark.interpreted  # each word of the journal is written as Python writes it
async def test_readers_of_events_and_a_daemon_that_dies() -> None:
    run_state_machine_as_test(
        Channels, settings=settings(suppress_health_check=[HealthCheck.too_slow], stateful_step_count=40, deadline=None)
    )


@pytest.mark.interpreted
@pytest.mark.parametrize("readers", [1, 2])
async def test_a_death_at_each_word_of_an_event(tmp_path: Path, readers: int) -> None:
    """Until the release is done without a death."""
    async with surviving(tmp_path) as survivor:
        nodeid = await survivor.file("f", SIZE)
        flags = os.O_RDWR | os.O_NONBLOCK
        open_files = [(await survivor.control("events", flags, survivor.request())).fh for _ in range(readers)]
        seen: dict[int, list[int]] = {fh: [] for fh in open_files}
        words = survived = 0
        while not survived:
            await survivor.pin(nodeid, "p", "0:10", survivor.request())
            ctx = survivor.request()
            with pytest.MonkeyPatch.context() as patched:
                _die_after(words, patched, survivor)
                try:
                    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", ctx)
                    survived = 1
                except DeathError:
                    words += 1
            survivor.die()
            with suppress(OSError):  # it was released
                await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", ctx)
            for fh, numbers in seen.items():
                with suppress(BlockingIOError):
                    text = await survivor.ops.read(fh, 0, 1 << 16, survivor.request().unique)
                    numbers += [json.loads(line)["seq"] for line in text.splitlines()]
        assert words >= 3 * readers
        for numbers in seen.values():
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) >= words, "each release is told, before the pin goes"
