"""An inode is its number and what tells two lives of it apart: ext4 uses the number of a removed file at once."""

import errno
import os
import time
from pathlib import Path

import pytest

from pinfs.fs import opens
from pinfs.fs.handles import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE
from pinfs.fs.inode import FOREIGN_IDS, ROOT_ID

from .conftest import ME, Bench

TRIES = 500


def use_number_again(path: Path, ino: int) -> None:
    """Make a new file at `path` with the inode number `ino`, which is free."""
    others = []
    for n in range(TRIES):
        path.write_text("new")
        if path.stat().st_ino == ino:
            break
        others.append(path.rename(path.with_name(f"other{n}")))
    else:
        pytest.skip("the file system does not use inode numbers again")
    for other in others:
        other.unlink()


async def read_and_close(bench: Bench, nodeid: int) -> None:
    opened = await bench.ops.open(nodeid, os.O_RDONLY, ME)
    await bench.ops.read(opened.fh, 0, 10)
    await bench.ops.release(opened.fh)
    bench.fs.backing.close_idle(bench.fs.inodes.get(nodeid))


async def test_a_new_file_with_the_number_of_a_removed_one_has_its_own_node_id(bench: Bench) -> None:
    nodeid = await bench.file("secret", 100)
    await read_and_close(bench, nodeid)
    (bench.source / "secret").unlink()
    use_number_again(bench.source / "new", nodeid)
    new = await bench.ops.lookup(ROOT_ID, b"new", ME)
    assert new.st.st_ino == nodeid != new.nodeid >= FOREIGN_IDS
    with pytest.raises(OSError) as stale:
        await bench.ops.getattr(nodeid, ME)
    assert stale.value.errno == errno.ESTALE
    opened = await bench.ops.open(new.nodeid, os.O_RDONLY, ME)
    assert await bench.ops.read(opened.fh, 0, 10) == b"new"
    await bench.ops.release(opened.fh)
    bench.fs.backing.close_idle(bench.fs.inodes.get(new.nodeid))
    again = await bench.ops.lookup(ROOT_ID, b"new", ME)
    assert again.nodeid == new.nodeid
    bench.ops.forget([(nodeid, 1), (new.nodeid, 2)])
    assert len(bench.fs.inodes) == 1
    third = await bench.ops.lookup(ROOT_ID, b"new", ME)
    assert third.nodeid == nodeid  # the kernel has forgotten both: the number may be the node id again


@pytest.mark.parametrize("same_name", [True, False])
async def test_the_old_node_id_is_stale_and_not_the_new_file(bench: Bench, same_name: bool) -> None:
    nodeid = await bench.file("secret", 100)
    await read_and_close(bench, nodeid)
    (bench.source / "secret").unlink()
    use_number_again(bench.source / ("secret" if same_name else "new"), nodeid)
    for call in (bench.ops.getattr(nodeid, ME), bench.ops.open(nodeid, os.O_RDONLY, ME)):
        with pytest.raises(OSError) as stale:
            await call
        assert stale.value.errno == errno.ESTALE


async def test_a_pin_of_a_removed_file_is_in_no_new_files_way(bench: Bench) -> None:
    nodeid = await bench.file("pinned", 100)
    await bench.pin(nodeid, "p", "0:100")
    (bench.source / "pinned").unlink()
    for n in range(50):
        new = await bench.file(f"new{n}", 100)
        assert new != nodeid
        await bench.truncate(new, 0)
    assert (await bench.ops.getattr(nodeid, ME)).st_size == 100  # what is pinned lasts as long as its pin
    await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
    bench.ops.forget([(nodeid, 1)])


