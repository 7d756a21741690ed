"""The next daemon knows what the one before knew: any history, a death, and the tables are the same (SPEC 13)."""

from __future__ import annotations

import os
import random
import signal
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from support import seeds

from fs.conftest import ME
from pinfs.config.options import load
from pinfs.config.policies import PolicyBox
from pinfs.core.pins import Pin
from pinfs.fs.backing import NoPassthrough
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.recorder import Recorder
from pinfs.fs.restore import Restoration, Restored
from pinfs.fs.types import SetAttr
from pinfs.journal.slots import Slots, new_journal_file
from pinfs.linux import syscalls
from pinfs.serve.assembly import FileSystem, assemble

NAMES = [b"a", b"b", b"c", b"long" * 40, b"d"]
STEPS = 120


@dataclass
class KeptDescriptors:
    """A store as a dictionary."""

    fds: dict[str, int] = field(default_factory=dict)

    def keep(self, name: str, fd: int) -> bool:
        self.fds[name] = os.dup(fd)
        return True

    def drop(self, name: str) -> None:
        os.close(self.fds.pop(name))

    def close(self) -> None:
        for name in list(self.fds):
            self.drop(name)


class Generations:
    """One file system after the other, over one source, journal and store."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.store = KeptDescriptors()
        self.journal = new_journal_file()
        self.fs = self._assembled()
        self.fs.record(self._recorder(Slots(self.journal)))

    def _assembled(self) -> FileSystem:
        config = load([], None)
        source_fd = os.open(self.source, os.O_PATH | os.O_DIRECTORY)
        return assemble(source_fd, config, PolicyBox(config.policies), NoPassthrough(), dict, 1 << 16)

    def _recorder(self, slots: Slots) -> Recorder:
        fs = self.fs
        return Recorder(slots, self.store, fs.inodes.device, fs.guard.book.files.__contains__)

    def die(self) -> None:
        """Nothing is put in order: descriptors are closed, as the kernel closes those of a process that is killed."""
        self._stop_recording()
        self._close_handles()
        self.fs.inodes.close()
        self.fs.holders.close()

    def _stop_recording(self) -> None:
        recorder = self.fs.recorder
        assert recorder is not None
        self.fs.record(None)
        recorder.close()

    def _close_handles(self) -> None:
        for handle in list(self.fs.operations.handles.all()):
            if hasattr(handle, "close"):
                handle.close()

    def take_over(self) -> Restored:
        self.fs = self._assembled()
        slots = Slots(self.journal)
        found = slots.load()
        recorder = self._recorder(slots)
        self.fs.record(recorder)
        received = {name: os.dup(fd) for name, fd in self.store.fds.items()}
        restoration = Restoration(self.fs.parts, recorder, found, received)
        restoration.inodes()
        restoration.handles()
        restoration.pins()
        restoration.requests()
        return restoration.restored

    def close(self) -> None:
        self._stop_recording()
        self._close_handles()
        self.fs.close()
        self.store.close()
        os.close(self.journal)


@pytest.fixture
async def generations(tmp_path: Path, root: None) -> Any:
    generations = Generations(tmp_path)
    yield generations
    generations.close()


def state(fs: FileSystem) -> dict[str, object]:
    """All that a program, the kernel or a person can tell of."""
    inodes = {
        inode.nodeid: (
            inode.key,
            inode.kind,
            inode.lookups,
            inode.children,
            {(parent.nodeid, name) for parent, name in fs.inodes.names_of(inode)},
        )
        for inode in fs.inodes
    }
    handles = {
        handle.number: (type(handle).__name__, handle.inode.nodeid, handle.flags)
        for handle in fs.operations.handles.all()
    }
    return {
        "inodes": inodes,
        "handles": handles,
        "pins": [pin_state(pin) for _, pin in sorted(fs.guard.book.table.by_id.items())],
    }


def pin_state(pin: Pin) -> tuple[object, ...]:
    deadline = None if pin.deadline is None else round(pin.deadline, 3)
    return (
        pin.id,
        pin.inode,
        pin.owner,
        pin.process,
        pin.uid,
        pin.name,
        pin.spec,
        pin.proxy_uid,
        pin.charged,
        deadline,
    )


class History:
    """A random history of one file system, as the kernel would send it."""

    def __init__(self, generations: Generations, chance: random.Random) -> None:
        self.generations = generations
        self.chance = chance
        self.files: list[int] = []  # handles
        self.directories = [ROOT_ID]

    async def step(self) -> None:
        ops, chance = self.generations.fs.operations, self.chance
        parent, name = chance.choice(self.directories), chance.choice(NAMES)
        other, other_name = chance.choice(self.directories), chance.choice(NAMES)
        step = chance.choice(
            ["create"] * 3
            + [
                "lookup",
                "mkdir",
                "unlink",
                "rename",
                "rename",
                "link",
                "forget",
                "release",
                "pin",
                "pin",
                "unpin",
                "tmp",
            ]
            + ["symlink", "rmdir", "opendir", "handle pin", "write"]
        )
        with suppress(OSError):
            if step == "create":
                opened, _ = await ops.create(parent, name, 0o644, os.O_RDWR | os.O_CREAT, ME)
                self.files.append(opened.fh)
            elif step == "tmp":
                opened, _ = await ops.tmpfile(parent, 0o600, os.O_RDWR, ME)
                self.files.append(opened.fh)
            elif step == "lookup":
                await ops.lookup(parent, name, ME)
            elif step == "mkdir":
                self.directories.append((await ops.mkdir(parent, name, 0o755, ME)).nodeid)
            elif step == "symlink":
                await ops.symlink(parent, name, b"target", ME)
            elif step == "unlink":
                await ops.unlink(parent, name, ME)
            elif step == "rmdir":
                nodeid = (await ops.lookup(parent, name, ME)).nodeid
                await ops.rmdir(parent, name, ME)
                if nodeid in self.directories:
                    self.directories.remove(nodeid)
            elif step == "rename":
                await ops.rename(parent, name, other, other_name, 0, ME)
            elif step == "link":
                nodeid = (await ops.lookup(parent, name, ME)).nodeid
                await ops.link(nodeid, other, other_name, ME)
            elif step == "forget":
                inode = chance.choice(list(self.generations.fs.inodes))
                is_open = any(handle.inode is inode for handle in ops.handles.all())  # a kernel does not forget that
                if inode.nodeid != ROOT_ID and inode.nodeid not in self.directories and not is_open:
                    ops.forget([(inode.nodeid, inode.lookups)])
            elif step == "release" and self.files:
                await ops.release(self.files.pop(chance.randrange(len(self.files))))
            elif step == "opendir":
                await ops.opendir(parent, ME)
            else:
                await self.on_a_file(step)

    async def on_a_file(self, step: str) -> None:
        if not self.files:
            return
        ops, chance = self.generations.fs.operations, self.chance
        fh = chance.choice(self.files)
        nodeid = ops.handles.find(fh).inode.nodeid  # type: ignore[union-attr]
        if step == "write":
            await ops.write(fh, 0, b"x" * 4096)
        elif step == "pin":
            attribute = b"user.pinfs.pin." + chance.choice([b"p", b"q", b"a name of more than sixteen bytes"])
            value = chance.choice([b"0:0", b"0:100,mode=lease,signal=none", b"5:7,note=a note,dirty=yes"])
            await ops.setxattr(nodeid, attribute, value, 0, ME)
        elif step == "unpin":
            await ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
        elif step == "handle pin":
            from pinfs.interface.ioctls import LEASE, PIN, PIN_LAYOUT

            await ops.ioctl(fh, PIN, PIN_LAYOUT.pack(0, 50, LEASE, 0, 0, 0, 0, b""), 256, ME)


@pytest.mark.parametrize("number", range(12))
async def test_whatever_has_happened_the_next_daemon_knows_it(generations: Generations, number: int) -> None:
    chance = seeds.chance(f"take-over {number}")
    history = History(generations, chance)
    for _ in range(3):
        for _ in range(chance.randrange(STEPS)):
            await history.step()
        before = state(generations.fs)
        generations.die()
        restored = generations.take_over()
        assert not restored.lost
        after = state(generations.fs)
        for what in before:
            assert after[what] == before[what]


async def test_what_was_open_can_be_read_although_its_name_is_gone(generations: Generations) -> None:
    ops = generations.fs.operations
    opened, entry = await ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await ops.write(opened.fh, 0, b"still here")
    await ops.unlink(ROOT_ID, b"f", ME)
    generations.die()
    assert not generations.take_over().lost
    ops = generations.fs.operations
    assert await ops.read(opened.fh, 0, 100) == b"still here"
    await ops.release(opened.fh)
    ops.forget([(entry.nodeid, 1)])
    assert generations.store.fds == {}


def wait_until_files_are_younger(directory: Path, than_ns: int) -> None:
    """The clock that files are born by goes in ticks."""
    probe, birth_ns = directory / "probe", 0
    while birth_ns <= than_ns:
        probe.touch()
        fd = os.open(probe, os.O_PATH)
        birth_ns = syscalls.birth_time_ns(fd) or 0
        os.close(fd)
        probe.unlink()


async def test_a_name_that_leads_to_another_file_since_is_stale(generations: Generations) -> None:
    ops, path = generations.fs.operations, generations.source / "f"
    path.write_bytes(b"old")
    entry = await ops.lookup(ROOT_ID, b"f", ME)
    generations.die()
    wait_until_files_are_younger(generations.source, time.time_ns())
    path.unlink()
    path.write_bytes(b"new")
    generations.take_over()
    with pytest.raises(OSError, match="Stale"):
        await generations.fs.operations.open(entry.nodeid, os.O_RDONLY, ME)


async def test_a_break_goes_on_to_its_deadline(generations: Generations) -> None:
    ops = generations.fs.operations
    _, entry = await ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await ops.setattr(entry.nodeid, SetAttr(size=100), None, ME)
    await ops.setxattr(entry.nodeid, b"user.pinfs.pin.p", b"0:0,mode=lease,signal=none", 0, ME)
    breaker = ME._replace(pid=os.getppid())
    with trio.move_on_after(1):
        await ops.setattr(entry.nodeid, SetAttr(size=0), None, breaker)
    (pin,) = generations.fs.guard.book.table.by_id.values()
    before = pin_state(pin)
    assert pin.breaking is not None
    generations.die()
    generations.take_over()
    (restored,) = generations.fs.guard.book.table.by_id.values()
    assert restored.breaking is not None
    assert pin_state(restored) == before
    assert (restored.breaking.op, restored.breaking.seq) == (pin.breaking.op, pin.breaking.seq)


async def test_pins_of_a_holder_that_has_died_meanwhile_go(generations: Generations) -> None:
    ops = generations.fs.operations
    _, entry = await ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await ops.setattr(entry.nodeid, SetAttr(size=100), None, ME)
    holder = os.fork()
    if not holder:
        signal.pause()
    try:
        await ops.setxattr(entry.nodeid, b"user.pinfs.pin.p", b"0:0", 0, ME._replace(pid=holder))
        await ops.setxattr(entry.nodeid, b"user.pinfs.pin.p", b"0:0", 0, ME)
        generations.die()
    finally:
        os.kill(holder, 9)
        os.waitpid(holder, 0)
    restored = generations.take_over()
    assert restored.counts["pins ended"] == 1
    assert [pin.process.pid for pin in generations.fs.guard.book.table.by_id.values() if pin.process] == [os.getpid()]
    assert stat.S_ISREG(generations.fs.inodes.get(entry.nodeid).kind)
