"""Removals on a source that other hosts serve as well: what they are told, and for how long."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from pinfs.cluster.keys import PinValue, RemovalKey, RemovalValue
from pinfs.cluster.outputs import MayCut, RemovalRefused
from pinfs.cluster.protocol import ANY_FILE
from pinfs.fs import backing as backing_module
from pinfs.fs import shared
from pinfs.fs.identity import DIRECTORY
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.shared import HELD_NAME

from .conftest import ME, Bench
from .test_threads import Held, bench_threads


class FakeHost:
    """Other hosts, which have pinned the files in `pinned`, by number."""

    def __init__(self) -> None:
        self.pinned: set[int] = set()
        self.under_way: dict[int, tuple[str, str]] = {}
        self.unseen: set[int] = set()
        self.asked: list[tuple[str, str]] = []
        self.is_cut_off = self.has_pinned = False
        self._numbers = itertools.count(1)

    def must_ask(self, inode: int) -> bool:
        return self.is_cut_off or inode in self.pinned

    async def pin(self, file: str, value: PinValue, patience_s: float) -> int:
        self.has_pinned = True
        return next(self._numbers)

    def release(self, pin: int) -> None: ...

    async def until_unpinned(self, pin: int) -> None: ...

    def removal(self, file: str, value: RemovalValue, patience_s: float, heard: Callable[[Any], None]) -> int:
        number = next(self._numbers)
        if file == ANY_FILE:
            self.unseen.add(number)
            return number
        self.asked.append((file, value.operation))
        if int(file.partition(".")[0], 16) in self.pinned:
            heard(RemovalRefused(number, errno.EBUSY, "deny", "b"))
        else:
            self.under_way[number] = file, value.operation
            heard(MayCut(number, 1e9))
        return number

    def may_begin(self, removal: int) -> bool:
        return removal in self.under_way and not self.is_cut_off

    def removal_over(self, removal: int) -> None:
        self.under_way.pop(removal, None)
        self.unseen.discard(removal)

    def deny(self, removal: RemovalKey, why: str) -> None: ...

    def status(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def options() -> list[str]:
    return ["cluster=http://localhost:1", "cluster_host=a", "cluster_name=c"]


@pytest.fixture
def host(bench: Bench) -> FakeHost:
    host = FakeHost()
    assert bench.fs.hosts is not None
    bench.fs.hosts.host = host
    bench.fs.hosts.joined()
    return host


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("calls_may_stall", "cuts_may_wait"):
        monkeypatch.setattr(backing_module, kind, lambda fd: True)


def held_names(source: Path) -> list[str]:
    directory = source / DIRECTORY / "held"
    return sorted(os.listdir(directory)) if directory.exists() else []


async def unlink(bench: Bench, name: bytes) -> None:
    await bench.ops.unlink(ROOT_ID, name, ME)


async def rename(bench: Bench, name: bytes) -> None:
    await bench.ops.rename(ROOT_ID, b"other", ROOT_ID, name, 0, ME)


TAKES = pytest.mark.parametrize("take", [unlink, rename])
Take = Callable[[Bench, bytes], Any]


async def names_and_threads(bench: Bench) -> Held:
    """Files `f` and `other`, and threads that run when the test says so."""
    await bench.file("f", 10)
    await bench.file("other", 20)
    held = Held()
    bench_threads(bench, held)
    return held


async def until_under_way(bench: Bench, host: FakeHost, held: Held) -> None:
    """The thread that takes the name is about to run."""
    await trio.testing.wait_all_tasks_blocked()
    while not host.under_way:
        await held.run_one()
    assert len(held.waiting) == 1


@TAKES
async def test_a_name_that_goes_in_a_thread_holds_pins_back_until_it_has_gone(
    served: None, bench: Bench, host: FakeHost, take: Take, autojump_clock: trio.testing.MockClock
) -> None:
    """Its caller may have left long before: the server hangs."""
    held = await names_and_threads(bench)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, bench, b"f")
        await until_under_way(bench, host, held)
        nursery.cancel_scope.cancel()
    assert (bench.source / "f").exists()
    assert host.under_way
    await held.run_one()
    assert not host.under_way
    assert not bench.fs.guard.book.files.states


@TAKES
async def test_no_call_begins_in_a_thread_when_the_host_is_cut_off(
    served: None, bench: Bench, host: FakeHost, take: Take, autojump_clock: trio.testing.MockClock
) -> None:
    held = await names_and_threads(bench)
    async with trio.open_nursery() as nursery:

        async def refused() -> None:
            with pytest.raises(OSError, match="cut off") as caught:
                await take(bench, b"f")
            assert caught.value.errno == errno.EIO

        nursery.start_soon(refused)
        await until_under_way(bench, host, held)
        host.is_cut_off = True
        await held.run_one()
    assert (bench.source / "f").stat().st_size == 10
    assert not host.under_way


@TAKES
async def test_a_name_that_leads_elsewhere_by_now_stays(
    served: None, bench: Bench, host: FakeHost, take: Take, autojump_clock: trio.testing.MockClock
) -> None:
    """Another host has put another file under it, which this one has not asked about."""
    held = await names_and_threads(bench)
    async with trio.open_nursery() as nursery:

        async def stale() -> None:
            with pytest.raises(OSError, match="Stale"):
                await take(bench, b"f")

        nursery.start_soon(stale)
        await until_under_way(bench, host, held)
        (bench.source / "new").write_bytes(b"precious")
        (bench.source / "new").rename(bench.source / "f")
        while held.waiting:
            await held.run_one()
    assert (bench.source / "f").read_bytes() == b"precious"


@TAKES
async def test_a_file_that_is_not_known_here_is_looked_up_first(
    served: None, bench: Bench, host: FakeHost, take: Take
) -> None:
    await bench.file("other", 20)
    (bench.source / "f").write_bytes(b"of another host")
    with pytest.raises(OSError, match="Stale"):
        await take(bench, b"f")
    assert (bench.source / "f").exists()


@pytest.fixture(params=["here", "in threads"])
def place(request: pytest.FixtureRequest) -> None:
    if request.param == "in threads":
        request.getfixturevalue("served")


@TAKES
async def test_one_of_several_names_keeps_the_bytes_that_others_have_pinned(
    place: None, bench: Bench, host: FakeHost, take: Take
) -> None:
    """Another host may take the other name at the same time, and see two names as well."""
    node = await bench.file("f", 10)
    await bench.file("other", 20)
    os.link(bench.source / "f", bench.source / "g")
    host.pinned.add(node)
    await take(bench, b"f")
    (bench.source / "g").unlink()  # by the other host
    [name] = held_names(bench.source)
    assert HELD_NAME.fullmatch(name)
    assert (bench.source / DIRECTORY / "held" / name).stat().st_size == 10
    assert not host.asked, "no holder is asked to let go"


@TAKES
async def test_one_of_several_names_of_a_file_without_pins_just_goes(
    place: None, bench: Bench, host: FakeHost, take: Take
) -> None:
    await bench.file("f", 10)
    await bench.file("other", 20)
    os.link(bench.source / "f", bench.source / "g")
    await take(bench, b"f")
    assert not held_names(bench.source)
    assert not host.under_way
    assert (bench.source / "g").exists()


async def test_names_that_come_and_go_leave_one_name(bench: Bench, host: FakeHost) -> None:
    """A user who links and unlinks a pinned file all day fills no directory of root."""
    node = await bench.file("f", 10)
    host.pinned.add(node)
    for _ in range(20):
        await bench.ops.link(node, ROOT_ID, b"g", ME)
        await unlink(bench, b"g")
    assert len(held_names(bench.source)) == 1


async def test_root_may_remove_names_that_keep_bytes_and_the_bytes_stay(bench: Bench, host: FakeHost) -> None:
    node = await bench.file("f", 10)
    host.pinned.add(node)
    await unlink(bench, b"f")
    [name] = held_names(bench.source)
    directory = await bench.ops.lookup(ROOT_ID, DIRECTORY.encode(), ME)
    directory = await bench.ops.lookup(directory.nodeid, b"held", ME)
    await bench.ops.lookup(directory.nodeid, name.encode(), ME)
    await bench.ops.unlink(directory.nodeid, name.encode(), ME)
    [other] = held_names(bench.source)
    assert other != name


async def test_a_cut_that_does_not_come_back_holds_pins_back(
    served: None, bench: Bench, host: FakeHost, autojump_clock: trio.testing.MockClock
) -> None:
    class Deaf:
        def wait(self, limit_s: float) -> None: ...

        def interrupt(self) -> None: ...

    ends: list[Callable[[int], None]] = []

    def start(fd: int, call: object, ended: Callable[[int], None]) -> Deaf:
        ends.append(ended)
        return Deaf()

    node = await bench.file("f", 10)
    bench.fs.guard.cuts.start = start
    held = Held()
    bench_threads(bench, held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.truncate, node, 0)
        await trio.testing.wait_all_tasks_blocked()
        while not ends:
            await held.run_one()
        nursery.cancel_scope.cancel()
    assert host.under_way
    ends[0](0)
    await trio.testing.wait_all_tasks_blocked()
    assert not host.under_way


async def test_the_size_of_a_file_is_asked_for_when_no_host_can_cut_it_any_more(
    served: None, bench: Bench, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that a kernel may believe an old one."""
    node = await bench.file("f", 10)
    pinned_before: list[bool] = []
    monkeypatch.setattr(shared, "wait_for_attributes", lambda fd: pinned_before.append(host.has_pinned))
    await bench.pin(node, "x", "0:10")
    assert pinned_before == [True]


