"""Calls of two halves: where the second fails, nothing of the first stays open. And what else must not stay."""

import errno
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
from bridge.fake_kernel import dispatching

from pinfs.bridge import wire
from pinfs.bridge.pyfuse3_adapter import Pyfuse3Adapter
from pinfs.fs.inode import ROOT_ID
from pinfs.interface import ioctls
from pinfs.linux.calls import stat_of
from pinfs.runtime.descriptors import budget

from .conftest import ME, Bench

Act = Callable[[Bench], Coroutine[Any, Any, object]]
CUT = os.O_WRONLY | os.O_TRUNC


@contextmanager
def nothing_stays(bench: Bench, number: int = errno.EPERM) -> Iterator[None]:
    """What is done inside fails with `number`, and leaves the handles, open files, inodes and descriptors as they
    were."""

    def state() -> tuple[object, ...]:
        inodes = {inode.nodeid: (inode.lookups, inode.children, inode.file is None) for inode in bench.fs.inodes}
        return inodes, len(bench.ops.handles), bench.fs.backing.open_files, len(os.listdir("/proc/self/fd"))

    before = state()
    with pytest.raises(OSError) as refusal:
        yield
    assert refusal.value.errno == number
    assert state() == before


def refuse(*args: object, **kwargs: object) -> None:
    raise PermissionError(errno.EPERM, "refused by the test")


@pytest.fixture
async def nodeid(bench: Bench) -> int:
    """A file with a set-user-id bit, whose descriptor is cached."""
    nodeid = await bench.file("f", 10)
    (bench.source / "f").chmod(0o4755)
    bench.fs.inodes.fd(bench.fs.inodes.get(nodeid))
    return nodeid


@pytest.mark.interpreted  # chmod(2) fails as Python calls it
async def test_an_open_that_may_not_drop_set_ids(
    bench: Bench, nodeid: int, monkeypatch: pytest.MonkeyPatch, root: None
) -> None:
    """Only for root does truncate(2) leave the bits, so that chmod(2) has to drop them."""
    monkeypatch.setattr(os, "chmod", refuse)
    with nothing_stays(bench):
        await bench.ops.open(nodeid, CUT, ME, kill_suidgid=True)


@pytest.mark.interpreted  # chmod(2) fails as Python calls it
async def test_the_reply_to_an_open_that_may_not_drop_set_ids(
    bench: Bench, nodeid: int, monkeypatch: pytest.MonkeyPatch, root: None
) -> None:
    monkeypatch.setattr(os, "chmod", refuse)
    async with dispatching(bench.ops) as (kernel, _):
        reply = await kernel.ask(wire.OPEN, wire.OPEN_IN.pack(CUT, wire.OPEN_KILL_SUIDGID), nodeid)
    assert reply.error == -errno.EPERM
    user = SimpleNamespace(uid=1000, gid=1000, pid=1, umask=0)
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await Pyfuse3Adapter(bench.ops).open(nodeid, CUT, user)  # type: ignore[arg-type]
    assert refused.value.errno == errno.EPERM
    assert (len(bench.ops.handles), bench.fs.backing.open_files) == (0, 0)


async def test_an_open_drops_set_ids(bench: Bench, nodeid: int) -> None:
    await bench.ops.open(nodeid, CUT, ME, kill_suidgid=True)
    assert (bench.source / "f").stat().st_mode & 0o7777 == 0o755


@pytest.mark.interpreted  # chmod(2) fails as Python calls it
async def test_a_create_that_may_not_drop_set_ids(
    bench: Bench, nodeid: int, monkeypatch: pytest.MonkeyPatch, root: None
) -> None:
    monkeypatch.setattr(os, "chmod", refuse)
    with nothing_stays(bench):
        await bench.ops.create(ROOT_ID, b"f", 0o644, CUT, ME, kill_suidgid=True)


async def test_a_create_that_may_not_cut(bench: Bench, nodeid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "ftruncate", refuse)
    with nothing_stays(bench):
        await bench.ops.create(ROOT_ID, b"f", 0o644, CUT, ME)


CREATIONS: list[Act] = [
    lambda bench: bench.ops.create(ROOT_ID, b"new", 0o644, os.O_RDWR, ME),
    lambda bench: bench.ops.tmpfile(ROOT_ID, 0o644, os.O_RDWR, ME),
]


