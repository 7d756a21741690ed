"""The daemon of today takes over from a recorded journal, without a mount: on files of its own, which stand for those
of the recording, and for processes of the test in place of those of then."""

from __future__ import annotations

import base64
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.actor import Actor

from pinfs.config.options import load
from pinfs.config.policies import PolicyBox
from pinfs.enforce.holders import Holders
from pinfs.fs.backing import NoPassthrough
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.recorder import Recorder
from pinfs.journal import records, slots
from pinfs.journal.records import Kind
from pinfs.journal.slots import SLOT, Slots, new_journal_file
from pinfs.serve.assembly import FileSystem, assemble
from pinfs.serve.takeover import Identity, Left, TakeOver

from .kept import Store

IDENTITY = Identity("", "", 0, 0, 0, 0, "")
UNPACK: dict[Kind, Callable[[bytes], Any]] = {
    Kind.LINK: records.unpack_link,
    Kind.HANDLE: records.unpack_handle,
    Kind.PIN: records.unpack_pin,
    Kind.STREAM: records.unpack_stream,
    Kind.SILENT: records.unpack_silent,
    Kind.ORPHAN: records.unpack_orphan,
}
"""Kinds that speak of inodes or processes."""


@dataclass
class Recording:
    """One that was read, with its source made anew in `directory`. `actors`: in place of the processes of then."""

    told: Mapping[str, Any]
    directory: Path
    actors: Mapping[str, Actor]

    def __post_init__(self) -> None:
        self.source = self.directory / "source"
        self.source.mkdir()
        self._made = {self.told["root"]: self.source}
        for name, key in sorted(self.told["names"].items()):
            self._make(self.source / name, key)

    def _make(self, path: Path, key: str) -> None:
        kind = self.told["source"][key]
        if key in self._made:
            os.link(self._made[key], path)
            return
        self._made[key] = path
        if kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("file")
        else:
            path.write_bytes(b"x" * 8192)

    def journal(self) -> int:
        """A copy of the journal; a descriptor."""
        fd, image = new_journal_file(), zlib.decompress(base64.b64decode(self.told["journal"]))
        os.ftruncate(fd, slots.MAX_SLOTS * SLOT)
        os.pwrite(fd, image, 0)
        return fd

    def adapt(self, fd: int, store: Store) -> None:
        """Have the journal speak of the files and processes that there are now."""
        journal = Slots(fd)
        found = {kind: {slot: journal.body(slot) for slot in ids.values()} for kind, ids in journal.load().items()}
        journal.close()
        inodes = {slot: records.unpack_inode(body) for slot, body in found[Kind.INODE].items()}
        there = {record.nodeid: self._stat(record, store) for record in inodes.values()}
        for slot, record in inodes.items():
            st = there[record.nodeid]
            now = record._replace(ino=st.st_ino, device=st.st_dev, seen_ns=time.time_ns())
            _write(fd, slot, self._of_inode(now, there).pack())
        for kind, unpack in UNPACK.items():
            for slot, body in found[kind].items():
                _write(fd, slot, self._of_process(self._of_inode(unpack(body), there)).pack())
        for slot, body in found[Kind.BREAK].items():
            record_of_break = records.unpack_break(body)
            later = time.monotonic_ns() - record_of_break.since_ns
            times = {name: getattr(record_of_break, name) + later for name in ("since_ns", "deadline_ns")}
            _write(fd, slot, record_of_break._replace(**times).pack())
        for body in found[Kind.EVENTFD].values():
            store.held[f"e{records.unpack_eventfd(body).eventfd}"] = os.eventfd(0)

    def _stat(self, record: records.InodeRecord, store: Store) -> os.stat_result:
        """Of the file that stands for an inode. Those without a name the store has."""
        path = self._made.get(f"{record.device}:{record.ino}")
        if path is not None:
            return path.lstat()
        assert not record.parent, "a name is missing in the source"
        fd = os.open(self.source, os.O_TMPFILE | os.O_RDWR, 0o600)
        st = os.fstat(fd)
        store.held[f"n{st.st_ino}"] = fd
        return st

    def _of_inode(self, record: Any, there: Mapping[int, os.stat_result]) -> Any:
        """With today's node ids: the numbers of the files, but for the root."""
        ids = {name: getattr(record, name) for name in ("nodeid", "parent") if hasattr(record, name)}
        return record._replace(
            **{name: there[id_].st_ino for name, id_ in ids.items() if id_ in there and id_ != ROOT_ID}
        )

    def _of_process(self, record: Any) -> Any:
        pid = getattr(record, "pid", 0)
        name = next((name for name, then in self.told["processes"].items() if then == pid), None)
        if name is None:
            return record
        holders = Holders()
        process = holders.process_of(self.actors[name].pid)
        assert process is not None
        _, start_time, _, incarnation = process.id
        holders.close()
        return record._replace(pid=process.pid, start_time=start_time, incarnation=incarnation)


def _write(fd: int, slot: int, body: bytes) -> None:
    os.pwrite(fd, body, slot * SLOT + 8)


@contextmanager
def restored(recording: Recording) -> Iterator[tuple[FileSystem, TakeOver]]:
    """What the next daemon makes of a recording."""
    store = Store()
    with ExitStack() as stack:
        stack.callback(store.close)
        fd = recording.journal()
        stack.callback(os.close, fd)
        recording.adapt(fd, store)
        config = load([], None)
        source_fd = os.open(recording.source, os.O_PATH | os.O_DIRECTORY)
        fs = assemble(source_fd, config, PolicyBox(config.policies), NoPassthrough(), dict, 1 << 16)
        stack.callback(fs.close)
        journal = Slots(fd)
        stack.callback(journal.close)
        recorder = Recorder(journal, store, fs.inodes.device, fs.guard.book.files.__contains__)
        left = Left(store.copy().held, journal, journal.load(without=Kind.PIN), IDENTITY)
        taken = TakeOver(fs, recorder, left)
        taken.begin(lambda: None)
        yield fs, taken
        fs.record(None)
