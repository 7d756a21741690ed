"""Operations without a mount: a source directory, real processes as callers, trio's autojump clock as time."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from pinfs.config.options import Config, load
from pinfs.config.policies import PolicyBox
from pinfs.fs import backing as backing_module
from pinfs.fs.backing import NoPassthrough
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.operations import Operations
from pinfs.fs.types import Caller, Opened, SetAttr
from pinfs.serve.assembly import FileSystem, assemble

ME = Caller(0, 0, os.getpid(), 0o022)


@dataclass
class Bench:
    """A file system and short words for what tests do with it."""

    fs: FileSystem
    source: Path
    policies: PolicyBox

    @property
    def ops(self) -> Operations:
        return self.fs.operations

    async def file(self, name: str, size: int = 0) -> int:
        """A file of `size` bytes, and its node id."""
        path = self.source / name
        path.write_bytes(b"x" * size)
        return (await self.ops.lookup(ROOT_ID, os.fsencode(name), ME)).nodeid

    async def pin(self, nodeid: int, name: str, value: str, ctx: Caller = ME) -> None:
        await self.ops.setxattr(nodeid, b"user.pinfs.pin." + name.encode(), value.encode(), 0, ctx)

    async def truncate(self, nodeid: int, size: int, ctx: Caller = ME, fh: int | None = None) -> os.stat_result:
        return await self.ops.setattr(nodeid, SetAttr(size=size), fh, ctx)

    async def control(self, name: str, flags: int = os.O_RDONLY, ctx: Caller = ME) -> Opened:
        directory = await self.ops.lookup(ROOT_ID, b".pinfs", ctx)
        entry = await self.ops.lookup(directory.nodeid, name.encode(), ctx)
        return await self.ops.open(entry.nodeid, flags, ctx)


@pytest.fixture
def options() -> list[str]:
    """-o options of the file system under test; parametrize to change them."""
    return []


@pytest.fixture
def max_descriptors() -> int:
    """How many the file system under test may have; parametrize to change it."""
    return 1 << 20


@pytest.fixture
def cuts_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the source of `bench` the kernel may make each cut wait."""
    monkeypatch.setattr(backing_module, "cuts_may_wait", lambda fd: True)


@asynccontextmanager
async def serving(source: Path, options: list[str], max_descriptors: int = 1 << 20) -> AsyncIterator[Bench]:
    """A file system over `source`, with its tasks."""
    config: Config = load(options, None)
    policies = PolicyBox(config.policies)
    source_fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
    fs = assemble(source_fd, config, policies, NoPassthrough(), lambda: {"source": str(source)}, max_descriptors)
    async with trio.open_nursery() as nursery:
        await nursery.start(fs.guard.run)
        await nursery.start(fs.holders.run)
        yield Bench(fs, source, policies)
        nursery.cancel_scope.cancel()
    fs.close()


@pytest.fixture
async def bench(tmp_path: Path, options: list[str], max_descriptors: int) -> AsyncIterator[Bench]:
    async with serving(tmp_path, options, max_descriptors) as bench:
        yield bench
