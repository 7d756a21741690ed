"""Eventfds of the processes that a test directs, and the ways by which a pin gets one (docs/interfaces.md)."""

from __future__ import annotations

import errno
import os
import select
import struct
from pathlib import Path

from support import acts
from support.actor import Actor

PIN_STRUCT = struct.Struct("<QQIiIIQ64s")
"""struct pinfs_pin, written down a second time on purpose (SPEC 6)."""
IOC_PIN, IOC_UNPIN = 0xC068_50A0, 0x4008_50A1
MODES = {"deny": 0, "lease": 1}
PIN_EVENTFD = 2
FULL = 2**64 - 2
"""Where write(2) to an eventfd begins to wait."""


class EventFd:
    """An eventfd that an actor has open as `number`."""

    def __init__(self, owner: Actor, flags: int = os.EFD_NONBLOCK) -> None:
        self._owner = owner
        self._kept: int = owner(os.eventfd, 0, flags)
        self.number: int = owner(os.dup, self._kept)

    def forget(self) -> None:
        """Close the number that the daemon was told, as programs may; it is read by another one."""
        self._owner(os.close, self.number)

    def close(self) -> None:
        """Both."""
        self._owner(os.close, self.number)
        self._owner(os.close, self._kept)

    def count(self) -> int:
        """What was added since the last look."""
        try:
            return self._owner(os.eventfd_read, self._kept)
        except BlockingIOError:
            return 0

    def wait(self, limit_s: float = 20.0) -> int:
        """The same as soon as anything is added; OSError(EAGAIN) when nothing is."""
        if not self._owner(acts.poll, self._kept, select.POLLIN, limit_s):
            raise OSError(errno.EAGAIN, "nothing was added")
        return self._owner(os.eventfd_read, self._kept)


def pin_by_attribute(holder: Actor, path: Path, eventfd: int, mode: str = "lease") -> None:
    """Pin the whole file for the holder's process, without a signal."""
    holder.pin(path, f"e{eventfd}", f"0:0,mode={mode},signal=none,eventfd={eventfd}")


def pin_by_ioctl(holder: Actor, path: Path, eventfd: int, mode: str = "lease") -> None:
    """Pin the whole file for a new handle, which the holder keeps open; without a signal."""
    pin_handle(holder, holder(os.open, os.fspath(path), os.O_RDWR), eventfd, mode)


def pin_handle(
    holder: Actor, fd: int, eventfd: int, mode: str = "lease", signo: int = 0, flags: int = PIN_EVENTFD
) -> int:
    """PINFS_IOC_PIN of all that a handle has; the id."""
    answer = holder(acts.ioctl, fd, IOC_PIN, PIN_STRUCT.pack(0, 0, MODES[mode], signo, flags, eventfd, 0, b""))
    return int(PIN_STRUCT.unpack(answer)[6])
