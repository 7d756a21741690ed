"""Pins of an open file description, by ioctls (SPEC 6)."""

import errno
import os
import select
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Protocol

from pinfs.client import ioctl
from pinfs.client.basepin import GONE, Pin, with_signal
from pinfs.client.callbacks import Callback, Watch
from pinfs.client.channel import LOOK_S, Commands, EventChannel
from pinfs.client.errors import BY_EVENTFD, advice
from pinfs.client.model import PinInfo
from pinfs.client.xattrs import RequestedPin

_WITHOUT_EVENTFD = (errno.EPERM, errno.EINVAL, errno.EDQUOT)
"""What a mount answers that cannot have an eventfd, or is older than they are."""


class HandlePin(Pin):
    """Owned by an open file description; released at the latest by its last close.

    With a callback a thread of its own waits for breaks. It ends with `release`, not with close(2).
    """

    def __init__(self, fd: int, requested: RequestedPin, on_break: Callback | None, *, owned: bool) -> None:
        """`owned`: whether `release` closes `fd`. Where this raises, `fd` is open, and has no pin of this call."""
        super().__init__("", requested)
        self._fd = fd
        self._owned = owned
        self._file = _identity(fd)
        self._eventfd = requested.eventfd
        self._listener: Listener | None = None
        with ExitStack() as undo:
            if on_break is None:
                self.id = self._registered(requested)
            else:
                self._listener = self._registered_and_heard(requested)
                undo.callback(self._listener.close)
            undo.callback(self._unpin, self.id)
            if on_break and self._listener:
                run = threading.Thread(
                    target=_listen, args=(self._listener, self._answer, Watch(on_break, self.release, self.info)),
                    name="pinfs-handle", daemon=True,
                )  # fmt: skip
                run.start()
            undo.pop_all()

    def _registered_and_heard(self, requested: RequestedPin) -> "Listener":
        """Register the pin with an eventfd of its own, which needs nothing but the handle; where the daemon cannot have
        it, or the program has given another one, the pin is heard of in other ways."""
        if self._eventfd is None:
            listener = EventFdListener()
            self._eventfd = listener.eventfd
            try:
                self.id = self._registered(requested)
                return listener
            except BaseException as failure:
                listener.close()
                if not isinstance(failure, OSError) or failure.errno not in _WITHOUT_EVENTFD:
                    raise
            self._eventfd = None
        other = self._other_listener()
        try:
            self.id = self._registered(requested)
        except BaseException:
            other.close()
            raise
        return other

    def _other_listener(self) -> "Listener":
        """A process that the daemon cannot see (pid namespaces), or that cannot reach `.pinfs` (a sandbox), has no
        channel: POLLPRI is left to it."""
        try:
            return ChannelListener(self._fd, lambda: self.id)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return PollListener(self._fd, self._is_breaking)

    def _answer(self, watch: Watch) -> None:
        with suppress(OSError):  # the pin or the handle is gone
            self._require_open()
            answer = ioctl.query(self._fd, self.id)
            if answer.state == ioctl.BREAKING:
                watch.answer(ioctl.break_event(answer))

    def _is_breaking(self) -> bool:
        with suppress(OSError):  # the pin or the handle is gone
            self._require_open()
            return ioctl.query(self._fd, self.id).state == ioctl.BREAKING
        return False

    def _registered(self, requested: RequestedPin) -> int:
        requested = with_signal(requested)
        request = ioctl.PinRequest(
            requested.start, requested.length, ioctl.LEASE if requested.mode == "lease" else ioctl.DENY,
            ioctl.signal_number(requested.signal), _flags(requested.dirty, self._eventfd),
            note=requested.note.encode(), eventfd=self._eventfd or 0,
        )  # fmt: skip
        special = None if requested.eventfd is None else BY_EVENTFD
        with advice(f"pin {requested.start}:{requested.length}", f"descriptor {self._fd}", special):
            return ioctl.pin(self._fd, request)

    def _unpin(self, pin_id: int) -> None:
        with suppress(OSError):
            ioctl.unpin(self._fd, pin_id)

    def _replace(self, requested: RequestedPin) -> None:
        """The new pin is registered before the old one is released, so that its bytes are pinned all the time."""
        with self._lock:
            self._require_open()
            fresh = self._registered(requested)
            try:
                with advice("change", f"pin {self.id}"):
                    ioctl.unpin(self._fd, self.id)
            except OSError:  # revoked meanwhile (then it must not come back unasked), or it cannot be flushed
                self._unpin(fresh)
                raise
            self.id, self._requested = fresh, requested

    def _require_open(self) -> None:
        """A closed number may by now belong to another file, where an ioctl means something else."""
        if self._released or not self._is_open():
            raise OSError(errno.ENOENT, "the handle is closed, and its pins are released")

    def _is_open(self) -> bool:
        return self._file is not None and _identity(self._fd) == self._file

    def info(self) -> PinInfo:
        with advice(f"query pin {self.id}", f"descriptor {self._fd}"):
            self._require_open()
            return ioctl.info(ioctl.query(self._fd, self.id))

    def _release(self) -> None:
        try:
            self._require_open()
            ioctl.unpin(self._fd, self.id)
        except OSError as error:
            if error.errno not in GONE:
                raise
        if self._listener is not None:
            self._listener.stop()
        if self._owned and self._is_open():
            os.close(self._fd)

    def extend(self, seconds: float) -> None:
        with Commands(self._fd) as channel:
            channel.extend(self.id, seconds)


