"""What tells apart two inodes that have had one number.

A file system may give the number of a removed file to the next one at once (ext4 does). While the daemon has a
descriptor of an inode, its number cannot be used again: the descriptor keeps the inode. Before the last descriptor of
an inode that the kernel may cache data of is closed, its life is noted (`Inode.life`), and compared when the number
turns up again with another time of change.
"""

import time
from contextlib import suppress
from typing import Final

from pinfs.fs.types import StatLike
from pinfs.linux import filehandles, syscalls

LIVED_BEFORE: Final = b"before this daemon"
"""The life of an inode that the daemon before knew: it was born before that one ended."""
A_TICK_NS: Final = 10_000_000
"""Before Linux 6.13 two changes in one tick of the kernel's clock (10 ms at most) may have one time."""


def life_of(fd: int) -> bytes:
    """The file handle of what `fd` (O_PATH will do) refers to, which holds a generation; its time of birth where the
    file system has no handles; empty where it has neither, and numbers are all there is."""
    with suppress(OSError):
        return filehandles.handle_of(fd)
    with suppress(OSError):
        birth_ns = syscalls.birth_time_ns(fd)
        return b"" if birth_ns is None else b"%d" % birth_ns
    return b""


def settled_ctime_ns(st: StatLike) -> int:
    """The time of change in nanoseconds, if a later change must show another one; else 0, which no time equals."""
    ctime_ns = st.st_ctime_ns
    return ctime_ns if time.time_ns() - ctime_ns > A_TICK_NS else 0


def was_born_after(fd: int, moment_ns: int) -> bool:
    """Whether what `fd` refers to is younger than a moment, as far as its file system tells (statx(2), stx_btime)."""
    birth_ns = syscalls.birth_time_ns(fd)
    return birth_ns is not None and birth_ns > moment_ns
