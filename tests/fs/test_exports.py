"""Inodes that are found by file handle when the kernel has forgotten them, and those that may not be (nfs_export)."""

import errno
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support import mounts
from support.disks import Disks
from trio.testing import MockClock

from pinfs.fs import exports, search
from pinfs.fs.exports import Exports
from pinfs.fs.inode import FOREIGN_IDS, ROOT_ID
from pinfs.fs.search import Found
from pinfs.fs.types import Entry, SetAttr
from pinfs.linux import syscalls

from .conftest import ME, Bench, serving
from .test_identity import use_number_again

pytestmark = pytest.mark.usefixtures("root")

EXPORTED = "nfs_export=on"
SOURCES = ["tmpfs", "tmpfs/below", "ext4", "ext4/below", "xfs", "xfs/below", "btrfs/below"]
MKFS = {"ext4": (), "xfs": ("-m", "reflink=0"), "btrfs": ()}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, disks: Disks, base: Path) -> Path:
    """A whole file system, or a directory on one, with a neighbour."""
    kind, _, below = request.param.partition("/")
    top = base if kind == "tmpfs" else disks.mount(kind, disks.base / "image", *MKFS[kind], size=2**29)
    if kind == "tmpfs" and not below:
        top = base / "whole"
        top.mkdir()
        syscalls.mount("whole", str(top), "tmpfs", 0, "")
        request.addfinalizer(lambda: mounts.umount(top, mounts.MNT_DETACH))
    path: Path = top / below
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
async def bench(source: Path) -> AsyncIterator[Bench]:
    async with serving(source, [EXPORTED]) as bench:
        yield bench


def exports_of(bench: Bench) -> Exports:
    assert bench.ops.exports is not None
    return bench.ops.exports


async def handle(bench: Bench, *path: str) -> tuple[int, int]:
    """What the kernel's handle of a name holds: node id and generation. The kernel has forgotten it again, and all."""
    nodeid, seen = ROOT_ID, []
    for component in path:
        nodeid = (await bench.ops.lookup(nodeid, component.encode(), ME)).nodeid
        seen.append((nodeid, 1))
    generation = exports_of(bench).generation(nodeid)
    bench.ops.forget(reversed(seen))
    return nodeid, generation


