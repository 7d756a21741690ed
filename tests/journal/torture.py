"""Kills the writer of a journal again and again, and lets the next one go on: `python -m journal.torture SEED KILLS`.

A program of its own with one thread, so that it may fork. AssertionError: what was found is neither what the writer had
done, nor that with the step that it had begun.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from journal.work import State, Writer, after, next_step, state_of
from pinfs.journal.slots import FIRST_OWN_WORD, Slots, new_journal_file

LONGEST_S = 0.01
DONE = FIRST_OWN_WORD
"""The word that tells how many steps the writer has done."""


def states(seed: int, begun_with: State) -> Iterator[State]:
    """After each step, from the first one on."""
    rng, state = random.Random(seed), begun_with
    while True:
        yield state
        state = after(state, next_step(rng, state))


def write(fd: int, seed: int, begun: int) -> NoReturn:
    slots = Slots(fd)
    writer, rng = Writer(slots), random.Random(seed)
    state, done = writer.begun_with, 0
    slots.words[DONE] = 0
    os.write(begun, b".")
    while True:
        step = next_step(rng, state)
        writer.do(step)
        slots.words[DONE] = done = done + 1
        state = after(state, step)


def killed(fd: int, seed: int, after_s: float) -> None:
    """A writer has worked for a while, and is killed."""
    reading, begun = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            write(fd, seed, begun)
        finally:
            os._exit(1)
    os.close(begun)
    assert os.read(reading, 1), "the writer has failed"
    os.close(reading)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the writer has failed"


def main(seed: int, kills: int) -> None:
    rng = random.Random(seed)
    fd = new_journal_file()
    state: State = {}
    steps = mid_step = 0
    for _ in range(kills):
        of_writer = rng.getrandbits(64)
        killed(fd, of_writer, rng.uniform(0, LONGEST_S))
        slots = Slots(fd)
        done = slots.words[DONE]
        slots.close()
        found = state_of(fd)
        account = states(of_writer, state)
        for _ in range(done):
            next(account)
        before, with_begun = next(account), next(account)
        assert found in (before, with_begun), f"after {done} steps the journal holds what it never held"
        mid_step += found == with_begun != before
        state, steps = found, steps + done
    print(f"{kills} kills, {steps} steps, {mid_step} kills between a step and its count")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
