"""What a change behind pinfs makes slow or impossible concerns its callers alone."""

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from pinfs.fs.directories import SLICE
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.types import Entry
from pinfs.linux import inodeflags
from pinfs.linux.inodeflags import APPEND

from .conftest import ME, Bench

NAMES = 5 * SLICE + 7


@contextmanager
def leased(path: Path, kind: int) -> Iterator[int]:
    """A lease of this process, which any open(2) that conflicts has to wait for."""
    fd = os.open(path, os.O_RDONLY if kind == fcntl.F_RDLCK else os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("how", ["open", "create"])
async def test_an_open_waits_for_a_lease_and_nothing_else_does(bench: Bench, how: str) -> None:
    nodeid = await bench.file("leased", 100)
    other = await bench.file("other", 100)
    opened = []

    async def open_it() -> None:
        if how == "open":
            opened.append((await bench.ops.open(nodeid, os.O_RDONLY, ME)).fh)
        else:
            opened.append((await bench.ops.create(ROOT_ID, b"leased", 0o644, os.O_RDWR, ME))[0].fh)

    with leased(bench.source / "leased", fcntl.F_WRLCK) as fd:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
                assert (await bench.ops.getattr(other, ME)).st_size == 100
            assert not opened
            with pytest.raises(BlockingIOError):
                await bench.ops.open(nodeid, os.O_RDONLY | os.O_NONBLOCK, ME)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert await bench.ops.read(opened[0], 0, 3) == b"xxx"
    await bench.ops.release(opened[0])


async def test_an_open_that_waits_for_a_lease_can_be_interrupted(bench: Bench) -> None:
    nodeid = await bench.file("leased", 100)
    before = len(os.listdir("/proc/self/fd"))
    with leased(bench.source / "leased", fcntl.F_WRLCK) as fd:
        with trio.move_on_after(0.2) as scope:
            await bench.ops.open(nodeid, os.O_RDONLY, ME)
        assert scope.cancelled_caught
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    with trio.fail_after(10):
        while len(os.listdir("/proc/self/fd")) > before + 1:  # the inode's own
            await trio.sleep(0.01)
    opened = await bench.ops.open(nodeid, os.O_RDONLY, ME)
    await bench.ops.release(opened.fh)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("kind", [fcntl.F_RDLCK, fcntl.F_WRLCK])
async def test_a_truncate_by_path_waits_for_a_lease_and_nothing_else_does(
    bench: Bench, kind: int, pinned: bool
) -> None:
    """truncate(2) itself would wait for it on the event loop, up to /proc/sys/fs/lease-break-time."""
    nodeid = await bench.file("leased", 100)
    other = await bench.file("other", 100)
    bench.fs.inodes.descriptors.close(bench.fs.inodes.get(nodeid))
    with leased(bench.source / "leased", kind) as fd:
        if pinned:
            await bench.pin(nodeid, "n", "0:1,mode=deny")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.truncate, nodeid, 10)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
                assert (await bench.ops.getattr(other, ME)).st_size == 100
            assert (bench.source / "leased").stat().st_size == 100
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert (bench.source / "leased").stat().st_size == 10


async def test_a_truncate_by_path_that_waits_for_a_lease_can_be_interrupted(bench: Bench) -> None:
    nodeid = await bench.file("leased", 100)
    with leased(bench.source / "leased", fcntl.F_RDLCK) as fd:
        with trio.move_on_after(0.2) as scope:
            await bench.truncate(nodeid, 10)
        assert scope.cancelled_caught
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert (bench.source / "leased").stat().st_size == 100


@pytest.mark.parametrize("how", ["open", "create", "truncate"])
async def test_a_sealed_file_is_opened_for_writing_when_a_lease_is_gone(bench: Bench, how: str, root: None) -> None:
    """The append-only flag refuses an open for writing before the kernel looks at leases."""
    path, nodeid = bench.source / "leased", await bench.file("leased", 100)
    seal = bench.fs.backing.seal
    seal.start("", bench.source.parent / "list" / "sealed", str(bench.source))
    await bench.pin(nodeid, "n", "0:10")
    assert get_flags_of(path) & APPEND
    opened: list[int] = []

    async def act() -> None:
        if how == "open":
            opened.append((await bench.ops.open(nodeid, os.O_RDWR, ME)).fh)
        elif how == "create":
            opened.append((await bench.ops.create(ROOT_ID, b"leased", 0o644, os.O_RDWR, ME))[0].fh)
        else:
            await bench.truncate(nodeid, 50)

    with leased(path, fcntl.F_RDLCK) as fd:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert not opened and path.stat().st_size == 100
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    if how == "truncate":
        assert path.stat().st_size == 50
    else:
        await bench.ops.release(opened[0])
    assert get_flags_of(path) & APPEND
    seal.close()


def get_flags_of(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return inodeflags.get_flags(fd)
    finally:
        os.close(fd)


async def listed(bench: Bench, fh: int, plus: bool) -> list[bytes]:
    names: list[bytes] = []
    offset = 0

    def add(name: bytes, next_offset: int, what: Entry | tuple[int, int]) -> bool:
        nonlocal offset
        names.append(name)
        offset = next_offset
        return True

    while True:
        before = len(names)
        await bench.ops.readdir(fh, offset, plus, add)
        if len(names) == before:
            return names


@pytest.mark.parametrize("plus", [False, True])
async def test_others_have_their_turn_while_a_large_directory_is_listed(bench: Bench, plus: bool) -> None:
    large = bench.source / "large"
    large.mkdir()
    for n in range(NAMES):
        (large / str(n)).touch()
    nodeid = (await bench.ops.lookup(ROOT_ID, b"large", ME)).nodeid
    fh = (await bench.ops.opendir(nodeid, ME)).fh
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        names = await listed(bench, fh, plus)
        nursery.cancel_scope.cancel()
    assert sorted(names) == sorted([b".", b"..", *(b"%d" % n for n in range(NAMES))])
    assert turns >= NAMES // SLICE - 2
    await bench.ops.releasedir(fh)


async def test_a_large_listing_without_readers_of_the_rest(bench: Bench) -> None:
    """A reader that leaves in the middle leaves nothing open."""
    for n in range(NAMES):
        (bench.source / str(n)).touch()
    fh = (await bench.ops.opendir(ROOT_ID, ME)).fh
    before = len(os.listdir("/proc/self/fd"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await bench.ops.readdir(fh, 0, True, lambda *_: True)
    assert len(os.listdir("/proc/self/fd")) == before
    await bench.ops.releasedir(fh)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTCONN, errno.EIO])
async def test_an_entry_that_cannot_be_looked_at_fails_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for name in ("a", "dead", "z"):
        (bench.source / name).touch()
    stat = os.stat

    def stat_or_fail(path: object, **how: object) -> os.stat_result:
        if path == b"dead":
            raise OSError(number, os.strerror(number))
        return stat(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat_or_fail)
    found: dict[bytes, Entry | tuple[int, int]] = {}

    def add(name: bytes, next_offset: int, what: Entry | tuple[int, int]) -> bool:
        found[name] = what
        return True

    fh = (await bench.ops.opendir(ROOT_ID, ME)).fh
    await bench.ops.readdir(fh, 0, True, add)
    await bench.ops.releasedir(fh)
    assert {name for name, what in found.items() if isinstance(what, Entry)} == {b"a", b"z"}
    assert b"dead" in found
