"""A system call that waits without limit is brought back by a signal to its thread."""

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinfs.linux.filesystems import cuts_may_wait
from pinfs.linux.interruptible import SIGNAL, InterruptibleCall
from pinfs.linux.libc import checked, libc
from pinfs.linux.syscalls import ftruncate

LIMIT_S = 20.0


def read_one_byte(fd: int) -> None:
    checked(libc.read(fd, ctypes.create_string_buffer(1), 1))


class InThread:
    """A call in a thread of its own."""

    def __init__(self, call: InterruptibleCall) -> None:
        self.call = call
        self.result: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.result = self.call.run()

    def interrupted(self) -> int | None:
        """Its result, after as many signals as it takes."""
        until = time.monotonic() + LIMIT_S
        while self.thread.is_alive() and time.monotonic() < until:
            self.call.interrupt()
            self.thread.join(0.01)
        return self.result


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_call_that_waits_is_interrupted(pipe: tuple[int, int]) -> None:
    assert InThread(InterruptibleCall(pipe[0], read_one_byte)).interrupted() == errno.EINTR


def test_many_calls_are_interrupted_wherever_they_stand(pipe: tuple[int, int]) -> None:
    threads = [InThread(InterruptibleCall(pipe[0], read_one_byte)) for _ in range(50)]
    assert {thread.interrupted() for thread in threads} == {errno.EINTR}


def test_one_is_interrupted_and_the_other_waits_on(pipe: tuple[int, int]) -> None:
    one, other = (InThread(InterruptibleCall(pipe[0], read_one_byte)) for _ in range(2))
    assert one.interrupted() == errno.EINTR
    assert other.thread.is_alive()
    os.write(pipe[1], b"x")
    other.thread.join(LIMIT_S)
    assert other.result == 0


def test_a_call_that_was_given_up_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"bytes")
    fd = os.open(path, os.O_RDWR)
    call = InterruptibleCall(fd, lambda fd: ftruncate(fd, 0))
    os.close(fd)
    call.interrupt()
    assert call.run() == errno.EINTR
    assert path.read_bytes() == b"bytes"


def test_a_call_is_made_on_a_descriptor_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"bytes")
    fd = os.open(path, os.O_RDWR)
    call = InterruptibleCall(fd, lambda fd: ftruncate(fd, 2))
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    assert call.run() == 0
    assert path.read_bytes() == b"by"
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_an_error_comes_back_as_its_number(pipe: tuple[int, int]) -> None:
    assert InterruptibleCall(pipe[0], lambda fd: ftruncate(fd, 0)).run() == errno.EINVAL


def test_after_its_end_a_call_is_sent_no_signal(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    call = InterruptibleCall(pipe[0], read_one_byte)
    assert call.run() == 0
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
    call.interrupt()
    assert SIGNAL not in signal.sigpending()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(("path", "may_wait"), [("/dev/shm", False), ("/proc", True), ("/sys", True)])
def test_file_systems_whose_calls_may_wait(path: str, may_wait: bool) -> None:
    fd = os.open(path, os.O_PATH)
    assert cuts_may_wait(fd) is may_wait
    os.close(fd)
