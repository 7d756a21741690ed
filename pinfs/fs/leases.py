"""Opens that have to wait for another process to give up its lease on a source file (fcntl(2), F_SETLEASE)."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import trio

from pinfs.fs.types import os_error
from pinfs.runtime.parking import park

T = TypeVar("T")

MAX_TRIES: Final = 8
"""Another lease may be taken as soon as one is gone."""
_WAITERS: Final = trio.CapacityLimiter(64)
"""Threads of their own, so that whatever waits for a disk finds one free."""


async def after_lease(act: Callable[[], T], path_fd: int, flags: int) -> T:
    """The result of `act`, which opens the file `path_fd` (O_PATH, taken over) and has failed with EAGAIN: its open(2)
    has begun to break a lease, and the kernel takes the lease after 45 s (/proc/sys/fs/lease-break-time) at the latest.

    EAGAIN: the `flags` of the caller's open(2) hold O_NONBLOCK, or the file had a lease again each time.
    """
    try:
        if not flags & os.O_NONBLOCK:
            await park()
            for _ in range(MAX_TRIES):
                waiting = [os.dup(path_fd)]
                try:
                    await trio.to_thread.run_sync(
                        _open_and_close, waiting, flags & os.O_ACCMODE, limiter=_WAITERS, abandon_on_cancel=True
                    )
                finally:
                    _close(waiting)
                with suppress(BlockingIOError):
                    return act()
        raise os_error(errno.EAGAIN)
    finally:
        os.close(path_fd)


def with_patience(act: Callable[[], T], path_fd: int, flags: int) -> T:
    """The same in a thread, from the first try on; `path_fd` stays the caller's."""
    for _ in range(MAX_TRIES):
        with suppress(BlockingIOError):
            return act()
        if flags & os.O_NONBLOCK:
            break
        _open_and_close([os.dup(path_fd)], flags & os.O_ACCMODE)
    raise os_error(errno.EAGAIN)


def _open_and_close(waiting: list[int], access: int) -> None:
    """open(2) that waits. What else it may fail with, `act` will tell. O_APPEND: the file may be sealed."""
    path_fd = waiting.pop()  # this thread's now: the task that waits for it may leave
    with suppress(OSError):
        os.close(os.open(b"/proc/self/fd/%d" % path_fd, access | os.O_APPEND | os.O_CLOEXEC))
    os.close(path_fd)


def _close(fds: list[int]) -> None:
    with suppress(IndexError):
        os.close(fds.pop())