def drop_caches() -> None:
    """What the backing knows by name is forgotten as well."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


async def find(bench: Bench, wanted: tuple[int, int], name: bytes = b".") -> int:
    """What fuse_get_dentry() does with a handle: the node id, or ESTALE."""
    entry = await exports_of(bench).lookup(wanted[0], name)
    if name == b"." and (entry.nodeid != wanted[0] or exports_of(bench).generation(entry.nodeid) != wanted[1]):
        bench.ops.forget([(entry.nodeid, 1)])
        raise OSError(errno.ESTALE, "another inode")
    return entry.nodeid


async def is_stale(bench: Bench, wanted: tuple[int, int]) -> bool:
    known = len(bench.fs.inodes)
    try:
        await find(bench, wanted)
    except OSError as e:
        assert e.errno == errno.ESTALE
        assert len(bench.fs.inodes) == known, "something was left in the table"
        return True
    return False


async def data_of(bench: Bench, nodeid: int) -> bytes:
    opened = await bench.ops.open(nodeid, os.O_RDONLY, ME)
    try:
        return await bench.ops.read(opened.fh, 0, 100)
    finally:
        await bench.ops.release(opened.fh)
        bench.fs.backing.close_idle(bench.fs.inodes.get(nodeid))


def tree(source: Path) -> None:
    (source / "d" / "e").mkdir(parents=True)
    (source / "d" / "e" / "file").write_text("data")
    (source / "d" / "e" / "link").symlink_to("target")


class TestForgotten:
    @pytest.mark.parametrize("cold", [False, True])
    async def test_a_file_a_symlink_and_a_directory_are_found(self, bench: Bench, cold: bool) -> None:
        tree(bench.source)
        handles = {name: await handle(bench, "d", "e", name) for name in ("file", "link")}
        handles["e"] = await handle(bench, "d", "e")
        assert len(bench.fs.inodes) == 1
        if cold:
            drop_caches()
        file = await find(bench, handles["file"])
        assert await data_of(bench, file) == b"data"
        assert await bench.ops.readlink(await find(bench, handles["link"]), ME) == b"target"
        directory = await find(bench, handles["e"])
        assert (await bench.ops.lookup(directory, b"file", ME)).nodeid == file
        assert bench.fs.inodes.path_of(file) == "d/e/file"
        await bench.truncate(file, 0)
        assert (bench.source / "d" / "e" / "file").read_bytes() == b""

    async def test_the_directory_above_is_found(self, bench: Bench) -> None:
        tree(bench.source)
        deep, above = await handle(bench, "d", "e"), await handle(bench, "d")
        drop_caches()
        directory = await find(bench, deep)
        assert await find(bench, (directory, 0), b"..") == above[0]
        bench.ops.forget([(directory, 1), (above[0], 1)])
        assert await find(bench, above, b"..") == ROOT_ID
        assert len(bench.fs.inodes) == 1
        assert await find(bench, (ROOT_ID, 0)) == ROOT_ID

    async def test_a_directory_that_was_moved_behind_pinfs_has_its_new_parent(self, bench: Bench) -> None:
        tree(bench.source)
        deep = await handle(bench, "d", "e")
        directory = await find(bench, deep)
        (bench.source / "d" / "e").rename(bench.source / "moved")
        assert await find(bench, (directory, 0), b"..") == ROOT_ID

    async def test_a_file_that_was_renamed_meanwhile_is_found(self, bench: Bench) -> None:
        tree(bench.source)
        file = await handle(bench, "d", "e", "file")
        (bench.source / "d" / "e" / "file").rename(bench.source / "elsewhere")
        assert bench.fs.inodes.path_of(await find(bench, file)) == "elsewhere"

    async def test_the_control_directory_is_found(self, bench: Bench) -> None:
        nodeid = (await bench.ops.lookup(ROOT_ID, b".pinfs", ME)).nodeid
        assert await find(bench, (nodeid, exports_of(bench).generation(nodeid))) == nodeid
        status = (await bench.ops.lookup(nodeid, b"status", ME)).nodeid
        assert await find(bench, (status, exports_of(bench).generation(status))) == status
        assert await find(bench, (nodeid, 0), b"..") == ROOT_ID

    async def test_a_pinned_file_that_the_kernel_has_forgotten(self, bench: Bench) -> None:
        nodeid = await bench.file("pinned", 100)
        await bench.pin(nodeid, "p", "0:100")
        wanted = nodeid, exports_of(bench).generation(nodeid)
        bench.ops.forget([(nodeid, 1)])
        assert await find(bench, wanted) == nodeid
        with pytest.raises(OSError) as refused:
            await bench.truncate(nodeid, 0)
        assert refused.value.errno == errno.EBUSY
        await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)


class TestAfterARestart:
    """Nothing is remembered: the number has to be enough."""

    @pytest.mark.parametrize("source", [s for s in SOURCES if not s.startswith("tmpfs")], indirect=True)
    async def test_handles_last(self, source: Path) -> None:
        tree(source)
        async with serving(source, [EXPORTED]) as before:
            assert exports_of(before).handles_last
            handles = [await handle(before, *path.split("/")) for path in ("d", "d/e", "d/e/file")]
        drop_caches()
        async with serving(source, [EXPORTED]) as after:
            assert [await find(after, wanted) for wanted in reversed(handles)] == [h[0] for h in reversed(handles)]
            assert await data_of(after, handles[2][0]) == b"data"
            assert after.fs.inodes.path_of(handles[2][0]) == "d/e/file"
            await after.pin(handles[2][0], "p", "0:4")
            with pytest.raises(OSError) as refused:
                await after.truncate(handles[2][0], 0)
            assert refused.value.errno == errno.EBUSY
            await after.ops.removexattr(handles[2][0], b"user.pinfs.pin.p", ME)

    @pytest.mark.parametrize("source", ["tmpfs", "tmpfs/below"], indirect=True)
    async def test_those_of_tmpfs_do_not(self, source: Path) -> None:
        tree(source)
        async with serving(source, [EXPORTED]) as before:
            assert not exports_of(before).handles_last
            wanted = await handle(before, "d", "e", "file")
        async with serving(source, [EXPORTED]) as after:
            assert await is_stale(after, wanted)

    @pytest.mark.parametrize("source", ["ext4/below"], indirect=True)
    async def test_one_search_a_minute(
        self, source: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
    ) -> None:
        searches = []

        def names_below(*args: Any) -> Iterator[Found]:
            searches.append(args)
            return search.names_below(*args)

        monkeypatch.setattr(exports, "names_below", names_below)
        tree(source)
        (source.parent / "outside").write_text("secret")
        async with serving(source, [EXPORTED]) as before:
            wanted = await handle(before, "d", "e", "file")
        async with serving(source, [EXPORTED]) as bench:
            outside = (source.parent / "outside").stat().st_ino
            drop_caches()
            for _ in range(3):
                assert await is_stale(bench, (outside, 0))
            assert await find(bench, wanted) == wanted[0]
            assert len(searches) == 1
            await trio.sleep(exports.SEARCH_EVERY_S)
            assert await is_stale(bench, (outside, 0))
            assert len(searches) == 2

    @pytest.mark.parametrize("source", ["ext4"], indirect=True)
    async def test_a_file_without_a_known_name(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where all of the file system lies below, a name is not needed to know that the file does."""
        monkeypatch.setattr(exports, "MAX_REMEMBERED", 0)
        for n in range(40):
            (source / f"file{n}").write_text(f"data{n}")
        async with serving(source, [EXPORTED]) as before:
            handles = [await handle(before, f"file{n}") for n in range(40)]
        drop_caches()
        async with serving(source, [EXPORTED]) as bench:
            inodes = bench.fs.inodes
            inodes.descriptors.max_descriptors = 8
            found = [await find(bench, wanted) for wanted in handles]
            assert all(inodes.path_of(nodeid) is None for nodeid in found)
            assert len(inodes.descriptors) <= 8
            for n, nodeid in enumerate(found):
                assert (await bench.ops.getattr(nodeid, ME)).st_ino == nodeid
                assert await data_of(bench, nodeid) == f"data{n}".encode()
            assert (await bench.ops.lookup(ROOT_ID, b"file0", ME)).nodeid == found[0]
            assert inodes.path_of(found[0]) == "file0"
            await bench.ops.rename(ROOT_ID, b"file1", ROOT_ID, b"renamed", 0, ME)
            assert inodes.path_of(found[1]) == "renamed"
            await bench.ops.link(found[2], ROOT_ID, b"linked", ME)
            await bench.pin(found[3], "p", "0:5")
            await bench.ops.unlink(ROOT_ID, b"file3", ME)  # policy unlink=defer
            assert (await bench.ops.getattr(found[3], ME)).st_nlink == 0
            await bench.ops.removexattr(found[3], b"user.pinfs.pin.p", ME)
            await bench.ops.unlink(ROOT_ID, b"file4", ME)
            bench.ops.forget([(nodeid, 2) for nodeid in found])
            assert len(inodes) == 1
            assert await is_stale(bench, handles[4])
            assert not exports_of(bench)._nameless


