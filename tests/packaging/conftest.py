"""Packages are built, and installed in fresh roots, when asked for: pytest -m packages tests/packaging."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.packages import build

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """They need a mirror, PyPI and minutes: `pytest` alone leaves them out."""
    chosen = config.getoption("markexpr")
    unwanted = [
        item
        for item in items
        if HERE in item.path.parents
        if any(item.get_closest_marker(mark) and mark not in chosen for mark in ("packages", "long"))
    ]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the packages (support/packages.py); PINFS_PACKAGES names one that has been built already."""
    if built := os.environ.get("PINFS_PACKAGES"):
        return Path(built)
    path = tmp_path_factory.mktemp("packages")
    build(path)
    return path
