"""The structs of `pinfs/include/pinfs.h` and their numbers (SPEC 6)."""

import errno
import struct
from dataclasses import dataclass
from typing import Final

from pinfs.core.pins import Mode, Pin
from pinfs.core.ranges import END

_PIN = struct.Struct("<QQIiIIQ64s")
_UNPIN = struct.Struct("<Q")
_QUERY = struct.Struct("<QQQIIqQQQ")
_WRITE, _READ = 1, 2
PIN_DIRTY: Final = 1
TO_THE_END: Final = (1 << 64) - 1
MAX_SIGNAL: Final = 64
LIBC_SIGNALS: Final = (32, 33)  # the C library's own


def _number(direction: int, nr: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("P") << 8 | nr


PIN: Final = _number(_READ | _WRITE, 0xA0, _PIN.size)
UNPIN: Final = _number(_WRITE, 0xA1, _UNPIN.size)
QUERY: Final = _number(_READ | _WRITE, 0xA2, _QUERY.size)


@dataclass(slots=True, frozen=True)
class PinRequest:
    """A decoded `struct pinfs_pin`. signal: a number, 0 none, -1 the mode's default."""

    start: int
    length: int
    mode: Mode
    signal: int
    dirty: bool
    note: str

    def answered(self, pin_id: int) -> bytes:
        """The struct with the pin's id filled in."""
        note = self.note.encode()
        mode = 1 if self.mode is Mode.LEASE else 0
        return _PIN.pack(self.start, self.length, mode, self.signal, PIN_DIRTY * self.dirty, 0, pin_id, note)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise OSError(errno.EINVAL, "wrong size")
    return layout.unpack(data)


def decode_pin(data: bytes) -> PinRequest:
    """EINVAL: size, mode, signal, flags, reserved field, range or note out of bounds."""
    start, length, mode, signal, flags, reserved, _, raw_note = _unpack(_PIN, data)
    note = bytes(raw_note).partition(b"\0")[0]
    good_signal = -1 <= signal <= MAX_SIGNAL and signal not in LIBC_SIGNALS
    if mode > 1 or flags & ~PIN_DIRTY or reserved or not good_signal or start + length >= END:
        raise OSError(errno.EINVAL, "not a struct pinfs_pin")
    try:
        text = note.decode()
    except UnicodeDecodeError:
        raise OSError(errno.EINVAL, "note is not UTF-8") from None
    return PinRequest(start, length, Mode.LEASE if mode else Mode.DENY, signal, bool(flags & PIN_DIRTY), text)


def decode_unpin(data: bytes) -> int:
    """The pin's id."""
    return _unpack(_UNPIN, data)[0]


def decode_query(data: bytes) -> int:
    """The pin's id, 0: the first of the handle."""
    return _unpack(_QUERY, data)[0]


def encode_query(pin: Pin, remaining_s: float | None, next_id: int) -> bytes:
    """A `struct pinfs_query` about a pin."""
    breaking = pin.breaking
    wanted = (0, 0) if breaking is None else (breaking.start, breaking.end if breaking.end < END else TO_THE_END)
    mode = 1 if pin.mode is Mode.LEASE else 0
    remaining_ms = -1 if remaining_s is None else int(remaining_s * 1000)
    return _QUERY.pack(
        pin.id, pin.start, pin.length, mode, 0 if breaking is None else 1, remaining_ms, *wanted, next_id
    )