class TestNeverAnotherFile:
    async def test_a_removed_file_is_stale(self, bench: Bench) -> None:
        tree(bench.source)
        file, directory = await handle(bench, "d", "e", "file"), await handle(bench, "d", "e")
        held = os.open(bench.source / "d" / "e" / "file", os.O_RDONLY)
        shutil.rmtree(bench.source / "d")
        try:
            assert await is_stale(bench, file)
            assert await is_stale(bench, directory)
        finally:
            os.close(held)

    async def test_a_file_removed_through_the_mount_is_stale(self, bench: Bench) -> None:
        tree(bench.source)
        file = await handle(bench, "d", "e", "file")
        above = (await bench.ops.lookup(await find(bench, await handle(bench, "d")), b"e", ME)).nodeid
        await bench.ops.unlink(above, b"file", ME)
        assert await is_stale(bench, file)

    @pytest.mark.parametrize("source", ["ext4", "ext4/below"], indirect=True)
    async def test_a_number_that_was_used_again_is_stale(self, bench: Bench) -> None:
        (bench.source / "old").write_text("old")
        old = await handle(bench, "old")
        (bench.source / "old").unlink()
        use_number_again(bench.source / "new", old[0])
        assert await is_stale(bench, old)
        new = await handle(bench, "new")
        assert (new[0], new[1] != old[1]) == (old[0], True)
        assert await is_stale(bench, old)
        assert await data_of(bench, await find(bench, new)) == b"new"

    @pytest.mark.parametrize("source", ["ext4", "ext4/below"], indirect=True)
    async def test_a_number_that_was_used_again_while_the_kernel_knows_it(self, bench: Bench) -> None:
        """Then the kernel does not ask: the node id itself is stale, though it was never opened nor read."""
        nodeid = await bench.file("old", 100)
        (bench.source / "old").unlink()
        use_number_again(bench.source / "new", nodeid)
        for call in (bench.ops.getattr(nodeid, ME), bench.ops.open(nodeid, os.O_RDONLY, ME)):
            with pytest.raises(OSError) as stale:
                await call
            assert stale.value.errno == errno.ESTALE
        new = (await bench.ops.lookup(ROOT_ID, b"new", ME)).nodeid
        assert new >= FOREIGN_IDS
        bench.ops.forget([(nodeid, 1), (new, 1)])
        assert await is_stale(bench, (new, exports_of(bench).generation(new)))


