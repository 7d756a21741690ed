"""Eventfds of other processes, without a mount."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Iterator
from functools import cmp_to_key

import pytest

from pinfs.linux.eventfds import Signaller, compare_files, fetch_descriptor, is_eventfd

FULL = 2**64 - 2


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def signaller() -> Iterator[Signaller]:
    signaller = Signaller()
    yield signaller
    signaller.close()


@pytest.fixture
def child(eventfd: int) -> Iterator[tuple[int, int]]:
    """A process that has the eventfd open: its pid, and a pidfd."""
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    yield pid, pidfd
    os.close(pidfd)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def failure_of(call: object, *arguments: object) -> int | None:
    with pytest.raises(OSError) as failed:
        call(*arguments)  # type: ignore[operator]
    return failed.value.errno


def test_what_is_fetched_is_the_same_eventfd(child: tuple[int, int], eventfd: int) -> None:
    fetched = fetch_descriptor(child[1], eventfd)
    try:
        assert fetched != eventfd
        assert compare_files(fetched, eventfd) == 0
        assert not os.get_inheritable(fetched)
        os.eventfd_write(fetched, 3)
        assert os.eventfd_read(eventfd) == 3
    finally:
        os.close(fetched)


def test_what_is_not_open_is_not_fetched(child: tuple[int, int]) -> None:
    assert failure_of(fetch_descriptor, child[1], 900) == errno.EBADF


def test_a_process_that_has_ended_has_nothing(eventfd: int) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    assert failure_of(fetch_descriptor, pidfd, eventfd) == errno.ESRCH
    os.close(pidfd)


def test_files_have_an_order() -> None:
    fds = [os.eventfd(0) for _ in range(20)]
    copies = [os.dup(fd) for fd in fds]
    for one, copy in zip(fds, copies, strict=True):
        assert [compare_files(one, other) == 0 for other in copies] == [other == copy for other in copies]
        assert all(compare_files(one, other) == -compare_files(other, one) for other in fds)
    in_order = sorted(fds, key=cmp_to_key(compare_files))
    for place, one in enumerate(in_order):
        assert all(compare_files(one, other) == -1 for other in in_order[place + 1 :])
    for fd in (*fds, *copies):
        os.close(fd)


def test_an_eventfd_is_known_without_touching_it(eventfd: int) -> None:
    assert is_eventfd(os.getpid(), eventfd)
    assert failure_of(is_eventfd, os.getpid(), 900) == errno.ENOENT


@pytest.mark.parametrize(
    "make", [lambda: os.memfd_create("[eventfd]"), lambda: os.dup(2), lambda: os.pidfd_open(os.getpid())]
)
def test_other_things_are_none(make: object) -> None:
    fd = make()  # type: ignore[operator]
    assert not is_eventfd(os.getpid(), fd)
    os.close(fd)


@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK, os.EFD_SEMAPHORE])
def test_each_signal_adds_one(signaller: Signaller, flags: int) -> None:
    fd = os.eventfd(0, flags)
    for _ in range(100):  # more than calls under way fit
        signaller.signal(fd)
    assert os.eventfd_read(fd) == (1 if flags == os.EFD_SEMAPHORE else 100)
    os.close(fd)


def test_it_wakes(signaller: Signaller, eventfd: int) -> None:
    with select.epoll() as poller:
        poller.register(eventfd, select.EPOLLIN | select.EPOLLET)
        assert poller.poll(0) == []
        signaller.signal(eventfd)
        assert poller.poll(0) == [(eventfd, select.EPOLLIN)]


@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK])
def test_a_full_counter_does_not_wait(signaller: Signaller, flags: int) -> None:
    fd = os.eventfd(0, flags)
    os.eventfd_write(fd, FULL)
    for _ in range(3):
        signaller.signal(fd)
    assert os.eventfd_read(fd) in (FULL, FULL + 1)
    os.close(fd)


def test_what_cannot_be_signalled(signaller: Signaller, eventfd: int) -> None:
    """And the next signal goes well."""
    reading, writing = os.pipe()
    assert failure_of(signaller.signal, writing) == errno.EINVAL
    os.close(reading)
    os.close(writing)
    assert failure_of(signaller.signal, writing) == errno.EBADF
    signaller.signal(eventfd)
    assert os.eventfd_read(eventfd) == 1


def test_a_signaller_leaves_nothing_open(eventfd: int) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        signaller = Signaller()
        signaller.signal(eventfd)
        signaller.close()
        signaller.close()
    assert os.listdir("/proc/self/fd") == before
