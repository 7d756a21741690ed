"""Pins, as programs hold them."""

import errno
import fcntl
import os
import select
import signal as signals
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

from pinfs.client import dispatch, ioctl, xattrs
from pinfs.client.channel import EventChannel, all_pins
from pinfs.client.dispatch import Callback, Watch
from pinfs.client.errors import NotPinfsError, advice
from pinfs.client.inode import File, Inode, descriptor_of, inode_of
from pinfs.client.model import Mode, PinInfo, State
from pinfs.client.mounts import control_file, is_pinfs
from pinfs.client.relay import answers_poll
from pinfs.client.xattrs import Wish

GONE = {errno.ENODATA, errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED}  # the last two: the whole mount has gone


class Pin(ABC):
    """A pin that stands from the call that made it until `release`, the end of a `with` block, or the end of its owner.

    `id`, `start`, `length` (bytes), `mode` and `name` are as last registered. A forked child has no pins: there every
    `release` does nothing.
    """

    def __init__(self, name: str, wish: Wish) -> None:
        self.id = 0
        self.name = name
        self._wish = wish
        self._process = os.getpid()
        self._lock = threading.Lock()  # of the release, which must not wait for a change that the kernel holds back
        self._changing = threading.Lock()
        self._released = False

    @property
    def start(self) -> int:
        return self._wish.start

    @property
    def length(self) -> int:
        return self._wish.length

    @property
    def mode(self) -> Mode:
        return self._wish.mode

    @property
    def active(self) -> bool:
        """Whether this object still owes a release. (What the mount says: `state`.)"""
        return not self._released and self._process == os.getpid()

    @abstractmethod
    def info(self) -> PinInfo:
        """The pin as it stands now. Raises OSError ENODATA or ENOENT when it is gone."""

    @abstractmethod
    def _replace(self, wish: Wish) -> None:
        """Change the pin to `wish` in one step. Raises OSError ENODATA or ENOENT when it is gone."""

    @abstractmethod
    def _let_go(self) -> None:
        """Release the pin if it still stands, and all that goes with it."""

    @abstractmethod
    def extend(self, seconds: float) -> None:
        """Ask for more time to answer a break: `seconds` from now, capped by policy.

        Raises OSError ENODATA: the pin is not breaking.
        """

    def state(self) -> State:
        """`held`, `breaking`, or `gone` (released, revoked, or its owner is no more)."""
        try:
            return self.info().state
        except OSError as exc:
            if exc.errno in GONE:
                return "gone"
            raise

    def resize(self, start: int, length: int) -> None:
        """Move, shrink or grow, with no moment in between. Raises OSError as `pin` does; then the pin is as it was.

        It also answers a break: once no wanted byte is pinned any more, the breaker goes on. (Where a mount's `.pinfs`
        is out of reach, the kernel holds it back while a truncate of the file waits: as `change`.)
        """
        self._change(start=start, length=length)

    def change(self, *, mode: Mode) -> None:
        """Change the mode; see `resize`. That of a process-owned pin waits while a truncate of the file waits."""
        self._change(mode=mode)

    def _change(self, **what: Any) -> None:
        with self._changing:
            if not self.active:
                raise OSError(errno.ENODATA, "the pin has been released")
            self._replace(replace(self._wish, **what))

    def release(self) -> None:
        """Release the pin; once more does nothing.

        Raises OSError where a `dirty` range cannot be flushed (EIO...): then the pin still stands.
        """
        with self._lock:
            if not self.active:
                return
            self._let_go()
            self._released = True

    def __enter__(self) -> "Pin":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.start}:{self.length} {self.mode}>"