class TestNeverOutside:
    @pytest.fixture(params=["tmpfs/below", "ext4/below", "xfs/below", "btrfs/below"])
    def source(self, request: pytest.FixtureRequest, disks: Disks, base: Path) -> Path:
        kind = request.param.partition("/")[0]
        path = (base if kind == "tmpfs" else disks.mount(kind, disks.base / "image", *MKFS[kind], size=2**29)) / "below"
        path.mkdir()
        return path

    @pytest.mark.parametrize("cold", [False, True])
    async def test_what_lies_outside_is_stale(self, bench: Bench, cold: bool) -> None:
        outside = bench.source.parent / "outside"
        outside.mkdir()
        (outside / "secret").write_text("secret")
        numbers = [path.stat().st_ino for path in (outside, outside / "secret", bench.source.parent, bench.source)]
        if cold:
            drop_caches()
        for number in (*numbers, 0, 2, 3, 8, 11, 1 << 31, 1 << 40, 1 << 61, FOREIGN_IDS, (1 << 64) - 1):
            assert await is_stale(bench, (number, 0))

    @pytest.mark.parametrize("cold", [False, True])
    async def test_what_was_moved_out_is_stale(self, bench: Bench, cold: bool) -> None:
        tree(bench.source)
        file, directory = await handle(bench, "d", "e", "file"), await handle(bench, "d", "e")
        (bench.source / "d" / "e").rename(bench.source.parent / "moved")
        if cold:
            drop_caches()
        assert await is_stale(bench, file)
        assert await is_stale(bench, directory)

    async def test_a_name_that_became_a_symlink_is_not_followed(self, bench: Bench) -> None:
        tree(bench.source)
        file = await handle(bench, "d", "e", "file")
        (bench.source / "d").rename(bench.source.parent / "d")
        (bench.source / "d").symlink_to(bench.source.parent / "d")
        assert await is_stale(bench, file)

    async def test_a_link_inside_counts(self, bench: Bench) -> None:
        """Whatever name of the file the kernel knows."""
        tree(bench.source)
        file = await handle(bench, "d", "e", "file")
        outside = bench.source.parent / "outside"
        outside.hardlink_to(bench.source / "d" / "e" / "file")
        drop_caches()
        outside.stat()
        assert bench.fs.inodes.path_of(await find(bench, file)) == "d/e/file"
        bench.ops.forget([(file[0], 1)])
        (bench.source / "d" / "e" / "file").unlink()
        assert await is_stale(bench, file)

    async def test_what_the_control_directory_hides_is_stale(self, bench: Bench) -> None:
        (bench.source / ".pinfs").mkdir()
        (bench.source / ".pinfs" / "file").write_text("hidden")
        for path in (".pinfs", ".pinfs/file"):
            assert await is_stale(bench, ((bench.source / path).stat().st_ino, 0))

    async def test_a_submount_is_stale_and_so_is_what_it_covers(self, bench: Bench) -> None:
        point = bench.source / "point"
        point.mkdir()
        (point / "covered").write_text("covered")
        covered = await handle(bench, "point", "covered")
        syscalls.mount("over", str(point), "tmpfs", 0, "")
        try:
            (point / "file").write_text("data")
            for path in (("point",), ("point", "file")):
                wanted = await handle(bench, *path)
                assert wanted[0] >= FOREIGN_IDS
                assert await is_stale(bench, wanted)
            assert await is_stale(bench, covered)
        finally:
            mounts.umount(point, mounts.MNT_DETACH)


