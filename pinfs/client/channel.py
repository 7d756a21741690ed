"""`.pinfs/events`: what happens to the pins of this process. The channel is the truth, the signal is a hint."""

import errno
import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Final, Self

from pinfs.client.errors import NOT_BREAKING, advice
from pinfs.client.inode import File
from pinfs.client.model import Event, PinInfo, parse_event, parse_pin
from pinfs.client.mounts import control_file
from pinfs.client.relay import BUFFER, Relay
from pinfs.client.xattrs import check_range


class Commands:
    """`.pinfs/events`, to write to."""

    def __init__(self, mount: File) -> None:
        """As `EventChannel`."""
        path = control_file(mount, "events")
        with advice("open the event channel", str(path)):
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def release(self, pin_id: int) -> None:
        """Release a pin of this process. Raises OSError: ENOENT (no such pin), EACCES or EPERM (another
        process's)."""
        with advice("release", f"pin {pin_id}"):
            os.write(self._fd, b"release %d\n" % pin_id)

    def resize(self, pin_id: int, start: int, length: int) -> None:
        """Move, shrink or grow a pin of this process, also while a truncate of its file waits: what is left of it
        outside the bytes that the removal takes away stays pinned. For pins of processes only.

        Raises OSError as `release`, and as registering a pin does: ENXIO, EAGAIN, EDQUOT; EINVAL for a handle's pin.
        """
        check_range(start, length)
        with advice("resize", f"pin {pin_id}"):
            os.write(self._fd, b"resize %d %d %d\n" % (pin_id, start, length))

    def extend(self, pin_id: int, seconds: float) -> None:
        """Ask for time until `seconds` from now, capped by policy.

        Raises OSError as `release`, and ENODATA: that pin is not breaking.
        """
        with advice("extend", f"pin {pin_id}", NOT_BREAKING):
            os.write(self._fd, b"extend %d %.3f\n" % (pin_id, seconds))

    def close(self) -> None:
        """Once more does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


LOOK_S: Final = 5.0
"""How often a wait looks whether the mount still stands: a daemon that is killed, and that no other takes over from,
writes to no eventfd."""


class EventChannel(Commands):
    """The events of this process's pins on one mount. For one reader at a time.

    with pinfs.EventChannel("/mnt") as channel:
        for event in channel:
            if event.event == "break": ...; channel.release(event.pin)

    Opened before a pin is registered, it misses none of its events; opened later, it starts with the breaks that are
    under way. A forked child opens its own: the channel belongs to the process that opened it. A channel that is no
    longer referred to is closed.
    """

    _fd = _news = _wake = -1
    _relay: Relay | None = None

    def __init__(self, mount: File) -> None:
        """`mount`: the root of a mount, or any file on it. Raises NotPinfsError, or OSError as open(2) does."""
        path = control_file(mount, "events")
        with ExitStack() as undo, advice("open the event channel", str(path)):
            news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, news)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            relay = None
            if not _takes_eventfd(fd, news):
                os.close(fd)
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                relay = Relay(fd)
            undo.callback(os.close, fd)
            self._adopt(fd, relay)
            undo.pop_all()
        if relay is None:
            self._news = news
        else:
            os.close(news)

    @classmethod
    def over(cls, fd: int) -> "EventChannel":
        """A channel over an open, non-blocking descriptor that can be polled, which `close` closes."""
        channel = cls.__new__(cls)
        channel._adopt(fd)
        return channel

    def _adopt(self, fd: int, relay: Relay | None = None) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._fd = fd
        self._relay = relay
        self._poll: select.poll | None = None

    def fileno(self) -> int:
        """Readable when there are events, or when the mount ends in order; see `take`. -1 when the channel is closed.

        A program that waits for this without a limit does not notice a mount whose daemon was killed, with no other to
        take over: have it call `take` every few seconds.
        """
        return self._news if self._news >= 0 else self._source()

    def _source(self) -> int:
        return self._fd if self._relay is None else self._relay.fileno()

    def read(self, timeout_s: float | None = None) -> list[Event]:
        """Wait for events: [] after `timeout_s` seconds, or when `wake` was called. Raises OSError as `take`."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fileno(), select.POLLIN)
            self._poll.register(self._wake, select.POLLIN)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = LOOK_S if until is None else max(0.0, until - time.monotonic())
            ready = self._poll.poll(min(left_s, LOOK_S) * 1000)
            if any(fd == self._wake for fd, _ in ready):
                os.eventfd_read(self._wake)
                return self.take() if len(ready) > 1 else []
            events = self.take()
            if events or ready or (until is not None and time.monotonic() >= until):
                return events

    def take(self) -> list[Event]:
        """The events that are there, without waiting. Raises OSError ENOTCONN or ENODEV when the mount is gone."""
        if self._news >= 0:
            with suppress(BlockingIOError):
                os.eventfd_read(self._news)  # before the events: what comes later makes it readable again
        return [parse_event(line) for line in self._lines()]

    def _lines(self) -> list[bytes]:
        """Of an eventfd all that are there: it does not say that some were left."""
        lines: list[bytes] = []
        try:
            while taken := os.read(self._source(), BUFFER):
                lines += taken.splitlines()
                if self._news < 0:
                    return lines
        except BlockingIOError:
            return lines
        except OSError:
            if not lines:
                raise
        if not lines:
            raise OSError(errno.ENOTCONN, "the mount has closed its event channel")
        return lines  # the next call says that it is closed

    def wake(self) -> None:
        """Let a `read` that waits in another thread return."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Close the channel; once more does nothing. A `read` in another thread is to be ended by `wake` before."""
        fd, news, wake, relay = self._fd, self._news, self._wake, self._relay
        self._fd = self._news = self._wake = -1  # first: a number that is closed may soon belong to another file
        self._relay = None
        if news >= 0:
            os.close(news)
        if fd >= 0:
            os.close(wake)
            if relay is None:
                os.close(fd)
            else:
                relay.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end names may be gone before the last channel
            self.close()

    def __iter__(self) -> Iterator[Event]:
        with self:
            while self._fd >= 0:
                yield from self.read()


def _takes_eventfd(fd: int, eventfd: int) -> bool:
    """Have the channel write to this eventfd. False: it cannot (EPERM: the daemon may not fetch it; EDQUOT; EINVAL: an
    older daemon). Then reads are to wait: see `Relay`."""
    try:
        os.write(fd, b"eventfd %d\n" % eventfd)
    except OSError:
        return False
    return True


def events(mount: File) -> Iterator[Event]:
    """The events of this process's pins on a mount from now on, as they come. Raises as `EventChannel`."""
    return iter(EventChannel(mount))


def all_pins(mount: File) -> list[PinInfo]:
    """Every pin of a mount. Other users' pins show the range, not the holder (SPEC 4). Raises as `EventChannel`."""
    return [parse_pin(line) for line in control_file(mount, "pins").read_bytes().splitlines()]
