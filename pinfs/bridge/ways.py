"""The two ways to serve a connection: through the bridge, or by pyfuse3 alone. Both take over the descriptor."""

import errno
import logging
import os
import select
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

import pyfuse3
import trio

from pinfs.bridge.dispatch import Dispatcher
from pinfs.bridge.face import Face
from pinfs.bridge.negotiate import Terms, Wishes
from pinfs.fs.operations import Operations

log = logging.getLogger("pinfs.bridge")

LOST_WITHOUT_BRIDGE: Final = (
    "no fallocate (holes cannot be punched), no pins by ioctl, no SEEK_HOLE, no passthrough, "
    "and a waiting breaker cannot be interrupted"
)
WATCH_S: Final = 1.0
SPARE_TASKS: Final = 64  # of pyfuse3 behind the bridge, where nothing waits
UNBOUNDED_TASKS: Final = 1 << 30
"""Of pyfuse3 alone: breakers must never take the last one, and how many wait is limited by policy, at run time."""


class _TooLate(logging.Filter):
    """Passes over what pyfuse3 calls an error: an answer that nobody waits for, because the mount has ended meanwhile,
    or who asked has (ENOENT of write(2) on /dev/fuse)."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().endswith(f"fuse_reply_* failed with {os.strerror(errno.ENOENT)}")


_TOO_LATE: Final = _TooLate()


class Way(Protocol):
    """Serves one connection. `usable`: the kernel has been answered its INIT."""

    usable: bool

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until the connection ends. Started when it is usable, or has ended before it was."""

    def close(self) -> None:
        """Let go of the connection; what is still under way is answered ENOTCONN by the kernel."""


class Bridged:
    """The short way for what is hot, pyfuse3 behind a socket for the rest. `on_agreed` hears the outcome of INIT."""

    def __init__(
        self, fd: int, ops: Operations, wishes: Wishes, on_agreed: Callable[[Terms], None], counts: Counter[str]
    ) -> None:
        self.usable = False
        self._fd = fd
        self._on_agreed = on_agreed
        self._dispatcher = Dispatcher(fd, ops, wishes, self._agreed, counts)
        pyfuse3.init(Face(ops, enable_acl=wishes.posix_acl), f"/dev/fd/{self._dispatcher.long_way.libfuse_fd}", set())

    def _agreed(self, terms: Terms) -> None:
        self._on_agreed(terms)
        self.usable = True
        self._on_usable()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        self._on_usable = task_status.started
        async with _pyfuse3_running(SPARE_TASKS):
            if await self._dispatcher.run():
                log.info("the connection was aborted")
        if not self.usable:
            log.info("unmounted before it was usable")
            task_status.started()

    def close(self) -> None:
        self._dispatcher.long_way.close()
        pyfuse3.close(unmount=False)
        os.close(self._fd)


class Plain:
    """pyfuse3 on the connection itself."""

    def __init__(self, fd: int, ops: Operations, *, posix_acl: bool, poll: bool = True) -> None:
        self.usable = True  # it does not tell when it is
        self._poll = select.poll()
        self._poll.register(fd, 0)
        logging.getLogger("pyfuse3").addFilter(_TOO_LATE)
        pyfuse3.init(Face(ops, enable_acl=posix_acl, answers_poll=poll), f"/dev/fd/{fd}", set())

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_connection, nursery.cancel_scope)
            await pyfuse3.main(1, UNBOUNDED_TASKS)
            nursery.cancel_scope.cancel()

    async def _watch_connection(self, serving: trio.CancelScope) -> None:
        """pyfuse3 would not end before its last handler has, which may wait for a holder's answer to nobody."""
        while not self._poll.poll(0):  # POLLERR: the connection is over
            await trio.sleep(WATCH_S)
        serving.cancel()

    def close(self) -> None:
        pyfuse3.close(unmount=False)  # libfuse closes the descriptor


@asynccontextmanager
async def _pyfuse3_running(max_tasks: int) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main, 1, max_tasks)
        yield
        nursery.cancel_scope.cancel()
