"""Calls in threads: their limits, and what becomes of a call whose request has left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from pinfs.fs import backing as backing_module
from pinfs.fs.inode import ROOT_ID
from pinfs.runtime.threads import MAX_FOR_ONE, MAX_THREADS, PATIENCE_S, Threads

from .conftest import ME, Bench

Work = Callable[[], object]


class Held:
    """Threads that run when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Work, Callable[[object], object]]] = []

    def start(self, work: Work, deliver: Callable[[object], object], name: str) -> None:
        self.waiting.append((work, deliver))

    async def run_one(self) -> None:
        work, deliver = self.waiting.pop(0)
        work()
        deliver(None)
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def threads(held: Held) -> Threads:
    return Threads(held.start)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("calls_may_stall", "cuts_may_wait"):
        monkeypatch.setattr(backing_module, kind, lambda fd: True)


async def test_a_result_and_a_failure() -> None:
    threads, done = Threads(), []
    assert await threads.run("a", lambda: 5, finished=lambda: done.append(1)) == 5
    with pytest.raises(ZeroDivisionError):
        await threads.run("a", lambda: 1 // 0, finished=lambda: done.append(2))
    assert (done, len(threads)) == ([1, 2], 0)


async def test_the_limits(threads: Threads, held: Held, autojump_clock: trio.testing.MockClock) -> None:
    results: list[object] = []

    async def call(key: object) -> None:
        results.append(await threads.run(key, lambda: key))

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_FOR_ONE + 5):
            nursery.start_soon(call, "silent")
        await trio.testing.wait_all_tasks_blocked()
        assert len(held.waiting) == MAX_FOR_ONE
        for key in range(MAX_THREADS):
            nursery.start_soon(call, key)
        await trio.testing.wait_all_tasks_blocked()
        assert len(held.waiting) == len(threads) == MAX_THREADS
        while held.waiting:
            await held.run_one()
    assert (len(results), len(threads)) == (MAX_FOR_ONE + 5 + MAX_THREADS, 0)


async def test_a_request_that_leaves(threads: Threads, held: Held, autojump_clock: trio.testing.MockClock) -> None:
    """It waits a little longer; a result that comes then is undone, and `finished` called at the real end."""
    done: list[object] = []
    began = trio.current_time()
    with trio.move_on_after(5) as scope:
        await threads.run("a", lambda: "late", finished=lambda: done.append("finished"), undo=done.append)
    assert scope.cancelled_caught
    assert trio.current_time() - began == 5 + PATIENCE_S
    assert (done, len(threads)) == ([], 1)
    await held.run_one()
    assert (done, len(threads)) == (["finished", "late"], 0)


async def test_a_server_that_is_only_slow(threads: Threads, held: Held, autojump_clock: trio.testing.MockClock) -> None:
    """An interrupted request gets its answer all the same: nothing is done twice, and no program sees EINTR."""
    results: list[object] = []

    async def call() -> None:
        with trio.move_on_after(5):
            results.append(await threads.run("a", lambda: 7))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.sleep(5 + PATIENCE_S / 2)
        await held.run_one()
    assert results == [7]


async def test_a_request_that_leaves_before_its_turn(
    threads: Threads, held: Held, autojump_clock: trio.testing.MockClock
) -> None:
    done: list[object] = []
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_FOR_ONE):
            nursery.start_soon(threads.run, "a", int)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await threads.run("a", lambda: done.append("made"), finished=lambda: done.append("finished"))
        while held.waiting:
            await held.run_one()
    assert done == ["finished"]


async def test_what_is_opened_too_late_is_closed(
    served: None, bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    held = Held()
    threads = bench_threads(bench, held)
    (bench.source / "f").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    with trio.move_on_after(1):
        await bench.ops.lookup(ROOT_ID, b"f", ME)
    await held.run_one()
    assert (len(os.listdir("/proc/self/fd")), len(threads), len(bench.fs.inodes)) == (before, 0, 1)
    with trio.move_on_after(1):
        await bench.ops.mkdir(ROOT_ID, b"d", 0o755, ME)
    await held.run_one()
    assert (bench.source / "d").is_dir()
    assert (len(os.listdir("/proc/self/fd")), len(bench.fs.inodes)) == (before, 1)


def bench_threads(bench: Bench, held: Held) -> Threads:
    threads = bench.fs.backing.threads
    assert threads is not None
    threads._start = held.start
    return threads


async def test_a_deep_tree_with_few_descriptors(served: None, bench: Bench) -> None:
    """Each directory is reached from the one above it, however few descriptors the table may keep."""
    bench.fs.inodes.descriptors.max_descriptors = 4
    path: Path = bench.source
    for n in range(40):
        path = path / f"d{n}"
    path.mkdir(parents=True)
    (path / "f").write_bytes(b"data")
    node = ROOT_ID
    for n in range(40):
        node = (await bench.ops.lookup(node, b"d%d" % n, ME)).nodeid
    file = (await bench.ops.lookup(node, b"f", ME)).nodeid
    fh = (await bench.ops.open(file, os.O_RDONLY, ME)).fh
    assert await bench.ops.read(fh, 0, 10) == b"data"
    for inode in list(bench.fs.inodes):
        if inode.nodeid != ROOT_ID:
            bench.fs.inodes.descriptors.close(inode)
    assert (await bench.ops.getattr(file, ME)).st_size == 4
    await bench.ops.release(fh)


async def test_a_file_by_its_other_name(served: None, bench: Bench) -> None:
    node = await bench.file("f", 10)
    os.link(bench.source / "f", bench.source / "g")
    assert (await bench.ops.lookup(ROOT_ID, b"g", ME)).nodeid == node
    (bench.source / "f").unlink()
    bench.fs.inodes.descriptors.close(bench.fs.inodes.get(node))
    assert (await bench.ops.getattr(node, ME)).st_nlink == 1
    (bench.source / "g").unlink()
    bench.fs.inodes.descriptors.close(bench.fs.inodes.get(node))
    with pytest.raises(OSError, match="Stale"):
        await bench.ops.getattr(node, ME)