async def test_pinned_inodes_keep_their_descriptors_within_the_budget(bench: Bench) -> None:
    inodes = bench.fs.inodes
    inodes.descriptors.max_descriptors = 8
    pinned = [await bench.file(f"pinned{n}", 100) for n in range(20)]
    for nodeid in pinned:
        await bench.pin(nodeid, "p", "0:100")
    assert len(inodes.descriptors) <= 8
    assert sum(inodes.get(nodeid).fd >= 0 for nodeid in pinned) == 8
    for nodeid in pinned:  # those without a descriptor are known by their life
        assert inodes.get(nodeid).fd >= 0 or inodes.get(nodeid).life is not None
        await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
    files = [await bench.file(f"file{n}", 100) for n in range(20)]
    for nodeid in files:
        await bench.ops.listxattr(nodeid, ME)
    assert not any(inodes.get(nodeid).fd >= 0 for nodeid in pinned)


async def test_a_file_that_was_only_changed_is_the_same(bench: Bench) -> None:
    nodeid = await bench.file("file", 100)
    await read_and_close(bench, nodeid)
    (bench.source / "file").write_text("changed")
    assert (await bench.ops.lookup(ROOT_ID, b"file", ME)).nodeid == nodeid
    assert (await bench.ops.getattr(nodeid, ME)).st_size == 7


async def test_a_removed_symlink_or_directory_is_not_the_new_one(bench: Bench) -> None:
    bench.fs.inodes.descriptors.max_descriptors = 1
    (bench.source / "link").symlink_to("target")
    link = (await bench.ops.lookup(ROOT_ID, b"link", ME)).nodeid
    await bench.ops.readlink(link, ME)  # the kernel caches it
    await bench.ops.listxattr(await bench.file("other"), ME)  # takes the descriptor
    (bench.source / "link").unlink()
    (bench.source / "second").symlink_to("another")
    if (bench.source / "second").lstat().st_ino != link:
        pytest.skip("the file system does not use inode numbers again")
    second = (await bench.ops.lookup(ROOT_ID, b"second", ME)).nodeid
    assert second != link
    assert await bench.ops.readlink(second, ME) == b"another"


async def test_a_rename_or_unlink_of_the_new_file_does_not_touch_the_old_ones_pins(bench: Bench) -> None:
    bench.fs.inodes.descriptors.max_descriptors = 1
    nodeid = await bench.file("pinned", 100)
    await bench.pin(nodeid, "p", "0:100")
    await bench.ops.listxattr(await bench.file("other"), ME)  # takes the descriptor
    (bench.source / "pinned").unlink()
    use_number_again(bench.source / "new", nodeid)
    await bench.ops.unlink(ROOT_ID, b"new", ME)
    use_number_again(bench.source / "new", nodeid)
    (bench.source / "mover").write_text("mover")
    await bench.ops.rename(ROOT_ID, b"mover", ROOT_ID, b"new", 0, ME)
    assert (bench.source / "new").read_text() == "mover"


async def test_the_kernel_keeps_the_pages_of_a_file_that_did_not_change(bench: Bench) -> None:
    nodeid = await bench.file("file", 100)
    time.sleep(0.02)  # until its time of change is older than a tick of the kernel's clock
    told: list[int] = []
    bench.ops.uncached.on_entered = told.append
    kept = []
    for change in (None, None, b"changed", None):
        if change:
            (bench.source / "file").write_bytes(change)
            time.sleep(0.02)
        opened = await bench.ops.open(nodeid, os.O_RDONLY, ME)
        kept.append(bool(opened.flags & FOPEN_KEEP_CACHE))
        await bench.ops.release(opened.fh)
    assert kept == [False, True, False, True]
    assert told == [nodeid, nodeid]  # the attributes that the kernel may have from before a change


@pytest.mark.parametrize("options", [["cluster=127.0.0.1:1,cluster_host=a"]])
async def test_nothing_is_kept_of_a_source_that_other_hosts_change(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of files, and not of directories: their times are those of another host's clock."""
    monkeypatch.setattr(opens, "settled_ctime_ns", lambda st: st.st_ctime_ns)  # as if it were old
    nodeid = await bench.file("f", 5)
    for _ in range(3):
        opened = await bench.ops.open(nodeid, os.O_RDONLY, ME)
        assert not opened.flags & (FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR)
        await bench.ops.release(opened.fh)
        directory = await bench.ops.opendir(ROOT_ID, ME)
        assert not directory.flags
        await bench.ops.releasedir(directory.fh)
