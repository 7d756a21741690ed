"""What the structs of `pinfs/include/pinfs.h` mean to the core, and back (SPEC 6)."""

import errno
import struct
from dataclasses import dataclass

from pinfs.core.pins import Mode, Pin
from pinfs.core.ranges import END
from pinfs.interface.ioctls import BREAKING, DENY, DIRTY, EVENTFD, HELD, LEASE, SIGNAL_DEFAULT, SIGNAL_NONE, TO_END
from pinfs.interface.ioctls import PIN as PIN
from pinfs.interface.ioctls import PIN_LAYOUT as _PIN
from pinfs.interface.ioctls import QUERY as QUERY
from pinfs.interface.ioctls import QUERY_LAYOUT as _QUERY
from pinfs.interface.ioctls import UNPIN as UNPIN
from pinfs.interface.ioctls import UNPIN_LAYOUT as _UNPIN
from pinfs.linux.signals import is_signal


@dataclass(slots=True, frozen=True)
class PinRequest:
    """A decoded `struct pinfs_pin`. signal: a number, 0 none, -1 the mode's default. eventfd: the caller's descriptor,
    None: none."""

    start: int
    length: int
    mode: Mode
    signal: int
    dirty: bool
    note: str
    eventfd: int | None

    def answered(self, pin_id: int) -> bytes:
        """The struct with the pin's id filled in."""
        note = self.note.encode()
        mode = LEASE if self.mode is Mode.LEASE else DENY
        flags, eventfd = DIRTY * self.dirty, self.eventfd or 0
        if self.eventfd is not None:
            flags |= EVENTFD
        return _PIN.pack(self.start, self.length, mode, self.signal, flags, eventfd, pin_id, note)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise OSError(errno.EINVAL, "wrong size")
    return layout.unpack(data)


def decode_pin(data: bytes) -> PinRequest:
    """EINVAL: size, mode, signal, flags, range or note out of bounds, an eventfd without its flag."""
    start, length, mode, signal, flags, eventfd, _, raw_note = _unpack(_PIN, data)
    note = bytes(raw_note).partition(b"\0")[0]
    good_signal = signal in (SIGNAL_DEFAULT, SIGNAL_NONE) or is_signal(signal)
    good_flags = not flags & ~(DIRTY | EVENTFD) and eventfd < 1 << 31 and (flags & EVENTFD or not eventfd)
    if mode not in (DENY, LEASE) or not good_flags or not good_signal or start + length >= END:
        raise OSError(errno.EINVAL, "not a struct pinfs_pin")
    try:
        text = note.decode()
    except UnicodeDecodeError:
        raise OSError(errno.EINVAL, "note is not UTF-8") from None
    is_dirty, number = bool(flags & DIRTY), eventfd if flags & EVENTFD else None
    return PinRequest(start, length, Mode.LEASE if mode == LEASE else Mode.DENY, signal, is_dirty, text, number)


def decode_unpin(data: bytes) -> int:
    """The pin's id."""
    return _unpack(_UNPIN, data)[0]


def decode_query(data: bytes) -> int:
    """The pin's id, 0: the first of the handle."""
    return _unpack(_QUERY, data)[0]


def encode_query(pin: Pin, remaining_s: float | None, next_id: int) -> bytes:
    """A `struct pinfs_query` about a pin."""
    breaking = pin.breaking
    wanted = (0, 0) if breaking is None else (breaking.start, breaking.end if breaking.end < END else TO_END)
    mode = LEASE if pin.mode is Mode.LEASE else DENY
    state = HELD if breaking is None else BREAKING
    remaining_ms = -1 if remaining_s is None else int(remaining_s * 1000)
    return _QUERY.pack(pin.id, pin.start, pin.length, mode, state, remaining_ms, *wanted, next_id)
