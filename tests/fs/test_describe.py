"""Times in what people and programs see."""

import time

import pytest

from pinfs.fs.describe import unix_time


async def test_a_moment_is_the_same_time_whenever_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    first = unix_time(5.0)
    for _ in range(20):  # over two roundings; trio's clock stands still in a test
        now += 1e-4
        assert unix_time(5.0) == first
    now += 3600  # the clock was set
    assert unix_time(5.0) == pytest.approx(first + 3600, abs=1)
