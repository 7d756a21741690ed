"""The two boundaries: between what operations raise and what a caller sees, and around what no caller waits for."""

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

log = logging.getLogger("pinfs.errors")

MAX_ERRNO: Final = 512  # the kernel refuses replies with anything else (fuse_dev_do_write)
BURST: Final = 20  # tracebacks in a row; after that one a second
_tokens = float(BURST)
_refilled = 0.0
_unlogged = 0


class NotServedError(OSError):
    """An operation that this mount does not have: the kernel is told so by ENOSYS, and never asks again."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSYS, os.strerror(errno.ENOSYS))


def errno_of(exc: Exception, what: str) -> int:
    """The errno for an exception out of an operation; `what` names the operation.

    OSError is expected and passes its errno on, but for ENOSYS that is not a NotServedError, by which the kernel would
    take it that this mount does not have the operation at all and never ask again: EOPNOTSUPP. Everything else is a
    mistake of ours: EIO for the caller, a traceback for the log (at most one a second when they come in floods).
    """
    if isinstance(exc, OSError) and exc.errno and 0 < exc.errno < MAX_ERRNO:
        is_meant = exc.errno != errno.ENOSYS or isinstance(exc, NotServedError)
        return exc.errno if is_meant else errno.EOPNOTSUPP
    if _may_log():
        log.error("%s failed unexpectedly", what, exc_info=exc)
    return errno.EIO


@contextmanager
def logged(what: str) -> Iterator[None]:
    """The boundary around a callback, or one turn of a long-lived task: `what` failed, says the log, and the mount
    goes on. Nothing that is called back may end the mount, and all pins with it.
    """
    try:
        yield
    except Exception as e:
        if _may_log():
            log.error("%s failed unexpectedly", what, exc_info=e)


def _may_log() -> bool:
    global _tokens, _refilled, _unlogged
    now = time.monotonic()
    _tokens = min(float(BURST), _tokens + now - _refilled)
    _refilled = now
    if _tokens < 1:
        _unlogged += 1
        return False
    _tokens -= 1
    if _unlogged:
        log.error("%d further unexpected failures were not logged", _unlogged)
        _unlogged = 0
    return True
