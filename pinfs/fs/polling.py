"""Whether poll(2) is answered (mount option `poll`).

The kernel asks the daemon in each poll of a file. io_uring polls before each read and write, although a regular file is
always ready; and once one poll is answered ENOSYS, the kernel polls no file of this mount any more.
"""

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Final
from weakref import WeakSet

from pinfs.fs.handles import ByteHandle, Handle
from pinfs.journal.records import HandleKind
from pinfs.runtime.errors import NotServedError

log = logging.getLogger("pinfs.control")

POLLPRI: Final = 0x2
READABLE: Final = 0x1 | 0x40  # POLLIN | POLLRDNORM
WRITABLE: Final = 0x4 | 0x100  # POLLOUT | POLLWRNORM
READY: Final = READABLE | WRITABLE


class PollMode(StrEnum):
    """An operator's choice."""

    AUTO = "auto"
    """Answered until io_uring asks; but not while a program waits by poll, which would not be woken."""
    ON = "on"
    """Useful when programs wait for POLLPRI, or poll `.pinfs/events`."""
    OFF = "off"
    """Useful when no program may make io_uring slow for others by waiting."""


class Polling:
    """Decides which polls are answered."""

    def __init__(self, mode: PollMode) -> None:
        self.mode = mode
        self.answered = mode is not PollMode.OFF
        """Whether the kernel still asks, as far as is known."""
        self.on_refused: Callable[[], None] = lambda: None
        """Called when the kernel is told to ask no more."""
        self.waiting: WeakSet[Handle] = WeakSet()
        """Open handles by which a program has waited: for a break, or for events."""

    def check(self, handle: ByteHandle, events: int) -> None:
        """NotServedError: the kernel is to poll no file any more. `events`: what the poll asks for."""
        if handle.record_kind is not HandleKind.CHANNEL and (events & READY or not events & POLLPRI):
            if self.mode is PollMode.AUTO and self.answered and not self.waiting:
                self.answered = False
                self.on_refused()
                log.info("poll(2) is answered no more: a regular file was polled, as io_uring does (poll=auto)")
        else:
            self.waiting.add(handle)
        if not self.answered:
            raise NotServedError
