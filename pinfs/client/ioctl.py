"""The verbs of SPEC section 6: pins of an open file description. Mirrors pinfs/include/pinfs.h."""

import fcntl
import re
import signal as signals
import struct
import time
from typing import NamedTuple

from pinfs.client.model import Event, Mode, PinInfo

DENY, LEASE = 0, 1
SIGNAL_NONE, SIGNAL_DEFAULT = 0, -1
DIRTY = 1
HELD, BREAKING = 0, 1
TO_END = 2**64 - 1
NOTE_SIZE = 64

_PIN = struct.Struct("<QQIiIIQ64s")
_UNPIN = struct.Struct("<Q")
_QUERY = struct.Struct("<QQQIIqQQQ")


def _number(direction: int, nr: int, size: int) -> int:
    """_IOC() of linux/ioctl.h: direction 1 is _IOW, 3 is _IOWR."""
    return direction << 30 | size << 16 | ord("P") << 8 | nr


PIN = _number(3, 0xA0, _PIN.size)
UNPIN = _number(1, 0xA1, _UNPIN.size)
QUERY = _number(3, 0xA2, _QUERY.size)


class PinRequest(NamedTuple):
    """struct pinfs_pin"""

    start: int
    length: int
    mode: int
    signal: int = SIGNAL_DEFAULT
    flags: int = 0
    id: int = 0
    note: bytes = b""

    def pack(self) -> bytes:
        """Raises ValueError for what the struct cannot carry."""
        if len(self.note) >= NOTE_SIZE or b"\0" in self.note:
            raise ValueError(f"a note has at most {NOTE_SIZE - 1} bytes, none of them NUL")
        try:
            return _PIN.pack(self.start, self.length, self.mode, self.signal, self.flags, 0, self.id, self.note)
        except struct.error as exc:
            raise ValueError(f"out of range: {exc}") from exc

    @classmethod
    def unpack(cls, data: bytes) -> "PinRequest":
        start, length, mode, signal, flags, _reserved, pin_id, note = _PIN.unpack(data)
        return cls(start, length, mode, signal, flags, pin_id, note.split(b"\0")[0])


class PinQuery(NamedTuple):
    """struct pinfs_query"""

    id: int
    start: int = 0
    length: int = 0
    mode: int = 0
    state: int = 0
    remaining_ms: int = -1
    break_from: int = 0
    break_to: int = 0
    next_id: int = 0

    def pack(self) -> bytes:
        return _QUERY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "PinQuery":
        return cls(*_QUERY.unpack(data))


def pin(fd: int, request: PinRequest) -> int:
    """Register a pin of this handle; its id. Raises OSError: EINVAL, ENXIO, EAGAIN, EDQUOT, EACCES, ENOTTY."""
    data = bytearray(request.pack())
    fcntl.ioctl(fd, PIN, data)
    return PinRequest.unpack(bytes(data)).id


def unpin(fd: int, pin_id: int) -> None:
    """Raises OSError ENOENT: this handle has no such pin."""
    fcntl.ioctl(fd, UNPIN, _UNPIN.pack(pin_id))


def query(fd: int, pin_id: int = 0) -> PinQuery:
    """A pin of this handle, id 0: its first. Raises OSError ENOENT."""
    data = bytearray(PinQuery(pin_id).pack())
    fcntl.ioctl(fd, QUERY, data)
    return PinQuery.unpack(bytes(data))


def signal_number(signal: str | int | None) -> int:
    """`USR1`, `SIGUSR1`, `RTMIN+1`, `RTMAX-1`, `none`, a number, or None: the mode's default. Raises ValueError."""
    if signal is None:
        return SIGNAL_DEFAULT
    if isinstance(signal, int):
        return int(signal)
    if signal == "none":
        return SIGNAL_NONE
    words = re.fullmatch(r"(?:SIG)?([A-Z0-9]+)([+-][0-9]+)?", signal)
    number = words and signals.Signals.__members__.get("SIG" + words[1])
    if not words or number is None:
        raise ValueError(f"there is no signal {signal!r}")
    return number + int(words[2] or 0)


def _mode(number: int) -> Mode:
    return "lease" if number == LEASE else "deny"


def info(answer: PinQuery) -> PinInfo:
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
