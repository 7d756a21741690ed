"""What serves a connection: the bridge here, or pyfuse3 (`pyfuse3_adapter.Plain`). Both take over the descriptor."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from pinfs.bridge.connection import knows
from pinfs.bridge.dispatch import Dispatcher
from pinfs.bridge.negotiate import Negotiated, Requested
from pinfs.bridge.once import Once
from pinfs.fs.operations import Operations
from pinfs.runtime.errors import logged

log = logging.getLogger("pinfs.bridge")


class Transport(Protocol):
    """Serves one connection."""

    usable: bool
    """The kernel has been answered its INIT."""

    @property
    def unusable_because(self) -> str:
        """Why INIT was refused; empty where it was not."""

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until the connection ends. Started when it is usable, or has ended before it was."""

    def wake_pollers(self, numbers: Iterable[int]) -> None:
        """Programs that poll the files with these numbers of the kernel look again."""

    def knows(self, nodeid: int) -> bool:
        """Whether the kernel has an inode with this node id, as far as it can be asked."""

    def close(self) -> None:
        """Let go of the connection; what is still under way is answered ENOTCONN by the kernel."""


class Bridged:
    """The dispatcher, which answers every opcode. `on_negotiated` is told the outcome of INIT, as that of `Dispatcher`;
    `resumed`: that of the daemon before, whose connection this one takes over; `busy_poll_us`: see `Channel`."""

    def __init__(
        self,
        fd: int,
        ops: Operations,
        requested: Requested,
        on_negotiated: Callable[[Negotiated], Once | None],
        counts: Counter[str],
        resumed: Negotiated | None = None,
        busy_poll_us: int = 0,
    ) -> None:
        self.usable = False
        self._resumed = resumed
        self._fd = fd
        self._on_negotiated = on_negotiated
        self._dispatcher = Dispatcher(fd, ops, requested, self._negotiated, counts, busy_poll_us)

    @property
    def unusable_because(self) -> str:
        return self._dispatcher.refused_because

    def wake_pollers(self, numbers: Iterable[int]) -> None:
        self._dispatcher.wake_pollers(numbers)

    def knows(self, nodeid: int) -> bool:
        return knows(self._fd, nodeid)

    def _negotiated(self, negotiated: Negotiated) -> Once | None:
        once = None
        if self._resumed is not None:
            once = self._on_negotiated(negotiated)
        else:
            with logged("the beginning of the connection"):
                once = self._on_negotiated(negotiated)
        self.usable = True
        self._on_usable()
        return once

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        self._on_usable = task_status.started
        aborted = await self._dispatcher.run(self._resumed)
        if self.usable:
            log.info("the connection was aborted" if aborted else "unmounted")
        else:
            log.info("ended before it was usable: %s", self.unusable_because or "unmounted")
            task_status.started()

    def close(self) -> None:
        os.close(self._fd)
