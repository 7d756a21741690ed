"""Who holds: processes as owners of pins (SPEC 4).

A process is known by its pidfd, never by its number alone: as long as the pidfd is not readable the process lives, and
as long as it lives nobody else can get its number (pidfd_open(2)). So a lookup asks the cache first and then checks, in
this order, "is the thread in that process?" and "does the process live?"; the second answer makes the first one true.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import trio

from pinfs.linux.proc import Status, read_comm, read_start_time, read_status
from pinfs.linux.signals import queue_signal, signal_name

log = logging.getLogger("pinfs.holders")

REMEMBERED = 256
"""How many callers that hold nothing are remembered, and how many who held something stay watched; each may cost one
descriptor."""
DEATHS_AT_ONCE = 256

# PyDLL keeps the interpreter's lock: these calls never sleep, and giving the lock away costs more than they do.
_libc = ctypes.PyDLL(None, use_errno=True)
_tgkill = _libc.tgkill
_tgkill.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int)


class Process:
    """One process, for as long as anybody refers to it. Two objects never stand for the same one (see `Holders`)."""

    __slots__ = ("__weakref__", "_last", "_poll", "holds", "pid", "pidfd", "start_time")

    def __init__(self, status: Status, pidfd: int) -> None:
        self.pid = status.tgid
        self.pidfd = pidfd
        self.start_time = 0
        """Clock ticks after boot; read when the process becomes a holder."""
        self.holds = 0
        self._last = status
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        self._poll = poller.poll

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.pidfd)  # at the interpreter's end the name `os` may be gone before the last process

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self._last.comm!r}>"

    @property
    def alive(self) -> bool:
        """Whether any of its threads still runs; a zombie is dead."""
        return not self._poll(0)

    def has_thread(self, tid: int) -> bool:
        """Whether the thread `tid` is one of this living process."""
        if tid != self.pid and _tgkill(self.pid, tid, 0) and ctypes.get_errno() != errno.EPERM:
            return False  # EPERM: it is there, but not ours to signal; the kernel compares the thread group before that
        return not self._poll(0)

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


def _ignore(process: Process) -> None:
    """Nobody wants to know of deaths."""


@dataclass(slots=True)
class HolderCounters:
    """For the metrics."""

    out_of_descriptors: int = 0
    signals_sent: int = 0
    signals_refused: int = 0
    deaths: int = 0


class Holders:
    """All processes that matter. `on_death(process)` is called in the task of `run` once for each holder that ends."""

    def __init__(
        self,
        on_death: Callable[[Process], None] = _ignore,
        *,
        remembered: int = REMEMBERED,
        first_spare: int = sys.maxsize,
    ) -> None:
        self.on_death = on_death
        self.counters = HolderCounters()
        self._remembered = remembered
        self._first_spare = first_spare
        self._epoll = select.epoll()
        self._held: dict[int, Process] = {}
        """Living holders by pid; their pidfds are in `_epoll`."""
        self._watched: dict[int, Process] = {}
        """The same by pidfd."""
        self._idle: dict[Process, None] = {}
        """Watched without being held, oldest first: who lets a pin go often takes the next one at once."""
        self._recent: dict[int, Process] = {}
        """Threads seen lately, oldest first. Only a memory: every answer from it is checked."""
        self._all: WeakValueDictionary[int, Process] = WeakValueDictionary()
        """Every Process that anybody refers to, by pid: so there is one object for one process, never closed in use."""

    def __len__(self) -> int:
        """The number of living holders."""
        return len(self._watched) - len(self._idle)

    def close(self) -> None:
        """Forgets everybody."""
        self._epoll.close()
        self._held.clear()
        self._watched.clear()
        self._idle.clear()
        self._recent.clear()

    # ---- finding

    def process_of(self, tid: int) -> Process | None:
        """The process of the calling thread `tid` (fuse_in_header.pid); None for 0 (not visible here) or a dead one.

        Raises OSError EDQUOT when there is no descriptor left for a process that is not known yet.
        """
        process = self._recent.get(tid)
        if process is None:
            process = self._held.get(tid)
        if process is not None and process.has_thread(tid):
            return process
        return self._find(tid) if tid > 0 else None

    def is_gone(self, process: Hashable) -> bool:
        """Whether it has ended. Whatever else owns pins is there for as long as anybody has heard of it."""
        return isinstance(process, Process) and not process.alive

    def process_by_pid(self, pid: int) -> Process:
        """The process with this number, or a thread of this number, in the daemon's pid namespace (`pid=N`, SPEC 5).

        Raises OSError: ESRCH, EDQUOT.
        """
        process = self.process_of(pid)
        if process is None:
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
        return process

    def _find(self, tid: int) -> Process | None:
        try:
            process = self._look_up(tid)
        except ProcessLookupError:
            return None
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.counters.out_of_descriptors += 1
            raise OSError(errno.EDQUOT, "no descriptor left to watch a process") from error
        if process is not None:
            self._remember(tid, process)
        return process

    def _look_up(self, tid: int) -> Process | None:
        status = read_status(tid)
        if status is None:
            return None
        process = self._all.get(status.tgid)
        if process is None or not process.alive:
            process = self._all[status.tgid] = Process(status, self._pidfd(status.tgid))
        return process if process.has_thread(tid) else None

    def _pidfd(self, pid: int) -> int:
        """EMFILE also when only spare descriptors are left (`pinfs.runtime.descriptors`)."""
        pidfd = os.pidfd_open(pid)
        if pidfd >= self._first_spare:
            os.close(pidfd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pidfd

    def _remember(self, tid: int, process: Process) -> None:
        if len(self._recent) >= self._remembered:
            del self._recent[next(iter(self._recent))]
        self._recent[tid] = process

    def may_act_for(self, uid: int, process: Process) -> None:
        """Raises OSError EPERM unless `uid` is root or the process's real, effective and saved uid (SPEC 5)."""
        status = read_status(process.pid) if uid else None
        if uid and (status is None or status.uids != (uid, uid, uid) or not process.alive):
            raise PermissionError(errno.EPERM, f"uid {uid} may not act for process {process.pid}")

    # ---- holding

    def hold(self, process: Process) -> None:
        """Watches the process until as many `drop`s. Raises OSError ESRCH when it is dead already."""
        if not process.holds:
            if process in self._idle:
                del self._idle[process]
            else:
                self._watch(process)
        process.holds += 1

    def _watch(self, process: Process) -> None:
        if not process.alive:
            raise ProcessLookupError(errno.ESRCH, f"process {process.pid} is gone")
        process.start_time = process.start_time or read_start_time(process.pid)
        self._epoll.register(process.pidfd, select.EPOLLIN)
        self._held[process.pid] = self._watched[process.pidfd] = process

    def drop(self, process: Process) -> None:
        """Takes one `hold` back; also after the process's death."""
        process.holds -= 1
        if not process.holds and process.pidfd in self._watched:
            self._idle[process] = None
            if len(self._idle) > self._remembered:
                self._unwatch(next(iter(self._idle)))

    def _unwatch(self, process: Process) -> None:
        self._idle.pop(process, None)
        if self._watched.pop(process.pidfd, None) is not None:
            self._epoll.unregister(process.pidfd)
        if self._held.get(process.pid) is process:
            del self._held[process.pid]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reports deaths until cancelled."""
        task_status.started()
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._report_some_deaths()

    def report_deaths(self) -> None:
        """Reports all that have ended by now, for who cannot wait until it is the turn of `run`."""
        while self._report_some_deaths():
            pass

    def _report_some_deaths(self) -> bool:
        """False when nobody has ended."""
        dead = [self._watched[pidfd] for pidfd, _ in self._epoll.poll(0, DEATHS_AT_ONCE)]
        for process in dead:
            if process.holds:
                self._report_death(process)
            else:  # idle, or let go by the death before it
                self._unwatch(process)
        return bool(dead)

    def _report_death(self, process: Process) -> None:
        self._unwatch(process)
        self.counters.deaths += 1
        try:
            self.on_death(process)
        except Exception:  # one failure must not leave the pins of all later dead standing
            log.exception("after the death of %r", process)

    # ---- signals

    def signal(self, process: Process, signo: int, value: int, uid: int) -> bool:
        """Queues `signo` with `value` (64 bits) in si_value, for `uid`. False when it is dead or may not get it.

        kill(2): a sender that is not root must have the real or saved uid of the process. /proc/PID belongs to its
        effective uid, so where that is `uid` the process runs with the rights of the pin's owner and may well be told.
        """
        sent = self._may_signal(process, uid) and queue_signal(process.pidfd, signo, value)
        if sent:
            self.counters.signals_sent += 1
        else:
            self.counters.signals_refused += 1
            log.debug("no signal %s to %r for uid %d", signal_name(signo), process, uid)
        return sent

    def _may_signal(self, process: Process, uid: int) -> bool:
        if uid == 0:
            return True
        try:
            if os.stat(f"/proc/{process.pid}").st_uid == uid:
                return True
        except OSError:
            return False
        real, _, saved = process.uids
        return uid in (real, saved)

    def kill(self, process: Process) -> bool:
        """SIGKILL (policy `on_timeout = kill`); `on_death` tells of its end. False when dead or not ours to kill."""
        try:
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def raise_descriptor_limit() -> int:
    """Raises the soft limit of descriptors to the hard one and returns it: every holder costs one (getrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
