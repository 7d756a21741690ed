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


Result = int | Exception
"""0, an errno (EINTR: interrupted, or given up before it began), or what no system call raises."""


class InterruptibleCall:
    """`call` on a duplicate of `fd`, which must stay open until this is made: `run` in a thread, the rest in another.

    `on_end` is called in the thread with the result, unless `wait` has returned it. OSError EMFILE.
    """

    __slots__ = ("_awaited", "_call", "_fd", "_finished", "_given_up", "_lock", "_on_end", "_result", "_tid")

    def __init__(self, fd: int, call: Callable[[int], None], on_end: Callable[[Result], None]) -> None:
        install_handler()
        self._call = call
        self._on_end = on_end
        self._fd = os.dup(fd)
        self._given_up = False
        self._awaited = True
        self._result: Result | None = None
        self._tid = 0
        self._lock = threading.Lock()
        """Of all above, held for moments only: a signal must meet the thread while it is inside `_make`."""
        self._finished = threading.Lock()
        self._finished.acquire()

    def run(self) -> None:
        """Make the call, once, and close the descriptor."""
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, _OTHERS)
        try:
            result = self._make()
        finally:
            os.close(self._fd)  # perhaps the last one of the file, which can take long as well
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with self._lock:
            self._result = result
            awaited = self._awaited
        self._finished.release()
        if not awaited:
            self._on_end(result)

    def _make(self) -> Result:
        with self._lock:
            if self._given_up:
                return errno.EINTR
            self._tid = threading.get_native_id()
        try:
            self._call(self._fd)
        except OSError as e:
            return e.errno or errno.EIO
        except Exception as e:
            return e
        finally:
            with self._lock:
                self._tid = 0
        return 0

    def wait(self, limit_s: float) -> Result | None:
        """The result, if it is there within that time; else `on_end` will be called with it. Once for each call."""
        self._finished.acquire(timeout=limit_s)
        with self._lock:
            self._awaited = False
            return self._result

    def interrupt(self) -> None:
        """Send the signal. It may meet the thread just before the call begins: repeat it until the call has ended."""
        with self._lock:
            self._given_up = True
            if self._tid:
                signal_thread(os.getpid(), self._tid, SIGNAL)