def _flags(dirty: bool, eventfd: int | None) -> int:
    return (ioctl.DIRTY if dirty else 0) | (0 if eventfd is None else ioctl.EVENTFD)


def _identity(fd: int) -> tuple[int, int] | None:
    """Which file a descriptor means; None when it is closed."""
    try:
        st = os.fstat(fd)
    except OSError:
        return None
    return st.st_dev, st.st_ino


class Listener(Protocol):
    """Waits for something to happen to a pin of a handle."""

    def wait(self) -> bool:
        """True: the pin may be breaking. False, or OSError: `stop` was called, or the mount is gone."""

    def stop(self) -> None:
        """End `wait` in another thread, which then closes."""

    def close(self) -> None: ...


def _listen(listener: Listener, answer: Callable[[Watch], None], watch: Watch) -> None:
    try:
        while listener.wait():
            answer(watch)
    except OSError:
        return
    finally:
        listener.close()


_listeners: "weakref.WeakSet[EventFdListener | ChannelListener | PollListener]" = weakref.WeakSet()


class EventFdListener:
    """Waits for the pin's own eventfd."""

    def __init__(self) -> None:
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopped = False
        _listeners.add(self)

    def wait(self) -> bool:
        os.eventfd_read(self.eventfd)
        return not self._stopped

    def stop(self) -> None:
        self._stopped = True  # before the thread looks
        with suppress(OSError):
            os.eventfd_write(self.eventfd, 1)

    def close(self) -> None:
        eventfd, self.eventfd = self.eventfd, -1
        if eventfd >= 0:
            os.close(eventfd)


class PollListener:
    """Waits for POLLPRI by epoll, edge-triggered: poll(2) would keep the description open, and would not wait again
    while a break goes on whose callback has failed. A mount that answers poll(2) no more tells nothing by it, so the
    pin is looked at every LOOK_S seconds."""

    def __init__(self, fd: int, is_breaking: Callable[[], bool]) -> None:
        self._is_breaking = is_breaking
        self._is_told = False
        with ExitStack() as undo:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._wake)
            self._epoll = undo.enter_context(select.epoll())
            self._epoll.register(self._wake, select.EPOLLIN)
            self._epoll.register(fd, select.EPOLLPRI | select.EPOLLET)
            self._open = undo.pop_all()
        _listeners.add(self)

    def wait(self) -> bool:
        while not (ready := self._epoll.poll(LOOK_S)):
            was_told, self._is_told = self._is_told, self._is_breaking()
            if self._is_told and not was_told:
                return True
        self._is_told = True
        return not any(fd == self._wake for fd, _ in ready)

    def stop(self) -> None:
        with suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        self._open.close()
        self._wake = -1


class ChannelListener:
    """The process's channel tells of its handles' pins as well."""

    def __init__(self, fd: int, pin_id: Callable[[], int]) -> None:
        self._channel = EventChannel(fd)
        self._pin_id = pin_id
        self._stopped = False
        _listeners.add(self)

    def wait(self) -> bool:
        while not self._stopped:
            if any(event.event == "overflow" or event.pin == self._pin_id() for event in self._channel.read()):
                return True
        return False

    def stop(self) -> None:
        self._stopped = True  # before the thread looks
        with suppress(OSError):  # closed, where the mount is gone
            self._channel.wake()

    def close(self) -> None:
        self._channel.close()


def _close_listeners() -> None:
    """A forked child has neither the pins nor the threads; its copies would keep the mount busy."""
    for listener in list(_listeners):
        with suppress(OSError):
            listener.close()


os.register_at_fork(after_in_child=_close_listeners)
