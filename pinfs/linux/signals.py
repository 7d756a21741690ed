"""Signals: their names as people write them (signal(7)), and sending one with a value (rt_sigqueueinfo(2))."""

import ctypes
import os
import re
import signal
import struct
from typing import Final

_SI_QUEUE: Final = -1
_SIGINFO: Final = struct.Struct("=iiii iI Q 96x")
"""siginfo_t of a queued signal on 64-bit Linux: signo, errno, code, padding, pid, uid, value (sigaction(2))."""
_SYS_PIDFD_SEND_SIGNAL: Final = 424
"""The same number on all architectures (system calls since 5.0 share one table)."""

# PyDLL keeps the interpreter's lock: these calls never sleep, and giving the lock away costs more than they do.
_libc = ctypes.PyDLL(None, use_errno=True)
_send_signal = _libc.syscall
_send_signal.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_send_signal.restype = ctypes.c_long


def queue_signal(pidfd: int, signo: int, value: int) -> bool:
    """Send `signo` with `value` (64 bits) in si_value, si_code SI_QUEUE. False: the process is gone, or not ours."""
    info = _SIGINFO.pack(signo, 0, _SI_QUEUE, 0, os.getpid(), os.getuid(), value)
    return bool(_send_signal(_SYS_PIDFD_SEND_SIGNAL, pidfd, signo, info, 0) == 0)


_RTMIN, _RTMAX = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
_NUMBERS = {name.removeprefix("SIG"): int(number) for name, number in signal.Signals.__members__.items()}
_REALTIME = re.compile(r"RT(?:MIN(?:\+(\d{1,2}))?|MAX(?:-(\d{1,2}))?)", re.ASCII)


def parse_signal(text: str) -> int | None:
    """`IO`, `SIGIO`, `29`, `RTMIN+1`, `RTMAX-1`; None for `none`. Raises ValueError for what is no signal (signal(7)).

    32 and 33 belong to the C library's threads: a program that got one of them would come to harm.
    """
    name = text.upper().removeprefix("SIG")
    if text == "none":
        return None
    if re.fullmatch(r"\d{1,2}", text, re.ASCII):
        number = int(text)
    elif realtime := _REALTIME.fullmatch(name):
        plus, minus = realtime.groups()
        number = _RTMAX - int(minus or 0) if name.startswith("RTMAX") else _RTMIN + int(plus or 0)
    else:
        number = _NUMBERS.get(name, 0)
    if not (0 < number < 32 or _RTMIN <= number <= _RTMAX):
        raise ValueError(f"no such signal: {text!r}")
    return number


def signal_name(number: int | None) -> str:
    """The name that `parse_signal` takes, without SIG: `IO`, `RTMIN+1`, `none`."""
    if number is None:
        return "none"
    if number < 32:
        return signal.Signals(number).name.removeprefix("SIG")
    return f"RTMIN+{number - _RTMIN}" if number > _RTMIN else "RTMIN"