async def test_a_copy_that_its_caller_has_left_keeps_its_files_open(
    served: None, bench: Bench, host: FakeHost, autojump_clock: trio.testing.MockClock
) -> None:
    """Else it would go on with descriptors that are other files' by then."""
    source, target = await bench.file("f", 10), await bench.file("g", 10)
    (bench.source / "f").write_bytes(b"y" * 10)
    reader = await bench.ops.open(source, os.O_RDONLY, ME)
    writer = await bench.ops.open(target, os.O_RDWR, ME)
    held = Held()
    bench_threads(bench, held)
    with trio.move_on_after(1):
        await bench.ops.copy_file_range(reader.fh, 0, writer.fh, 0, 10, ME)
    assert len(held.waiting) == 1
    for opened in (reader, writer):
        await bench.ops.release(opened.fh)
    others = [os.open(bench.source, os.O_TMPFILE | os.O_RDWR) for _ in range(4)]
    await held.run_one()
    assert [os.fstat(fd).st_size for fd in others] == [0, 0, 0, 0]
    for fd in others:
        os.close(fd)
    assert (bench.source / "g").read_bytes() == b"y" * 10
    assert not bench.fs.backing.open_files


async def test_a_rename_to_a_name_that_leads_nowhere_holds_back_all_first_pins(
    served: None, bench: Bench, host: FakeHost, autojump_clock: trio.testing.MockClock
) -> None:
    """Another host may make a file of that name, and pin it, before the server has done the rename."""
    await bench.file("other", 10)
    held = Held()
    bench_threads(bench, held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rename, bench, b"f")
        for _ in range(2):  # it looks the names up
            await trio.testing.wait_all_tasks_blocked()
            assert host.unseen
            await held.run_one()
        nursery.cancel_scope.cancel()
    assert host.unseen
    await held.run_one()
    assert (bench.source / "f").exists()
    assert not host.unseen


async def test_renames_leave_nothing(served: None, bench: Bench, host: FakeHost) -> None:
    await bench.file("f", 10)
    await bench.file("other", 10)
    await rename(bench, b"f")
    with pytest.raises(FileNotFoundError):
        await rename(bench, b"f")
    assert not host.unseen
    assert not host.under_way
