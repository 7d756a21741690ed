"""Mounts of several kinds, one of each for all tests of a module that leave them as they found them; io_uring."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted.kinds import KINDS
from support.mounts import Mount, fresh_mount
from support.uring import Ring


@pytest.fixture(scope="module", params=["tmpfs", "disk"])
def _each_mount(fuse: None, request: pytest.FixtureRequest) -> Iterator[Mount]:
    backing, options = KINDS[request.param]
    with fresh_mount(*options, backing=backing) as mount:
        yield mount


@pytest.fixture
def each_mount(_each_mount: Mount) -> Iterator[Mount]:
    """A mount over tmpfs, then one over a disk; `kinds.on` chooses other ones."""
    with _each_mount.lent() as mount:
        yield mount


@pytest.fixture
def each_dir(each_mount: Mount) -> Path:
    """A fresh directory on it, open to every uid."""
    return each_mount.new_dir()


@pytest.fixture
def ring() -> Iterator[Ring]:
    try:
        ring = Ring()
    except OSError as e:
        if e.errno in (errno.ENOSYS, errno.EPERM):
            pytest.skip("no io_uring here")
        raise
    with ring:
        yield ring
