"""Machines for tests. They run when asked for: pytest -m vm tests/vm, pytest -m nfs tests/vm."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without qemu and minutes to spare, `pytest` alone is still a whole run."""
    wanted = config.getoption("markexpr")
    marks = {item: "nfs" if item.get_closest_marker("nfs") else "vm" for item in items if HERE in item.path.parents}
    unwanted = [item for item, mark in marks.items() if mark not in wanted]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
