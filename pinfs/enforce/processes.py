"""A process that pins, or that calls (SPEC 4)."""

import contextlib
import os
from typing import Final

from pinfs.core.owners import ProcessId
from pinfs.linux.calls import clock, is_readable
from pinfs.linux.proc import Status, read_comm, read_status
from pinfs.linux.syscalls import is_thread_of

A_MOMENT_S: Final = 0.001


class Process:
    """One process and its pidfd, which is closed with the object. Two living objects never stand for the same process
    (see `Holders`); `id` is the value that stands for it everywhere else.
    """

    __slots__ = ("__weakref__", "_alive_until", "_close", "_last", "holds", "id", "pid", "pidfd")

    def __init__(self, process_id: ProcessId, status: Status, pidfd: int) -> None:
        self.id = process_id
        self.pid = process_id.pid
        self.pidfd = pidfd
        self.holds = 0
        """How many pins and event channels keep an eye on it."""
        self._last = status
        self._alive_until = 0.0
        self._close = os.close  # at the interpreter's end the name `os` may be gone before the last process

    def __del__(self) -> None:
        self._close(self.pidfd)

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self._last.comm!r}>"

    @property
    def alive(self) -> bool:
        """Whether any of its threads still runs; a zombie is dead."""
        return not is_readable(self.pidfd)

    def has_thread(self, tid: int) -> bool:
        """Whether the thread `tid` is one of this living process."""
        return (tid == self.pid or is_thread_of(self.pid, tid)) and not is_readable(self.pidfd)

    def has_caller(self, tid: int) -> bool:
        """The same of a thread whose request waits for the daemon, so that something with this number lives.

        That can be another process only after this one has ended and all other numbers have been used since, which
        takes longer than A_MOMENT_S: so it is asked once in a moment.
        """
        now = clock()
        if tid == self.pid and now < self._alive_until:
            return True
        if not self.has_thread(tid):
            return False
        self._alive_until = now + A_MOMENT_S
        return True

    @property
    def status(self) -> Status:
        """Name and uids as they are now (exec and setuid change them), or as last seen once the process is gone."""
        with contextlib.suppress(OSError):
            status = read_status(self.pid)
            if status is not None and self.alive:  # alive after reading: what was read was not a successor's
                self._last = status
        return self._last

    @property
    def comm(self) -> str:
        """The name of the program, as ps shows it (exec changes it), or as last seen once the process is gone."""
        comm = read_comm(self.pid)
        return self._last.comm if comm is None or not self.alive else comm

    @property
    def uids(self) -> tuple[int, int, int]:
        """Real, effective and saved uid."""
        return self.status.uids
