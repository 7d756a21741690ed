"""All tests of the guard run on a clock that jumps to the next deadline whenever all tasks wait."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock


def run_with_a_clock_that_jumps(*args: Any, clock: None, **kwargs: Any) -> Any:
    return trio.run(*args, clock=MockClock(autojump_threshold=0), **kwargs)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-trio takes a clock from a test's own arguments only; this spares each of them from naming it."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.trio(run=run_with_a_clock_that_jumps), append=False)
