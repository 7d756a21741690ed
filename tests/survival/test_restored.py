"""What the next daemon restores is what this one knew, at any moment, and nothing stays written of what is over."""

from __future__ import annotations

import os
import random
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
from support import seeds

from pinfs.client import ioctl
from pinfs.fs import recorder as recorder_module
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.types import Caller, Entry, SetAttr
from pinfs.journal import slots as slots_module
from pinfs.journal.slots import SLOT
from pinfs.linux import syscalls

from .kept import ROOM, Written, image

ME = Caller(os.geteuid(), os.getegid(), os.getpid(), 0o022)
STEPS = 400


@pytest.fixture
async def written(tmp_path: Path) -> AsyncIterator[Written]:
    written = Written(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(written.fs.guard.run)
        await nursery.start(written.fs.holders.run)
        yield written
        nursery.cancel_scope.cancel()
    written.close()


def check(written: Written) -> None:
    """The next daemon would know all that this one knows."""
    wanted = image(written.fs)
    with written.taken_over() as (fs, restored):
        found = image(fs)
        assert restored.lost == []
        assert found == wanted


class Kernel:
    """Sends any requests, and keeps account of the references that it was given."""

    NAMES = (b"a", b"b", b"c", b"n" * 200)

    def __init__(self, written: Written, rng: random.Random) -> None:
        self.ops = written.fs.operations
        self.rng = rng
        self.unique = 0
        self.references: dict[int, int] = {}
        self.directories = [ROOT_ID]
        self.files: list[int] = []
        self.handles: list[int] = []
        self.open_directories: list[int] = []
        self.pins: list[tuple[int, bytes]] = []

    @property
    def caller(self) -> Caller:
        self.unique += 2
        return ME._replace(unique=self.unique)

    def _got(self, entry: Entry) -> int:
        nodeid = entry.nodeid
        self.references[nodeid] = self.references.get(nodeid, 0) + 1
        kinds = {stat.S_IFREG: self.files, stat.S_IFDIR: self.directories}.get(stat.S_IFMT(entry.st.st_mode))
        if kinds is not None and nodeid not in kinds:
            kinds.append(nodeid)
        return nodeid

    async def step(self) -> None:
        steps: list[Callable[[], Awaitable[None]]] = [
            self.lookup, self.create, self.mkdir, self.symlink, self.link, self.rename, self.unlink, self.rmdir,
            self.open, self.release, self.opendir, self.releasedir, self.forget, self.tmpfile, self.pin, self.unpin,
            self.pin_handle, self.truncate,
        ]  # fmt: skip
        with suppress(OSError, IndexError, ValueError):
            await self.rng.choice(steps)()

    def _name(self) -> tuple[int, bytes]:
        return self.rng.choice(self.directories), self.rng.choice(self.NAMES)

    async def lookup(self) -> None:
        self._got(await self.ops.lookup(*self._name(), self.caller))

    async def create(self) -> None:
        opened, entry = await self.ops.create(*self._name(), 0o600, os.O_RDWR, self.caller)
        self._got(entry)
        self.handles.append(opened.fh)

    async def tmpfile(self) -> None:
        opened, entry = await self.ops.tmpfile(ROOT_ID, 0o600, os.O_RDWR, self.caller)
        self._got(entry)
        self.handles.append(opened.fh)

    async def mkdir(self) -> None:
        self._got(await self.ops.mkdir(*self._name(), 0o700, self.caller))

    async def symlink(self) -> None:
        self._got(await self.ops.symlink(*self._name(), b"target", self.caller))

    async def link(self) -> None:
        self._got(await self.ops.link(self.rng.choice(self.files), *self._name(), self.caller))

    async def rename(self) -> None:
        flags = self.rng.choice((0, 0, syscalls.RENAME_EXCHANGE, syscalls.RENAME_NOREPLACE))
        await self.ops.rename(*self._name(), *self._name(), flags, self.caller)

    async def unlink(self) -> None:
        await self.ops.unlink(*self._name(), self.caller)

    async def rmdir(self) -> None:
        await self.ops.rmdir(*self._name(), self.caller)

    async def open(self) -> None:
        flags = self.rng.choice((os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND))
        self.handles.append((await self.ops.open(self.rng.choice(self.files), flags, self.caller)).fh)

    async def release(self) -> None:
        await self.ops.release(self.handles.pop(self.rng.randrange(len(self.handles))))

    async def opendir(self) -> None:
        self.open_directories.append((await self.ops.opendir(self.rng.choice(self.directories), self.caller)).fh)

    async def releasedir(self) -> None:
        await self.ops.releasedir(self.open_directories.pop(self.rng.randrange(len(self.open_directories))))

    async def forget(self) -> None:
        nodeid = self.rng.choice(list(self.references))
        self._forget(nodeid)

    def _forget(self, nodeid: int) -> None:
        if nodeid in self._in_use():
            return
        self.ops.forget([(nodeid, self.references.pop(nodeid))])
        for nodeids in (self.directories, self.files):
            if nodeid in nodeids:
                nodeids.remove(nodeid)

    def _in_use(self) -> set[int]:
        """A kernel does not forget what is open."""
        handles = (self.ops.handles.find(fh) for fh in (*self.handles, *self.open_directories))
        return {handle.inode.nodeid for handle in handles if handle is not None}

    async def pin(self) -> None:
        nodeid, name = self.rng.choice(self.files), self.rng.choice((b"p", b"q" * 60))
        value = b"0:%d,mode=%s" % (self.rng.randrange(1, 99), self.rng.choice((b"deny", b"lease,signal=none")))
        await self.ops.setxattr(nodeid, b"user.pinfs.pin." + name, value, 0, self.caller)
        self.pins.append((nodeid, name))

    async def unpin(self) -> None:
        nodeid, name = self.pins.pop(self.rng.randrange(len(self.pins)))
        await self.ops.removexattr(nodeid, b"user.pinfs.pin." + name, self.caller)

    async def pin_handle(self) -> None:
        wanted = ioctl.PinRequest(0, 10, ioctl.DENY, note=b"n" * 30).pack()
        await self.ops.ioctl(self.rng.choice(self.handles), ioctl.PIN, wanted, len(wanted), self.caller)

    async def truncate(self) -> None:
        await self.ops.setattr(self.rng.choice(self.files), SetAttr(size=self.rng.randrange(200)), None, self.caller)

    async def let_go(self) -> None:
        for fh in self.handles:
            await self.ops.release(fh)
        for fh in self.open_directories:
            await self.ops.releasedir(fh)
        self.handles.clear()
        self.open_directories.clear()
        for nodeid, name in dict.fromkeys(self.pins):
            with suppress(OSError):
                await self.ops.removexattr(nodeid, b"user.pinfs.pin." + name, self.caller)
        for nodeid in list(self.references):
            self._forget(nodeid)


@pytest.mark.parametrize("number", range(4))
async def test_after_any_requests(written: Written, number: int) -> None:
    rng = random.Random(f"{seeds.SEED} {number}")
    kernel = Kernel(written, rng)
    for _ in range(STEPS):
        with trio.move_on_after(0.01):
            await kernel.step()
        if rng.random() < 0.2:
            check(written)
    check(written)
    await kernel.let_go()
    check(written)
    assert len(written.fs.inodes) == 1
    assert len(written.slots) == 0, "records are left"
    assert written.store.held == {}, "descriptors are left"


class Instructions:
    """Calls `at` while a call runs: as each function that writes records begins, and after each instruction of them
    that has changed the journal."""

    FILES = (slots_module.__file__, recorder_module.__file__)

    def __init__(self, journal: int, at: Callable[[], None]) -> None:
        self._journal = journal
        self._at = at
        self._seen = b""

    def __enter__(self) -> None:
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self.FILES:
            return None
        self._check()
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        image = os.pread(self._journal, ROOM * SLOT, 0)
        if image != self._seen:
            self._seen = image
            self._check()
        return self._step

    def _check(self) -> None:
        sys.settrace(None)
        try:
            self._at()
        finally:
            sys.settrace(self._enter)


@pytest.mark.interpreted
async def test_killed_at_any_instruction(written: Written) -> None:
    """Whatever the kernel has been told is known to the next daemon, and at most one thing more."""
    kernel = Kernel(written, random.Random(seeds.SEED))
    moments = 0

    def check() -> None:
        nonlocal moments
        moments += 1
        with written.taken_over() as (fs, restored):
            assert restored.lost == []
            inodes, handles = fs.inodes, fs.operations.handles
            for nodeid, count in kernel.references.items():
                inode = inodes.known(nodeid)
                assert inode is not None, f"inode {nodeid} is not known"
                assert inode.lookups >= count
            known = {fh for fh in (*kernel.handles, *kernel.open_directories) if handles.find(fh) is not None}
            assert known == {*kernel.handles, *kernel.open_directories}
            assert len(handles) - len(known) <= 1

    for number in range(60):
        if number % 20 == 19:
            await kernel.let_go()
        with Instructions(written.journal, check), trio.move_on_after(0.01):
            await kernel.step()
    print(moments, "moments")
    assert moments > 100
