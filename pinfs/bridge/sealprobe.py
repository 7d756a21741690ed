"""Whether seals work here (SPEC 12), found out by trying: a nameless file of the source is sealed, and opened for
writing through a mount that passes the handle through to it.

The kernel up to 6.18 does not look at the append-only flag when it opens the backing file of a passthrough handle
(backing_file_open()); 7.3 does, and every new writer gets EIO. The mount itself cannot be asked: the daemon would wait
for itself, and its files are of use to others. So the probe has a FUSE mount of its own, which stands nowhere in the
tree and whose root is the one file.
"""

import errno
import os
import select
import stat
import threading
import time
from contextlib import suppress
from typing import Final

from pinfs.bridge import wire
from pinfs.bridge.negotiate import Requested, negotiate
from pinfs.bridge.passthrough import Passthrough
from pinfs.linux import syscalls
from pinfs.linux.inodeflags import APPEND, get_flags, set_flags
from pinfs.linux.newmount import detached_mount

LIMIT_S: Final = 3.0
"""What the probe's mount may take to answer; it takes a few milliseconds."""
_REQUEST_BYTES: Final = 2 << 20


def seal_unavailable_because(source_fd: int, *, passthrough: bool, stack_depth: int) -> str:
    """Why files of this source cannot be sealed, in words; empty where they can.

    `passthrough`: files of the mount are passed through; `stack_depth` as for the mount.
    """
    try:
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=source_fd)
    except OSError as e:
        return f"the source has no nameless files to try it with: {os.strerror(e.errno or 0)}"
    try:
        return _try(fd, passthrough, stack_depth)
    except OSError as e:
        return f"trying it failed: {os.strerror(e.errno or 0)}"
    finally:
        with suppress(OSError):
            set_flags(fd, get_flags(fd) & ~APPEND)
        os.close(fd)


def _try(fd: int, passthrough: bool, stack_depth: int) -> str:
    os.ftruncate(fd, 8192)
    try:
        flags = get_flags(fd)
        set_flags(fd, flags | APPEND)
    except PermissionError:
        return "CAP_LINUX_IMMUTABLE in the initial user namespace is needed"
    except OSError as e:
        return f"the source has no append-only flag: {os.strerror(e.errno or 0)}"
    if _can_cut(fd):
        return "the append-only flag of the source does not keep files from being cut"
    if passthrough and (failure := _open_passed_through(fd, stack_depth)):
        return f"with passthrough, this kernel opens no sealed file for writing: {os.strerror(failure)}"
    set_flags(fd, flags)
    return "" if _can_cut(fd) else "the append-only flag of the source cannot be lifted"


def _can_cut(fd: int) -> bool:
    try:
        os.ftruncate(fd, 4096)
    except PermissionError:
        return False
    return True


def _open_passed_through(backing_fd: int, stack_depth: int) -> int:
    """The errno of an open(2) for writing that passes through to `backing_fd`; 0: it works."""
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    results: list[int] = []
    opener = None
    try:
        options = {"fd": str(connection), "rootmode": f"{stat.S_IFREG | 0o600:o}", "user_id": "0", "group_id": "0"}
        root = detached_mount("fuse", options)
        try:
            opener = threading.Thread(target=_open_root, args=(connection, root, results), daemon=True)
            opener.start()
            _Server(connection, backing_fd, stack_depth).serve_until(results)
        finally:
            os.close(root)
    finally:
        os.close(connection)  # requests without an answer get ENOTCONN
        if opener is not None:
            opener.join(LIMIT_S)
    return results[0] if results else errno.ETIMEDOUT


def _open_root(connection: int, root: int, results: list[int]) -> None:
    """In a thread with a table of descriptors of its own, without the connection.

    Where this process is killed between a request of the thread and its answer, no signal ends the thread. With a table
    that is shared, its descriptor of the connection would stay open, and with it the connection: the process would
    never end, and no daemon come after it.
    """
    try:
        syscalls.close_in_own_table(connection)
        fd = os.open(f"/proc/thread-self/fd/{root}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        results.append(e.errno or errno.EIO)
    else:
        results.append(0)
        with suppress(OSError):  # the probe's mount may be over already
            os.close(fd)


class _Server:
    """Answers what one open(2) of the root asks."""

    def __init__(self, connection: int, backing_fd: int, stack_depth: int) -> None:
        self._connection = connection
        self._backing_fd = backing_fd
        self._requested = Requested(passthrough=True, stack_depth=stack_depth)
        self._passthrough = Passthrough()

    def serve_until(self, results: list[int]) -> None:
        """Until the open has ended, or the time is over."""
        end = time.monotonic() + LIMIT_S
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while not results and time.monotonic() < end:
            if poll.poll(5):
                with suppress(OSError):
                    self._serve_one()

    def _serve_one(self) -> None:
        request = memoryview(os.read(self._connection, _REQUEST_BYTES))
        _, opcode, unique, *_ = wire.IN_HEADER.unpack_from(request)
        error, body = 0, b""
        if opcode == wire.INIT:
            body = negotiate(request[wire.IN_SIZE :], self._requested)[1]
        elif opcode == wire.GETATTR:
            body = wire.attr_out(1, os.fstat(self._backing_fd), (0, 0))
        elif opcode == wire.OPEN:
            body = self._opened()
        elif opcode not in (wire.FLUSH, wire.RELEASE):
            error = -errno.ENOSYS
        os.write(self._connection, wire.OUT_HEADER.pack(wire.OUT_SIZE + len(body), error, unique) + body)
        if opcode == wire.INIT:
            self._passthrough.use(self._connection)

    def _opened(self) -> bytes:
        """A handle that passes through. Without a backing id the kernel refuses it with EIO, as it should."""
        return wire.OPEN_OUT.pack(
            1, wire.FOPEN_PASSTHROUGH | wire.FOPEN_NOFLUSH, self._passthrough.open(self._backing_fd)
        )
