"""Seals without a mount, and without a kernel that minds them: when the flag is set, lifted and put back (SPEC 12)."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from pinfs.fs.inode import ROOT_ID
from pinfs.fs.seal import IDLE_S, Seal
from pinfs.fs.seallist import SealedFile, SealList, read_list, source_of
from pinfs.fs.types import Caller, SetAttr
from pinfs.linux.inodeflags import APPEND
from pinfs.linux.interruptible import Result
from pinfs.linux.ioctl import FS_IOC_GETFLAGS as GETFLAGS
from pinfs.linux.ioctl import FS_IOC_SETFLAGS as SETFLAGS
from pinfs.linux.syscalls import RENAME_EXCHANGE

from .conftest import ME, Bench

NODUMP = 0x40
OTHER = Caller(0, 0, 1)


class FakeFlags:
    """The flags of inodes, as a kernel keeps them, and how often they were set."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}
        self.set = 0
        self.failure = 0

    def get_flags(self, fd: int, /) -> int:
        return self.of.get(os.fstat(fd).st_ino, 0)

    def set_flags(self, fd: int, flags: int, /) -> None:
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))
        self.of[os.fstat(fd).st_ino] = flags
        self.set += 1


class World:
    """A bench with seals, and one file."""

    def __init__(self, bench: Bench, flags: FakeFlags, nodeid: int) -> None:
        self.bench, self.flags, self.nodeid = bench, flags, nodeid
        self.ino = (bench.source / "f").stat().st_ino

    @property
    def seal(self) -> Seal:
        return self.bench.fs.backing.seal

    @property
    def is_flagged(self) -> bool:
        return bool(self.flags.of.get(self.ino, 0) & APPEND)

    async def pin(self, name: str = "a", value: str = "0:10") -> None:
        await self.bench.pin(self.nodeid, name, value)

    async def release(self, name: str = "a") -> None:
        await self.bench.ops.removexattr(self.nodeid, b"user.pinfs.pin." + name.encode(), ME)

    def listed(self) -> list[bytes]:
        return [file.path for file in read_list(self.list)]

    @property
    def list(self) -> Path:
        return self.bench.source.parent / "list" / "sealed"


@pytest.fixture
async def world(bench: Bench) -> AsyncIterator[World]:
    flags = FakeFlags()
    world = World(bench, flags, await bench.file("f", 100))
    world.seal.flags = flags
    world.seal.start("", world.list, str(bench.source))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.seal.run)
        yield world
        nursery.cancel_scope.cancel()


async def idle() -> None:
    await trio.sleep(2.5 * IDLE_S)


async def test_from_the_first_pin_to_a_while_after_the_last(world: World, autojump_clock: object) -> None:
    await world.pin()
    await world.pin("b")
    assert (world.is_flagged, world.seal.count, world.listed()) == (True, 1, [b"f"])
    await world.release()
    await idle()
    assert world.is_flagged
    await world.release("b")
    assert world.is_flagged
    await idle()
    assert (world.is_flagged, world.seal.count, world.listed()) == (False, 0, [])


async def test_pins_and_releases_in_a_row_pay_once(world: World, autojump_clock: object) -> None:
    for _ in range(100):
        await world.pin()
        await world.release()
    assert world.flags.set == 1
    await world.pin()
    await idle()
    assert world.is_flagged


async def test_a_pin_that_is_refused_leaves_no_seal(world: World, autojump_clock: object) -> None:
    with pytest.raises(OSError) as refused:
        await world.pin(value="500:10")
    assert refused.value.errno == errno.ENXIO
    await idle()
    assert not world.is_flagged


async def test_an_inode_that_the_kernel_forgets_is_kept_until_its_seal_is_lifted(
    world: World, autojump_clock: object
) -> None:
    await world.pin()
    world.bench.ops.forget([(world.nodeid, 1)])
    await world.bench.ops.lookup(ROOT_ID, b"f", ME)
    await world.release()
    world.bench.ops.forget([(world.nodeid, 1)])
    assert world.bench.fs.inodes.known(world.nodeid) is not None
    await idle()
    assert (world.is_flagged, world.bench.fs.inodes.known(world.nodeid)) == (False, None)