class ProcessPin(Pin):
    """Owned by this process (or, with `pid=`, another one), by way of extended attributes."""

    def __init__(self, inode: Inode, name: str, wish: Wish, on_break: Callback | None) -> None:
        super().__init__(name, wish)
        self._inode: Inode | None = inode
        self._watch = on_break and Watch(on_break, self.release, self.info)
        if self._watch:
            dispatch.join(inode, name, self._watch)
        try:
            self.id = xattrs.register(inode, name, _with_signal(wish)).id
        except BaseException:
            self._unwatch(inode)
            raise

    def _unwatch(self, inode: Inode) -> None:
        if self._watch:
            dispatch.leave(inode, self.name, self._watch)

    def _pinned(self) -> Inode:
        if self._inode is None:
            raise OSError(errno.ENODATA, "the pin has been released")
        return self._inode

    def _replace(self, wish: Wish) -> None:
        """A range goes by the event channel, because the kernel holds setxattr back while a truncate waits."""
        inode = self._pinned()
        channel = _channel_of(inode) if wish.mode == self.mode else None
        if channel is None:
            xattrs.change(inode, self.name, _with_signal(wish))
        else:
            with channel:
                channel.resize(self.id, wish.start, wish.length)
        self._wish = wish

    def info(self) -> PinInfo:
        return xattrs.query(self._pinned(), self.name)

    def _let_go(self) -> None:
        inode = self._pinned()
        try:
            xattrs.release(inode, self.name)
        except OSError as exc:
            if exc.errno not in GONE:
                raise
        self._unwatch(inode)
        self._inode = None  # lets go of the file as well, so that the mount is not busy

    def extend(self, seconds: float) -> None:
        with EventChannel(self._pinned()) as channel:
            channel.extend(self.id, seconds)


def _with_signal(wish: Wish) -> Wish:
    """The mode's default is SIGIO for a lease, and the kernel's default for that ends the process: a program that has
    not said what SIGIO is to do gets none, and neither does another process, of which that is not known here."""
    if wish.signal is not None or wish.mode != "lease":
        return wish
    minds = wish.pid in (None, os.getpid()) and signals.getsignal(signals.SIGIO) is not signals.SIG_DFL
    return wish if minds else replace(wish, signal="none")


def _channel_of(inode: Inode) -> EventChannel | None:
    """None where there is none to be had: only a part of the mount is visible, or too many are open."""
    with suppress(OSError):
        return EventChannel(inode)
    return None


class HandlePin(Pin):
    """Owned by an open file description, by way of ioctls; released at the latest by its last close.

    With a callback a thread of its own waits for POLLPRI. It does so through epoll, edge-triggered, because poll(2)
    would keep the description open, and would not wait again while a break goes on whose callback has failed.
    """

    def __init__(self, fd: int, wish: Wish, on_break: Callback | None, *, owned: bool) -> None:
        super().__init__("", wish)
        self._fd = fd
        self._owned = owned
        self._file = _identity(fd)
        self._wake: int | None = None
        self._channel = EventChannel(fd) if on_break and not answers_poll(control_file(fd, "events")) else None
        try:
            self.id = self._registered(wish)
        except BaseException:
            if self._channel is not None:
                self._channel.close()
            raise
        if on_break:
            self._watch(Watch(on_break, self.release, self.info))

    def _watch(self, watch: Watch) -> None:
        if self._channel is not None:
            self._start(self._hear, self._channel, watch)
            return
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        epoll = select.epoll()
        epoll.register(self._wake, select.EPOLLIN)
        epoll.register(self._fd, select.EPOLLPRI | select.EPOLLET)
        self._start(self._listen, epoll, self._wake, watch)

    def _start(self, listen: Callable[..., None], *args: object) -> None:
        threading.Thread(target=listen, args=args, name="pinfs-handle", daemon=True).start()

    def _listen(self, epoll: select.epoll, wake: int, watch: Watch) -> None:
        with epoll:
            while not any(fd == wake for fd, _ in epoll.poll()):
                self._answer(watch)
        os.close(wake)

    def _hear(self, channel: EventChannel, watch: Watch) -> None:
        """On a mount that does not answer poll(2): the process's channel tells of its handles' pins as well."""
        with channel, suppress(OSError):  # the mount has gone
            while not self._released:
                if any(event.pin == self.id or event.event == "overflow" for event in channel.read()):
                    self._answer(watch)

    def _answer(self, watch: Watch) -> None:
        with suppress(OSError):  # it may have gone meanwhile
            answer = ioctl.query(self._fd, self.id)
            if answer.state == ioctl.BREAKING:
                watch.answer(ioctl.break_event(answer))

    def _registered(self, wish: Wish) -> int:
        wish = _with_signal(wish)
        request = ioctl.PinRequest(
            wish.start, wish.length, ioctl.LEASE if wish.mode == "lease" else ioctl.DENY,
            ioctl.signal_number(wish.signal), ioctl.DIRTY if wish.dirty else 0, note=wish.note.encode(),
        )  # fmt: skip
        with advice(f"pin {wish.start}:{wish.length}", f"descriptor {self._fd}"):
            return ioctl.pin(self._fd, request)

    def _replace(self, wish: Wish) -> None:
        """Registered anew before the old one goes, so that its bytes are never without."""
        with self._lock:
            self._check_open()
            fresh = self._registered(wish)
            try:
                with advice("change", f"pin {self.id}"):
                    ioctl.unpin(self._fd, self.id)
            except OSError:  # revoked meanwhile (then it must not come back unasked), or it cannot be flushed
                with suppress(OSError):
                    ioctl.unpin(self._fd, fresh)
                raise
            self.id, self._wish = fresh, wish

    def _check_open(self) -> None:
        """A closed number may by now belong to another file, and an ioctl means something else there."""
        if self._released or _identity(self._fd) != self._file:
            raise OSError(errno.ENOENT, "the handle is closed, and its pins are released")

    def info(self) -> PinInfo:
        with advice(f"query pin {self.id}", f"descriptor {self._fd}"):
            self._check_open()
            return ioctl.info(ioctl.query(self._fd, self.id))

    def _let_go(self) -> None:
        try:
            self._check_open()
            ioctl.unpin(self._fd, self.id)
        except OSError as exc:
            if exc.errno not in GONE:
                raise
        if self._wake is not None:
            os.eventfd_write(self._wake, 1)
        if self._channel is not None:
            self._released = True  # before the thread looks
            with suppress(OSError):  # the mount has gone, and the thread with it
                self._channel.wake()
        if self._owned:
            os.close(self._fd)

    def extend(self, seconds: float) -> None:
        with EventChannel(self._fd) as channel:
            channel.extend(self.id, seconds)


