"""Exit codes of `pinfs`, explained in docs/exit-codes.md. A number keeps its meaning for ever and is never reused."""

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """The interface to scripts. `pinfs pin -- COMMAND` exits with COMMAND's own status instead."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_PINFS = 3
    BUSY = 4
    NOT_PERMITTED = 5
    MOUNT_FAILED = 6
    STALE_MOUNT = 7
    DOCTOR_FOUND_FAILURES = 8
    NO_SUCH_PIN = 9
    LIMIT_REACHED = 10
    BAD_POLICY = 11
    NO_SUCH_FILE = 12
    NO_ANSWER = 13
    HANDED_OVER = 14
    NO_CLUSTER = 15
    CUT_OFF = 16
    NO_SUCH_HOST = 17
    COMMAND_NOT_EXECUTABLE = 126
    COMMAND_NOT_FOUND = 127
    INTERRUPTED = 130


_BY_ERRNO = {
    errno.EBUSY: ExitCode.BUSY,
    errno.ETXTBSY: ExitCode.BUSY,
    errno.EAGAIN: ExitCode.BUSY,
    errno.EACCES: ExitCode.NOT_PERMITTED,
    errno.EPERM: ExitCode.NOT_PERMITTED,
    errno.ENOTCONN: ExitCode.STALE_MOUNT,
    errno.ECONNABORTED: ExitCode.STALE_MOUNT,
    errno.ENODATA: ExitCode.NO_SUCH_PIN,
    errno.EDQUOT: ExitCode.LIMIT_REACHED,
    errno.ENOENT: ExitCode.NO_SUCH_FILE,
    errno.ENOTDIR: ExitCode.NO_SUCH_FILE,
    errno.EOPNOTSUPP: ExitCode.NOT_PINFS,
    errno.ETIMEDOUT: ExitCode.NO_ANSWER,
}


def of_errno(number: int | None) -> ExitCode:
    """The exit code for a failed system call."""
    return _BY_ERRNO.get(number or 0, ExitCode.FAILURE)


def of_signal(number: int) -> int:
    """A shell's exit status for a process that a signal ended (sh(1): 128 + number)."""
    return 128 + number
