"""Holders: the processes that own pins, as far as pids, pidfds and deaths are concerned (SPEC 4).

A process is known by its pidfd, never by its number alone: as long as the pidfd is not readable the process lives, and
as long as it lives no other process can get its number (pidfd_open(2)). So a lookup asks the cache first and then
checks, in this order, "is the thread in that process?" and "does the process live?"; the second answer makes the first
one true. To the rest of pinfs a process is a value, `ProcessId`.
"""

import errno
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import trio

from pinfs.core.owners import ProcessId
from pinfs.enforce.processes import Process
from pinfs.linux.calls import queue_signal
from pinfs.linux.proc import pid_namespace, read_start_time, read_status
from pinfs.linux.signals import signal_name
from pinfs.runtime.errors import logged

log = logging.getLogger("pinfs.holders")

REMEMBERED: Final = 256
"""How many callers that hold nothing are remembered, and how many former holders stay watched; each may cost one
descriptor."""
DEATHS_IN_A_SLICE: Final = 256
PAUSE_AFTER_FAILURE_S: Final = 1.0


def _ignore(process: ProcessId) -> None:
    """No callback is set."""


@dataclass(slots=True)
class HolderCounters:
    """For the metrics."""

    out_of_descriptors: int = 0
    signals_sent: int = 0
    signals_refused: int = 0
    deaths: int = 0


