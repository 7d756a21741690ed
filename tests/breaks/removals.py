"""Every call known to take bytes from a file on Linux 6.18, or to give them other storage. Runs inside actors,
standard library only.

A removal is tried on a file of three pages that differ. `Place` has what a process had before the file was pinned.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from support import acts, uring

PAGE = 4096
PAGES = [bytes([number]) * PAGE for number in (1, 2, 3)]
CONTENT = b"".join(PAGES)
SIZE = len(CONTENT)
WORKERS = 32

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE, WRITE_ZEROES = 1, 2, 8, 16, 32, 64, 128
MADV_REMOVE = 9
RENAME_EXCHANGE = 2
AT_FDCWD = -100
APPEND, IMMUTABLE = 0x20, 0x10  # FS_APPEND_FL, FS_IMMUTABLE_FL
GETFLAGS, SETFLAGS = 0x8008_6601, 0x4008_6602
FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x4004_9409, 0x4020_940D, 0xC018_9436
UNRESVSP64, RESV_ZERO_RANGE = 0x4030_582B, 0x4030_5839
MOVE_EXT, SWAP_BOOT = 0xC028_660F, 0x6611
EXCHANGE_RANGE, SWAPEXT, BULKSTAT_SINGLE = 0x4028_5881, 0xC0C0_586D, 0xC020_5866
FIEMAP = 0xC020_660B
_MOVE = struct.Struct("<IIQQQQ")
_CLONE_RANGE = struct.Struct("<qQQQ")
_DEDUPE = struct.Struct("<QQHHIqQQiI")
_SPACE = struct.Struct("<hh4xqqiI16x")
_EXCHANGE = struct.Struct("<iIQQQQ")
_FIEMAP = struct.Struct("<QQIIIIQQQ32x")


@dataclass
class Place:
    """A directory with the files `f` and `donor`, which has the same bytes in other blocks, and `new`."""

    directory: str
    fd: int = -1
    donor: int = -1
    address: int = 0

    @property
    def file(self) -> str:
        return f"{self.directory}/f"


Act = Callable[[Place], object]
MOUNT, SOURCE = "mount", "source"
ANYWHERE = {"mount": MOUNT, "behind": SOURCE, "dead": SOURCE}
MAPPED = {"mapping": MOUNT, "behind": SOURCE, "dead": MOUNT}
FROM_BEFORE = {"dead": MOUNT}


@dataclass(frozen=True)
class Removal:
    """`has`: what the process opened before the pin came ("handle", "mapping", nothing). `where`: for each column of
    the table through which directory it goes. `on`: the backing, and how it is mounted."""

    text: str
    act: Act
    has: str = ""
    where: dict[str, str] = field(default_factory=lambda: ANYWHERE)
    on: str = "ext4"


def _handle(text: str, act: Act, on: str = "ext4", where: dict[str, str] = ANYWHERE) -> Removal:
    return Removal(text, act, "handle", where, on)


def _mapping(text: str, act: Act, on: str = "ext4") -> Removal:
    return Removal(text, act, "mapping", MAPPED, on)


# ---- the removals


def _opened(flags: int) -> Act:
    return lambda place: os.close(os.open(place.file, flags))


def _fallocate(mode: int, offset: int = PAGE, length: int = PAGE) -> Act:
    return lambda place: acts.fallocate(place.fd, mode, offset, length)


def _ioctl(number: int, *values: Callable[[Place], bytes]) -> Act:
    return lambda place: fcntl.ioctl(place.fd, number, bytearray(b"".join(value(place) for value in values)))


def _ring(opcode: int, *arguments: int) -> Act:
    def submit(place: Place) -> None:
        with uring.Ring() as ring:
            ring.submit(opcode, place.fd, *arguments)

    return submit


def _space(place: Place) -> bytes:
    return _SPACE.pack(0, os.SEEK_SET, PAGE, PAGE, 0, 0)


def _madvise(place: Place) -> None:
    address = ctypes.c_void_p(place.address + PAGE)
    if acts.libc.madvise(address, ctypes.c_size_t(PAGE), MADV_REMOVE):
        raise OSError(ctypes.get_errno(), "madvise")


def _map_files(place: Place) -> None:
    os.close(os.open(f"/proc/self/map_files/{place.address:x}-{place.address + SIZE:x}", os.O_RDWR | os.O_TRUNC))


def _exchange(place: Place) -> None:
    old, new = place.file.encode(), f"{place.directory}/new".encode()
    if acts.libc.renameat2(AT_FDCWD, new, AT_FDCWD, old, RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")
    os.unlink(f"{place.directory}/new")


def _chattr_and_truncate(place: Place) -> None:
    (flags,) = struct.unpack("I", fcntl.ioctl(place.fd, GETFLAGS, b"\0" * 4))
    fcntl.ioctl(place.fd, SETFLAGS, struct.pack("L", flags & ~(APPEND | IMMUTABLE)))
    os.truncate(place.file, 0)


def _dedupe(place: Place) -> None:
    """Of the target's page, by the donor's equal one."""
    data = bytearray(_DEDUPE.pack(PAGE, PAGE, 1, 0, 0, place.fd, PAGE, 0, 0, 0))
    fcntl.ioctl(place.donor, FIDEDUPERANGE, data)
    if (status := _DEDUPE.unpack(data)[8]) < 0:
        raise OSError(-status, "FIDEDUPERANGE")


def _unshare(place: Place) -> None:
    """Of a page that shares its block with a third file: the pinned file is the one that gets a new block."""
    acts.fallocate(place.fd, UNSHARE_RANGE, 0, SIZE)


def _swap_extents(place: Place) -> None:
    """struct xfs_swapext with the struct xfs_bstat that the kernel compares with."""
    stat = ctypes.create_string_buffer(136)
    inode = ctypes.c_uint64(os.fstat(place.fd).st_ino)
    request = struct.pack("<QiiQQ", ctypes.addressof(inode), 1, 0, ctypes.addressof(stat), 0)
    fcntl.ioctl(place.fd, BULKSTAT_SINGLE, request)
    swap = struct.pack("<qqqqq16x", 0, place.fd, place.donor, 0, SIZE) + stat.raw
    fcntl.ioctl(place.fd, SWAPEXT, bytearray(swap))


REMOVALS: dict[str, Removal] = {
    "truncate": Removal("truncate(2)", lambda p: os.truncate(p.file, PAGE)),
    "ftruncate": _handle("ftruncate(2)", lambda p: os.ftruncate(p.fd, PAGE)),
    "open_trunc": Removal("open(2) with `O_TRUNC`", _opened(os.O_WRONLY | os.O_TRUNC)),
    "open_trunc_read": Removal("open(2) with `O_RDONLY` and `O_TRUNC`", _opened(os.O_RDONLY | os.O_TRUNC)),
    "creat": Removal("creat(2)", _opened(os.O_WRONLY | os.O_CREAT | os.O_TRUNC)),
    "proc_fd": _handle(
        "truncate(2) of /proc/PID/fd/N of an open handle", lambda p: os.truncate(f"/proc/self/fd/{p.fd}", PAGE)
    ),
    "uring_truncate": _handle("io_uring `IORING_OP_FTRUNCATE`", _ring(uring.FTRUNCATE, PAGE)),
    "punch": _handle("fallocate(2) `PUNCH_HOLE`", _fallocate(PUNCH_HOLE | KEEP_SIZE)),
    "zero": _handle("fallocate(2) `ZERO_RANGE`", _fallocate(ZERO_RANGE)),
    "collapse": _handle("fallocate(2) `COLLAPSE_RANGE`", _fallocate(COLLAPSE_RANGE)),
    "insert": _handle("fallocate(2) `INSERT_RANGE`", _fallocate(INSERT_RANGE)),
    "write_zeroes": _handle("fallocate(2) `WRITE_ZEROES`", _fallocate(WRITE_ZEROES)),
    "unshare": _handle("fallocate(2) `UNSHARE_RANGE`", _unshare, "xfs"),
    "punch_tmpfs": _handle("fallocate(2) `PUNCH_HOLE`", _fallocate(PUNCH_HOLE | KEEP_SIZE), "tmpfs"),
    "uring_punch": _handle(
        "io_uring `IORING_OP_FALLOCATE`, punching", _ring(uring.FALLOCATE, PAGE, PAGE, PUNCH_HOLE | KEEP_SIZE)
    ),
    "unresvsp": _handle("ioctl(2) `FS_IOC_UNRESVSP64`", _ioctl(UNRESVSP64, _space)),
    "resv_zero": _handle("ioctl(2) `FS_IOC_ZERO_RANGE`", _ioctl(RESV_ZERO_RANGE, _space)),
    "madvise": _mapping("madvise(2) `MADV_REMOVE`", _madvise),
    "madvise_tmpfs": _mapping("madvise(2) `MADV_REMOVE`", _madvise, "tmpfs"),
    "madvise_slow": Removal(
        "madvise(2) `MADV_REMOVE`",
        _madvise,
        "mapping",
        {"mapping": MOUNT, "dead": MOUNT},
        "tmpfs without passthrough",
    ),
    "map_files": _mapping("open(2) with `O_TRUNC` of /proc/PID/map_files/RANGE", _map_files),
    "unlink": Removal("unlink(2) of the last name", lambda p: os.unlink(p.file)),
    "unlink_tmpfs": Removal("unlink(2) of the last name", lambda p: os.unlink(p.file), on="tmpfs"),
    "rename_over": Removal("rename(2) over the last name", lambda p: os.rename(f"{p.directory}/new", p.file)),
    "exchange": Removal("renameat2(2) `RENAME_EXCHANGE`, then unlink(2) of the file", _exchange),
    "copy_file_range": _handle(
        "copy_file_range(2) of equal bytes, which shares blocks",
        lambda p: os.copy_file_range(p.donor, p.fd, SIZE, 0, 0),
        "xfs",
    ),
    "clone": _handle("ioctl(2) `FICLONE`", lambda p: fcntl.ioctl(p.fd, FICLONE, p.donor), "xfs"),
    "clone_range": _handle(
        "ioctl(2) `FICLONERANGE`", _ioctl(FICLONERANGE, lambda p: _CLONE_RANGE.pack(p.donor, PAGE, PAGE, PAGE)), "xfs"
    ),
    "dedupe": _handle("ioctl(2) `FIDEDUPERANGE`", _dedupe, "xfs"),
    "exchange_range": _handle(
        "ioctl(2) `XFS_IOC_EXCHANGE_RANGE`",
        _ioctl(EXCHANGE_RANGE, lambda p: _EXCHANGE.pack(p.donor, 0, 0, 0, SIZE, 0)),
        "xfs",
    ),
    "swap_extents": _handle("ioctl(2) `XFS_IOC_SWAPEXT`", _swap_extents, "xfs"),
    "move_extents": _handle(
        "ioctl(2) `EXT4_IOC_MOVE_EXT` (defragmentation)", _ioctl(MOVE_EXT, lambda p: _MOVE.pack(0, p.donor, 0, 0, 3, 0))
    ),
    "swap_boot": _handle("ioctl(2) `EXT4_IOC_SWAP_BOOT`", lambda p: fcntl.ioctl(p.fd, SWAP_BOOT)),
    "chattr": _handle("chattr -a -i, then truncate(2)", _chattr_and_truncate),
    "old_truncate": _handle(
        "ftruncate(2) of a handle of the mount that outlived the daemon",
        lambda p: os.ftruncate(p.fd, PAGE),
        where=FROM_BEFORE,
    ),
    "old_punch": _handle("fallocate(2) `PUNCH_HOLE`, the same", _fallocate(PUNCH_HOLE | KEEP_SIZE), where=FROM_BEFORE),
}


# ---- what an actor does

_places: dict[str, Place] = {}


def lay_out(directory: str, removal: str) -> None:
    """The files of one trial, in the source."""
    os.makedirs(directory)
    for name in ("f", "donor", "new"):
        fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT, 0o666)
        os.write(fd, CONTENT)
        os.fsync(fd)
        os.close(fd)
    if removal == "unshare":
        with open(f"{directory}/f", "rb") as file, open(f"{directory}/shares", "wb") as third:
            fcntl.ioctl(third, FICLONE, file.fileno())


def get_ready(trials: Sequence[tuple[str, str]]) -> None:
    """Opens and maps what the removals of (removal, directory) need. A descriptor keeps the bytes of a name."""
    for name, directory in trials:
        place = _places[directory] = Place(directory)
        if REMOVALS[name].has == "handle":
            place.fd = os.open(place.file, os.O_RDWR)
            place.donor = os.open(f"{directory}/donor", os.O_RDWR)
        elif REMOVALS[name].has == "mapping":
            place.address = acts.map_file(place.file, SIZE)
            acts.peek(place.address, SIZE)


def perform(trials: Sequence[tuple[str, str]]) -> list[int | None]:
    """Makes each (removal, directory). Returns their errnos, None for success."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(_perform, trials))


