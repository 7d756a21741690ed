"""What must neither end the daemon, nor hang it, nor leak: operations without a mount."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest
import trio
import trio.testing
from bridge.fake_kernel import Canned, dispatching
from trio.testing import MockClock

from pinfs.bridge import wire
from pinfs.config.options import load
from pinfs.fs.backing import NoPassthrough
from pinfs.fs.inode import ROOT_ID
from pinfs.runtime.parking import Parked, rest_of, run_straight
from pinfs.serve.assembly import assemble

from .conftest import ME, Bench

LARGEST_READ = 1 << 20  # bytes: MAX_WRITE of the negotiation
LONG_NAME = b"\xff" * 255  # not UTF-8: six bytes of JSON for each


@contextmanager
def at_once(what: str) -> Iterator[None]:
    """Fails when the event loop is still at it after a second: in a system call, or in a loop of its own."""

    def too_late(number: int, frame: FrameType | None) -> NoReturn:
        raise AssertionError(f"{what} holds up the event loop")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """EMFILE for whatever opens something."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def deep_file(bench: Bench, depth: int) -> AsyncIterator[int]:
    """The node id of a file of 100 bytes below `depth` directories."""
    nodeid, at = ROOT_ID, os.open(bench.source, os.O_PATH)
    try:
        for _ in range(depth):
            os.mkdir(LONG_NAME, dir_fd=at)
            below = os.open(LONG_NAME, os.O_PATH, dir_fd=at)
            os.close(at)
            at = below
            nodeid = (await bench.ops.lookup(nodeid, LONG_NAME, ME)).nodeid
        fd = os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at)
        os.write(fd, b"x" * 100)
        os.close(fd)
        yield (await bench.ops.lookup(nodeid, b"f", ME)).nodeid
    finally:
        os.close(at)
        subprocess.run(["rm", "-rf", os.fsencode(bench.source) + b"/" + LONG_NAME], check=True)


# Changes behind the mount


async def test_directories_that_were_turned_inside_out_behind_the_mount(bench: Bench) -> None:
    """`outer/inner` becomes `inner/outer`. A caller that works from an open `inner` looks `outer` up first."""
    (bench.source / "outer" / "inner").mkdir(parents=True)
    outer = (await bench.ops.lookup(ROOT_ID, b"outer", ME)).nodeid
    inner = (await bench.ops.lookup(outer, b"inner", ME)).nodeid
    with suppress(FileNotFoundError):
        await bench.ops.lookup(inner, b"nothing", ME)  # it is at hand: the daemon keeps a descriptor
    os.rename(bench.source / "outer" / "inner", bench.source / "inner")
    os.rename(bench.source / "outer", bench.source / "inner" / "outer")
    with suppress(OSError):
        await bench.ops.lookup(inner, b"outer", ME)
    with at_once("the path of a directory that lies in itself"):
        bench.fs.inodes.path_of(inner)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
async def test_a_file_that_became_a_fifo_behind_the_mount(bench: Bench, flags: int) -> None:
    """The FIFO may have got the inode number that the file had: the number alone does not tell."""
    nodeid = await bench.file("f", 10)
    (bench.source / "f").unlink()
    os.mkfifo(bench.source / "f")
    with at_once("open(2) of a FIFO"), pytest.raises(OSError):
        await bench.ops.open(nodeid, flags, ME)


async def test_a_fifo_that_appeared_behind_the_mount(bench: Bench) -> None:
    """The kernel remembers that there was no such name, and asks to create the file."""
    os.mkfifo(bench.source / "f")
    with at_once("open(2) of a FIFO"), pytest.raises(OSError):
        await bench.ops.create(ROOT_ID, b"f", 0o600, os.O_WRONLY, ME)


# Descriptors


@pytest.mark.parametrize("how", ["create", "tmpfile"])
async def test_a_file_that_is_one_too_many_leaves_nothing_behind(tmp_path: Path, bench: Bench, how: str) -> None:
    """EMFILE comes after the file has been made."""
    source_fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    poor = assemble(source_fd, load([], None), bench.policies, NoPassthrough(), dict, 8)  # this process has more open
    known, before = len(poor.inodes), descriptors()
    for number in range(10):
        with pytest.raises(OSError) as failure:
            if how == "tmpfile":
                await poor.operations.tmpfile(ROOT_ID, 0o600, os.O_RDWR, ME)
            else:
                await poor.operations.create(ROOT_ID, b"%d" % number, 0o600, os.O_RDWR, ME)
        assert failure.value.errno == errno.EMFILE
    left = descriptors() - before, len(poor.inodes) - known
    poor.close()
    assert left == (0, 0)


