"""The structs of `pinfs/include/pinfs.h` and the numbers of its ioctls (SPEC 6), for both sides of the mount."""

import struct
from typing import Final, NamedTuple

from pinfs.linux.ioctl import iow, iowr

DENY: Final = 0
LEASE: Final = 1
SIGNAL_NONE: Final = 0
SIGNAL_DEFAULT: Final = -1
"""SIGIO for a lease, none for a deny pin."""
DIRTY: Final = 1
EVENTFD: Final = 2
"""In `flags`: the field `eventfd` counts."""
HELD: Final = 0
BREAKING: Final = 1
TO_END: Final = 2**64 - 1
NOTE_SIZE: Final = 64
"""Bytes of a note, with the NUL at its end."""

PIN_LAYOUT: Final = struct.Struct(f"<QQIiIIQ{NOTE_SIZE}s")
UNPIN_LAYOUT: Final = struct.Struct("<Q")
QUERY_LAYOUT: Final = struct.Struct("<QQQIIqQQQ")

PIN: Final = iowr("P", 0xA0, PIN_LAYOUT.size)
UNPIN: Final = iow("P", 0xA1, UNPIN_LAYOUT.size)
QUERY: Final = iowr("P", 0xA2, QUERY_LAYOUT.size)


class PinRequest(NamedTuple):
    """struct pinfs_pin. `start`, `length`: bytes; `mode`: DENY or LEASE; `signal`: a number, SIGNAL_NONE or
    SIGNAL_DEFAULT; `flags`: of DIRTY and EVENTFD; `eventfd`: the caller's descriptor, 0 without EVENTFD; `note`: UTF-8
    without NUL, shown in listings."""

    start: int
    length: int
    mode: int
    signal: int = SIGNAL_DEFAULT
    flags: int = 0
    id: int = 0
    note: bytes = b""
    eventfd: int = 0

    def pack(self) -> bytes:
        """Raises ValueError for what the struct cannot carry."""
        start, length, mode, signal, flags, pin_id, note, eventfd = self
        if len(note) >= NOTE_SIZE or b"\0" in note:
            raise ValueError(f"a note has at most {NOTE_SIZE - 1} bytes, none of them NUL")
        try:
            return PIN_LAYOUT.pack(start, length, mode, signal, flags, eventfd, pin_id, note)
        except struct.error as error:
            raise ValueError(f"out of range: {error}") from error

    @classmethod
    def unpack(cls, data: bytes) -> "PinRequest":
        """`data`: PIN_LAYOUT.size bytes. The note ends at its first NUL."""
        start, length, mode, signal, flags, eventfd, pin_id, note = PIN_LAYOUT.unpack(data)
        return cls(start, length, mode, signal, flags, pin_id, note.split(b"\0", 1)[0], eventfd)


class PinQuery(NamedTuple):
    """struct pinfs_query. `id`: in which pin, 0 for the first of the handle, out which pin it was; all else out.

    `remaining_ms`: until the deadline of the break, -1 where there is none. `break_from`, `break_to`: the bytes that
    the removal takes away, TO_END where it takes all from `break_from` on. `next_id`: 0 after the handle's last pin.
    """

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
        return QUERY_LAYOUT.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> "PinQuery":
        """`data`: QUERY_LAYOUT.size bytes."""
        return cls(*QUERY_LAYOUT.unpack(data))
