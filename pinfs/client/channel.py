"""`.pinfs/events`: what happens to the pins of this process. The channel is the truth, the signal is a hint."""

import errno
import os
import select
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

from pinfs.client.errors import NOT_BREAKING, advice
from pinfs.client.inode import File
from pinfs.client.model import Event, PinInfo, parse_event, parse_pin
from pinfs.client.mounts import control_file
from pinfs.client.relay import BUFFER, Relay, answers_poll
from pinfs.client.xattrs import check_range


class EventChannel:
    """The events of this process's pins on one mount. For one reader at a time.

    with pinfs.EventChannel("/mnt") as channel:
        for event in channel:
            if event.event == "break": ...; channel.release(event.pin)

    Opened before a pin is registered, it misses none of its events; opened later, it starts with the breaks that are
    under way. A forked child opens its own: the channel belongs to the process that opened it. A channel that is no
    longer referred to is closed.
    """

    _fd = _wake = -1
    _relay: Relay | None = None

    def __init__(self, mount: File) -> None:
        """`mount`: the root of a mount, or any file on it. Raises NotPinfsError, or OSError as open(2) does."""
        path = control_file(mount, "events")
        polled = answers_poll(path)
        with advice("open the event channel", str(path)):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_NONBLOCK if polled else 0))
        try:
            self._adopt(fd, None if polled else Relay(fd))
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def over(cls, fd: int) -> "EventChannel":
        """A channel over an open, non-blocking descriptor, which `close` closes."""
        channel = cls.__new__(cls)
        channel._adopt(fd)
        return channel

    def _adopt(self, fd: int, relay: Relay | None = None) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._fd = fd
        self._relay = relay
        self._poll: select.poll | None = None

    def fileno(self) -> int:
        """Readable when there are events; see `take`. -1 when the channel is closed."""
        return self._fd if self._relay is None else self._relay.fileno()

    def read(self, timeout_s: float | None = None) -> list[Event]:
        """Wait for events: [] after `timeout_s` seconds, or when `wake` was called. Raises OSError as `take`."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.fileno(), select.POLLIN)
            self._poll.register(self._wake, select.POLLIN)
        ready = self._poll.poll(None if timeout_s is None else max(0.0, timeout_s * 1000))
        if any(fd == self._wake for fd, _ in ready):
            os.eventfd_read(self._wake)
        return self.take() if any(fd != self._wake for fd, _ in ready) else []

    def take(self) -> list[Event]:
        """The events that are there, without waiting. Raises OSError ENOTCONN or ENODEV when the mount is gone."""
        try:
            lines = os.read(self.fileno(), BUFFER).splitlines()
        except BlockingIOError:
            return []
        if not lines:
            raise OSError(errno.ENOTCONN, "the mount has closed its event channel")
        return [parse_event(line) for line in lines]

    def wake(self) -> None:
        """Let a `read` that waits in another thread return."""
        os.eventfd_write(self._wake, 1)

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
        """Close the channel; once more does nothing. A `read` in another thread is to be ended by `wake` before."""
        fd, wake, relay = self._fd, self._wake, self._relay
        self._fd = self._wake = -1  # first: a number that is closed may soon belong to another file
        self._relay = None
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

    def __enter__(self) -> "EventChannel":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def events(mount: File) -> Iterator[Event]:
    """The events of this process's pins on a mount from now on, as they come. Raises as `EventChannel`."""
    return iter(EventChannel(mount))


def all_pins(mount: File) -> list[PinInfo]:
    """Every pin of a mount. Other users' pins show the range, not the holder (SPEC 4). Raises as `EventChannel`."""
    return [parse_pin(line) for line in control_file(mount, "pins").read_bytes().splitlines()]
