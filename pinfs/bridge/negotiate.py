"""INIT: what the kernel and pinfs agree on. libfuse only learns that it has been initialised.

The numbers are those of linux/fuse.h.
"""

from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import Final

from pinfs.bridge import wire
from pinfs.linux.abi import PAGE_SIZE

PROTOCOL_MINOR: Final = 45  # what wire.py knows
MAX_WRITE: Final = 1 << 20  # bytes; also the largest read
BUFFER_SIZE: Final = MAX_WRITE + 4096  # fuse_dev_read wants room for header, fuse_write_in and max_write


class Init(IntFlag):
    """Flags of INIT; bits 32 and up travel in `flags2`."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE = 0b111 << 7
    HAS_IOCTL_DIR = 1 << 11
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


# What pinfs always wants, and why. What is not here stays off:
#   POSIX_LOCKS, FLOCK_LOCKS: the kernel's own locks are right for a file system that only this kernel uses;
#   WRITEBACK_CACHE: excludes passthrough, and would let the kernel believe its own sizes and times;
#   AUTO_INVAL_DATA: nothing changes behind pinfs that it would have to notice by looking at mtime;
#   EXPORT_SUPPORT: "." and ".." would have to be looked up after a restart of an NFS server;
#   NO_OPEN, NO_OPENDIR: without OPEN there is no handle that could own a pin, nor a passthrough file;
#   SECURITY_CTX, CREATE_SUPP_GROUP: would append extensions to requests that libfuse cannot parse.
WANTED: Final = (
    Init.ASYNC_READ  # read ahead with several requests at a time
    | Init.ATOMIC_O_TRUNC  # O_TRUNC comes with OPEN, so that a waiting breaker holds no lock of the inode
    | Init.BIG_WRITES
    | Init.DONT_MASK  # umask comes as a number with each creation: a default ACL has to win over it
    | Init.HAS_IOCTL_DIR
    | Init.DO_READDIRPLUS  # names with their attributes: a walk costs one request instead of one for each name,
    | Init.READDIRPLUS_AUTO  # but only for who asks for attributes
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS  # lookups in one directory need not wait for each other: nothing here changes state halfway
    | Init.ABORT_ERROR  # tells an aborted connection (ECONNABORTED) from an unmounted one (ENODEV)
    | Init.MAX_PAGES  # 1 MiB a request instead of 128 KiB
    | Init.CACHE_SYMLINKS
    | Init.EXPLICIT_INVAL_DATA  # pages stay valid when a size changes: pinfs is the only way in
    | Init.HANDLE_KILLPRIV_V2  # else every write first asks for the attribute security.capability
    | Init.SETXATTR_EXT  # else nobody says when an ACL set by its owner costs a file its set-group-id bit
    | Init.INIT_EXT
)

MAX_BACKGROUND: Final = 64  # read-ahead and asynchronous direct I/O under way; the kernel's default of 12 is for disks
LIBFUSE_MINOR: Final = 13  # the last one without splice: libfuse takes that to be possible by the version, too
_FLAGS = Struct("<I")


@dataclass(frozen=True)
class Wishes:
    """What the options of a mount ask of the kernel."""

    passthrough: bool = False
    stack_depth: int = 1  # of file systems below: 2 where the source itself lies on a stacked one (overlayfs)
    posix_acl: bool = False
    poll: bool = True  # False: POLL is answered ENOSYS, and the kernel never asks again


@dataclass(frozen=True)
class Terms:
    """What was agreed on."""

    kernel_minor: int
    offered: Init
    flags: Init

    @property
    def passthrough(self) -> bool:
        return bool(self.flags & Init.PASSTHROUGH)

    @property
    def names(self) -> list[str]:
        """For logs and listings."""
        return [flag.name for flag in Init if flag.name and flag in self.flags]


def agree(body: memoryview, wishes: Wishes) -> tuple[Terms, bytes]:
    """The terms for an INIT request, and the reply's body."""
    _, minor, max_readahead, flags, flags2 = wire.INIT_IN.unpack_from(body)
    offered = Init(flags | (flags2 << 32 if flags & Init.INIT_EXT else 0))
    wanted = WANTED | (Init.PASSTHROUGH if wishes.passthrough else 0) | (Init.POSIX_ACL if wishes.posix_acl else 0)
    terms = Terms(minor, offered, offered & wanted)
    return terms, _init_out(terms, max_readahead, wishes.stack_depth if terms.passthrough else 0)


def max_pages(page_size: int) -> int:
    """The pages of one request (fuse_init_out.max_pages), so that it carries MAX_WRITE bytes: 256 of 4 KiB."""
    return MAX_WRITE // page_size


def _init_out(terms: Terms, max_readahead: int, stack_depth: int) -> bytes:
    return wire.INIT_OUT.pack(
        7,
        min(terms.kernel_minor, PROTOCOL_MINOR),
        max_readahead,
        terms.flags & 0xFFFF_FFFF,
        MAX_BACKGROUND,
        MAX_BACKGROUND * 3 // 4,  # above this the kernel tells writers that the device is congested
        MAX_WRITE,
        1,  # times count in nanoseconds
        max_pages(PAGE_SIZE),
        0,
        terms.flags >> 32,
        stack_depth,
        0,  # no timeout for requests: a breaker may wait for long
    )


def strip(request: bytearray) -> None:
    """Make an INIT request such that libfuse will not splice: what it reads from is a socket, not /dev/fuse."""
    (flags,) = _FLAGS.unpack_from(request, wire.IN_SIZE + 12)
    _FLAGS.pack_into(request, wire.IN_SIZE + 4, LIBFUSE_MINOR)
    _FLAGS.pack_into(request, wire.IN_SIZE + 12, flags & ~int(Init.SPLICE | Init.INIT_EXT))
