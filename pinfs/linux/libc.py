"""The C library, loaded once. `pinfs.linux.syscalls` declares the signatures of its functions, next to their use."""

import ctypes
import os
from typing import Final

libc: Final = ctypes.CDLL(None, use_errno=True)
"""Its calls give the interpreter's lock away: for those that may sleep."""

libc_quick: Final = ctypes.PyDLL(None, use_errno=True)
"""Its calls keep the interpreter's lock: for those that never sleep, where giving it away costs more than the call."""


def checked(result: int, path: str | None = None) -> int:
    """The result of a call; raises OSError with its errno, and `path` where there is one, for a negative result."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
