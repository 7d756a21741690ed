"""Journals of every version, as daemons of then have written them, are taken over by the daemon of today, or refused in
words (SPEC 13)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from support.actor import Actors

from pinfs.bridge import wire
from pinfs.core.pins import Pin
from pinfs.fs.control import ChannelHandle
from pinfs.fs.directories import DirectoryHandle
from pinfs.fs.handles import FileHandle
from pinfs.journal.records import Kind
from pinfs.journal.slots import VERSION, JournalError, Slots
from pinfs.linux.calls import stat_of
from pinfs.serve.assembly import FileSystem
from pinfs.serve.takeover import TakeOver

from .recording import LONG, NAMES, RECORDED, layout, path_of
from .replaying import Recording, restored

ANEW = "`cd tests && sudo ../.venv/bin/python -m survival.recording`"
NEVER_RECORDED = {Kind.RENAMING}
"""Kinds that are there for the time of a system call only."""


def told(version: int) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(path_of(version).read_text())
    return recorded


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    """Of this version."""
    actors, recorded = Actors(), told(VERSION)
    yield Recording(recorded, tmp_path, {name: actors.actor() for name in recorded["processes"]})
    actors.dismiss(hanging=False)


# Layouts


def test_this_version_has_been_recorded() -> None:
    assert path_of(VERSION).exists(), f"record a journal of version {VERSION}: {ANEW}"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a layout is not any more as it was. What is new does not matter: no journal of then has it."""
    return [
        f"{name} of version {VERSION} was {what}, and is {now.get(name, 'gone')} now: daemons of before cannot be "
        f"taken over. Raise VERSION in pinfs/journal/slots.py, and record the new one: {ANEW}"
        for name, what in then.items()
        if now.get(name) != what
    ]


def test_the_layout_is_that_of_its_version() -> None:
    wrong = differences(told(VERSION)["layout"], layout())
    assert not wrong, "\n".join(wrong)


def test_a_change_of_the_layout_is_found() -> None:
    then = told(VERSION)["layout"]
    assert differences(then, then | {"NEW_WORD": 25}) == []
    (said,) = differences(then, then | {"_ORPHAN": "<QQQQ"})
    assert said.startswith("_ORPHAN of version 1 was <QQQQQQQQQ, and is <QQQQ now")
    (said,) = differences(then, {name: what for name, what in then.items() if name != "Kind.ORPHAN"})
    assert "Kind.ORPHAN of version 1 was 6, and is gone now" in said


@pytest.mark.parametrize("path", sorted(RECORDED.glob("version-*.json")), ids=lambda path: path.stem)
def test_another_version_is_refused_in_words(path: Path, tmp_path: Path) -> None:
    """Until this one reads it."""
    recording = Recording(json.loads(path.read_text()), tmp_path, {})
    fd = recording.journal()
    try:
        version = recording.told["version"]
        if version == VERSION:
            os.pwrite(fd, (VERSION + 1).to_bytes(8, "little"), 8)
            version += 1
        with pytest.raises(JournalError, match=f"has version {version}, and this pinfs reads version {VERSION}"):
            Slots(fd)
    finally:
        os.close(fd)


# Tables


def test_each_kind_is_recorded(recording: Recording) -> None:
    fd = recording.journal()
    slots = Slots(fd)
    found = {Kind(kind) for kind, ids in slots.load().items() if ids}
    slots.close()
    os.close(fd)
    assert found == set(Kind) - NEVER_RECORDED


async def test_the_same_tables_are_restored(recording: Recording) -> None:
    with restored(recording) as (fs, taken):
        assert taken.restored.lost == []
        check_pins(fs, recording.told["pins"])
        check_breaks(fs)
        check_inodes(fs, recording)
        check_handles(fs)
        await check_lines(fs)
        check_book(fs, taken)
        await trio.lowlevel.checkpoint()