async def test_calls_that_the_flag_would_refuse_find_it_lifted_and_leave_it_set(world: World) -> None:
    await world.pin()
    inode = world.bench.fs.inodes.get(world.nodeid)
    with world.seal.lifted(inode):
        assert not world.is_flagged
        with world.seal.lifted(inode):
            assert not world.is_flagged
        assert not world.is_flagged
    assert world.is_flagged
    with pytest.raises(KeyError), world.seal.lifted(inode):
        raise KeyError
    assert (world.is_flagged, world.listed()) == (True, [b"f"])


async def test_a_removal_of_the_last_pin_does_not_put_it_back(world: World) -> None:
    await world.pin()
    await world.release()
    await world.bench.truncate(world.nodeid, 5)
    assert (world.is_flagged, world.seal.count, world.listed()) == (False, 0, [])


async def test_nothing_is_set_while_a_cut_may_hold_the_lock_of_the_inode(world: World) -> None:
    with world.seal.cutting(world.bench.fs.inodes.get(world.nodeid)):
        await world.pin()
        assert world.flags.set == 0
    assert world.is_flagged


class HeldCall:
    """A call on the backing that waits in the kernel until the test ends it. `fails`: it cannot be started."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.was_flagged_at_its_start: list[bool] = []
        self.changes_before = 0
        self.fails = False
        world.bench.fs.guard.cuts.start = self._start

    def _start(self, fd: int, call: Callable[[int], None], ended: Callable[[Result], None]) -> HeldCall:
        if self.fails:
            raise OSError(errno.EMFILE, "no descriptor")
        self.was_flagged_at_its_start.append(self.world.is_flagged)
        self.changes_before = self.world.flags.set
        self.end = ended
        return self

    @property
    def is_untouched(self) -> bool:
        """The file is without the flag, and no call has set flags since this one began."""
        return not self.world.is_flagged and self.world.flags.set == self.changes_before

    def wait(self, limit_s: float) -> Result | None:
        return None

    def interrupt(self) -> None:
        """No signal ends it."""


@pytest.fixture
def held(cuts_wait: None, world: World) -> HeldCall:
    return HeldCall(world)


async def test_a_cut_in_a_thread_is_without_the_flag_until_its_thread_ends(
    world: World, held: HeldCall, autojump_clock: object
) -> None:
    await world.pin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.bench.truncate, world.nodeid, 50)
        await trio.testing.wait_all_tasks_blocked()
        assert held.was_flagged_at_its_start == [False]
        await world.pin("b", "20:5")
        await world.release("a")
        assert held.is_untouched
        held.end(0)
    assert (world.is_flagged, world.listed()) == (True, [b"f"])
    await world.release("b")
    await idle()
    assert (world.is_flagged, world.seal.files) == (False, {})


async def test_a_cut_that_is_left_alone_keeps_its_file_without_the_flag(
    world: World, held: HeldCall, autojump_clock: object
) -> None:
    await world.pin()
    with pytest.raises(OSError) as refused:
        await world.bench.truncate(world.nodeid, 50)
    assert (refused.value.errno, world.bench.fs.guard.cuts.left_alone) == (errno.EBUSY, 1)
    await world.pin("b")
    assert held.is_untouched
    await world.release("a")
    await world.release("b")
    await idle()
    await world.pin("c")
    assert held.is_untouched
    held.end(errno.EINTR)
    await trio.testing.wait_all_tasks_blocked()
    assert (world.is_flagged, world.bench.fs.guard.cuts.left_alone) == (True, 0)


async def test_the_end_of_the_mount_does_not_touch_a_file_whose_cut_is_left_alone(
    world: World, held: HeldCall, autojump_clock: object
) -> None:
    await world.pin()
    with pytest.raises(OSError):
        await world.bench.truncate(world.nodeid, 50)
    world.seal.close()
    assert held.is_untouched
    held.end(0)
    await trio.testing.wait_all_tasks_blocked()
    assert held.is_untouched


async def test_a_cut_that_cannot_be_started_leaves_the_flag_set(world: World, held: HeldCall) -> None:
    await world.pin()
    held.fails = True
    with pytest.raises(OSError, match="no descriptor"):
        await world.bench.truncate(world.nodeid, 50)
    assert (world.is_flagged, world.listed()) == (True, [b"f"])


async def test_a_removal_that_waits_for_a_holder_leaves_the_flag_set(world: World, held: HeldCall) -> None:
    await world.pin(value="0:100,mode=lease,signal=none")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.bench.truncate, world.nodeid, 50, OTHER)
        await trio.testing.wait_all_tasks_blocked()
        assert (held.was_flagged_at_its_start, world.is_flagged) == ([], True)
        await world.release()
        await trio.testing.wait_all_tasks_blocked()
        assert held.was_flagged_at_its_start == [False]
        held.end(0)
    assert (world.is_flagged, world.listed()) == (False, [])


async def test_files_without_pins_are_left_alone(world: World) -> None:
    await world.bench.truncate(world.nodeid, 5)
    await world.bench.ops.setattr(world.nodeid, SetAttr(mode=0o600), None, ME)
    await world.bench.ops.unlink(ROOT_ID, b"f", ME)
    assert (world.flags.set, world.seal.count) == (0, 0)


async def test_the_flag_of_the_owner_is_the_owners(world: World, autojump_clock: object) -> None:
    world.flags.of[world.ino] = APPEND | NODUMP
    await world.pin()
    assert (world.flags.set, world.listed(), world.seal.is_sealed(world.nodeid)) == (0, [], True)
    with world.seal.lifted(world.bench.fs.inodes.get(world.nodeid)):
        assert world.is_flagged
    await world.release()
    await idle()
    assert world.flags.of[world.ino] == APPEND | NODUMP


async def test_a_flag_that_the_owner_sets_and_takes_away_meanwhile(world: World, autojump_clock: object) -> None:
    await world.pin()
    inode = world.bench.fs.inodes.get(world.nodeid)
    with world.seal.lifted(inode):
        world.flags.of[world.ino] = APPEND
    assert (world.seal.hides_append(inode), world.listed()) == (False, [])
    with world.seal.lifted(inode):
        world.flags.of[world.ino] = NODUMP
    assert (world.seal.hides_append(inode), world.listed()) == (True, [b"f"])
    await world.release()
    await idle()
    assert world.flags.of[world.ino] == NODUMP


async def test_the_end_lifts_all(world: World) -> None:
    await world.pin()
    world.seal.close()
    assert (world.is_flagged, world.list.exists()) == (False, False)


async def test_seals_that_cannot_be_set(world: World) -> None:
    world.flags.failure = errno.EROFS
    await world.pin()
    assert (world.seal.is_sealed(world.nodeid), world.listed()) == (False, [])


@pytest.mark.parametrize("options", [["seal=require"]], indirect=False)
async def test_required_seals(world: World, options: list[str]) -> None:
    world.flags.failure = errno.EROFS
    with pytest.raises(OSError) as refused:
        await world.pin()
    assert (refused.value.errno, len(world.bench.fs.guard.book.table)) == (errno.EOPNOTSUPP, 0)
    world.flags.failure = 0
    await world.pin()
    assert world.is_flagged
    world.seal.unavailable_because = "the test says so"
    nodeid = await world.bench.file("g", 10)
    with pytest.raises(OSError, match="the test says so"):
        await world.bench.pin(nodeid, "a", "0:1")


@pytest.mark.parametrize("options", [["seal=off"]], indirect=False)
async def test_seals_switched_off(world: World, options: list[str]) -> None:
    await world.pin()
    await world.bench.truncate(world.nodeid, 50)
    with world.seal.cutting(world.bench.fs.inodes.get(world.nodeid)):
        assert world.flags.set == 0
    assert (world.flags.set, world.seal.files) == (0, {})


async def test_chattr_of_a_sealed_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ioctls go to the backing, so the fake stands in for them as well."""

    def ioctl(fd: int, cmd: int, buffer: bytearray, mutate: bool) -> int:
        if cmd == SETFLAGS:
            world.flags.of[world.ino] = int.from_bytes(buffer, "little")
        else:
            buffer[:] = world.flags.of[world.ino].to_bytes(4, "little")
        return 0

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    await world.pin()
    fh = (await world.bench.ops.open(world.nodeid, os.O_RDONLY, ME)).fh

    async def get() -> int:
        return int.from_bytes(await world.bench.ops.ioctl(fh, GETFLAGS, b"", 4, ME), "little")

    async def chattr(flags: int) -> None:
        await world.bench.ops.ioctl(fh, SETFLAGS, flags.to_bytes(8, "little"), 8, ME)

    assert (await get(), world.is_flagged) == (0, True)
    await chattr(NODUMP)
    assert (await get(), world.flags.of[world.ino]) == (NODUMP, NODUMP | APPEND)
    await chattr(APPEND)
    assert await get() == APPEND
    await chattr(0)
    assert (await get(), world.is_flagged) == (0, True)


