"""The next daemon knows what the one before knew: any history, a death, and the tables are the same (SPEC 13)."""

from __future__ import annotations

import os
import random
import signal
import stat
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from support import seeds

from fs.conftest import ME
from fs.surviving import Survivor, surviving
from pinfs.core.pins import Pin
from pinfs.core.ranges import END
from pinfs.core.removals import RemovalRequest
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.restore import ANSWER_S
from pinfs.fs.types import SetAttr
from pinfs.journal.records import Kind
from pinfs.linux import syscalls
from pinfs.serve.assembly import FileSystem

NAMES = [b"a", b"b", b"c", b"long" * 40, b"d"]
STEPS = 120


@pytest.fixture
async def survivor(tmp_path: Path, root: None) -> AsyncIterator[Survivor]:
    async with surviving(tmp_path) as survivor:
        yield survivor


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

    def __init__(self, survivor: Survivor, chance: random.Random) -> None:
        self.survivor = survivor
        self.chance = chance
        self.files: list[int] = []  # handles
        self.directories = [ROOT_ID]

    async def step(self) -> None:
        ops, chance = self.survivor.fs.operations, self.chance
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
                inode = chance.choice(list(self.survivor.fs.inodes))
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
        ops, chance = self.survivor.fs.operations, self.chance
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
async def test_whatever_has_happened_the_next_daemon_knows_it(survivor: Survivor, number: int) -> None:
    chance = seeds.chance(f"take-over {number}")
    history = History(survivor, chance)
    for _ in range(3):
        for _ in range(chance.randrange(STEPS)):
            await history.step()
        before = state(survivor.fs)
        restored = survivor.die()
        assert not restored.lost
        after = state(survivor.fs)
        for what in before:
            assert after[what] == before[what]


async def test_what_was_open_can_be_read_although_its_name_is_gone(survivor: Survivor) -> None:
    ops = survivor.fs.operations
    opened, entry = await ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await ops.write(opened.fh, 0, b"still here")
    await ops.unlink(ROOT_ID, b"f", ME)
    assert not survivor.die().lost
    ops = survivor.fs.operations
    assert await ops.read(opened.fh, 0, 100) == b"still here"
    await ops.release(opened.fh)
    ops.forget([(entry.nodeid, 1)])
    assert survivor.store.kept == {}


def wait_until_files_are_younger(directory: Path, than_ns: int) -> None:
    """The clock that files are born by goes in ticks."""
    probe, birth_ns = directory / "probe", 0
    while birth_ns <= than_ns:
        probe.touch()
        fd = os.open(probe, os.O_PATH)
        birth_ns = syscalls.birth_time_ns(fd) or 0
        os.close(fd)
        probe.unlink()


async def test_a_name_that_leads_to_another_file_since_is_stale(survivor: Survivor) -> None:
    ops, path = survivor.fs.operations, survivor.source / "f"
    path.write_bytes(b"old")
    entry = await ops.lookup(ROOT_ID, b"f", ME)
    survivor.stop()
    wait_until_files_are_younger(survivor.source, time.time_ns())
    path.unlink()
    path.write_bytes(b"new")
    survivor.take_over()
    with pytest.raises(OSError, match="Stale"):
        await survivor.fs.operations.open(entry.nodeid, os.O_RDONLY, ME)


async def test_a_break_goes_on_to_its_deadline(survivor: Survivor) -> None:
    ops = survivor.fs.operations
    _, entry = await ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await ops.setattr(entry.nodeid, SetAttr(size=100), None, ME)
    await ops.setxattr(entry.nodeid, b"user.pinfs.pin.p", b"0:0,mode=lease,signal=none", 0, ME)
    breaker = ME._replace(pid=os.getppid())
    with trio.move_on_after(1):
        await ops.setattr(entry.nodeid, SetAttr(size=0), None, breaker)
    (pin,) = survivor.fs.guard.book.table.by_id.values()
    before = pin_state(pin)
    assert pin.breaking is not None
    survivor.die()
    (restored,) = survivor.fs.guard.book.table.by_id.values()
    assert restored.breaking is not None
    assert pin_state(restored) == before
    assert (restored.breaking.op, restored.breaking.seq) == (pin.breaking.op, pin.breaking.seq)


