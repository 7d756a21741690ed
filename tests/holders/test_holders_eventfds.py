"""The eventfds of holders: whose, how many, and how long the daemon keeps them. Without a mount."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator

import pytest

from pinfs.enforce import eventfds as module
from pinfs.enforce.eventfds import MAX_EVENTFDS_PER_USER, EventFds
from pinfs.enforce.holders import Holders
from pinfs.enforce.processes import Process
from pinfs.linux.eventfds import Signaller, compare_files
from pinfs.runtime.stats import Stats

ALICE, BOB = 1000, 1001


class Store:
    """Remembers what it is to keep, and has descriptors of its own."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def keep(self, name: str, fd: int) -> bool:
        assert name not in self.kept
        self.kept[name] = os.dup(fd)
        return True

    def drop(self, name: str) -> None:
        os.close(self.kept.pop(name))


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
def eventfds(stats: Stats) -> Iterator[EventFds]:
    eventfds = EventFds(stats)
    yield eventfds
    eventfds.close()


@pytest.fixture
def me() -> Iterator[Process]:
    with contextlib.closing(Holders()) as holders:
        process = holders.process_of(os.getpid())
        assert process is not None
        yield process


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def counted(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def opened() -> list[str]:
    return os.listdir("/proc/self/fd")


def failure_of(call: Callable[..., object], *arguments: object) -> int | None:
    with pytest.raises(OSError) as failed:
        call(*arguments)
    return failed.value.errno


def test_one_descriptor_stands_for_all_uses(eventfds: EventFds, me: Process, eventfd: int) -> None:
    other_number = os.dup(eventfd)
    id_ = eventfds.take(me, eventfd, ALICE)
    before = opened()
    assert eventfds.take(me, other_number, BOB) == id_
    assert (opened(), len(eventfds)) == (before, 1)
    os.close(other_number)
    eventfds.drop(id_)
    eventfds.signal(id_)
    assert counted(eventfd) == 1
    eventfds.drop(id_)
    assert (len(eventfds), id_ in eventfds) == (0, False)
    assert len(opened()) == len(before) - 2


def test_each_is_found_among_many(eventfds: EventFds, me: Process) -> None:
    fds = [os.eventfd(0) for _ in range(100)]
    ids = [eventfds.take(me, fd, ALICE) for fd in fds]
    assert len(set(ids)) == len(eventfds) == 100
    for id_ in ids[::3]:
        eventfds.drop(id_)
    again = [eventfds.take(me, fd, ALICE) for fd in fds]
    assert [new == old for new, old in zip(again, ids, strict=True)] == [place % 3 != 0 for place in range(100)]
    assert len(eventfds) == 100
    for fd in fds:
        os.close(fd)


def test_where_files_cannot_be_compared_each_use_has_its_own(
    eventfds: EventFds, me: Process, eventfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seccomp filter without kcmp(2)."""

    def refuse(one: int, other: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(module, "compare_files", refuse)
    ids = [eventfds.take(me, eventfd, ALICE) for _ in range(3)]
    assert len(set(ids)) == 3
    for id_ in ids:
        eventfds.signal(id_)
        eventfds.drop(id_)
    assert (counted(eventfd), len(eventfds)) == (3, 0)


def test_what_is_refused_leaves_nothing_open(eventfds: EventFds, me: Process, eventfd: int) -> None:
    eventfds.drop(eventfds.take(me, eventfd, ALICE))
    pipe = os.pipe()
    before = opened()
    for _ in range(3):
        assert failure_of(eventfds.take, me, pipe[0], ALICE) == errno.EINVAL
        assert failure_of(eventfds.take, me, 900, ALICE) == errno.EBADF
    assert opened() == before
    for fd in pipe:
        os.close(fd)


def test_what_replaces_an_eventfd_is_closed_elsewhere(
    eventfds: EventFds, me: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that changes what its number names between the look and the fetch; close(2) of that may wait."""
    fd = os.memfd_create("replaced")
    monkeypatch.setattr(module, "is_eventfd", lambda pid, number: number == fd)
    discarded: list[str] = []

    def discard(fd: int) -> None:
        discarded.append(os.readlink(f"/proc/self/fd/{fd}"))
        os.close(fd)

    eventfds.discard = discard
    assert failure_of(eventfds.take, me, fd, ALICE) == errno.EINVAL
    assert discarded == [os.readlink(f"/proc/self/fd/{fd}")]
    os.close(fd)


def test_a_process_that_has_ended(eventfds: EventFds, eventfd: int) -> None:
    child = os.fork()
    if not child:
        os.read(os.eventfd(0), 8)
    with contextlib.closing(Holders()) as holders:
        process = holders.process_of(child)
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert process is not None
        assert failure_of(eventfds.take, process, eventfd, ALICE) == errno.ESRCH


@pytest.mark.parametrize("failure", [errno.EPERM, errno.EACCES, errno.ENOSYS])
def test_a_daemon_that_may_not_fetch_says_why(
    eventfds: EventFds, me: Process, eventfd: int, failure: int,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Never ENOSYS, which the kernel would take for an answer about setxattr(2)."""

    def refuse(pidfd: int, number: int) -> int:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(module, "fetch_descriptor", refuse)
    with caplog.at_level(logging.INFO, "pinfs.holders"):
        assert failure_of(eventfds.take, me, eventfd, ALICE) == errno.EPERM
    assert os.strerror(failure) in caplog.text


def test_a_daemon_without_asynchronous_calls(
    eventfds: EventFds, me: Process, eventfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Signaller:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(module, "Signaller", refuse)
    before = opened()
    assert failure_of(eventfds.take, me, eventfd, ALICE) == errno.EPERM
    assert opened() == before


def test_the_limit_of_a_user(
    eventfds: EventFds, stats: Stats, me: Process, eventfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_EVENTFDS_PER_USER == 1024
    monkeypatch.setattr(module, "MAX_EVENTFDS_PER_USER", 2)
    fds = [os.eventfd(0) for _ in range(4)]
    ids = [eventfds.take(me, fd, ALICE) for fd in fds[:2]]
    before = opened()
    assert failure_of(eventfds.take, me, fds[2], ALICE) == errno.EDQUOT
    assert opened() == before
    assert dict(stats.limit_reached) == {"eventfds_per_user": 1}
    assert eventfds.take(me, fds[0], ALICE) == ids[0], "it has that one"
    for fd in fds[2:]:
        eventfds.take(me, fd, 0)
    eventfds.take(me, eventfd, BOB)
    eventfds.drop(ids[1])
    eventfds.take(me, fds[1], ALICE)
    for fd in fds:
        os.close(fd)


def test_the_limit_of_the_daemon(stats: Stats, me: Process, eventfd: int) -> None:
    eventfds = EventFds(stats, first_spare=1)
    assert failure_of(eventfds.take, me, eventfd, 0) == errno.EDQUOT
    assert (len(eventfds), dict(stats.limit_reached)) == (0, {"eventfds": 1})
    eventfds.close()


def test_the_end_is_told_to_all(stats: Stats, me: Process) -> None:
    before = opened()
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    eventfds = EventFds(stats)
    for fd in fds:
        eventfds.take(me, fd, ALICE)
    eventfds.close()
    assert [counted(fd) for fd in fds] == [1, 1, 1]
    for fd in fds:
        os.close(fd)
    assert opened() == before


def test_the_store_has_each_once_and_as_long_as_it_is_used(eventfds: EventFds, me: Process, eventfd: int) -> None:
    store = eventfds.store = Store()
    id_ = eventfds.take(me, eventfd, ALICE)
    eventfds.take(me, eventfd, ALICE)
    eventfds.drop(id_)
    assert [compare_files(fd, eventfd) for fd in store.kept.values()] == [0]
    eventfds.drop(id_)
    assert store.kept == {}


def test_the_next_daemon_has_what_is_used(stats: Stats, me: Process, eventfd: int) -> None:
    """What no pin and no channel uses is let go of, also by the store; whose they are is as before."""
    store, unused = Store(), os.eventfd(0)
    first, second = EventFds(stats), EventFds(stats)
    first.store = second.store = store
    ids = [first.take(me, fd, ALICE) for fd in (eventfd, unused)]
    second.begin_restore({name: os.dup(fd) for name, fd in store.kept.items()} | {"d7": -1, "ex": -1})
    assert all(id_ in second for id_ in ids)
    second.use(ids[0], ALICE)
    second.use(ids[0], ALICE)
    second.drop(ids[0])
    second.end_restore()
    assert (len(second), list(store.kept)) == (1, [f"e{ids[0]}"])
    second.signal(ids[0])
    assert counted(eventfd) == 1
    second.drop(ids[0])
    assert (len(second), store.kept) == (0, {})
    first.store = None
    first.close()
    second.close()
    os.close(unused)
