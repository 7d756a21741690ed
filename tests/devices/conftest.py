"""Devices that write into files of the mount. These tests run when asked for: pytest -m gpu tests/devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.gpu import Gpu
from pinfs.client.cuda import NoCudaError


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`pytest` alone is a whole run on a machine without devices."""
    chosen = config.getoption("markexpr")
    unwanted = [item for item in items if item.get_closest_marker("gpu") and "gpu" not in chosen]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


@pytest.fixture(scope="session")
def gpu() -> Iterator[Gpu]:
    try:
        gpu = Gpu()
    except NoCudaError as reason:
        pytest.skip(f"a GPU has to read and write the file, and this machine has none that CUDA can use: {reason}")
    yield gpu
    gpu.close()