@pytest.mark.parametrize("creation", CREATIONS)
async def test_a_creation_without_a_backing_id(bench: Bench, creation: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.fs.backing.passthrough, "open", refuse)
    with nothing_stays(bench):
        await creation(bench)


@contextmanager
def descriptors_taken(up_to: int) -> Iterator[None]:
    """Inside of it the next descriptor has this number, or one above it."""
    taken = [os.open("/", os.O_PATH)]
    try:
        while taken[-1] < up_to - 1:
            taken.append(os.dup(taken[0]))
        yield
    finally:
        for fd in taken:
            os.close(fd)


@pytest.mark.parametrize("max_descriptors", [1000])
@pytest.mark.parametrize("creation", CREATIONS)
async def test_a_creation_without_a_descriptor_to_keep(bench: Bench, creation: Act, max_descriptors: int) -> None:
    """The file is there when it turns out that its descriptor is one of the last, which are spare."""
    with descriptors_taken(budget(max_descriptors).files), nothing_stays(bench, errno.EMFILE):
        await creation(bench)
    assert os.listdir(bench.source) == (["new"] if creation is CREATIONS[0] else [])


async def test_an_open_without_a_backing_id(bench: Bench, nodeid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.fs.backing.passthrough, "open", refuse)
    with nothing_stays(bench):
        await bench.ops.open(nodeid, os.O_RDWR, ME)


async def test_a_backing_file_is_closed_where_giving_its_id_back_fails(
    bench: Bench, nodeid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await bench.ops.open(nodeid, os.O_RDWR, ME)
    file = bench.fs.inodes.get(nodeid).file
    assert file is not None
    file.backing_id = 1
    monkeypatch.setattr(bench.fs.backing.passthrough, "close", refuse)
    with pytest.raises(PermissionError):
        await bench.ops.release(opened.fh)
    assert bench.fs.inodes.get(nodeid).file is None
    assert bench.fs.backing.open_files == 0
    bench.ops.forget([(nodeid, 1)])
    assert len(bench.fs.inodes) == 1


async def test_a_nameless_file_with_the_number_of_a_file_that_was_removed_behind_pinfs(bench: Bench) -> None:
    inodes = bench.fs.inodes
    directory = (await bench.ops.mkdir(ROOT_ID, b"d", 0o755, ME)).nodeid
    opened, removed = await bench.ops.create(directory, b"f", 0o644, os.O_RDWR, ME)
    await bench.ops.release(opened.fh)
    fd = os.open(bench.source / "d/f", os.O_RDWR)
    (bench.source / "d/f").unlink()
    inode = inodes.intern_nameless(stat_of(removed.st), fd)
    os.close(fd)
    assert inode.nodeid != removed.nodeid
    assert inode.path() is inodes.get(removed.nodeid).path() is None
    assert os.fstat(inodes.fd(inode)).st_nlink == 0
    inodes.drop_if_unreferenced(inode)
    bench.ops.forget([(directory, 1), (removed.nodeid, 1)])
    assert len(inodes) == 1


@pytest.mark.parametrize("failing", ["pins", "backing"])
async def test_a_release_whose_first_steps_fail(
    bench: Bench, nodeid: int, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Each step of it is made: the number of the handle is gone, and nothing would come back for the rest."""
    inode = bench.fs.inodes.get(nodeid)
    opened = await bench.ops.open(nodeid, os.O_RDWR, ME)
    bench.ops.forget([(nodeid, inode.lookups)])
    if failing == "pins":
        await bench.ops.ioctl(opened.fh, ioctls.PIN, ioctls.PinRequest(0, 5, ioctls.LEASE).pack(), 64, ME)
        reaping = bench.fs.guard.book.reaping
        at_once = reaping.at_once
        monkeypatch.setattr(reaping, "at_once", lambda *args: refuse(at_once(*args)))
    else:
        assert inode.file is not None
        inode.file.backing_id = 7
        monkeypatch.setattr(bench.fs.backing.passthrough, "close", refuse, raising=False)
    with pytest.raises(PermissionError):
        await bench.ops.release(opened.fh)
    assert (bench.fs.backing.open_files, inode.file, bench.fs.inodes.known(nodeid)) == (0, None, None)