# The list


A = SealedFile(5, 6, b"handle", b"a/b c")
B = SealedFile(5, 7, b"", b"")


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state" / "list"
    written = SealList(path, "/src\n")
    written.add(A)
    written.add(B)
    assert (list(read_list(path)), source_of(path)) == ([A, B], "/src\n")
    written.remove(5, 6)
    assert list(read_list(path)) == [B]
    written.close()
    assert path.exists()


@pytest.mark.parametrize("damage", [b"torn + 5 ", b"+ 5 8 aa bb 00000000\n", b"\xff\0\n \n+", b"+ x y 12345678"])
def test_lines_that_were_torn_or_have_rotted_are_skipped(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "list"
    written = SealList(path, "/src")
    written.add(A)
    with path.open("ab") as file:
        file.write(damage)
    written.add(B)
    assert list(read_list(path)) == [A, B]


def test_a_list_stays_short(tmp_path: Path) -> None:
    path = tmp_path / "list"
    written = SealList(path, "/src")
    written.add(B)
    for _ in range(3000):
        written.add(A)
        written.remove(A.device, A.ino)
    assert path.stat().st_size < 200_000
    assert (list(read_list(path)), source_of(path)) == ([B], "/src")


def test_no_list(tmp_path: Path) -> None:
    assert (list(read_list(tmp_path / "none")), source_of(tmp_path / "none")) == ([], None)


async def test_an_exchange_whose_seals_take_the_last_descriptors(world: World) -> None:
    """Lifting the seals of two files closes that of their directory, which the call itself needs as well."""
    bench, ops, inodes = world.bench, world.bench.ops, world.bench.fs.inodes
    directory = (await ops.mkdir(ROOT_ID, b"d", 0o755, ME)).nodeid
    await ops.rename(ROOT_ID, b"f", directory, b"f", 0, ME)
    other = await bench.file("g", 100)
    await ops.rename(ROOT_ID, b"g", directory, b"g", 0, ME)
    for nodeid in (world.nodeid, other):
        await bench.pin(nodeid, "a", "0:10")
    inodes.descriptors.max_descriptors = 2
    for nodeid in (world.nodeid, other, directory):
        inodes.descriptors.close(inodes.get(nodeid))
    await ops.rename(directory, b"f", directory, b"g", RENAME_EXCHANGE, ME)
    assert (bench.source / "d/g").stat().st_ino == world.ino
    assert world.is_flagged
