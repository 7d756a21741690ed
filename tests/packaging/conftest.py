"""Packages are built, and installed in fresh roots, when asked for: pytest -m packages tests/packaging."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """They need a mirror, PyPI and minutes: `pytest` alone leaves them out."""
    if "packages" in config.getoption("markexpr"):
        return
    unwanted = [item for item in items if HERE in item.path.parents and item.get_closest_marker("packages")]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
