"""The eventfds of other processes: fetched, told apart, and signalled without waiting (eventfd(2), pidfd_getfd(2)).

write(2) to an eventfd whose counter is full waits, unless its description has O_NONBLOCK, which belongs to the process
that made it: a hostile one could stop whoever signals it. The kernel's own eventfd_signal() never waits. A program has
it through io_submit(2) with IOCB_FLAG_RESFD: a read of an empty file, which is over at once, signals the eventfd.
"""

import ctypes
import os

from pinfs.linux.calls import read_and_signal
from pinfs.linux.libc import checked, libc_quick
from pinfs.linux.syscalls import asynchronous_io

_SYS_PIDFD_GETFD = 438
_IS_ARM = os.uname().machine in ("aarch64", "armv8l")
_SYS_KCMP = 272 if _IS_ARM else 312
_KCMP_FILE = 0
_SYS_IO = (0, 1) if _IS_ARM else (206, 207)
"""io_setup, io_destroy."""
_RING = 16  # calls under way; each is over before io_submit returns

_pidfd_getfd = libc_quick["syscall"]  # by index: a function of its own, with its own types
_pidfd_getfd.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_uint)
_pidfd_getfd.restype = ctypes.c_long
_kcmp = libc_quick["syscall"]
_kcmp.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_kcmp.restype = ctypes.c_long


def fetch_descriptor(pidfd: int, number: int) -> int:
    """A descriptor of ours for what the process of `pidfd` has open as `number`.

    OSError: EBADF (nothing), EPERM (we may not: ptrace(2), PTRACE_MODE_ATTACH_REALCREDS), ESRCH, EMFILE, ENFILE.
    """
    return checked(_pidfd_getfd(_SYS_PIDFD_GETFD, pidfd, number, 0))


def is_eventfd(pid: int, number: int) -> bool:
    """Whether a process has an eventfd open as `number`, without touching it (proc_pid_fd(5)).

    OSError: ENOENT (nothing, or no such process), EACCES (PTRACE_MODE_READ_FSCREDS).
    """
    return os.readlink(f"/proc/{pid}/fd/{number}") == "anon_inode:[eventfd]"


def compare_files(one: int, other: int) -> int:
    """How the open files behind two descriptors of ours compare, in one order of all (kcmp(2)): 0 the same, -1, 1.

    OSError: ENOSYS, EPERM (kernel, seccomp(2)).
    """
    me = os.getpid()
    return (0, -1, 1, 1)[checked(_kcmp(_SYS_KCMP, me, me, _KCMP_FILE, one, other))]


class Signaller:
    """Adds 1 to the counters of eventfds. Nothing here waits, whatever the counter is: a full one stays full."""

    def __init__(self) -> None:
        """OSError: ENOSYS, EPERM (no asynchronous I/O: kernel, seccomp(2)), EAGAIN (fs.aio-max-nr is reached)."""
        setup, self._destroy = _SYS_IO
        context = ctypes.c_void_p()
        checked(asynchronous_io(setup, _RING, ctypes.addressof(context), None, None, None))
        self._context = context.value
        self._empty = os.memfd_create("pinfs-empty", os.MFD_CLOEXEC)

    def signal(self, fd: int) -> None:
        """OSError: EBADF, EINVAL (`fd` is no eventfd), EAGAIN, ENOMEM."""
        assert self._context is not None
        read_and_signal(self._context, self._empty, fd)

    def close(self) -> None:
        if self._context is not None:
            asynchronous_io(self._destroy, self._context, None, None, None, None)
            os.close(self._empty)
            self._context = None
