"""The events of this process's pins, heard through a process of its own.

Once a daemon has taken a request, no signal ends the wait for its answer, and a process with such a wait cannot end. So
`pinfs pin` opens the channel, whose events are those of its own pins then, and has a child read it.
"""

import errno
import os
import select
import signal
import time
from collections.abc import Iterator
from types import TracebackType

from pinfs.client.errors import advice
from pinfs.client.inode import Inode
from pinfs.client.model import Event, parse_event
from pinfs.client.mounts import control_file, root_of
from pinfs.client.relay import BUFFER, PAUSE_S
from pinfs.observe.asking import Question
from pinfs.observe.mounts import Mount, mounts


class Told:
    """Opened before a pin is registered, it misses none of its events. Raises as `EventChannel`."""

    def __init__(self, inode: Inode) -> None:
        path = control_file(inode, "events")
        self.mount = _mount_at(str(root_of(inode)))
        with advice("hear of the pin's events", str(path)):
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._question = Question(self.mount, lambda: _lines(self._fd), keep=[self._fd])
        self._waiter = select.poll()
        self._waiter.register(self._question.fileno(), select.POLLIN)
        self._waiter.register(self._wake, select.POLLIN)

    def __iter__(self) -> Iterator[Event]:
        """Events as they come, until `wake`. Raises OSError ENOTCONN or ENODEV when the mount is gone."""
        while all(fd != self._wake for fd, _ in self._waiter.poll()):
            yield parse_event(self._question.next())

    def wake(self) -> None:
        """Let a wait in another thread end."""
        os.eventfd_write(self._wake, 1)

    def __enter__(self) -> "Told":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._question.__exit__(kind, value, trace)
        os.close(self._wake)
        os.close(self._fd)


def _mount_at(point: str) -> Mount:
    return next((mount for mount in mounts() if mount.point == point), Mount(point, ""))


def _lines(fd: int) -> Iterator[bytes]:
    """In the child. Signals of the terminal are its parent's to answer, whose end is its own."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            lines = os.read(fd, BUFFER).splitlines()
        except BlockingIOError:  # too many readers wait already (a mount without the bridge)
            time.sleep(PAUSE_S)
            continue
        if not lines:
            raise OSError(errno.ENOTCONN, "the mount has closed its event channel")
        yield from lines