async def test_the_last_release_of_an_unlinked_file_without_a_descriptor_left(bench: Bench) -> None:
    opened, entry = await bench.ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR, ME)
    other = await bench.file("other")
    await bench.ops.unlink(ROOT_ID, b"f", ME)
    before = descriptors()
    with no_descriptor_left(), suppress(OSError):
        await bench.ops.release(opened.fh)
    with suppress(Exception):
        bench.ops.forget([(entry.nodeid, 1), (other, 1)])
    left = {nodeid for nodeid in (entry.nodeid, other) if bench.fs.inodes.known(nodeid)}
    assert (descriptors(), left) == (before - 1, set())


async def test_forgetting_never_fails(bench: Bench) -> None:
    """With bridge=off it is pyfuse3's own loop that would end."""
    opened, entry = await bench.ops.create(ROOT_ID, b"f", 0o600, os.O_RDWR, ME)
    await bench.ops.unlink(ROOT_ID, b"f", ME)
    with no_descriptor_left(), suppress(OSError):
        await bench.ops.release(opened.fh)
    bench.ops.forget([(entry.nodeid, 1)])


# Replies that the kernel does not take


async def test_the_entry_of_an_undelivered_reply_that_cannot_be_forgotten() -> None:
    ops = Canned()

    def forget(forgets: object) -> NoReturn:
        ops.calls.append(("forget", ()))
        raise RuntimeError("this happens")

    ops.forget = forget  # type: ignore[method-assign]
    async with dispatching(ops) as (kernel, _):
        kernel.end.shutdown(0)  # SHUT_RD: no reply is taken any more
        kernel.send(wire.LOOKUP, b"name\0")
        kernel.send(wire.GETATTR, bytes(16))
        with trio.move_on_after(5):
            while len(ops.calls) < 3:
                await trio.sleep(0.01)
        assert [name for name, _ in ops.calls] == ["lookup", "forget", "getattr"]


# Events


async def test_an_event_that_comes_while_the_reader_moves_into_a_task(bench: Bench, autojump_clock: MockClock) -> None:
    """A deadline or a death may have its turn in trio before the task of the read has."""
    nodeid = await bench.file("f", 100)
    opened = await bench.control("events", os.O_RDWR)
    await bench.pin(nodeid, "p", "0:0")
    reading = bench.ops.read(opened.fh, 0, 4096)
    with pytest.raises(Parked):
        run_straight(reading)
    await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
    lines = b""
    with trio.move_on_after(60):
        lines = await rest_of(reading)
    assert b'"released"' in lines


async def test_the_end_of_a_channel_that_two_threads_read(bench: Bench, autojump_clock: MockClock) -> None:
    opened = await bench.control("events", os.O_RDWR)
    ended: list[bytes] = []

    async def read() -> None:
        ended.append(await bench.ops.read(opened.fh, 0, 4096))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await bench.ops.write(opened.fh, 0, b"end\n")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ended == [b"", b""]


async def test_an_event_of_a_very_long_path_can_be_read(bench: Bench) -> None:
    """Else one user's pin stops what root reads of all others."""
    async with deep_file(bench, 700) as nodeid:
        opened = await bench.control("trace", os.O_RDONLY | os.O_NONBLOCK)
        await bench.pin(nodeid, "p", "0:0")
        assert b'"pinned"' in await bench.ops.read(opened.fh, 0, LARGEST_READ)
        await bench.ops.release(opened.fh)


# Answers that are too large


async def test_the_size_of_a_pin_with_a_very_long_path(bench: Bench) -> None:
    """getxattr(2) with no buffer: a size, or an errno; 64 KiB is all that an attribute can hold."""
    async with deep_file(bench, 100) as nodeid:
        await bench.pin(nodeid, "p", "0:0")
        with suppress(OSError):
            assert len(await bench.ops.getxattr(nodeid, b"user.pinfs.pin.p", ME, 0)) <= 65536
