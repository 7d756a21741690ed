"""Machines for tests. They run when asked for: pytest -m vm tests/vm."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without qemu and minutes to spare, `pytest` alone is still a whole run."""
    unwanted = [item for item in items if HERE in item.path.parents and "vm" not in config.getoption("markexpr")]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
