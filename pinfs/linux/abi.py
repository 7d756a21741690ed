"""The machines whose numbers and layouts pinfs knows: 64-bit little-endian Linux, x86_64 and aarch64.

Structs, ioctl numbers and system call numbers are written down in this package, not taken from a compiler. On another
machine they would not fail: they would mean something else (powerpc and mips have other ioctl numbers, a 32-bit process
has another siginfo_t). So the daemon asks `require_supported_abi` before it mounts, the client before its first ioctl.
"""

import errno
import os
import struct
import sys
from functools import cache
from typing import Final

PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")
"""Bytes of a page of memory: 4 KiB on x86_64; 4, 16 or 64 KiB on aarch64, as the kernel was built."""

KNOWN_MACHINES: Final = frozenset({"x86_64", "aarch64", "i686", "armv8l"})
"""What uname(2) says on them; the last two to a 64-bit process that runs under setarch(8)."""


class UnsupportedABIError(OSError):
    """pinfs has no numbers and layouts for this machine (ENOTSUP)."""


def mismatch_of(system: str, machine: str, pointer_bytes: int, byte_order: str) -> str:
    """What of an ABI pinfs does not know; '' where it knows all of it."""
    if system != "linux":
        return f"the operating system {system}"
    if pointer_bytes != 8:
        return f"pointers of {pointer_bytes * 8} bits"
    if byte_order != "little":
        return f"{byte_order}-endian numbers"
    return "" if machine in KNOWN_MACHINES else f"the machine {machine}"


@cache
def require_supported_abi() -> None:
    """Raises UnsupportedABIError (ENOTSUP) where this process runs on anything but what this package knows."""
    mismatch = mismatch_of(sys.platform, os.uname().machine, struct.calcsize("P"), sys.byteorder)
    if mismatch:
        known = "64-bit little-endian Linux on x86_64 and aarch64"
        raise UnsupportedABIError(errno.ENOTSUP, f"pinfs knows the kernel's structs of {known} only, not {mismatch}")