def _perform(trial: tuple[str, str]) -> int | None:
    """In a thread of its own: work that a closed ring leaves to its thread would interrupt that thread's next call."""
    name, directory = trial
    try:
        acts.in_thread(REMOVALS[name].act, _places[directory])
    except OSError as failure:
        return failure.errno
    return None


# ---- what became of the pinned page, looked at behind the mount


@dataclass(frozen=True)
class State:
    """The bytes of the middle page, and where they lie on the disk (0: nowhere, or no disk); None: no such inode."""

    data: bytes | None
    block: int = 0


class FileHandle:
    """A file by its inode (name_to_handle_at(2)): reaches it without a name and keeps nothing alive."""

    def __init__(self, path: str) -> None:
        self.inode = os.stat(path).st_ino
        self._root = os.path.dirname(path)
        self._handle = ctypes.create_string_buffer(struct.pack("<Ii128x", 128, 0))
        if acts.libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), self._handle, ctypes.byref(ctypes.c_int()), 0):
            raise OSError(ctypes.get_errno(), f"name_to_handle_at {path}")

    def state(self) -> State:
        """As it is now."""
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        fd = acts.libc.open_by_handle_at(root, self._handle, os.O_RDONLY)
        os.close(root)
        if fd < 0:
            return State(None)
        try:
            return State(os.pread(fd, PAGE, PAGE), _block(fd))
        finally:
            os.close(fd)


def _block(fd: int) -> int:
    """Where the middle page lies, in bytes; 0 for a hole, and on a file system without FIEMAP."""
    data = bytearray(_FIEMAP.pack(PAGE, 1, 1, 0, 1, 0, 0, 0, 0) + b"\0" * 8)
    try:
        fcntl.ioctl(fd, FIEMAP, data)
    except OSError:
        return 0
    _, _, _, mapped, _, _, logical, physical, _ = _FIEMAP.unpack_from(data)
    return int(physical + PAGE - logical) if mapped else 0
