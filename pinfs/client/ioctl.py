"""The verbs of SPEC 6: pins of an open file description. The structs are those of pinfs/include/pinfs.h."""

import errno
import fcntl
import os
import stat
import time

from pinfs.client.model import Event, Mode, PinInfo
from pinfs.interface.ioctls import (
    BREAKING,
    DENY,
    DIRTY,
    EVENTFD,
    HELD,
    LEASE,
    NOTE_SIZE,
    PIN,
    QUERY,
    SIGNAL_DEFAULT,
    SIGNAL_NONE,
    TO_END,
    UNPIN,
    UNPIN_LAYOUT,
    PinQuery,
    PinRequest,
)
from pinfs.linux.abi import require_supported_abi
from pinfs.linux.signals import parse_signal

__all__ = [
    "BREAKING",
    "DENY",
    "DIRTY",
    "EVENTFD",
    "HELD",
    "LEASE",
    "NOTE_SIZE",
    "PIN",
    "QUERY",
    "SIGNAL_DEFAULT",
    "SIGNAL_NONE",
    "TO_END",
    "UNPIN",
    "PinQuery",
    "PinRequest",
    "break_event",
    "info",
    "is_answered",
    "pin",
    "query",
    "signal_number",
    "unpin",
]


def pin(fd: int, request: PinRequest) -> int:
    """Register a pin of this handle; its id.

    Raises OSError: EINVAL (malformed), ENXIO (the range does not lie inside the file), EAGAIN (a removal of an
    overlapping range is under way), EDQUOT (limits), EACCES (not open for writing), EBADF (the eventfd is not
    open), EPERM (the daemon may not fetch it), ENOTTY (not on a pinfs mount, or on
    one without its bridge), ENOTSUP (not on this machine, see pinfs.linux.abi); ValueError as `PinRequest.pack`.
    """
    return PinRequest.unpack(_ioctl(fd, PIN, request.pack())).id


def unpin(fd: int, pin_id: int) -> None:
    """Release a pin of this handle. Raises OSError: ENOENT (there is no such pin on it), EIO and others where a `dirty`
    range cannot be flushed, ENOTTY and ENOTSUP as `pin`."""
    _ioctl(fd, UNPIN, UNPIN_LAYOUT.pack(pin_id))


def query(fd: int, pin_id: int = 0) -> PinQuery:
    """A pin of this handle, its first for id 0. Raises OSError: ENOENT (there is none), ENOTTY and ENOTSUP as `pin`."""
    return PinQuery.unpack(_ioctl(fd, QUERY, PinQuery(pin_id).pack()))


def is_answered(fd: int) -> bool:
    """Whether a regular file lies on a pinfs that carries ioctls. The open file itself is asked: that takes neither
    /proc, nor a mount that can be seen from here, nor permission to read the file. Raises OSError EBADF."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False
    try:
        query(fd)
    except OSError as error:
        return error.errno == errno.ENOENT  # pinfs has no pin of this handle yet
    return True


def _ioctl(fd: int, number: int, data: bytes) -> bytes:
    require_supported_abi()
    return fcntl.ioctl(fd, number, data)


def signal_number(signal: str | int | None) -> int:
    """`USR1`, `SIGUSR1`, `RTMIN+1`, `RTMAX-1`, `none`, a number, or None: the mode's default.

    Raises ValueError for what is no signal, as the attribute and the command line refuse it (pinfs.linux.signals).
    """
    if signal is None:
        return SIGNAL_DEFAULT
    number = parse_signal(f"{signal}")
    return SIGNAL_NONE if number is None else number


def _mode(number: int) -> Mode:
    return "lease" if number == LEASE else "deny"


def info(answer: PinQuery) -> PinInfo:
    """The pin that a query tells of. Its name, owner and note are not in the struct."""
    remaining_s = None if answer.remaining_ms < 0 else answer.remaining_ms / 1000
    return PinInfo(
        answer.id, answer.start, answer.length, _mode(answer.mode),
        "breaking" if answer.state == BREAKING else "held", owner="handle",
        deadline=None if remaining_s is None else time.time() + remaining_s, remaining_s=remaining_s,
    )  # fmt: skip


def break_event(answer: PinQuery) -> Event:
    """The break that POLLPRI told of."""
    pin = info(answer)
    return Event(
        "break", pin=pin.id, start=pin.start, length=pin.length, mode=pin.mode, from_=answer.break_from,
        to=None if answer.break_to == TO_END else answer.break_to, deadline=pin.deadline, remaining_s=pin.remaining_s,
    )  # fmt: skip
