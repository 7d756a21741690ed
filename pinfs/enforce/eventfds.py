"""Eventfds of holders, to which the daemon writes when a break begins or a channel has news (SPEC 5, `eventfd=`).

An eventfd is known by a number of ours, not by the holder's descriptor, which may be closed and used again: one
descriptor of ours stands for it, however many pins and channels refer to it.
"""

import errno
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from pinfs.enforce.processes import Process
from pinfs.linux.eventfds import Signaller, compare_files, fetch_descriptor, is_eventfd
from pinfs.runtime.stats import Stats

log = logging.getLogger("pinfs.holders")

MAX_EVENTFDS_PER_USER: Final = 1024  # root excepted: one user must not take all descriptors
_STORED: Final = "e"
"""What the name of an eventfd in the store begins with; its number follows."""


class Store(Protocol):
    """Where descriptors outlive the daemon."""

    def keep(self, name: str, fd: int) -> bool: ...
    def drop(self, name: str) -> None: ...


@dataclass(slots=True)
class EventFd:
    """One eventfd: a descriptor of ours, the user that is charged for it, and how many pins and channels refer to
    it."""

    fd: int
    uid: int
    uses: int = 0


class EventFds:
    """All eventfds that pins and channels refer to, by their numbers. `first_spare`: what is fetched
    must be lower; descriptors from there on are for other uses."""

    def __init__(self, stats: Stats, first_spare: int = sys.maxsize) -> None:
        self.discard: Callable[[int], None] = os.close
        """Closes what is no eventfd and may be anything: a close that waits must not hold up the event loop."""
        self.store: Store | None = None
        """Keeps them for the next daemon; None: the mount does not outlive this one."""
        self._stats = stats
        self._first_spare = first_spare
        self._known: dict[int, EventFd] = {}
        self._in_order: list[int] = []
        """Their numbers, in the order of `compare_files`."""
        self._last = 0
        self._of_user: Counter[int] = Counter()
        self._signaller: Signaller | None = None
        self._is_restoring = False

    def __len__(self) -> int:
        return len(self._known)

    def take(self, process: Process, number: int, uid: int) -> int:
        """The number of the eventfd that `process` has open as `number`; used until as many `drop`s.

        OSError: EBADF (not open), EINVAL (not an eventfd), EPERM (the daemon may not fetch or not signal it; its log
        says why), ESRCH, EDQUOT (limits).
        """
        self._require_signaller()
        fd = self._fetch(process, number)
        if not is_eventfd(os.getpid(), fd):  # the process has put another file there meanwhile
            self.discard(fd)
            raise OSError(errno.EINVAL, "not an eventfd")
        try:
            place, id_ = self._find(fd)
            if id_ is None:
                id_ = self._add(place, fd, uid)
                fd = -1
        finally:
            if fd >= 0:
                os.close(fd)
        self._known[id_].uses += 1
        return id_

    def _find(self, fd: int) -> tuple[int, int | None]:
        """Where the eventfd stands, or would stand, in the order, and its number if it is known. Where files cannot be
        compared each is taken for a new one."""
        low, high = 0, len(self._in_order)
        with suppress(OSError):
            while low < high:
                middle = (low + high) // 2
                id_ = self._in_order[middle]
                order = compare_files(fd, self._known[id_].fd)
                if not order:
                    return middle, id_
                low, high = (low, middle) if order < 0 else (middle + 1, high)
        return low, None

    def _require_signaller(self) -> Signaller:
        if self._signaller is None:
            try:
                self._signaller = Signaller()
            except OSError as error:
                log.info("eventfds cannot be signalled: io_setup(2): %s", error.strerror)
                raise PermissionError(errno.EPERM, "no asynchronous I/O for the daemon") from error
        return self._signaller

    def _fetch(self, process: Process, number: int) -> int:
        """Nothing else is fetched as a rule: closing a file of the process's own FUSE mount would wait for that."""
        try:
            if not is_eventfd(process.pid, number):
                raise OSError(errno.EINVAL, "not an eventfd")
            fd = fetch_descriptor(process.pidfd, number)
        except OSError as error:
            raise self._not_fetched(process, number, error) from error
        if fd >= self._first_spare:
            self.discard(fd)
            raise self._over("eventfds")
        return fd

    def _not_fetched(self, process: Process, number: int, error: OSError) -> OSError:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return self._over("eventfds")
        if error.errno == errno.ENOENT:
            code = errno.EBADF if process.alive else errno.ESRCH
            return OSError(code, os.strerror(code))
        if error.errno in (errno.EBADF, errno.EINVAL, errno.ESRCH):
            return error
        log.info("eventfd %d of %r cannot be fetched: %s", number, process, error.strerror)
        # not ENOSYS: the kernel would take it for an answer about setxattr(2)
        return PermissionError(errno.EPERM, "the daemon may not fetch your descriptors")

    def _add(self, place: int, fd: int, uid: int) -> int:
        if uid and self._of_user[uid] >= MAX_EVENTFDS_PER_USER:
            raise self._over("eventfds_per_user")
        self._last += 1
        self._insert(place, self._last, EventFd(fd, uid))
        if self.store is not None:
            self.store.keep(f"{_STORED}{self._last}", fd)
        return self._last

    def _insert(self, place: int, id_: int, eventfd: EventFd) -> None:
        self._in_order.insert(place, id_)
        self._known[id_] = eventfd
        self._of_user[eventfd.uid] += 1

    def _over(self, limit: str) -> OSError:
        self._stats.limit_reached[limit] += 1
        return OSError(errno.EDQUOT, f"{limit} is reached")

    def drop(self, id_: int) -> None:
        """Take one `take` or `use` back."""
        eventfd = self._known[id_]
        eventfd.uses -= 1
        if not eventfd.uses and not self._is_restoring:
            self._forget(id_, eventfd)

    def _forget(self, id_: int, eventfd: EventFd) -> None:
        del self._known[id_]
        self._in_order.remove(id_)
        self._of_user[eventfd.uid] -= 1
        if not self._of_user[eventfd.uid]:
            del self._of_user[eventfd.uid]
        if self.store is not None:
            self.store.drop(f"{_STORED}{id_}")
        os.close(eventfd.fd)

    def signal(self, id_: int) -> None:
        """Add 1 to its counter. What the kernel refuses is logged: the event channel is the truth."""
        try:
            self._require_signaller().signal(self._known[id_].fd)
        except OSError as error:
            log.warning("eventfd %d is not signalled: %s", id_, error)

    # The next daemon

    def begin_restore(self, kept: Mapping[str, int]) -> None:
        """Take over what the daemon before has had kept, by name. Nothing is let go of until `end_restore`."""
        self._is_restoring = True
        for name, fd in kept.items():
            if name.startswith(_STORED) and name[len(_STORED) :].isdecimal():
                id_ = int(name[len(_STORED) :])
                self._last = max(self._last, id_)
                self._insert(self._find(fd)[0], id_, EventFd(fd, 0))
        if self._known:
            with suppress(PermissionError):
                self._require_signaller()  # now: later other programs may have taken all that there are (fs.aio-max-nr)

    def __contains__(self, id_: int) -> bool:
        return id_ in self._known

    def use(self, id_: int, uid: int) -> None:
        """One use by a pin or a channel of the daemon before."""
        eventfd = self._known[id_]
        if not eventfd.uses:
            self._of_user[eventfd.uid] -= 1
            self._of_user[uid] += 1
            eventfd.uid = uid
        eventfd.uses += 1

    def end_restore(self) -> None:
        """Let go of those that no pin and no channel uses."""
        self._is_restoring = False
        for id_, eventfd in list(self._known.items()):
            if not eventfd.uses:
                self._forget(id_, eventfd)

    def close(self) -> None:
        """The mount is over: programs that wait look, and find out."""
        for id_, eventfd in self._known.items():
            self.signal(id_)
            os.close(eventfd.fd)
        self._known.clear()
        self._in_order.clear()
        if self._signaller is not None:
            self._signaller.close()
