"""Mounts of several kinds, one of each for all tests of a module that leave them as they found them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import _factory
from mounted.kinds import KINDS
from support.mounts import Mount


@pytest.fixture(scope="module", params=["tmpfs", "disk"])
def _each_mount(request: pytest.FixtureRequest) -> Iterator[Mount]:
    backing, options = KINDS[request.param]
    with ExitStack() as stack:
        yield _factory(stack)(*options, backing=backing)


@pytest.fixture
def each_mount(_each_mount: Mount) -> Iterator[Mount]:
    """A mount over tmpfs, then one over a disk; `kinds.on` chooses other ones."""
    _each_mount.watch()
    yield _each_mount
    _each_mount.dismiss()
    _each_mount.check_log()


@pytest.fixture
def each_dir(each_mount: Mount) -> Path:
    """A fresh directory on it, open to every uid."""
    path = Path(tempfile.mkdtemp(dir=each_mount.path))
    path.chmod(0o777)
    return path
