"""The history of a mount goes through the journal, whatever is in it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.journal.slots import Slots, new_journal_file
from pinfs.serve.history import MAX_NOT_RESTORED, REMEMBERED, End, History, Life, Survival, takeover

ONE = takeover(End("died", time.monotonic()), {"pins": 3}, ())


@given(st.lists(st.tuples(st.sampled_from(["died", "handed over", "hung"]), st.floats(0, 1e6), st.text()), max_size=40))
def test_it_is_read_as_it_was_written(takeovers: list[tuple[str, float, str]]) -> None:
    logging.getLogger("pinfs.daemon").disabled = True
    try:
        history = History()
        for why, pause_ms, lost in takeovers:
            history.add(replace(ONE, why=why, pause_ms=pause_ms, not_restored=(lost,)))
        assert History.from_json(history.to_json()) == history
        assert history.takeovers == len(takeovers) == sum(history.pauses.counts)
        assert len(history.latest) == min(REMEMBERED, len(takeovers))
    finally:
        logging.getLogger("pinfs.daemon").disabled = False


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b'{"takeovers": 1, "latest": [{}], "pauses": {}}'])
def test_one_that_cannot_be_read_is_empty(text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert History.from_json(text) == History()
    assert "cannot be read" in caplog.text
    caplog.clear()


def test_the_log_warns_of_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    history = History()
    history.add(replace(ONE, pause_ms=87.0))
    assert caplog.messages == ["taken over, as the daemon before died: 87 ms; pins 3"]
    assert caplog.records[0].levelno == logging.INFO
    history.add(replace(ONE, how="the daemon (pid 7) was killed by signal 9 (Killed)"))
    assert caplog.messages.pop().startswith("taken over, as the daemon (pid 7) was killed by signal 9 (Killed): ")
    history.add(replace(ONE, why="hung", not_restored=("a pin",)))
    assert caplog.records[2].levelno == logging.WARNING
    assert caplog.messages[2].endswith("1 not restored: a pin")
    caplog.clear()


def test_what_is_lost_is_limited() -> None:
    done = takeover(End("died", time.monotonic() - 1), {}, ["x" * 10_000] * 1000)
    assert len(done.not_restored) == MAX_NOT_RESTORED
    assert all(len(text) <= 512 for text in done.not_restored)
    assert 900 < done.pause_ms < 60_000


def test_what_the_status_shows() -> None:
    life = Life()
    assert life.shown()["takeovers"] == 0
    assert life.shown()["last_takeover"] is None
    assert life.shown()["survives"]["unavailable_because"]
    fd = new_journal_file()
    slots = Slots(fd, max_slots=1 << 14)
    slots.put(1, bytes(16))
    shown = Survival("pinfs", "", slots).shown()
    assert shown == {
        "keeper": "pinfs",
        "unavailable_because": None,
        "journal_version": 1,
        "journal_bytes": (32 + 8192) * 128,
        "records": 1,
    }
    assert {name: value for name, _, value in Survival("pinfs", "", slots).gauges()}["survives"] == 1
    slots.close()
