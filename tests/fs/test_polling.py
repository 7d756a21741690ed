"""Which polls are answered (mount option `poll`), without a mount."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.fs.control import ControlHandle
from pinfs.fs.handles import ByteHandle, FileHandle
from pinfs.fs.polling import Polling, PollMode
from pinfs.journal.records import HandleKind

POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP = 1, 2, 4, 8, 16
ALONE = POLLPRI | POLLERR | POLLHUP
"""What the kernel asks for when a program waits for POLLPRI and nothing else."""


class Channel(ByteHandle):
    """Of events, or a trace."""

    record_kind = HandleKind.CHANNEL


MAKERS = {"file": FileHandle, "status": ControlHandle, "channel": Channel}


def opened(kind: str) -> ByteHandle:
    return MAKERS[kind](None, 0)  # type: ignore[arg-type]  # of no inode


def is_answered(polling: Polling, handle: ByteHandle, events: int) -> bool:
    try:
        polling.check(handle, events)
    except OSError as refused:
        assert refused.errno == errno.ENOSYS
        return False
    return True


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("events", [0, POLLIN, POLLIN | POLLPRI, POLLOUT, ALONE, (1 << 32) - 1])
def test_on_and_off_are_constant(kind: str, events: int) -> None:
    on, off = Polling(PollMode.ON), Polling(PollMode.OFF)
    for _ in range(2):
        assert (is_answered(on, opened(kind), events), on.answered) == (True, True)
        assert (is_answered(off, opened(kind), events), off.answered) == (False, False)


@pytest.mark.parametrize("kind", ["file", "status"])
@pytest.mark.parametrize("events", [0, POLLIN, POLLIN | POLLPRI, POLLOUT, POLLERR, (1 << 32) - 1])
def test_auto_ends_at_a_poll_whose_answer_is_constant(kind: str, events: int) -> None:
    polling, told = Polling(PollMode.AUTO), []
    polling.on_refused = lambda: told.append(polling.answered)
    assert polling.answered
    assert not is_answered(polling, opened(kind), events)
    assert not is_answered(polling, opened("channel"), POLLIN)
    assert not is_answered(polling, opened("file"), ALONE)
    assert (polling.answered, len(told)) == (False, 1)


@pytest.mark.parametrize(("kind", "events"), [("file", ALONE), ("channel", POLLIN)])
def test_auto_goes_on_while_a_program_waits(kind: str, events: int) -> None:
    polling, waiting, file = Polling(PollMode.AUTO), opened(kind), opened("file")
    assert is_answered(polling, waiting, events)
    assert is_answered(polling, file, POLLIN)
    assert is_answered(polling, waiting, events)
    del waiting
    assert not is_answered(polling, file, POLLIN)


@given(st.lists(st.tuples(st.sampled_from(["poll", "close"]), st.integers(0, 4), st.integers(0, 31))))
def test_auto_is_as_it_is_promised(steps: list[tuple[str, int, int]]) -> None:
    kinds = ["file", "file", "status", "channel", "channel"]
    polling, handles = Polling(PollMode.AUTO), [opened(kind) for kind in kinds]
    waiting: set[int] = set()
    answered = True
    for step, number, events in steps:
        if step == "close":
            handles[number] = opened(kinds[number])
            waiting.discard(number)
            continue
        alone = bool(events & POLLPRI) and not events & (POLLIN | POLLOUT)
        if alone or kinds[number] == "channel":
            waiting.add(number)
        elif not waiting:
            answered = False
        assert is_answered(polling, handles[number], events) is answered
        assert polling.answered is answered
