"""The plain file system: every operation over the source, without a mount."""

import errno
import mmap
import os
import stat
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio

from pinfs.fs.backing import NoPassthrough
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.types import Caller, Entry, SetAttr
from pinfs.linux.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE

from .conftest import ME, Bench

USER = Caller(1000, 1000, os.getpid(), 0o027)


async def listing(bench: Bench, nodeid: int = ROOT_ID, plus: bool = False) -> list[bytes]:
    opened = await bench.ops.opendir(nodeid, ME)
    names: list[bytes] = []
    entries: list[tuple[int, int]] = []

    def add(name: bytes, offset: int, entry: Entry | tuple[int, int]) -> bool:
        names.append(name)
        if isinstance(entry, Entry):
            entries.append((entry.nodeid, 1))
        return True

    await bench.ops.readdir(opened.fh, 0, plus, add)
    bench.ops.forget(entries)
    await bench.ops.releasedir(opened.fh)
    return sorted(name for name in names if name not in (b".", b".."))


async def test_lookup_of_nothing(bench: Bench) -> None:
    with pytest.raises(FileNotFoundError):
        await bench.ops.lookup(ROOT_ID, b"nothing", ME)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc/passwd"])
async def test_a_name_is_one_component(bench: Bench, name: bytes) -> None:
    with pytest.raises(OSError) as e:
        await bench.ops.lookup(ROOT_ID, name, ME)
    assert e.value.errno == errno.EINVAL


async def test_create_belongs_to_the_caller(root: None, bench: Bench) -> None:
    opened, entry = await bench.ops.create(ROOT_ID, b"f", 0o666, os.O_RDWR, USER)
    st = (bench.source / "f").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1000, 1000, 0o640)
    assert await bench.ops.write(opened.fh, 3, b"abc") == 3
    assert await bench.ops.read(opened.fh, 0, 100) == b"\0\0\0abc"
    await bench.ops.release(opened.fh)
    assert entry.nodeid == st.st_ino


async def test_everything_that_has_a_name_can_be_made(root: None, bench: Bench) -> None:
    await bench.ops.mkdir(ROOT_ID, b"d", 0o777, USER)
    await bench.ops.mknod(ROOT_ID, b"fifo", stat.S_IFIFO | 0o666, 0, USER)
    await bench.ops.symlink(ROOT_ID, b"s", b"../out/of/here", USER)
    link = await bench.ops.lookup(ROOT_ID, b"s", ME)
    assert await bench.ops.readlink(link.nodeid, ME) == b"../out/of/here"
    modes = {name: stat.S_IFMT((bench.source / name).lstat().st_mode) for name in ("d", "fifo", "s")}
    assert modes == {"d": stat.S_IFDIR, "fifo": stat.S_IFIFO, "s": stat.S_IFLNK}
    assert {(bench.source / name).lstat().st_uid for name in modes} == {1000}
    assert await listing(bench) == await listing(bench, plus=True) == [b"d", b"fifo", b"s"]


async def test_a_symlink_is_never_followed(bench: Bench) -> None:
    (bench.source / "s").symlink_to("/etc/passwd")
    link = await bench.ops.lookup(ROOT_ID, b"s", ME)
    assert stat.S_ISLNK(link.st.st_mode)
    with pytest.raises(OSError) as e:
        await bench.ops.open(link.nodeid, os.O_RDONLY, ME)
    assert e.value.errno == errno.ELOOP


async def test_hard_links_are_one_inode(bench: Bench) -> None:
    nodeid = await bench.file("a", 10)
    entry = await bench.ops.link(nodeid, ROOT_ID, b"b", ME)
    assert (entry.nodeid, entry.st.st_nlink) == (nodeid, 2)
    await bench.ops.unlink(ROOT_ID, b"a", ME)
    assert (await bench.ops.getattr(nodeid, ME)).st_nlink == 1
    await bench.ops.unlink(ROOT_ID, b"b", ME)
    assert (await bench.ops.getattr(nodeid, ME)).st_nlink == 0


