"""Directories nested deeper than Python recurses, and directories that something moves behind the mount."""

import errno
import os
import subprocess
from collections.abc import AsyncIterator

import pytest

from pinfs.fs.inode import ROOT_ID
from pinfs.linux.calls import stat_of

from .conftest import ME, Bench

DEPTH = 2000  # the paths are longer than PATH_MAX


@pytest.fixture
async def chain(bench: Bench) -> AsyncIterator[list[int]]:
    """The node ids of directories, each in the one before."""
    chain = [ROOT_ID]
    for _ in range(DEPTH):
        chain.append((await bench.ops.mkdir(chain[-1], b"deep", 0o755, ME)).nodeid)
    yield chain[1:]
    subprocess.run(["rm", "-rf", bench.source / "deep"], check=True)  # shutil.rmtree recurses


async def file_in(bench: Bench, directory: int) -> int:
    opened, entry = await bench.ops.create(directory, b"f", 0o644, os.O_RDWR, ME)
    await bench.ops.write(opened.fh, 0, b"bytes")
    await bench.ops.release(opened.fh)
    return entry.nodeid


def forget(bench: Bench, nodeids: list[int]) -> None:
    bench.ops.forget([(nodeid, 1) for nodeid in nodeids])


async def test_the_last_pin_at_a_depth_takes_the_chain_with_it(bench: Bench, chain: list[int]) -> None:
    nodeid = await file_in(bench, chain[-1])
    await bench.pin(nodeid, "p", "0:5")
    forget(bench, [*chain, nodeid])
    assert len(bench.fs.inodes) == DEPTH + 2
    await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
    assert len(bench.fs.inodes) == 1


async def test_the_last_handle_at_a_depth_takes_the_chain_with_it(bench: Bench, chain: list[int]) -> None:
    nodeid = await file_in(bench, chain[-1])
    opened = await bench.ops.open(nodeid, os.O_RDONLY, ME)
    forget(bench, [*chain, nodeid])
    assert len(bench.fs.inodes) == DEPTH + 2
    await bench.ops.release(opened.fh)
    assert len(bench.fs.inodes) == 1


async def test_an_idle_file_at_a_depth_is_forgotten(bench: Bench, chain: list[int]) -> None:
    nodeid = await file_in(bench, chain[-1])
    await bench.ops.release((await bench.ops.open(nodeid, os.O_RDONLY, ME)).fh)
    forget(bench, [*chain, nodeid])
    assert len(bench.fs.inodes) == 1


async def test_links_to_two_chains_take_both_with_them(bench: Bench, chain: list[int]) -> None:
    nodeid = await file_in(bench, chain[-1])
    await bench.ops.link(nodeid, chain[DEPTH // 2], b"again", ME)
    await bench.ops.link(nodeid, chain[-1], b"beside", ME)
    forget(bench, [*chain, nodeid, nodeid, nodeid])
    assert len(bench.fs.inodes) == 1


async def test_a_file_at_a_depth_works_as_any_other(bench: Bench, chain: list[int]) -> None:
    nodeid = await file_in(bench, chain[-1])
    bench.fs.inodes.descriptors.max_descriptors = 32
    assert bench.fs.inodes.path_of(nodeid) == "deep/" * DEPTH + "f"
    await bench.pin(nodeid, "p", "0:5")
    assert (await bench.ops.getattr(chain[0], ME)).st_ino == chain[0]
    assert (await bench.ops.getattr(nodeid, ME)).st_size == 5
    with pytest.raises(OSError) as refusal:
        await bench.truncate(nodeid, 4)
    assert refusal.value.errno == errno.EBUSY
    await bench.ops.rename(chain[-1], b"f", ROOT_ID, b"g", 0, ME)
    await bench.ops.rename(chain[0], b"deep", ROOT_ID, b"moved", 0, ME)
    assert bench.fs.inodes.path_of(nodeid) == "g"
    assert (await bench.ops.getattr(chain[-1], ME)).st_ino == chain[-1]
    await bench.ops.rename(ROOT_ID, b"moved", chain[0], b"deep", 0, ME)


async def test_directories_that_swapped_places_behind_pinfs_make_no_loop(bench: Bench) -> None:
    a = (await bench.ops.mkdir(ROOT_ID, b"a", 0o755, ME)).nodeid
    b = (await bench.ops.mkdir(a, b"b", 0o755, ME)).nodeid
    f = await file_in(bench, b)
    (bench.source / "a/b").rename(bench.source / "b")
    (bench.source / "a").rename(bench.source / "b/a")
    assert (await bench.ops.lookup(b, b"a", ME)).nodeid == a  # as a program asks whose working directory is b
    assert bench.fs.inodes.path_of(f) == "a/b/f"
    assert (await bench.ops.lookup(ROOT_ID, b"b", ME)).nodeid == b
    assert (await bench.ops.lookup(b, b"a", ME)).nodeid == a
    assert [bench.fs.inodes.path_of(nodeid) for nodeid in (a, b, f)] == ["b/a", "b", "b/f"]
    forget(bench, [a, a, a, b, b, f])
    assert len(bench.fs.inodes) == 1


async def test_a_directory_that_shows_itself_below_makes_no_loop(bench: Bench) -> None:
    """As a bind mount would: the same directory under a name in it, and under one further below."""
    inodes = bench.fs.inodes
    a = (await bench.ops.mkdir(ROOT_ID, b"a", 0o755, ME)).nodeid
    below = (await bench.ops.mkdir(a, b"below", 0o755, ME)).nodeid
    st = stat_of((bench.source / "a").stat())
    for directory in (a, below):
        assert inodes.intern(inodes.get(directory), b"self", st).nodeid == a
    assert [inodes.path_of(nodeid) for nodeid in (a, below)] == ["a", "a/below"]
    forget(bench, [a, below])
    assert len(inodes) == 1
