"""Opening what may have become something that open(2) waits for."""

import errno
import os
from typing import Final

from pinfs.fs.types import os_error

AT_ONCE: Final = os.O_NONBLOCK | os.O_CLOEXEC
"""For open(2) of what should be a regular file or a directory, but may be a FIFO since a change behind pinfs: the event
loop does not wait for its other end. For a file O_NONBLOCK means nothing, unless another process has a lease on it."""


def open_error(failure: OSError) -> OSError:
    """The error for a caller after open(2) with AT_ONCE has failed.

    ESTALE: a FIFO that no process reads, a socket, or a device without a driver. Else the failure, with EAGAIN where
    another process has a lease (fcntl(2), F_SETLEASE).
    """
    return os_error(errno.ESTALE) if failure.errno == errno.ENXIO else failure
