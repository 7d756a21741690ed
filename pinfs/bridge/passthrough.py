"""FUSE passthrough (Linux 6.9): backing files that the kernel reads, writes and maps by itself."""

import errno
import logging
import os
from typing import Final

from pinfs.linux.calls import close_backing, open_backing
from pinfs.linux.syscalls import file_system_magic

log = logging.getLogger("pinfs.passthrough")

UNMOUNTED: Final = frozenset({errno.ENOTCONN, errno.ENODEV, errno.EPERM})
"""What the ioctls raise when the connection is over; the kernel has dropped all ids then."""

STACKED: Final = frozenset({0x794C7630, 0xF15F, 0x65735546})  # overlayfs, ecryptfs, FUSE (which may stack itself)


def stack_depth(source_fd: int) -> int:
    """The `max_stack_depth` that passthrough to this directory needs.

    1 unless the source lies on a stacked file system: with 2, nothing can be stacked on the mount any more
    (FILESYSTEM_MAX_STACK_DEPTH), so it is asked for only where it is needed.
    """
    return 2 if file_system_magic(source_fd) in STACKED else 1


class Passthrough:
    """Registers backing files on one connection, for passthrough.

    `unavailable_because` is empty once probe() has shown that it works.
    """

    def __init__(self) -> None:
        self.unavailable_because = "not negotiated yet"
        self.registered = 0
        self._connection = -1
        self._reported: set[int] = set()

    def probe(self, connection: int, source_fd: int) -> None:
        """Register a file of the source (or the source itself) once, after INIT, to see whether the kernel takes it."""
        self._connection = connection
        try:
            sample = _sample(source_fd)
            try:
                self._close(self._open(sample))
            finally:
                os.close(sample)
        except OSError as e:
            self.unavailable_because = _reason(e)
        else:
            self.unavailable_because = ""

    def use(self, connection: int) -> None:
        """Register on this connection without a probe: for the probe of something else."""
        self._connection, self.unavailable_because = connection, ""

    def refuse(self, unavailable_because: str) -> None:
        """The kernel or the options rule it out."""
        self.unavailable_because = unavailable_because

    def open(self, fd: int) -> int:
        """The backing id for a file; 0 where its reads and writes have to go through the daemon."""
        if self.unavailable_because:
            return 0
        try:
            backing_id = self._open(fd)
        except OSError as e:
            self._report(e)
            return 0
        self.registered += 1
        return backing_id

    def adopt(self) -> None:
        """Count an id that the daemon before has registered on this connection."""
        self.registered += 1

    def close(self, backing_id: int) -> None:
        """Give an id back. Files that are still open keep their backing file all the same."""
        self.registered -= 1
        try:
            self._close(backing_id)
        except OSError as e:
            if e.errno not in UNMOUNTED:
                log.error("backing id %d cannot be given back: %s", backing_id, e)

    def _open(self, fd: int) -> int:
        return open_backing(self._connection, fd)

    def _close(self, backing_id: int) -> None:
        close_backing(self._connection, backing_id)

    def _report(self, e: OSError) -> None:
        if e.errno not in self._reported:
            self._reported.add(e.errno or 0)
            log.info("some files go through the daemon: %s", _reason(e))


def _sample(source_fd: int) -> int:
    """Something on the source's file system to register: a nameless file, else any regular file, else the directory."""
    try:
        return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=source_fd)
    except OSError:
        pass
    directory = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source_fd)
    try:
        names = (entry.name for entry in os.scandir(directory) if entry.is_file(follow_symlinks=False))
        return os.open(next(names, "."), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source_fd)
    finally:
        os.close(directory)


def _reason(e: OSError) -> str:
    if e.errno == errno.EPERM:
        return "CAP_SYS_ADMIN in the initial user namespace is needed to register backing files"
    if e.errno == errno.ELOOP:
        return "the source lies on a file system that is stacked on others already"
    return f"the kernel refused the backing file: {os.strerror(e.errno or 0)}"
