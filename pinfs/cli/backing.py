"""Checks of a directory as a source for pinfs: file system, DAX, shared extents, copy on write."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pinfs.cli.findings import Finding, bad, ok, warn
from pinfs.interface.names import FSTYPE
from pinfs.linux.filesystems import page_pins, unservable_because
from pinfs.linux.ioctl import FICLONE, FS_IOC_FIEMAP, FS_IOC_GETFLAGS
from pinfs.linux.mountinfo import mount_at, mounts
from pinfs.linux.syscalls import attributes_of, known_attributes_of
from pinfs.observe.wording import page_pins_text

STATX_ATTR_DAX: Final = 0x00200000  # statx(2)
_FIEMAP_EXTENT_SHARED: Final = 0x2000
_FIEMAP_EXTENT_LAST: Final = 0x1
_FIEMAP_HEAD: Final = struct.Struct("=QQIIII")
_FIEMAP_EXTENT: Final = struct.Struct("=QQQQQIIII")
_EXTENTS_PER_CALL: Final = 128
_FS_NOCOW_FL: Final = 0x00800000

_MOVES_BLOCKS = {"btrfs", "bcachefs", "zfs", "nilfs2"}
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "glusterfs", "lustre"}

_HUGE_TMPFS: Final = "mount -t tmpfs -o huge=always,size=SIZE tmpfs DIRECTORY"

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Extents:
    """Extents of the files of a directory."""

    files: int
    shared: list[str]  # relative paths of files that share blocks with others
    answered: bool  # whether the file system supports FIEMAP


def check_backing(directory: str, progress: Progress = lambda _files: None) -> Iterator[Finding]:
    """Findings about `directory`; `progress` is called with the number of files examined so far."""
    if not stat.S_ISDIR(Path(directory).stat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory)
    kind = filesystem_type(directory)
    if why := _unservable_because(directory):
        yield bad("backing", f"{directory} cannot be served: {why}", _HUGE_TMPFS)
        return
    yield _type(directory, kind)
    yield _access(directory)
    with _scratch_file(directory) as scratch:
        yield _dax(directory, scratch)
        yield _copy_on_write(directory, kind, scratch)
    yield _page_pins(directory)
    yield _shared(kind, examine_extents(directory, progress))


def filesystem_type(path: str) -> str:
    """The type that /proc/self/mountinfo gives for the mount below `path`."""
    device = Path(path).stat().st_dev
    of_device = next((entry for entry in mounts() if entry.dev == device), None)
    entry = of_device or mount_at(os.path.realpath(path))  # btrfs shows other device numbers in stat(2)
    return entry.fstype if entry else "unknown"


def _unservable_because(directory: str) -> str:
    with _by_path(directory) as fd:
        return unservable_because(fd)


def _type(directory: str, kind: str) -> Finding:
    text = f"{directory} is {kind}"
    if kind == FSTYPE:
        return bad("backing", f"{text}: the two would ignore each other's pins",
                   "mount the directory below it, not the pinfs mount itself")  # fmt: skip
    if kind.startswith("fuse"):
        # The kernel stacks no deeper (FILESYSTEM_MAX_STACK_DEPTH).
        return warn("backing", f"{text}: passthrough reaches that file system, whose own requests stay slow",
                    "use the file system below it, if there is one")  # fmt: skip
    if kind == "overlay":
        return warn("backing", f"{text}: the first write of a file moves its bytes to the upper layer",
                    "use a volume or a bind mount instead of a container's own layers")  # fmt: skip
    if kind in _NETWORK:
        return warn("backing", f"{text}: other machines can truncate files in spite of pins",
                    "-o cluster=ENDPOINTS on all of them (docs/hosts.md), or a local file system")  # fmt: skip
    return ok("backing", text)


def _access(directory: str) -> Finding:
    if os.access(directory, os.W_OK):
        return ok("access", f"{directory} can be written")
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return warn("access", f"{directory} is mounted read-only", "mount -o remount,rw, if files should be written")
    return warn("access", f"{directory} cannot be written by this user", "run the doctor as the user that will mount")


@contextmanager
def _scratch_file(directory: str) -> Iterator[int | None]:
    """A nameless file (O_TMPFILE) for probes, which leaves nothing behind; None where it cannot be created."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def statx_attributes(path: str | int) -> tuple[int, int]:
    """(attributes, attributes_mask) of statx(2), of a path or an open descriptor."""
    if isinstance(path, int):
        return attributes_of(path), known_attributes_of(path)
    with _by_path(path) as fd:
        return statx_attributes(fd)