def _identity(fd: int) -> tuple[int, int] | None:
    """Which file a descriptor means; None when it is closed."""
    try:
        st = os.fstat(fd)
    except OSError:
        return None
    return st.st_dev, st.st_ino


class NoPin(Pin):
    """What `missing_ok=True` gives for a file that is not on pinfs: promises nothing, and asks for nothing."""

    @property
    def active(self) -> bool:
        return False

    def info(self) -> PinInfo:
        raise OSError(errno.ENODATA, "there is no pin: the file is not on pinfs")

    def resize(self, start: int, length: int) -> None:
        self._wish = replace(self._wish, start=start, length=length)

    def change(self, *, mode: Mode) -> None:
        self._wish = replace(self._wish, mode=mode)

    def extend(self, seconds: float) -> None:
        pass

    def _replace(self, wish: Wish) -> None:
        raise NotImplementedError

    def _let_go(self) -> None:
        raise NotImplementedError


def pin(
    file: File,
    start: int = 0,
    length: int = 0,
    *,
    mode: Mode = "deny",
    on_break: Callback | None = None,
    signal: str | int | None = None,
    dirty: bool = False,
    note: str = "",
    name: str | None = None,
    pid: int | None = None,
    owner: Literal["process", "handle"] = "process",
    missing_ok: bool = False,
) -> Pin:
    """Pin a byte range of a file: until it is released, no operation takes these bytes out of the file.

    `file`: a path, a descriptor, or an object with fileno(). `start`, `length`: bytes; length 0 is to the end of the
    file, wherever that moves. The pin stands when the call returns, `with` or not.

    `mode="deny"`: a truncate (or hole punch) of the range fails with EBUSY. `mode="lease"`: it waits, `on_break(event)`
    is called in a thread of its own, and when it returns the pin is released; let go of the memory in it. If it raises,
    the exception is logged and the pin stays: the holder has not let go, so the deadline decides. (Where the mount's
    policy says `conflict = "break"`, deny pins are asked in the same way.)

    `signal`: `"USR1"`, `"RTMIN+1"`, a number, or `"none"`; sent at a break, the id in si_value. Default: SIGIO for a
    lease of a program that handles or ignores SIGIO when it pins (signal.getsignal; elsewhere it would end it), and
    none with `on_break`, with `pid` of another process, or for a deny pin.
    `dirty`: a device may write here; the range is flushed before a release is answered. `note`: shown in listings.
    `name`: the process's own name of the pin, by default a fresh one; used again on the same file it moves that pin.
    `pid`: register for another process of the same user. `owner="handle"`: the pin belongs to the open file
    description that `file` is (opened here, if it is a path) and goes with its last close; it takes ioctls, and so the
    bridge. So does, without `name` and `pid`, a pin by a descriptor that is open for writing where the process may not
    write to the file (one that it has inherited or been sent): the attribute of SPEC section 5 is refused to it then.

    Raises NotPinfsError (not with `missing_ok`, which gives a pin that is not `active`), OSError: ENXIO (the range does
    not lie inside the file), EAGAIN (a removal of an overlapping range is under way), EDQUOT (limits), EACCES or EPERM
    (not allowed), ESRCH (`pid` names no process), EINVAL (not a regular file), EBADF (not an open descriptor);
    ValueError for options that contradict each other, TypeError for a range that is not of ints.
    """
    _check(mode, on_break, pid, name, owner)
    if on_break and signal is None:
        signal = "none"
    wish = Wish(start, length, mode, signal, pid, dirty, note)
    inode = inode_of(file)
    if not is_pinfs(inode):
        if missing_ok:
            return NoPin(name or "", wish)
        raise NotPinfsError(inode.name, "missing_ok=True goes on without a pin")
    inode.require_regular()
    if owner == "handle":
        return _handle_pin(file, wish, on_break)
    try:
        return ProcessPin(inode, name or xattrs.fresh_name(), wish, on_break)
    except PermissionError as refused:
        if refused.errno != errno.EACCES or name or pid is not None or not _open_for_writing(file):
            raise
        return _pin_by_what_was_given(file, wish, on_break, refused)


