"""The extended attributes that act, and are never stored or listed (SPEC 5)."""

from typing import Final

PREFIX: Final = b"user.pinfs."
PIN: Final = PREFIX + b"pin."
RELEASE: Final = PREFIX + b"release."
PINS: Final = PREFIX + b"pins"
