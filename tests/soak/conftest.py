"""A file system without a mount, with few descriptors: its caches are full after a short while."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from pinfs.config.options import load
from pinfs.config.policies import PolicyBox
from pinfs.fs.backing import NoPassthrough
from pinfs.serve.assembly import FileSystem, assemble
from soak.nest import Nest

DESCRIPTORS = 512


@pytest.fixture
def nest() -> Iterator[Nest]:
    with Nest() as nest:
        yield nest


@pytest.fixture
async def file_system(base: Path) -> AsyncIterator[FileSystem]:
    config = load(["break_timeout=10", "retry_after=0"], None)
    source_fd = os.open(base, os.O_PATH | os.O_DIRECTORY)
    status = {"source": str(base)}
    fs = assemble(source_fd, config, PolicyBox(config.policies), NoPassthrough(), lambda: status, DESCRIPTORS)
    async with trio.open_nursery() as nursery:
        await nursery.start(fs.guard.run)
        await nursery.start(fs.holders.run)
        yield fs
        nursery.cancel_scope.cancel()
    fs.close()
