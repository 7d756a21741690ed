"""A file system that dies and goes on from its journal, without a mount and without a kernel."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from pinfs.config.options import Config, load
from pinfs.config.policies import PolicyBox
from pinfs.fs.backing import NoPassthrough
from pinfs.fs.directories import DirectoryHandle
from pinfs.fs.recorder import Recorder
from pinfs.fs.restore import Restored
from pinfs.fs.types import Caller
from pinfs.journal.records import Kind
from pinfs.journal.slots import Slots, new_journal_file
from pinfs.serve.assembly import FileSystem, assemble
from pinfs.serve.takeover import Identity, Left, TakeOver

from .conftest import ME, Bench

IDENTITY = Identity("", "", 0, 0, 0, 0, "")


class MemoryStore:
    """Keeps descriptors in this process."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def keep(self, name: str, fd: int) -> bool:
        self.drop(name)
        self.kept[name] = os.dup(fd)
        return True

    def drop(self, name: str) -> None:
        if name in self.kept:
            os.close(self.kept.pop(name))

    def close(self) -> None:
        for name in list(self.kept):
            self.drop(name)


class Survivor(Bench):
    """A bench whose file system can die. `restored`: what the last take-over has found."""

    def __init__(self, source: Path, options: list[str], journal: int) -> None:
        self.source = source
        self.options = options
        self.journal = journal
        self.store = MemoryStore()
        self.slots = Slots(journal)
        self.restored = Restored()
        self.last_unique = 100
        self.to_monotonic_s: float | None = None
        self._make()
        self.fs.record(self._recorder())
        self.fs.write_texts()

    def _make(self) -> None:
        config: Config = load(self.options, None)
        self.policies = PolicyBox(config.policies)
        source_fd = os.open(self.source, os.O_PATH | os.O_DIRECTORY)
        self.fs: FileSystem = assemble(source_fd, config, self.policies, NoPassthrough(), dict, 1 << 20)

    def _recorder(self) -> Recorder:
        book, inodes = self.fs.guard.book, self.fs.inodes
        recorder = Recorder(self.slots, self.store, inodes.device, book.files.__contains__)
        if self.to_monotonic_s is not None:  # trio's mock clock runs on, by leaps
            recorder.to_monotonic_s = self.to_monotonic_s
        self.to_monotonic_s = recorder.to_monotonic_s
        return recorder

    def request(self, caller: Caller = ME) -> Caller:
        """The caller of a new request."""
        self.last_unique += 2
        return caller._replace(unique=self.last_unique)

    def die(self) -> Restored:
        """As by SIGKILL; the next one takes over."""
        self.stop()
        return self.take_over()

    def take_over(self) -> Restored:
        """After `stop`: the next one begins."""
        self.slots = Slots(self.journal)
        self._make()
        left = Left({name: os.dup(fd) for name, fd in self.store.kept.items()}, self.slots, self.slots.load(), IDENTITY)
        self.taken = TakeOver(self.fs, self._recorder(), left)
        self.taken.begin(lambda: None)
        assert not self.taken.pending.files
        self.restored = self.taken.restored
        for slot in self.restored.intent_slots.values():  # no kernel sends requests again
            self.slots.free(slot)
        return self.restored

    def stop(self) -> None:
        """Nothing of the old objects writes any more, and their descriptors are closed."""
        recorder = self.fs.recorder
        assert recorder is not None
        self.fs.record(None)
        recorder.close()
        self.fs.policies.on_change = lambda: None
        for handle in self.ops.handles.all():
            if isinstance(handle, DirectoryHandle):
                os.close(handle.fd)
                if handle.kept_fd >= 0:
                    os.close(handle.kept_fd)
        self.fs.inodes.close()
        self.fs.holders.close()

    def records(self, *kinds: Kind) -> dict[str, int]:
        """How many records of which kinds the journal has; of all kinds where none is named."""
        slots = Slots(self.journal)
        found = {Kind(kind).name: len(slots_) for kind, slots_ in slots.load().items() if not kinds or kind in kinds}
        slots.close()
        return {name: count for name, count in found.items() if count}


@asynccontextmanager
async def surviving(source: Path, options: list[str] | None = None) -> AsyncIterator[Survivor]:
    """A file system over `source` that can die. Its guard does not run: nothing happens by itself."""
    journal = new_journal_file()
    survivor = Survivor(source, options or [], journal)
    try:
        yield survivor
    finally:
        survivor.stop()
        survivor.store.close()
        os.close(journal)
    await trio.lowlevel.checkpoint()