def check_pins(fs: FileSystem, pins: list[dict[str, Any]]) -> None:
    """As the daemon of then has listed them."""
    keys = ("id", "start", "length", "mode", "name", "note", "dirty", "state", "uid", "owner", "eventfd")
    wanted = [tuple(pin[key] for key in keys) for pin in pins]
    assert [pin_of(pin) for _, pin in sorted(fs.guard.book.table.by_id.items())] == wanted
    assert fs.guard.book.table.registered == max(pin["id"] for pin in pins)
    paths = {pin["id"]: pin["path"] for pin in pins}
    for pin in fs.guard.book.table.by_id.values():
        assert fs.inodes.path_of(pin.inode) == paths[pin.id]


def pin_of(pin: Pin) -> tuple[object, ...]:
    name = None if pin.name is None else pin.name.decode()
    owner = "process" if pin.owner == pin.process else "handle"
    spec = pin.spec
    said = pin.id, pin.start, pin.length, spec.mode.value, name, spec.note, spec.dirty, pin.state.value, pin.uid
    return (*said, owner, spec.eventfd is not None)


def check_breaks(fs: FileSystem) -> None:
    breaks = {
        fs.inodes.path_of(pin.inode): breaking
        for pin in fs.guard.book.table.by_id.values()
        if (breaking := pin.breaking) is not None
    }
    assert {path: breaking.op for path, breaking in breaks.items()} == {
        "left": "open_trunc",
        "leased": "truncate",
        "opened": "open_trunc",
    }
    for breaking in breaks.values():
        assert breaking.deadline is not None
        assert breaking.deadline - breaking.since == pytest.approx(600, abs=0.01)
        assert (breaking.policy.on_timeout, breaking.policy.errno_number) == ("deny", errno.EBUSY)
        assert breaking.seq


def check_inodes(fs: FileSystem, recording: Recording) -> None:
    """Each is found by its names, and is the file that has them."""
    names: dict[int, set[str]] = {}
    for inode in fs.inodes:
        found = {os.fsdecode(name) for _, name in fs.inodes.names_of(inode)}
        names[inode.nodeid] = found
        if (path := inode.path()) and found:
            st = stat_of((recording.source / os.fsdecode(path)).lstat())
            assert fs.inodes.find(st) is inode
    assert {"file", "other", LONG} in names.values()
    assert {"link"} in names.values() or recording.told["names"]["link"]
    assert sum(not found for found in names.values()) == 3  # the root, the removed file, and that of O_TMPFILE


def check_handles(fs: FileSystem) -> None:
    handles = list(fs.operations.handles.all())
    files = [handle for handle in handles if isinstance(handle, FileHandle)]
    assert sorted(handle.inode.path() or "" for handle in files) == ["", "", "file"]
    (directory,) = [handle for handle in handles if isinstance(handle, DirectoryHandle)]
    assert directory.names is not None
    assert len(directory.names) == NAMES
    assert fs.operations.handles.last >= max(handle.number for handle in handles)


async def check_lines(fs: FileSystem) -> None:
    """What the readers of events had not read."""
    channels = [handle for handle in fs.operations.handles.all() if isinstance(handle, ChannelHandle)]
    (trace,) = [handle for handle in channels if handle.process is None]
    (events,) = [handle for handle in channels if handle.process is not None]
    told = [json.loads(line) for line in (await trace.read(0, 1 << 16, 2)).splitlines()]
    assert [line["seq"] for line in told] == list(range(told[0]["seq"], told[0]["seq"] + len(told)))
    assert {"pinned", "break", "withdrawn"} <= {line["event"] for line in told}
    own = [json.loads(line) for line in (await events.read(0, 1 << 16, 4)).splitlines()]
    assert [(line["seq"], line["event"], line["path"]) for line in own] == [
        (1, "break", "left"),
        (2, "break", "leased"),
        (3, "break", "opened"),
    ]


def check_book(fs: FileSystem, taken: TakeOver) -> None:
    policies = fs.policies.current
    assert (policies.for_path("silent").break_timeout, policies.for_path("file").break_timeout) == (0.1, 600)
    intents = taken.restored.intents.values()
    assert [(intent.size, intent.done) for intent in intents if intent.opcode == wire.OPEN] == [(8192, 0)]
    assert taken.restored.counts["orphans"] == 1
    assert taken.restored.counts["silent holders"] == 1