class Holders:
    """All processes that matter.

    `on_death` is called once for each holder that ends, in the task of `run` or from `report_deaths`. `on_forgotten` is
    called when a process that held something has ended or is not watched any more.
    """

    def __init__(
        self,
        on_death: Callable[[ProcessId], None] = _ignore,
        *,
        remembered: int = REMEMBERED,
        first_spare: int = sys.maxsize,
    ) -> None:
        self.on_death = on_death
        self.on_forgotten: Callable[[ProcessId], None] = _ignore
        self.counters = HolderCounters()
        self._remembered = remembered
        self._first_spare = first_spare
        self.namespace = pid_namespace("self") or 0
        """The daemon's pid namespace, by its inode number."""
        self._epoll = select.epoll()
        self._holding: dict[ProcessId, Process] = {}
        """Processes that hold something or are watched; the dead among them until all that they held is dropped."""
        self._held: dict[int, Process] = {}
        """Living processes that are watched, by pid; their pidfds are in `_epoll`."""
        self._watched: dict[int, Process] = {}
        """The same by pidfd."""
        self._idle: dict[Process, None] = {}
        """Watched without holding anything, oldest first: a process that releases a pin often takes the next at
        once."""
        self._recent: dict[int, Process] = {}
        """Threads seen lately, oldest first. Only a memory: every answer from it is checked."""
        self._all: WeakValueDictionary[int, Process] = WeakValueDictionary()
        """Every Process that is referred to, by pid: so there is one object for one process, never closed in use."""

    def __len__(self) -> int:
        """The number of living holders."""
        return len(self._watched) - len(self._idle)

    def close(self) -> None:
        """Forget all processes."""
        self._epoll.close()
        self._holding.clear()
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

    def caller(self, tid: int) -> Process | None:
        """`process_of` the thread whose request is being answered."""
        process = self._recent.get(tid)
        return process if process is not None and process.has_caller(tid) else self.process_of(tid)

    def process_by_pid(self, pid: int) -> Process:
        """The process with this number, or a thread of this number, in the daemon's pid namespace (`pid=N`, SPEC 5).

        Raises OSError: ESRCH, EDQUOT.
        """
        process = self.process_of(pid)
        if process is None:
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
        return process

    def find(self, process_id: ProcessId) -> Process | None:
        """The process that a value stands for; None where it is not known any more."""
        process = self._holding.get(process_id)
        if process is None:
            process = self._all.get(process_id.pid)
        return process if process is not None and process.id == process_id else None

    def knows(self, process_id: ProcessId) -> bool:
        """Whether it holds something or is watched: `on_forgotten` will tell when that is over."""
        return process_id in self._holding

    def comm_of(self, process_id: ProcessId) -> str | None:
        """The name of its program as ps shows it, or as last seen once it has ended; None where it is not known."""
        process = self._holding.get(process_id) or self.find(process_id)
        return None if process is None else process.comm

    def is_dead(self, process_id: ProcessId) -> bool:
        """Whether it has ended."""
        process = self.find(process_id)
        if process is not None:
            return not process.alive
        with suppress(OSError):
            return read_start_time(process_id.pid) != process_id.start_time
        return False  # no descriptor is left to look

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
            pidfd = self._pidfd(status.tgid)
            try:
                start_time, incarnation = read_start_time(status.tgid), os.fstat(pidfd).st_ino
            except BaseException:
                os.close(pidfd)
                raise
            process_id = ProcessId(status.tgid, start_time, self.namespace, incarnation)
            process = self._all[status.tgid] = Process(process_id, status, pidfd)
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
        """Watch the process until as many `drop`s. Raises OSError ESRCH when it is dead already."""
        if not process.holds:
            if process in self._idle:
                del self._idle[process]
            else:
                self._watch(process)
        process.holds += 1

    def _watch(self, process: Process) -> None:
        if not process.alive:
            raise ProcessLookupError(errno.ESRCH, f"process {process.pid} is gone")
        self._epoll.register(process.pidfd, select.EPOLLIN)
        self._holding[process.id] = self._held[process.pid] = self._watched[process.pidfd] = process

    def drop(self, process_id: ProcessId) -> None:
        """Take one `hold` back; also after the process's death."""
        process = self._holding[process_id]
        process.holds -= 1
        if process.holds:
            return
        if process.pidfd in self._watched:
            self._idle[process] = None
            if len(self._idle) > self._remembered:
                self._unwatch(next(iter(self._idle)))
        else:
            self._forget(process)

    def _unwatch(self, process: Process) -> None:
        self._idle.pop(process, None)
        if self._watched.pop(process.pidfd, None) is not None:
            self._epoll.unregister(process.pidfd)
        if self._held.get(process.pid) is process:
            del self._held[process.pid]
        if not process.holds:
            self._forget(process)

    def _forget(self, process: Process) -> None:
        """It holds nothing and is not watched any more."""
        del self._holding[process.id]
        with logged(f"forgetting {process!r}"):
            self.on_forgotten(process.id)

    # ---- deaths

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report deaths until cancelled."""
        task_status.started()
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            failed = True
            with logged("looking for dead holders"):
                self._report_some_deaths()
                failed = False
            if failed:
                await trio.sleep(PAUSE_AFTER_FAILURE_S)

    def report_deaths(self) -> None:
        """Report all that have ended by now. Callers that cannot wait for `run` report here."""
        while self._report_some_deaths():
            pass

    def _report_some_deaths(self) -> bool:
        """False when no watched process has ended."""
        dead = [self._watched[pidfd] for pidfd, _ in self._epoll.poll(0, DEATHS_IN_A_SLICE)]
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
            self.on_death(process.id)
        except Exception:  # one failure must not leave the pins of all later dead standing
            log.exception("after the death of %r", process)

    # ---- signals

    def signal(self, process_id: ProcessId, signo: int, value: int, uid: int) -> bool:
        """Queue `signo` with `value` (64 bits) in si_value, for `uid`. False when it is dead or may not get it.

        kill(2): a sender that is not root must have the real or saved uid of the process. /proc/PID belongs to its
        effective uid, so where that is `uid` the process runs with the rights of the pin's owner and may be told.
        """
        process = self.find(process_id)
        sent = process is not None and _may_signal(process, uid) and queue_signal(process.pidfd, signo, value)
        if sent:
            self.counters.signals_sent += 1
        else:
            self.counters.signals_refused += 1
            log.debug("no signal %s to %r for uid %d", signal_name(signo), process or process_id, uid)
        return sent

    def kill(self, process_id: ProcessId) -> bool:
        """SIGKILL (policy `on_timeout = kill`); `on_death` tells of its end. False when dead or not ours to kill."""
        process = self.find(process_id)
        if process is None:
            return False
        try:
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def _may_signal(process: Process, uid: int) -> bool:
    if uid == 0:
        return True
    try:
        if os.stat(f"/proc/{process.pid}").st_uid == uid:
            return True
    except OSError:
        return False
    real, _, saved = process.uids
    return uid in (real, saved)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors to the hard one and return it: every holder costs one (getrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
