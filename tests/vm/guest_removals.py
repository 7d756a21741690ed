"""Removals that the parts of the guests try."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from vm.guest_base import PAGE, libc

PUNCH_HOLE_KEEP_SIZE, ZERO_RANGE = 0x03, 0x10
Removal = Callable[[str], object]


def _fallocate(path: str, mode: int) -> None:
    """Of the first page."""
    fd = os.open(path, os.O_RDWR)
    try:
        if libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(PAGE)):
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(fd)


def punch(path: str) -> None:
    _fallocate(path, PUNCH_HOLE_KEEP_SIZE)


REMOVALS: dict[str, Removal] = {
    "truncate": lambda path: os.truncate(path, 0),
    "punch_hole": punch,
    "open_trunc": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
}
ALL_REMOVALS: dict[str, Removal] = {**REMOVALS, "zero_range": lambda path: _fallocate(path, ZERO_RANGE)}
"""tmpfs has no ZERO_RANGE."""
