"""What read(2) and write(2) on /dev/fuse may say, and how requests come a second time (SPEC 13)."""

import errno
import logging
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from pinfs.bridge import wire
from pinfs.bridge.wire import IN_SIZE, OUT_SIZE

log = logging.getLogger("pinfs.bridge")

MAX_FAILED_READS: Final = 50  # in a row, before the connection is given up

# read(2) on /dev/fuse (fuse_dev_do_read). NO_REQUEST: there is none, or its caller gave up before we took it (ENOENT).
# THE_END: unmounted (ENODEV) or aborted. What else there is (ENOMEM, EFAULT) has cost one request, which the kernel has
# answered with EIO.
NO_REQUEST: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOENT})
THE_END: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})

# write(2) on /dev/fuse (fuse_dev_do_write). NOT_AWAITED: no caller waits for this reply any more (ENOENT), or the
# connection is over. What else there is (EINVAL, ENOMEM, EFAULT) means a caller that got no reply, or EIO.
NOT_AWAITED: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EPERM})

RESENT: Final = 1 << 63
"""The bit in the number of a request that is sent again (FUSE_UNIQUE_RESEND)."""
_NO_CALLER_WAITS: Final = frozenset({wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT})


LARGE: Final = 4096
"""Bytes: from here on a second buffer for writev(2) is cheaper than a copy."""


class Ended(Exception):
    """The connection is over. `aborted`: not by an unmount."""

    def __init__(self, aborted: bool) -> None:
        self.aborted = aborted


class NoResendError(Exception):
    """The kernel cannot send requests again; the text is for people."""


def check_read(e: OSError) -> None:
    """Returns where there is nothing to do; else raises Ended, or the error."""
    if e.errno in THE_END:
        raise Ended(e.errno == errno.ECONNABORTED) from None
    if e.errno not in NO_REQUEST:
        raise e


def send_reply(fd: int, unique: int, body: bytes) -> None:
    """Answer a request. OSError: the kernel does not take it."""
    header = wire.OUT_HEADER.pack(OUT_SIZE + len(body), 0, unique)
    if len(body) < LARGE:
        os.write(fd, header + body)
    else:
        os.writev(fd, (header, body))


class Request(NamedTuple):
    """A request in a buffer of its own: what comes next may be longer, and this one may wait."""

    buffer: bytearray
    opcode: int
    unique: int

    @property
    def is_resent(self) -> bool:
        return bool(self.unique & RESENT)

    @property
    def is_last(self) -> bool:
        """Whether no resent one comes after it: the kernel puts those before all others that have a caller."""
        return not self.is_resent and self.opcode not in _NO_CALLER_WAITS


def ask_again(fd: int) -> None:
    """Have the kernel send what the daemon before has read and not answered. NoResendError, Ended."""
    try:
        os.write(fd, wire.OUT_HEADER.pack(OUT_SIZE, wire.NOTIFY_RESEND, 0))
    except OSError as e:
        if e.errno in THE_END:
            raise Ended(e.errno == errno.ECONNABORTED) from None
        raise NoResendError(f"the kernel does not send requests again: {e.strerror} (Linux 6.9)") from e


def read_again(fd: int, buffer: bytearray) -> list[Request]:
    """All resent requests, with those that are read among them, and at most one after them. Ended."""
    requests: list[Request] = []
    failed = 0
    while not requests or not requests[-1].is_last:
        try:
            size = os.readv(fd, [buffer])
        except BlockingIOError:
            break
        except OSError as e:
            failed = _failed_again(e, failed)
        else:
            opcode, unique = wire.IN_HEADER.unpack_from(buffer)[1:3] if size >= IN_SIZE else (0, 0)
            requests.append(Request(buffer[:size], opcode, unique))
    return requests


def _failed_again(e: OSError, failed: int) -> int:
    """How many reads have failed by now: each has cost one request at most. Ended: too many."""
    try:
        check_read(e)
    except OSError:
        log.error("a request could not be read: %s", e)
        if failed == MAX_FAILED_READS:
            raise Ended(True) from e
        return failed + 1
    return failed


def in_order(requests: Iterable[Request]) -> list[Request]:
    """Resent ones by number, since the kernel sends them in the order of a hash; then all others, as they came: an
    INTERRUPT after the request that it names."""
    return sorted(requests, key=lambda request: (not request.is_resent, request.unique if request.is_resent else 0))


def knows(fd: int, nodeid: int) -> bool:
    """Whether the kernel has an inode with this node id, as far as it can be asked. It forgets the attributes."""
    try:
        os.write(fd, wire.forget_attributes(nodeid))
    except OSError as e:  # ENOENT of fuse_reverse_inval_inode()
        return e.errno != errno.ENOENT
    return True
