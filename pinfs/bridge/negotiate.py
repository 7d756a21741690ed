"""INIT: what the kernel and pinfs agree on (fuse_init_in and fuse_init_out of linux/fuse.h)."""

import errno
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from pinfs.bridge import wire
from pinfs.linux.abi import PAGE_SIZE

PROTOCOL_MAJOR: Final = 7
PROTOCOL_MINOR: Final = 45  # what wire.py knows
OLDEST_MINOR: Final = 23  # Linux 3.15: the last that changed a struct which every connection uses (fuse_init_out)
MAX_WRITE: Final = 1 << 20  # bytes; also the largest read
BUFFER_SIZE: Final = MAX_WRITE + 4096  # fuse_dev_read wants room for header, fuse_write_in and max_write


class Init(IntFlag):
    """Flags of INIT; bits 32 and up travel in `flags2`."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
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
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39


# What pinfs always wants, and why. What is not here stays off:
#   POSIX_LOCKS, FLOCK_LOCKS: the kernel's own locks are right for a file system that only this kernel uses;
#   SPLICE_*: a request is one read(2) into a buffer that is already there, and bulk data goes by passthrough;
#   WRITEBACK_CACHE: excludes passthrough, and would let the kernel believe its own sizes and times;
#   EXPLICIT_INVAL_DATA: pages would stay valid when a size changes behind pinfs, with NUL bytes up to the new end
#     (fuse_change_attributes); AUTO_INVAL_DATA excludes it;
#   NO_OPEN, NO_OPENDIR: without OPEN there is no handle that could own a pin, nor a passthrough file;
#   SECURITY_CTX, CREATE_SUPP_GROUP: would append extensions to requests that no handler looks at.
WANTED: Final = (
    Init.ASYNC_READ  # read ahead with several requests at a time
    | Init.ATOMIC_O_TRUNC  # O_TRUNC comes with OPEN, so that a waiting breaker holds no lock of the inode
    | Init.BIG_WRITES
    | Init.DONT_MASK  # umask comes as a number with each creation: a default ACL has to win over it
    | Init.HAS_IOCTL_DIR
    | Init.DO_READDIRPLUS  # names with their attributes: a walk costs one request instead of one for each name,
    | Init.READDIRPLUS_AUTO  # but only where the caller asks for attributes
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS  # lookups in one directory need not wait for each other: nothing here changes state halfway
    | Init.ABORT_ERROR  # tells an aborted connection (ECONNABORTED) from an unmounted one (ENODEV)
    | Init.MAX_PAGES  # 1 MiB a request instead of 128 KiB
    | Init.CACHE_SYMLINKS
    | Init.AUTO_INVAL_DATA  # attributes that show another size or mtime drop the pages: the source changed behind pinfs
    | Init.HANDLE_KILLPRIV_V2  # else every write first asks for the attribute security.capability
    | Init.SETXATTR_EXT  # else the kernel does not tell when an ACL set by its owner costs the set-group-id bit
    | Init.INIT_EXT
    | Init.HAS_RESEND  # what a daemon that died had read comes to the next one again, with a bit in its number
)

MAX_BACKGROUND: Final = 64  # read-ahead and asynchronous direct I/O under way; the kernel's default of 12 is for disks


@dataclass(frozen=True)
class Requested:
    """What the options of a mount ask of the kernel."""

    passthrough: bool = False
    stack_depth: int = 1  # of file systems below: 2 where the source itself lies on a stacked one (overlayfs)
    posix_acl: bool = False
    nfs_export: bool = False  # False: NFS servers and name_to_handle_at(2) are told so, instead of ESTALE later on


@dataclass(frozen=True)
class Negotiated:
    """What the kernel and pinfs agreed on."""

    kernel_minor: int
    offered: Init
    flags: Init

    @property
    def passthrough(self) -> bool:
        return bool(self.flags & Init.PASSTHROUGH)

    @property
    def resends(self) -> bool:
        """Whether another daemon can take over: the kernel sends requests again (Linux 6.9)."""
        return bool(self.offered & Init.HAS_RESEND)

    @property
    def names(self) -> list[str]:
        """For logs and listings."""
        return [flag.name for flag in Init if flag.name and flag in self.flags]


def negotiate(body: memoryview, requested: Requested) -> tuple[Negotiated | None, bytes]:
    """The outcome of an INIT request, and the reply's body.

    The outcome is None for a kernel of a newer major version: the reply names ours, and the kernel asks again with it,
    as do_init of libfuse has it. OSError: EPROTO (the kernel is too old), EINVAL (the body is too short).
    """
    if len(body) < wire.INIT_IN.size:
        raise OSError(errno.EINVAL, "an INIT that is too short")
    major, minor, max_readahead, flags = wire.INIT_IN.unpack_from(body)
    if major > PROTOCOL_MAJOR:
        return None, wire.INIT_OUT.pack(PROTOCOL_MAJOR, PROTOCOL_MINOR, *[0] * 11)
    if (major, minor) < (PROTOCOL_MAJOR, OLDEST_MINOR):
        oldest = f"{PROTOCOL_MAJOR}.{OLDEST_MINOR} or later (Linux 3.15)"
        raise OSError(errno.EPROTO, f"the kernel speaks FUSE {major}.{minor}, and the bridge needs {oldest}")
    if flags & Init.INIT_EXT and len(body) >= wire.INIT_IN.size + wire.INIT_FLAGS2.size:  # since 7.36
        flags |= wire.INIT_FLAGS2.unpack_from(body, wire.INIT_IN.size)[0] << 32
    wanted = WANTED
    if requested.passthrough:
        wanted |= Init.PASSTHROUGH
    if requested.posix_acl:
        wanted |= Init.POSIX_ACL
    wanted |= Init.EXPORT_SUPPORT if requested.nfs_export else Init.NO_EXPORT_SUPPORT
    offered = Init(flags)
    negotiated = Negotiated(minor, offered, offered & wanted)
    return negotiated, _init_out(negotiated, max_readahead, requested.stack_depth if negotiated.passthrough else 0)


def max_pages(page_size: int) -> int:
    """The pages of one request (fuse_init_out.max_pages), so that it carries MAX_WRITE bytes: 256 of 4 KiB."""
    return MAX_WRITE // page_size


def _init_out(negotiated: Negotiated, max_readahead: int, stack_depth: int) -> bytes:
    return wire.INIT_OUT.pack(
        PROTOCOL_MAJOR,
        min(negotiated.kernel_minor, PROTOCOL_MINOR),
        max_readahead,
        negotiated.flags & 0xFFFF_FFFF,
        MAX_BACKGROUND,
        MAX_BACKGROUND * 3 // 4,  # above this the kernel tells writers that the device is congested
        MAX_WRITE,
        1,  # times count in nanoseconds
        max_pages(PAGE_SIZE),
        0,
        negotiated.flags >> 32,
        stack_depth,
        0,  # no timeout for requests: a breaker may wait for long
    )
