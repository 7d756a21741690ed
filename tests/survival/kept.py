"""A file system whose changes are written down, and what the next daemon makes of that at any moment: no mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pinfs.config.options import load
from pinfs.config.policies import PolicyBox
from pinfs.fs.backing import NoPassthrough
from pinfs.fs.inode import Inode
from pinfs.fs.recorder import Recorder
from pinfs.fs.restore import Restoration, Restored
from pinfs.journal.slots import Slots, new_journal_file
from pinfs.serve.assembly import FileSystem, assemble

ROOM = 4096
Image = dict[str, dict[int, Any]]


@dataclass
class Store:
    """Keeps duplicates of descriptors, by name."""

    held: dict[str, int] = field(default_factory=dict)
    is_full: bool = False

    def keep(self, name: str, fd: int) -> bool:
        if self.is_full:
            return False
        self.drop(name)
        self.held[name] = os.dup(fd)
        return True

    def drop(self, name: str) -> None:
        if (fd := self.held.pop(name, -1)) >= 0:
            os.close(fd)

    def copy(self) -> Store:
        return Store({name: os.dup(fd) for name, fd in self.held.items()})

    def close(self) -> None:
        for name in list(self.held):
            self.drop(name)


class Written:
    """A file system over `source` that is written down."""

    def __init__(self, source: Path, room: int = ROOM) -> None:
        self.source = source
        self.journal = new_journal_file()
        self.slots = Slots(self.journal, max_slots=room)
        self.store = Store()
        self.fs = _assembled(source)
        self.recorder = _recorder(self.fs, self.slots, self.store)

    @contextmanager
    def taken_over(self) -> Iterator[tuple[FileSystem, Restored]]:
        """What the next daemon would begin with if this one were killed now."""
        journal, store = _copied(self.journal), self.store.copy()
        slots = Slots(journal)
        fs = _assembled(self.source)
        try:
            recorder = _recorder(fs, slots, store)

            inherited = store.copy().held  # the daemon's own, as SCM_RIGHTS gives them
            restoration = Restoration(fs.parts, recorder, slots.load(), inherited)
            restoration.inodes()
            restoration.handles()
            restoration.pins()
            restoration.unreferenced()
            restoration.requests()
            yield fs, restoration.restored
        finally:
            fs.close()
            slots.close()
            store.close()
            os.close(journal)

    def close(self) -> None:
        self.fs.close()
        self.slots.close()
        self.store.close()
        os.close(self.journal)


def _assembled(source: Path) -> FileSystem:
    config = load([], None)
    fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
    return assemble(fd, config, PolicyBox(config.policies), NoPassthrough(), dict, 1 << 16)


def _recorder(fs: FileSystem, slots: Slots, store: Store) -> Recorder:
    recorder = Recorder(slots, store, fs.inodes.device, fs.guard.book.files.__contains__)
    fs.record(recorder)
    return recorder


def _copied(journal: int) -> int:
    copy, size = new_journal_file(), os.fstat(journal).st_size
    os.ftruncate(copy, size)
    os.pwrite(copy, os.pread(journal, size, 0), 0)
    return copy


def image(fs: FileSystem) -> Image:
    """What two daemons must agree on."""
    handles = fs.operations.handles
    return {
        "inodes": {inode.nodeid: _inode(inode) for inode in fs.inodes},
        "handles": {h.number: (type(h).__name__, h.inode.nodeid, h.flags) for h in handles.all()},
        "opens": {i.nodeid: i.file.opens for i in fs.inodes if i.file is not None and i.file.opens},
        "pins": {
            pin.id: (pin.inode, pin.owner, pin.process, pin.uid, pin.name, pin.spec, pin.proxy_uid, pin.charged)
            for pin in fs.guard.book.table.by_id.values()
        },
        "breaks": {
            pin.id: (pin.breaking.op, pin.breaking.start, pin.breaking.end, pin.breaking.killed)
            for pin in fs.guard.book.table.by_id.values()
            if pin.breaking is not None
        },
        "last": {0: (handles.last, fs.guard.book.table.registered)},
    }


def _inode(inode: Inode) -> tuple[Any, ...]:
    first = None if inode.parent is None else (inode.parent.nodeid, inode.name)
    links = {(parent.nodeid, name) for parent, name in inode.links or ()}
    return inode.key, inode.kind, inode.lookups, inode.children, first, links