async def test_a_holder_may_have_answered_before_the_deadline_that_passed_meanwhile(survivor: Survivor) -> None:
    """Its answer has waited for the next daemon: the break goes on for a second, and after another death as well."""
    ops, book = survivor.fs.operations, survivor.fs.guard.book
    _, entry = await ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await ops.setattr(entry.nodeid, SetAttr(size=100), None, ME)
    await ops.setxattr(entry.nodeid, b"user.pinfs.pin.p", b"0:0,mode=lease,signal=none", 0, ME)
    policy = replace(survivor.fs.policies.current.for_path("f"), break_timeout=0.05)
    book.begin(RemovalRequest(entry.nodeid, 0, END, "truncate"), policy, trio.current_time())
    (pin,) = book.table.by_id.values()
    assert pin.deadline is not None
    survivor.stop()
    await trio.sleep_until(pin.deadline)
    for _ in range(2):
        before = trio.current_time()
        survivor.take_over()
        (pin,) = survivor.fs.guard.book.table.by_id.values()
        assert pin.deadline is not None
        assert before <= pin.deadline - ANSWER_S <= trio.current_time()
        survivor.stop()
    survivor.take_over()


@pytest.mark.parametrize("host", [None, "b", "h" * 300])
async def test_a_break_is_still_that_of_its_host(survivor: Survivor, host: str | None) -> None:
    """The breaker is on another host of a cluster, and the holder is told so after the take-over as well."""
    ops, book = survivor.fs.operations, survivor.fs.guard.book
    _, entry = await ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await ops.setattr(entry.nodeid, SetAttr(size=100), None, ME)
    await ops.setxattr(entry.nodeid, b"user.pinfs.pin.p", b"0:0,mode=lease,signal=none", 0, ME)
    request = RemovalRequest(entry.nodeid, 0, END, "truncate", host=host)
    book.begin(request, survivor.fs.policies.current.for_path("f"), trio.current_time())
    before = survivor.records(Kind.BREAK, Kind.PIN)
    for _ in range(2):
        survivor.die()
        (pin,) = survivor.fs.guard.book.table.by_id.values()
        assert pin.breaking is not None
        assert (pin.breaking.host, pin.breaking.op) == (host, "truncate")
        assert survivor.records(Kind.BREAK, Kind.PIN) == before


async def test_pins_of_a_holder_that_has_died_meanwhile_go(survivor: Survivor) -> None:
    ops = survivor.fs.operations
    _, entry = await ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await ops.setattr(entry.nodeid, SetAttr(size=100), None, ME)
    holder = os.fork()
    if not holder:
        signal.pause()
    try:
        await ops.setxattr(entry.nodeid, b"user.pinfs.pin.p", b"0:0", 0, ME._replace(pid=holder))
        await ops.setxattr(entry.nodeid, b"user.pinfs.pin.p", b"0:0", 0, ME)
        survivor.stop()
    finally:
        os.kill(holder, 9)
        os.waitpid(holder, 0)
    restored = survivor.take_over()
    assert restored.counts["pins ended"] == 1
    assert [pin.process.pid for pin in survivor.fs.guard.book.table.by_id.values() if pin.process] == [os.getpid()]
    assert stat.S_ISREG(survivor.fs.inodes.get(entry.nodeid).kind)


async def test_inodes_without_a_name_that_the_kernel_has_forgotten_go(survivor: Survivor) -> None:
    """The FORGET was read by a daemon that died before it acted on it: the kernel does not send it again."""
    names = [b"removed", b"known", b"named", b"open"]
    nodeids = {name: (await survivor.ops.create(ROOT_ID, name, 0o600, os.O_RDWR | os.O_CREAT, ME)) for name in names}
    for name, (opened, _) in nodeids.items():
        if name != b"open":
            await survivor.ops.release(opened.fh)
        if name != b"named":
            await survivor.ops.unlink(ROOT_ID, name, ME)
    survivor.die()
    known = nodeids[b"known"][1].nodeid
    await survivor.taken.finish(lambda nodeid: nodeid == known)
    left = {inode.nodeid for inode in survivor.fs.inodes} - {ROOT_ID}
    assert left == {nodeids[name][1].nodeid for name in (b"known", b"named", b"open")}


async def test_an_inode_that_is_found_again_meanwhile_stays(survivor: Survivor) -> None:
    opened, entry = await survivor.ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR | os.O_CREAT, ME)
    await survivor.ops.release(opened.fh)
    await survivor.ops.unlink(ROOT_ID, b"f", ME)
    survivor.die()
    answers = iter([False, True])
    await survivor.taken.finish(lambda nodeid: next(answers))
    assert survivor.fs.inodes.known(entry.nodeid) is not None
