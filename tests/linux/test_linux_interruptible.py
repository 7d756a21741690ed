"""A system call that waits without limit is brought back by a signal to its thread."""

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinfs.linux.filesystems import cuts_may_wait
from pinfs.linux.interruptible import SIGNAL, InterruptibleCall, Result
from pinfs.linux.libc import checked, libc
from pinfs.linux.syscalls import ftruncate

LIMIT_S = 20.0


def read_one_byte(fd: int) -> None:
    checked(libc.read(fd, ctypes.create_string_buffer(1), 1))


def _ignore(result: Result) -> None:
    pass


def result_of(call: InterruptibleCall) -> Result | None:
    """Make the call in this thread."""
    call.run()
    return call.wait(0)


class InThread:
    """A call in a thread of its own."""

    def __init__(self, fd: int, call: Callable[[int], None]) -> None:
        self.results: list[Result] = []
        self.call = InterruptibleCall(fd, call, self.results.append)
        self.thread = threading.Thread(target=self.call.run)
        self.thread.start()

    def interrupted(self) -> list[Result]:
        """Its result, after as many signals as it takes."""
        assert self.call.wait(0) is None
        until = time.monotonic() + LIMIT_S
        while self.thread.is_alive() and time.monotonic() < until:
            self.call.interrupt()
            self.thread.join(0.01)
        return self.results


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_call_that_waits_is_interrupted(pipe: tuple[int, int]) -> None:
    assert InThread(pipe[0], read_one_byte).interrupted() == [errno.EINTR]


def test_many_calls_are_interrupted_wherever_they_stand(pipe: tuple[int, int]) -> None:
    threads = [InThread(pipe[0], read_one_byte) for _ in range(50)]
    assert [thread.interrupted() for thread in threads] == [[errno.EINTR]] * 50


def test_one_is_interrupted_and_the_other_waits_on(pipe: tuple[int, int]) -> None:
    one, other = (InThread(pipe[0], read_one_byte) for _ in range(2))
    assert one.interrupted() == [errno.EINTR]
    assert other.thread.is_alive()
    os.write(pipe[1], b"x")
    assert other.call.wait(LIMIT_S) == 0
    other.thread.join(LIMIT_S)
    assert other.results == []


def test_a_call_that_was_given_up_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"bytes")
    fd = os.open(path, os.O_RDWR)
    call = InterruptibleCall(fd, lambda fd: ftruncate(fd, 0), _ignore)
    os.close(fd)
    call.interrupt()
    assert result_of(call) == errno.EINTR
    assert path.read_bytes() == b"bytes"


def test_a_call_is_made_on_a_descriptor_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"bytes")
    fd = os.open(path, os.O_RDWR)
    call = InterruptibleCall(fd, lambda fd: ftruncate(fd, 2), _ignore)
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    assert result_of(call) == 0
    assert path.read_bytes() == b"by"
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_an_error_comes_back_as_its_number(pipe: tuple[int, int]) -> None:
    assert result_of(InterruptibleCall(pipe[0], lambda fd: ftruncate(fd, 0), _ignore)) == errno.EINVAL


def test_after_its_end_a_call_is_sent_no_signal(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    call = InterruptibleCall(pipe[0], read_one_byte, _ignore)
    assert result_of(call) == 0
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
    call.interrupt()
    assert SIGNAL not in signal.sigpending()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(("path", "may_wait"), [("/dev/shm", False), ("/proc", True), ("/sys", True)])
def test_file_systems_whose_calls_may_wait(path: str, may_wait: bool) -> None:
    fd = os.open(path, os.O_PATH)
    assert cuts_may_wait(fd) is may_wait
    os.close(fd)