async def test_unlinked_but_open_lives_until_it_is_forgotten(bench: Bench) -> None:
    nodeid = await bench.file("f", 10)
    opened = await bench.ops.open(nodeid, os.O_RDWR, ME)
    await bench.ops.unlink(ROOT_ID, b"f", ME)
    assert await bench.ops.read(opened.fh, 0, 100) == b"x" * 10
    assert (await bench.truncate(nodeid, 4)).st_size == 4
    await bench.ops.release(opened.fh)
    assert (await bench.ops.getattr(nodeid, ME)).st_size == 4
    known = len(bench.fs.inodes)
    bench.ops.forget([(nodeid, 1)])
    assert len(bench.fs.inodes) == known - 1
    with pytest.raises(OSError) as e:
        await bench.ops.getattr(nodeid, ME)
    assert e.value.errno == errno.ESTALE


async def test_rename_moves_the_way(bench: Bench) -> None:
    nodeid = await bench.file("f", 1)
    a = await bench.ops.mkdir(ROOT_ID, b"a", 0o755, ME)
    b = await bench.ops.mkdir(a.nodeid, b"b", 0o755, ME)
    await bench.ops.rename(ROOT_ID, b"f", b.nodeid, b"g", 0, ME)
    await bench.ops.rename(ROOT_ID, b"a", ROOT_ID, b"z", 0, ME)
    assert bench.fs.inodes.get(nodeid).path() == "z/b/g"
    assert (await bench.ops.getattr(nodeid, ME)).st_size == 1
    assert (await bench.truncate(nodeid, 5)).st_size == 5


async def test_rename_over_and_its_kinds(bench: Bench) -> None:
    old, victim = await bench.file("old", 1), await bench.file("victim", 2)
    with pytest.raises(FileExistsError):
        await bench.ops.rename(ROOT_ID, b"old", ROOT_ID, b"victim", RENAME_NOREPLACE, ME)
    await bench.ops.rename(ROOT_ID, b"old", ROOT_ID, b"victim", RENAME_EXCHANGE, ME)
    assert (bench.source / "old").stat().st_size == 2
    assert [(await bench.ops.getattr(n, ME)).st_size for n in (old, victim)] == [1, 2]
    await bench.ops.rename(ROOT_ID, b"old", ROOT_ID, b"victim", 0, ME)
    assert (await bench.ops.getattr(old, ME)).st_nlink == 0
    assert (await bench.ops.getattr(victim, ME)).st_nlink == 1


async def test_rename_between_two_names_of_one_inode_does_nothing(bench: Bench) -> None:
    nodeid = await bench.file("a", 1)
    await bench.ops.link(nodeid, ROOT_ID, b"b", ME)
    await bench.ops.rename(ROOT_ID, b"a", ROOT_ID, b"b", 0, ME)
    assert await listing(bench) == [b"a", b"b"]
    await bench.ops.unlink(ROOT_ID, b"a", ME)
    assert (await bench.ops.getattr(nodeid, ME)).st_nlink == 1


async def test_setattr_changes_what_it_is_told(root: None, bench: Bench) -> None:
    nodeid = await bench.file("f", 1)
    changes = SetAttr(mode=0o4711, uid=1000, gid=1001, mtime_ns=-5_000_000_001, atime_ns=7)
    st = await bench.ops.setattr(nodeid, changes, None, ME)
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1000, 1001, 0o4711)
    assert (st.st_atime_ns, st.st_mtime_ns) == (7, -5_000_000_001)
    st = await bench.ops.setattr(nodeid, SetAttr(size=0, kill_suidgid=True), None, ME)
    assert stat.S_IMODE(st.st_mode) == 0o711


async def test_a_directory_read_while_it_changes(bench: Bench) -> None:
    """What was there all the time is seen exactly once, whatever else comes and goes (readdir(3))."""
    for number in range(300):
        (bench.source / f"stay{number}").touch()
        (bench.source / f"go{number}").touch()
    opened = await bench.ops.opendir(ROOT_ID, ME)
    seen: list[bytes] = []
    offset = 0

    def add(name: bytes, next_offset: int, entry: Entry | tuple[int, int]) -> bool:
        nonlocal offset
        if len(batch) == 7:
            return False
        batch.append(name)
        offset = next_offset
        return True

    number = 0
    while True:
        batch: list[bytes] = []
        await bench.ops.readdir(opened.fh, offset, True, add)
        seen += batch
        if not batch:
            break
        (bench.source / f"go{number}").unlink(missing_ok=True)
        (bench.source / f"new{number}").touch()
        number += 1
    await bench.ops.releasedir(opened.fh)
    stayed = [name for name in seen if name.startswith(b"stay")]
    assert len(stayed) == len(set(stayed)) == 300


