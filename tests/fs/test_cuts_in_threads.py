"""Removals on a backing that the kernel may make wait: made in threads, with the same results."""

import errno
import gc
import os
import resource
from collections.abc import Iterator

import pytest

from pinfs.fs.types import Caller
from pinfs.linux.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

from .conftest import ME, Bench

PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
SIZE = 8192
OTHER = Caller(0, 0, 1)


@pytest.fixture
def waiting(cuts_wait: None, bench: Bench) -> Bench:
    return bench


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """What is done in the test leaves no cycles behind."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_results_are_the_same(waiting: Bench) -> None:
    nodeid, path = await waiting.file("f", SIZE), waiting.source / "f"
    opened = await waiting.ops.open(nodeid, os.O_RDWR, ME)
    assert (await waiting.truncate(nodeid, 100)).st_size == 100
    assert (await waiting.truncate(nodeid, SIZE, fh=opened.fh)).st_size == SIZE
    await waiting.ops.fallocate(opened.fh, 0, 0, 2 * SIZE, ME)
    assert path.stat().st_size == 2 * SIZE
    await waiting.ops.fallocate(opened.fh, PUNCH, 0, 50, ME)
    assert path.read_bytes()[:100] == bytes(50) + b"x" * 50
    await waiting.ops.open(nodeid, os.O_WRONLY | os.O_TRUNC, ME)
    assert path.stat().st_size == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # the largest size of a file is another on each file system
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            await waiting.truncate(nodeid, SIZE + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert waiting.fs.guard.book.files.states == {}


async def test_pins_are_asked(waiting: Bench) -> None:
    nodeid = await waiting.file("f", SIZE)
    await waiting.pin(nodeid, "p", "0:4096")
    with pytest.raises(OSError) as caught:
        await waiting.truncate(nodeid, 4095, OTHER)
    assert caught.value.errno == errno.EBUSY
    assert (await waiting.truncate(nodeid, 4096, OTHER)).st_size == 4096
    assert (await waiting.truncate(nodeid, SIZE, OTHER)).st_size == SIZE


async def test_set_id_bits_are_kept_where_they_were(waiting: Bench, root: None) -> None:
    nodeid = await waiting.file("f", SIZE)
    (waiting.source / "f").chmod(0o4755)
    assert (await waiting.truncate(nodeid, 1)).st_mode & 0o7777 == 0o4755


async def test_nothing_is_left_behind(waiting: Bench, no_garbage: None) -> None:
    nodeid = await waiting.file("f", SIZE)
    for size in (100, 50):
        await waiting.truncate(nodeid, size)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for size in range(40, 0, -1):
        await waiting.truncate(nodeid, size)
    assert gc.collect() == 0
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(waiting.fs.guard.cuts) == 0
