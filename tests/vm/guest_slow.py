"""A block device that answers when it is told to: a memory disk behind the device mapper, suspended and resumed
(linux/dm-ioctl.h)."""

from __future__ import annotations

import fcntl
import os
import struct

from vm.guest_base import run

SLOW_DEVICE = "/dev/dm-0"
_NAME = b"slow"
_SECTORS = 8 << 11  # 8 MiB
_HEAD, _HEAD_SIZE = struct.Struct("=3I3Ii3IQ128s129s7x"), 312
_TARGET = struct.Struct("=QQiI16s")
_VERSION = (4, 0, 0)
_CREATE, _SUSPEND, _LOAD = 3, 6, 9
_SUSPENDED, _NO_LOCKFS, _NO_FLUSH = 1 << 1, 1 << 10, 1 << 11


def _ask(command: int, flags: int = 0, table: bytes = b"") -> None:
    head = _HEAD.pack(*_VERSION, _HEAD_SIZE + len(table), _HEAD_SIZE, bool(table), 0, flags, 0, 0, 0, _NAME, b"")
    control = os.open("/dev/mapper/control", os.O_RDWR)
    try:
        fcntl.ioctl(control, 0xC138_FD00 | command, bytearray(head + table))  # _IOWR(DM_IOCTL, command, dm_ioctl)
    finally:
        os.close(control)


def set_up_device() -> None:
    """In working order."""
    run("modprobe", "-a", "dm_mod")
    run("modprobe", "brd", "rd_nr=1", "rd_size=8192")
    _ask(_CREATE)
    parameters = b"/dev/ram0 0\0".ljust(16, b"\0")
    _ask(_LOAD, table=_TARGET.pack(0, _SECTORS, 0, 0, b"linear") + parameters)
    resume()


def suspend() -> None:
    """From now on reads and writes wait."""
    _ask(_SUSPEND, _SUSPENDED | _NO_LOCKFS | _NO_FLUSH)


def resume() -> None:
    """They are made."""
    _ask(_SUSPEND)