def _pin_by_what_was_given(file: File, wish: Wish, on_break: Callback | None, refused: OSError) -> HandlePin:
    """The handle of a descriptor that is open for writing can pin, whoever has opened it (SPEC section 4)."""
    try:
        return _handle_pin(file, wish, on_break)
    except OSError as failure:
        if failure.errno == errno.ENOTTY:  # the mount does without ioctls: what the attribute said is the answer
            raise refused from failure
        raise


def _open_for_writing(file: File) -> bool:
    fd = descriptor_of(file)
    return fd is not None and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _check(mode: str, on_break: Callback | None, pid: int | None, name: str | None, owner: str) -> None:
    if mode not in ("deny", "lease") or owner not in ("process", "handle"):
        raise ValueError("mode is 'deny' or 'lease', owner is 'process' or 'handle'")
    if on_break and pid not in (None, os.getpid()):
        raise ValueError("on_break cannot be called for another process: its breaks are told to that process")
    if owner == "handle" and (pid is not None or name is not None):
        raise ValueError("a pin of a handle has neither pid nor name")


def _handle_pin(file: File, wish: Wish, on_break: Callback | None) -> HandlePin:
    fd = descriptor_of(file)
    if fd is not None:
        return HandlePin(fd, wish, on_break, owned=False)
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)  # type: ignore[arg-type]
    try:
        return HandlePin(fd, wish, on_break, owned=True)
    except BaseException:
        os.close(fd)
        raise


def pins(file: File) -> list[PinInfo]:
    """The pins of a file. Raises NotPinfsError.

    Of other users' pins one sees the range, not the holder (SPEC section 4). All of them, even where an attribute's 64
    KiB are too small: then the mount's whole list is asked.
    """
    inode = inode_of(file)
    if not is_pinfs(inode):
        raise NotPinfsError(inode.name)
    found, more = xattrs.pins_of(inode)
    if not more:
        return found
    return [info for info in all_pins(inode) if info.inode == inode.ino]