async def test_a_walk_keeps_few_descriptors(bench: Bench) -> None:
    bench.fs.inodes.descriptors.max_descriptors = 32
    nodeid, ids = ROOT_ID, []
    for _ in range(400):
        nodeid = (await bench.ops.mkdir(nodeid, b"deeper", 0o755, ME)).nodeid
        ids.append(nodeid)
    assert len(bench.fs.inodes.descriptors) <= 32
    for nodeid in reversed(ids):
        assert (await bench.ops.getattr(nodeid, ME)).st_ino == nodeid
    assert len(bench.fs.inodes.descriptors) <= 32


async def test_what_changed_hands_behind_is_stale(bench: Bench) -> None:
    nodeid = await bench.file("f", 1)
    (bench.source / "other").write_bytes(b"secret")
    (bench.source / "other").rename(bench.source / "f")
    with pytest.raises(OSError) as e:
        await bench.ops.open(nodeid, os.O_RDONLY, ME)
    assert e.value.errno == errno.ESTALE


async def test_forgetting_all_leaves_only_the_root(bench: Bench) -> None:
    a = await bench.ops.mkdir(ROOT_ID, b"a", 0o755, ME)
    opened, f = await bench.ops.create(a.nodeid, b"f", 0o644, os.O_RDWR, ME)
    bench.ops.forget([(a.nodeid, 1)])  # in any order: the way to f goes through a
    assert (await bench.ops.getattr(f.nodeid, ME)).st_ino == f.nodeid
    bench.ops.forget([(f.nodeid, 1)])
    await bench.ops.release(opened.fh)
    assert len(bench.fs.inodes) == 1


async def test_extended_attributes_pass_through(bench: Bench) -> None:
    nodeid = await bench.file("f", 1)
    await bench.ops.setxattr(nodeid, b"user.colour", b"blue", 0, ME)
    await bench.pin(nodeid, "p", "0:1")
    assert await bench.ops.listxattr(nodeid, ME) == [b"user.colour"]
    assert await bench.ops.getxattr(nodeid, b"user.colour", ME) == b"blue"
    await bench.ops.removexattr(nodeid, b"user.colour", ME)
    with pytest.raises(OSError) as e:
        await bench.ops.getxattr(nodeid, b"user.colour", ME)
    assert e.value.errno == errno.ENODATA


async def test_nameless_files(bench: Bench) -> None:
    opened, entry = await bench.ops.tmpfile(ROOT_ID, 0o600, os.O_RDWR, USER)
    await bench.ops.write(opened.fh, 0, b"data")
    assert await listing(bench) == []
    await bench.ops.link(entry.nodeid, ROOT_ID, b"named", USER)
    await bench.ops.release(opened.fh)
    assert (bench.source / "named").read_bytes() == b"data"


async def test_holes_and_copies(bench: Bench) -> None:
    source, target = await bench.file("a", 4096), await bench.file("b")
    a = await bench.ops.open(source, os.O_RDWR, ME)
    b = await bench.ops.open(target, os.O_RDWR, ME)
    assert await bench.ops.copy_file_range(a.fh, 0, b.fh, 8192, 4096, ME) == 4096
    assert await bench.ops.lseek(b.fh, 0, os.SEEK_DATA) == 8192
    assert await bench.ops.lseek(b.fh, 0, os.SEEK_HOLE) == 0
    await bench.ops.fallocate(b.fh, 0x3, 8192, 4096, ME)
    assert (bench.source / "b").stat().st_blocks == 0


