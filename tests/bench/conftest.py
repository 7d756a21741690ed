"""Directories to compare."""

from pathlib import Path

import pytest


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Two plain directories."""
    paths = (tmp_path / "first", tmp_path / "second")
    for path in paths:
        path.mkdir()
    return str(paths[0]), str(paths[1])
