"""A removal that would fail anyway notifies no holder: the backing's own refusals come before the pins (SPEC 2)."""

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from pinfs.fs.inode import ROOT_ID
from pinfs.fs.types import Caller
from pinfs.linux.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, RENAME_NOREPLACE

from .conftest import ME, Bench

SIZE = 8192
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
OTHER = Caller(0, 0, 1)

Act = Callable[[Bench, int, int], Awaitable[object]]  # a file's node id, and a handle that was opened before


def chattr(change: str, path: Path) -> None:
    subprocess.run(["chattr", change, path], check=True)


@pytest.fixture
def options() -> list[str]:
    return ["unlink=break"]


@pytest.fixture
async def pinned(bench: Bench) -> AsyncIterator[tuple[int, int]]:
    """A file `f` in the root, leased, and a handle of it; whatever a test sets on it is taken back."""
    nodeid = await bench.file("f", SIZE)
    opened = await bench.ops.open(nodeid, os.O_RDWR, ME)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    yield nodeid, opened.fh
    for path in (bench.source / "f", bench.source):
        chattr("-ia", path)


async def unlink(bench: Bench, nodeid: int, fh: int) -> None:
    await bench.ops.unlink(ROOT_ID, b"f", OTHER)


async def replace(bench: Bench, nodeid: int, fh: int) -> None:
    await bench.ops.rename(ROOT_ID, b"new", ROOT_ID, b"f", 0, OTHER)


async def noreplace(bench: Bench, nodeid: int, fh: int) -> None:
    await bench.ops.rename(ROOT_ID, b"new", ROOT_ID, b"f", RENAME_NOREPLACE, OTHER)


async def ftruncate(bench: Bench, nodeid: int, fh: int) -> None:
    await bench.truncate(nodeid, 0, OTHER, fh)


async def punch(bench: Bench, nodeid: int, fh: int) -> None:
    await bench.ops.fallocate(fh, PUNCH, 0, 4096, OTHER)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("change", "what", "act", "number"),
    [
        ("+i", "f", unlink, errno.EPERM),
        ("+a", "f", unlink, errno.EPERM),
        ("+a", ".", unlink, errno.EPERM),
        ("+i", "f", replace, errno.EPERM),
        ("+i", "new", replace, errno.EPERM),
        ("+a", "f", ftruncate, errno.EPERM),
        ("+a", "f", punch, errno.EPERM),
        ("+i", "f", punch, errno.EPERM),
        ("", "new", noreplace, errno.EEXIST),
    ],
)
async def test_what_the_backing_refuses(
    bench: Bench, pinned: tuple[int, int], change: str, what: str, act: Act, number: int
) -> None:
    (bench.source / "new").touch()
    await bench.ops.lookup(ROOT_ID, b"new", ME)
    if change:
        chattr(change, bench.source / what)
    try:
        with trio.fail_after(5), pytest.raises(OSError) as refusal:
            await act(bench, *pinned)
    finally:
        chattr("-ia", bench.source / "new")
    assert refusal.value.errno == number
    assert bench.fs.stats.breaks_started == 0


async def test_a_directory_replaces_no_file(bench: Bench, pinned: tuple[int, int]) -> None:
    await bench.ops.mkdir(ROOT_ID, b"new", 0o755, ME)
    with trio.fail_after(5), pytest.raises(NotADirectoryError):
        await replace(bench, *pinned)
    assert bench.fs.stats.breaks_started == 0


async def test_what_it_does_not_refuse_still_asks(bench: Bench, pinned: tuple[int, int]) -> None:
    with trio.move_on_after(0.1):
        await unlink(bench, *pinned)
    assert bench.fs.stats.breaks_started == 1
