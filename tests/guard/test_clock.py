"""The time by which decisions are made."""

from __future__ import annotations

import time

import trio
import trio.testing

from pinfs.runtime.clock import Clock


async def test_it_is_that_of_trio(autojump_clock: trio.testing.MockClock) -> None:
    clock = Clock()
    assert clock.now() == trio.current_time()
    await trio.sleep(1000)
    assert clock.now() == trio.current_time()


async def test_the_system_s_clock_is_never_behind_that_of_trio() -> None:
    """A deadline that trio wakes for has passed."""
    clock = Clock()
    clock.follow_system()
    began = time.perf_counter()
    for _ in range(10_000):
        before = trio.current_time()
        assert before <= clock.now()
        assert clock.now() - before < time.perf_counter() - began + 1