@pytest.mark.parametrize("source", ["ext4/below", "tmpfs"], indirect=True)
class TestGenerations:
    async def test_an_inode_has_one_however_it_is_met(self, bench: Bench) -> None:
        """With another one the kernel takes the inode for bad (fuse_stale_inode())."""
        opened, entry = await bench.ops.create(ROOT_ID, b"file", 0o644, os.O_RDWR, ME)
        generation = exports_of(bench).generation
        first = generation(entry.nodeid)
        seen = [first]
        await bench.ops.write(opened.fh, 0, b"data")
        await bench.ops.release(opened.fh)
        seen.append(generation((await bench.ops.lookup(ROOT_ID, b"file", ME)).nodeid))
        seen.append(generation((await bench.ops.link(entry.nodeid, ROOT_ID, b"link", ME)).nodeid))
        await bench.ops.setattr(entry.nodeid, SetAttr(mode=0o600), None, ME)
        time.sleep(0.02)
        bench.fs.backing.close_idle(bench.fs.inodes.get(entry.nodeid))
        seen.append(generation((await bench.ops.lookup(ROOT_ID, b"link", ME)).nodeid))
        directory = (await bench.ops.opendir(ROOT_ID, ME)).fh

        def add(name: bytes, offset: int, what: Entry | tuple[int, int]) -> bool:
            seen.append(generation(what.nodeid)) if isinstance(what, Entry) else None
            return True

        await bench.ops.readdir(directory, 0, True, add)
        await bench.ops.releasedir(directory)
        assert len(seen) == 6
        assert set(seen) == {first} != {0}
        assert generation(ROOT_ID) == 0

    async def test_a_nameless_file_keeps_it_when_it_gets_a_name(self, bench: Bench) -> None:
        opened, entry = await bench.ops.tmpfile(ROOT_ID, 0o600, os.O_RDWR, ME)
        first = exports_of(bench).generation(entry.nodeid)
        await bench.ops.link(entry.nodeid, ROOT_ID, b"named", ME)
        await bench.ops.release(opened.fh)
        bench.fs.inodes.descriptors.max_descriptors = 1
        await bench.ops.listxattr(await bench.file("other"), ME)
        await bench.ops.lookup(ROOT_ID, b"named", ME)
        assert exports_of(bench).generation(entry.nodeid) == first


@pytest.mark.parametrize("source", ["tmpfs/below"], indirect=True)
async def test_what_is_remembered_is_limited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "MAX_REMEMBERED", 10)
    for n in range(30):
        (bench.source / f"file{n}").write_text(f"data{n}")
    handles = [await handle(bench, f"file{n}") for n in range(30)]
    assert [await is_stale(bench, wanted) for wanted in handles] == [True] * 20 + [False] * 10


@pytest.mark.parametrize("source", ["tmpfs"], indirect=True)
async def test_a_new_daemon_takes_no_handle_of_control_files_for_its_own(source: Path) -> None:
    async with serving(source, [EXPORTED]) as before, serving(source, [EXPORTED]) as after:
        nodeid = (await before.ops.lookup(ROOT_ID, b".pinfs", ME)).nodeid
        assert exports_of(before).generation(nodeid) != exports_of(after).generation(nodeid)