@contextmanager
def _by_path(path: str) -> Iterator[int]:
    """A descriptor of a path (O_PATH)."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _dax(directory: str, scratch: int | None) -> Finding:
    attributes, _mask = statx_attributes(directory if scratch is None else scratch)
    if attributes & STATX_ATTR_DAX:
        return ok("dax", "new files are DAX: a mapping is the persistent memory itself")
    return ok("dax", "no")


def _page_pins(directory: str) -> Finding:
    """What devices can do with files of a mount with passthrough."""
    with _by_path(directory) as fd:
        return ok("page pins", page_pins_text(page_pins(fd)))


def _copy_on_write(directory: str, kind: str, scratch: int | None) -> Finding:
    check = "copy on write"
    if kind in _MOVES_BLOCKS:
        if scratch is not None and _inode_flags(scratch) & _FS_NOCOW_FL:
            return ok(check, f"{kind}, but new files here are NOCOW; a snapshot still makes the next write move")
        return bad(check, f"{kind} moves the blocks on every write", f"chattr +C {directory} before the files are made")
    if scratch is None:
        return warn(check, "cannot be probed without writing here", "run the doctor as a user that may write")
    if _can_clone(directory, scratch):
        return warn(check, f"{kind} can share blocks between files (reflink): a write into a shared block moves it",
                    "do not reflink pinned files (cp --reflink=never)")  # fmt: skip
    return ok(check, "writes stay in place")


def _inode_flags(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))[:4], "little")
    except OSError:
        return 0


def _can_clone(directory: str, source: int) -> bool:
    """Whether FICLONE works here, tried on two nameless files (ioctl_ficlone(2))."""
    os.pwrite(source, bytes(4096), 0)
    with _scratch_file(directory) as target:
        if target is None:
            return False
        try:
            fcntl.ioctl(target, FICLONE, source)
        except OSError:
            return False
    return True


def examine_extents(directory: str, progress: Progress) -> Extents:
    """Walk the regular files below `directory` (on its file system only) and read the extents of each."""
    files, shared, answered = 0, [], False
    for path in _regular_files(directory):
        files += 1
        progress(files)
        flags = _extent_flags(path)
        if flags is not None:
            answered = True
            if flags & _FIEMAP_EXTENT_SHARED:
                shared.append(os.path.relpath(path, directory))
    return Extents(files, shared, answered)


def _regular_files(directory: str) -> Iterator[str]:
    device = Path(directory).stat().st_dev
    for where, subdirectories, names, fd in os.fwalk(directory):
        if os.fstat(fd).st_dev != device:
            subdirectories.clear()
            continue
        for name in names:
            with suppress(OSError):  # it was removed meanwhile
                if stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    yield f"{where}/{name}"


def _extent_flags(path: str) -> int | None:
    """The flags of all extents, or-ed; None if the file system or this file does not support FIEMAP."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _all_extent_flags(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def _all_extent_flags(fd: int) -> int:
    start, flags = 0, 0
    while True:
        extents = _extents_from(fd, start)
        for _logical, _physical, _length, extent_flags in extents:
            flags |= extent_flags
        if not extents or flags & _FIEMAP_EXTENT_LAST:
            return flags
        start = extents[-1][0] + extents[-1][2]


def _extents_from(fd: int, start: int) -> list[tuple[int, int, int, int]]:
    """(logical, physical, length, flags) of the next extents from byte `start` on."""
    request = bytearray(_FIEMAP_HEAD.size + _EXTENTS_PER_CALL * _FIEMAP_EXTENT.size)
    _FIEMAP_HEAD.pack_into(request, 0, start, (1 << 63) - 1 - start, 0, 0, _EXTENTS_PER_CALL, 0)
    fcntl.ioctl(fd, FS_IOC_FIEMAP, request)
    count = _FIEMAP_HEAD.unpack_from(request)[3]
    raw = memoryview(request)[_FIEMAP_HEAD.size :][: count * _FIEMAP_EXTENT.size]
    return [(e[0], e[1], e[2], e[5]) for e in _FIEMAP_EXTENT.iter_unpack(raw)]


def _shared(kind: str, extents: Extents) -> Finding:
    check = "shared extents"
    if not extents.files:
        return ok(check, "no files yet")
    if not extents.answered:
        return ok(check, f"{kind} does not report extents ({extents.files} files)")
    if extents.shared:
        some = ", ".join(extents.shared[:3]) + (", ..." if len(extents.shared) > 3 else "")
        text = f"{len(extents.shared)} of {extents.files} files share blocks with others: {some}"
        return warn(check, text, "rewrite them before pinning: cp --reflink=never FILE NEW && mv NEW FILE")
    return ok(check, f"none in {extents.files} files")