class SlowCopies:
    """os.copy_file_range, which waits in its thread until the test has seen enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.under_way, self.go_on, self.asked = threading.Event(), threading.Event(), 0
        self._copy = os.copy_file_range
        monkeypatch.setattr(os, "copy_file_range", self)

    def __call__(self, *args: int) -> int:
        self.asked += 1
        self.under_way.set()
        assert self.go_on.wait(20)
        return self._copy(*args)


MEGABYTE = 1 << 20


@pytest.fixture
async def copying(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[int]]:
    """Copies a megabyte from `a` to the middle megabyte of `b`, on a backing that is not memory; offsets are relative
    to these."""
    monkeypatch.setattr(bench.fs.backing, "in_memory", False)
    fhs = []
    for name in ("a", "b"):
        nodeid = await bench.file(name, 3 * MEGABYTE)
        fhs.append((await bench.ops.open(nodeid, os.O_RDWR, ME)).fh)

    async def copy(length: int = MEGABYTE) -> int:
        return await bench.ops.copy_file_range(fhs[0], 0, fhs[1], MEGABYTE, length, ME)

    return copy


async def node(bench: Bench, name: bytes) -> int:
    return (await bench.ops.lookup(ROOT_ID, name, ME)).nodeid


async def test_no_pin_comes_into_a_range_while_its_blocks_may_be_replaced(
    bench: Bench, copying: Callable[..., Awaitable[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, b = SlowCopies(monkeypatch), await node(bench, b"b")
    await bench.pin(b, "before", f"0:{MEGABYTE}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copying)
        await trio.to_thread.run_sync(slow.under_way.wait)
        await bench.pin(b, "after", f"{2 * MEGABYTE}:0")
        for at in (MEGABYTE, 2 * MEGABYTE - 1):
            with pytest.raises(BlockingIOError):
                await bench.pin(b, "inside", f"{at}:1")
        with pytest.raises(BlockingIOError):
            await bench.pin(b, "before", f"0:{MEGABYTE + 1}")
        slow.go_on.set()
    await bench.pin(b, "inside", f"{MEGABYTE}:1")
    assert slow.asked == 1
    assert bench.fs.guard.book.files.states.keys() == {b}


@pytest.mark.parametrize("size", [MEGABYTE, 4096])
@pytest.mark.parametrize(
    ("name", "place", "shared"),
    [
        (b"b", f"{MEGABYTE - 10}:11", False),
        (b"b", f"{MEGABYTE + 4095}:1", False),
        (b"b", f"0:{MEGABYTE}", True),
        (b"b", f"{2 * MEGABYTE}:10", True),
        (b"a", "4095:1", False),
        (b"a", f"{MEGABYTE}:1", True),
    ],
)
async def test_only_where_the_range_is_pinned_bytes_are_copied(
    bench: Bench,
    copying: Callable[..., Awaitable[int]],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    name: bytes,
    place: str,
    shared: bool,
) -> None:
    slow = SlowCopies(monkeypatch)
    slow.go_on.set()
    await bench.pin(await node(bench, name), "p", place)
    (bench.source / "a").write_bytes(b"y" * 3 * MEGABYTE)
    assert await copying(size) == size
    assert slow.asked == shared
    assert (bench.source / "b").read_bytes() == b"x" * MEGABYTE + b"y" * size + b"x" * (2 * MEGABYTE - size)


async def test_the_control_directory_is_there_but_not_listed(bench: Bench) -> None:
    (bench.source / ".pinfs").mkdir()
    control = await bench.ops.lookup(ROOT_ID, b".pinfs", ME)
    assert await listing(bench) == []
    assert b"pins" in await listing(bench, control.nodeid)
    for attempt in (
        bench.ops.unlink(control.nodeid, b"pins", ME),
        bench.ops.mkdir(ROOT_ID, b".pinfs", 0o755, ME),
        bench.ops.rename(ROOT_ID, b".pinfs", ROOT_ID, b"x", 0, ME),
        bench.ops.create(control.nodeid, b"new", 0o644, os.O_RDWR, ME),
        bench.ops.link(control.nodeid, ROOT_ID, b"x", ME),
    ):
        with pytest.raises(PermissionError):
            await attempt


async def test_an_idle_backing_file_stays_only_while_that_harms_no_one(bench: Bench) -> None:
    nodeid = await bench.file("f", 10)
    inode = bench.fs.inodes.get(nodeid)
    for _ in range(2):
        await bench.ops.release((await bench.ops.open(nodeid, os.O_RDONLY, ME)).fh)
        assert inode.file is not None  # for the next open
        assert bench.fs.backing.open_files == 0
    await bench.ops.release((await bench.ops.open(nodeid, os.O_RDWR, ME)).fh)
    assert inode.file is None
    await bench.ops.release((await bench.ops.open(nodeid, os.O_RDONLY, ME)).fh)
    await bench.ops.unlink(ROOT_ID, b"f", ME)
    assert inode.file is None
    again = await bench.file("g")
    await bench.ops.release((await bench.ops.open(again, os.O_RDONLY, ME)).fh)
    bench.ops.forget([(nodeid, 1), (again, 1)])
    assert len(bench.fs.inodes) == 1


async def test_few_backing_files_stay_idle(bench: Bench) -> None:
    for number in range(200):
        nodeid = await bench.file(f"f{number}")
        await bench.ops.release((await bench.ops.open(nodeid, os.O_RDONLY, ME)).fh)
    assert sum(inode.file is not None for inode in bench.fs.inodes) == 128


async def test_a_moment_before_the_epoch_is_not_now(bench: Bench) -> None:
    nodeid = await bench.file("f")
    st = await bench.ops.setattr(nodeid, SetAttr(atime_ns=-1, mtime_ns=-1), None, ME)
    assert (st.st_atime_ns, st.st_mtime_ns) == (-1, -1)


async def test_a_change_of_nothing_moves_the_ctime(bench: Bench) -> None:
    nodeid = await bench.file("f")
    before = (await bench.ops.getattr(nodeid, ME)).st_ctime_ns
    while (after := (await bench.ops.setattr(nodeid, SetAttr(), None, ME)).st_ctime_ns) == before:
        pass  # until the backing's clock has ticked
    assert after > before


async def test_trusted_attributes_are_listed_for_root_alone(root: None, bench: Bench) -> None:
    nodeid = await bench.file("f")
    await bench.ops.setxattr(nodeid, b"trusted.secret", b"1", 0, ME)
    assert await bench.ops.listxattr(nodeid, ME) == [b"trusted.secret"]
    assert await bench.ops.listxattr(nodeid, USER) == []


async def test_create_of_what_is_there_cuts_it_and_says_so(bench: Bench) -> None:
    await bench.file("f", 45)
    _, entry = await bench.ops.create(ROOT_ID, b"f", 0o644, os.O_WRONLY | os.O_TRUNC, ME)
    assert entry.st.st_size == 0


class EveryFile(NoPassthrough):
    """A kernel that reads, writes and maps every file by itself."""

    def open(self, fd: int) -> int:
        return 1

    def close(self, backing_id: int) -> None:
        pass


async def test_a_file_is_uncached_until_no_handle_and_no_mapping_can_store_to_it(bench: Bench) -> None:
    bench.fs.backing.passthrough = EveryFile()
    nodeid = await bench.file("f", 4096)
    opened = await bench.ops.open(nodeid, os.O_RDWR, ME)
    with (bench.source / "f").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
    await bench.ops.getattr(nodeid, ME)
    assert nodeid in bench.ops.uncached
    await bench.ops.release(opened.fh)
    await bench.ops.getattr(nodeid, ME)
    assert nodeid in bench.ops.uncached
    mapped.close()
    await bench.ops.getattr(nodeid, ME)
    assert nodeid not in bench.ops.uncached


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
async def test_a_handle_that_no_mapping_can_store_through_leaves_its_file_cached(bench: Bench, flags: int) -> None:
    bench.fs.backing.passthrough = EveryFile()
    nodeid = await bench.file("f", 4096)
    await bench.ops.open(nodeid, flags, ME)
    assert nodeid not in bench.ops.uncached


async def test_a_forgotten_inode_is_not_uncached(bench: Bench) -> None:
    bench.fs.backing.passthrough = EveryFile()
    opened, entry = await bench.ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR, ME)
    assert entry.nodeid in bench.ops.uncached
    await bench.ops.release(opened.fh)
    bench.ops.forget([(entry.nodeid, 1)])
    assert not bench.ops.uncached


@pytest.mark.parametrize("size", [0, 10])
async def test_a_file_that_was_there_loses_set_ids_when_create_cuts_it(bench: Bench, size: int) -> None:
    path = bench.source / "f"
    path.write_bytes(bytes(size))
    path.chmod(0o6777)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    _, entry = await bench.ops.create(ROOT_ID, b"f", 0o600, flags, ME, kill_suidgid=True)
    assert stat.S_IMODE(entry.st.st_mode) == 0o777
    _, entry = await bench.ops.create(ROOT_ID, b"new", 0o6777, flags, ME, kill_suidgid=True)
    assert stat.S_IMODE(entry.st.st_mode) & 0o6000 == 0o6000
