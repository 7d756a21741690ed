"""System calls that may wait without limit: made in a thread of their own, and brought back by a signal to it.

The kernel ends an interruptible wait (state S) when a signal that has a handler reaches the thread; the call returns
EINTR where the handler was installed without SA_RESTART (signal(7)). The handler is a function of the C library that
does nothing, so that neither the interpreter nor an event loop's wakeup descriptor notices the signal. Python's own
os.ftruncate would make the call again (PEP 475): use the functions of `pinfs.linux.syscalls` inside.
"""

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Callable
from functools import cache
from typing import Final

from pinfs.linux.libc import checked, libc
from pinfs.linux.signals import RTMAX
from pinfs.linux.syscalls import signal_thread

SIGNAL: Final = RTMAX
_OTHERS: Final = frozenset(signal.valid_signals()) - {SIGNAL}


class _SigAction(ctypes.Structure):
    """struct sigaction of the C library on x86_64 and aarch64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


@cache
def install_handler() -> None:
    """Let SIGNAL interrupt system calls of this process, and do nothing else. Once for the process, in any thread."""
    does_nothing = ctypes.cast(libc.getppid, ctypes.c_void_p)
    checked(libc.sigaction(SIGNAL, ctypes.byref(_SigAction(handler=does_nothing.value)), None))


class InterruptibleCall:
    """`call` on a duplicate of `fd`, which must stay open until this is made: `run` in a thread, `interrupt` from
    another. OSError EMFILE."""

    __slots__ = ("_call", "_fd", "_given_up", "_lock", "_tid")

    def __init__(self, fd: int, call: Callable[[int], None]) -> None:
        install_handler()
        self._call = call
        self._fd = os.dup(fd)
        self._given_up = False
        self._lock = threading.Lock()
        """Held for moments only: a signal must meet the thread while it is inside `run`."""
        self._tid = 0

    def run(self) -> int:
        """Make the call, once, and close the descriptor. Returns 0, or the errno of the call; EINTR: it was
        interrupted, or given up before it began."""
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, _OTHERS)
        try:
            with self._lock:
                if self._given_up:
                    return errno.EINTR
                self._tid = threading.get_native_id()
            self._call(self._fd)
        except OSError as e:
            return e.errno or errno.EIO
        finally:
            with self._lock:
                self._tid = 0
            os.close(self._fd)  # perhaps the last one of the file, which can take long as well
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return 0

    def interrupt(self) -> None:
        """Send the signal. It may meet the thread just before the call begins: repeat it until `run` has returned."""
        with self._lock:
            self._given_up = True
            if self._tid:
                signal_thread(os.getpid(), self._tid, SIGNAL)
