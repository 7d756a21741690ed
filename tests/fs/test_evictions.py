"""The last close of a file without a name happens in a thread; the event loop goes on."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinfs.fs.evictions import MAX_THREADS, Evictions
from pinfs.fs.inode import ROOT_ID

from .conftest import ME, Bench


class Threads:
    """Threads that run when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def start(self, work: Callable[[], object], deliver: Callable[[object], object], name: str) -> None:
        self.waiting.append(work)

    def run(self) -> None:
        while self.waiting:
            self.waiting.pop()()


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.run()


@pytest.fixture
def evictions(threads: Threads) -> Evictions:
    return Evictions(threads.start)


def nameless(directory: Path) -> int:
    return os.open(directory, os.O_TMPFILE | os.O_RDWR)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as e:
        assert e.errno == errno.EBADF
        return False
    return True


def test_a_file_with_a_name_is_closed_at_once(evictions: Evictions, threads: Threads, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    evictions.close(fd)
    assert not is_open(fd)
    assert (len(evictions), threads.waiting) == (0, [])


def test_a_file_without_one_in_a_thread(evictions: Evictions, threads: Threads, tmp_path: Path) -> None:
    fd = nameless(tmp_path)
    evictions.close(fd)
    assert is_open(fd)
    assert len(evictions) == 1
    threads.run()
    assert not is_open(fd)
    assert len(evictions) == 0


def test_all_in_threads_while_a_call_has_locked_a_file(evictions: Evictions, threads: Threads, tmp_path: Path) -> None:
    evictions.any_may_wait = lambda: True
    fd = os.open(tmp_path, os.O_PATH)
    evictions.close(fd)
    assert is_open(fd)
    threads.run()
    assert not is_open(fd)


def test_threads_are_limited_and_each_goes_on_with_what_waits(
    evictions: Evictions, threads: Threads, tmp_path: Path
) -> None:
    files = [nameless(tmp_path) for _ in range(MAX_THREADS + 10)]
    for fd in files:
        evictions.close(fd)
    assert len(threads.waiting) == MAX_THREADS
    assert len(evictions) == len(files)
    threads.waiting.pop()()
    assert len(evictions) == 0
    assert not any(map(is_open, files))
    threads.run()
    evictions.close(nameless(tmp_path))
    assert len(threads.waiting) == 1


def test_real_threads(tmp_path: Path) -> None:
    evictions = Evictions()
    files = [nameless(tmp_path) for _ in range(200)]
    for fd in files:
        evictions.close(fd)
    while len(evictions):
        os.sched_yield()
    assert not any(map(is_open, files))


@pytest.mark.parametrize("how", ["unlink", "rename", "unlink of a known file"])
async def test_the_last_name_of_a_file_that_nothing_has_open(bench: Bench, how: str) -> None:
    """unlink(2) and rename(2) would evict the inode themselves, on the event loop: its last close is made to come
    after them."""
    closed: list[tuple[int, int]] = []

    def close(fd: int) -> None:
        st = os.fstat(fd)
        closed.append((st.st_ino, st.st_nlink))
        os.close(fd)

    bench.fs.inodes.descriptors.close_elsewhere = close
    victim = bench.source / "victim"
    victim.touch()
    ino = victim.stat().st_ino
    if how == "rename":
        await bench.file("f")
        await bench.ops.rename(ROOT_ID, b"f", ROOT_ID, b"victim", 0, ME)
    else:
        if how == "unlink of a known file":
            await bench.ops.lookup(ROOT_ID, b"victim", ME)
        await bench.ops.unlink(ROOT_ID, b"victim", ME)
    assert (ino, 0) in closed
