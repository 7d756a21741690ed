"""Removals that the kernel may make wait, for pages that a device, vmsplice(2) or O_DIRECT holds (SPEC 3.9).

Such a call on the backing (ext4_break_layouts(), xfs_break_dax_layouts(); any call on a file system that another
program serves) waits without limit. It runs in a thread, so that the event loop never waits with it; at the deadline of
policy `break_timeout`, when its breaker is interrupted, and when the mount ends, a signal brings the thread back. The
bytes are uncut then.

While the call runs, the kernel holds the lock of the backing inode. Operations on that file that need the lock wait in
`until_over`, as they would in the kernel, but outside of it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from errno import EBUSY, EINTR
from functools import partial
from os import strerror
from typing import Any, Final, Protocol

import trio

from pinfs.core.book import PinBook
from pinfs.core.events import BookEvent, Mapper
from pinfs.core.ranges import END
from pinfs.core.removals import Removal
from pinfs.enforce.mappings import mappers_of
from pinfs.enforce.reports import mappers_text, removal_text
from pinfs.linux.interruptible import InterruptibleCall, Result
from pinfs.runtime.asitis import AS_IT_IS
from pinfs.runtime.errors import errno_of, logged
from pinfs.runtime.parking import park
from pinfs.runtime.stats import Stats

log = logging.getLogger("pinfs.cuts")

MAX_CUTS: Final = 64
"""Threads at a time, and"""
MAX_CUTS_PER_USER: Final = 32
"""of these for the removals of one uid: a user who holds pages of many files does not stop the others."""
ROOM_S: Final = 1.0
"""How long a removal waits for a thread before it is refused."""
AT_ONCE_S: Final = 0.0005
"""How long the event loop waits with a call, unless one on the same file has met its deadline lately: nearly all end
within that time, and a task would cost them more."""
NOTICE_S: Final = 1.0
"""After this time the processes that map the file are looked for."""
LEAST_S: Final = 1.0
"""What a call gets however short `break_timeout` is: on a busy machine it may be slow without waiting for pages."""
SHORT_S: Final = 0.1
"""All that a call gets for `retry_after` seconds after one on the same file met its
deadline: the kernel queues truncates of one file, and a crowd of them must not take a deadline each (SPEC 3.8)."""
SIGNAL_EVERY_S: Final = 0.01
GRACE_S: Final = 1.0
"""How long a thread may take to come back after the first signal, before it is left to itself."""


class Call(Protocol):
    """A call that has been started."""

    def wait(self, limit_s: float, /) -> Result | None: ...
    def interrupt(self) -> None: ...


@dataclass(slots=True, eq=False)
class Cut:
    """One removal whose call is under way. `why`: the reason of its refusal, if `scope` ends before the call does."""

    removal: Removal
    since: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    why: str = "kernel"
    call: Call = field(init=False)
    ended: trio.Event = field(default_factory=trio.Event)
    errno: int = 0
    unique: int = 0
    """The number of the breaker's request; 0: not known."""
    mapped_by: tuple[Mapper, ...] = ()
    reserved: AbstractContextManager[None] | None = None
    """Of a call that does not come back: its range stays reserved until it does."""
    around: AbstractContextManager[None] = AS_IT_IS
    """Left when the call has really ended, on the event loop."""

    @property
    def is_done(self) -> bool:
        """The call has come back, and was not interrupted."""
        return self.ended.is_set() and self.errno != EINTR


Start = Callable[[int, Callable[[int], None], Callable[[Result], None]], Call]


def start_in_thread(fd: int, call: Callable[[int], None], ended: Callable[[Result], None]) -> Call:
    """Make `call` on a duplicate of `fd`; `ended` is called in the thread, unless `wait` returns the result."""
    interruptible = InterruptibleCall(fd, call, ended)
    trio.lowlevel.start_thread_soon(interruptible.run, lambda outcome: None, "cut")
    return interruptible


async def search_in_thread(device: int, inode: int, start: int, end: int) -> tuple[Mapper, ...]:
    """The processes that map these bytes."""
    return await trio.to_thread.run_sync(mappers_of, device, inode, start, end, abandon_on_cancel=True)


class Cuts:
    """All such calls of one mount.

    `inodes` has the node ids of their files: whether a file is in it is the fast way to ask. `device`: st_dev of the
    mount, by which a mapping shows where it belongs.
    """

    def __init__(
        self, book: PinBook, deliver: Callable[[BookEvent], None], stats: Stats, device: Callable[[], int]
    ) -> None:
        self.inodes: dict[int, dict[Cut, None]] = {}
        self.start: Start = start_in_thread
        self.search = search_in_thread
        self.around: Callable[[int], AbstractContextManager[None]] = lambda inode: AS_IT_IS
        """What a call on this file is surrounded by, from its start to its end, however late that is."""
        self.before: Callable[[Removal], None] = lambda removal: None
        """Called right before the call of a removal that had to wait for a thread. What it raises refuses that."""
        self.on_late_end: Callable[[Removal], None] = lambda removal: None
        """Called when a call ends that had been left to itself."""
        self.on_done: Callable[[int], None] = lambda unique: None
        """Called with the number of a request as soon as its removal is known to be done, here or in a thread."""
        self._book = book
        self._deliver = deliver
        self._stats = stats
        self._device = device
        self._of_uid: Counter[int] = Counter()
        self._freed = trio.Event()
        self._held_until: dict[int, float] = {}
        """Files whose pages the kernel was seen to hold, for `retry_after` seconds."""
        self._closing = False

    def __len__(self) -> int:
        """Calls under way, those included that do not come back."""
        return self._of_uid.total()

    def __iter__(self) -> Iterator[Cut]:
        return (cut for cuts in self.inodes.values() for cut in cuts)

    @property
    def left_alone(self) -> int:
        """Calls that no signal brings back: their breakers are answered, their ranges reserved, until they end."""
        return sum(cut.reserved is not None for cut in self)

    def is_under_way(self, removal: Removal) -> bool:
        """Whether a call of this removal has not come back, left to itself or not."""
        return any(cut.removal is removal for cut in self.inodes.get(removal.inode, ()))

    async def run(self, removal: Removal, fd: int, call: Callable[[int], None], unique: int = 0) -> None:
        """Make `call`, the one on the backing that completes `removal`, in a thread, on a duplicate of `fd`. `unique`:
        the number of the request.

        OSError: what the call raises; EBUSY (policy `errno`), the event `refused` with why = `kernel`: it met its
        deadline, or too many run already; EBUSY (`shutdown`): the mount ends. A breaker that is interrupted gets EINTR
        (trio.Cancelled here), unless the bytes are gone by then.
        """
        if self._closing or self._is_full(removal.request.uid):
            await self._wait_for_room(removal)
            self.before(removal)
        cut = self._start(removal, fd, call, unique)
        result = cut.call.wait(0 if self._is_held(removal.inode, cut.since) else AT_ONCE_S)
        if result is None:
            await park()
            await self._wait(cut)
        else:
            self._end(cut, result)
        if cut.errno:
            raise OSError(cut.errno, strerror(cut.errno))

    async def _wait(self, cut: Cut) -> None:
        """Return when the call has come back, done or failed. OSError: as run()."""
        try:
            with cut.scope:
                await self._wait_ended(cut)
        except trio.Cancelled:
            await self._bring_back(cut)
            if not cut.is_done:
                raise
        if not cut.ended.is_set():
            await self._bring_back(cut)
            if not cut.is_done:
                self._refuse(cut)

    async def until_over(self, inode: int, limit_s: float) -> None:
        """Return when no call is under way on this file. EBUSY: one still is after `limit_s` seconds."""
        await park()
        with trio.move_on_after(limit_s):
            while cuts := self.inodes.get(inode):
                await next(iter(cuts)).ended.wait()
            return
        raise OSError(EBUSY, "a removal of this file does not end")

    def close(self) -> None:
        """The mount ends: the breakers are refused, and from now on all that come."""
        self._closing = True
        for cut in self:
            cut.why = "shutdown"
            cut.scope.cancel()

    def shown(self, uid: int) -> list[dict[str, Any]]:
        """What is known of each, for `.pinfs/status`. Processes are shown to root and the breaker's user (SPEC 4)."""
        return [_shown(cut, with_processes=uid in (0, cut.removal.request.uid)) for cut in self]

    # A place among the threads

    async def _wait_for_room(self, removal: Removal) -> None:
        await park()
        with trio.move_on_after(ROOM_S):
            while self._is_full(removal.request.uid) and not self._closing:
                await self._freed.wait()
        if self._closing:
            self._deny(removal, "shutdown")
        if self._is_full(removal.request.uid):
            self._stats.limit_reached["cuts"] += 1
            self._deny(removal, "kernel")

    def _is_full(self, uid: int) -> bool:
        return len(self) >= MAX_CUTS or self._of_uid[uid] >= MAX_CUTS_PER_USER

    def _start(self, removal: Removal, fd: int, call: Callable[[int], None], unique: int) -> Cut:
        now = trio.current_time()
        cut = Cut(removal, now, unique=unique)
        cut.scope.deadline = now + self._limit_s(removal, now)
        cut.around = self.around(removal.inode)
        cut.around.__enter__()
        try:
            cut.call = self.start(fd, call, partial(self._returned, trio.lowlevel.current_trio_token(), cut))
        except BaseException:
            cut.around.__exit__(None, None, None)
            raise
        self._of_uid[removal.request.uid] += 1
        self.inodes.setdefault(removal.inode, {})[cut] = None
        return cut

    def _limit_s(self, removal: Removal, now: float) -> float:
        return SHORT_S if self._is_held(removal.inode, now) else max(LEAST_S, removal.policy.break_timeout)

    def _is_held(self, inode: int, now: float) -> bool:
        """Whether a call on this file has met its deadline lately."""
        return now < self._held_until.get(inode, now)

    def _returned(self, token: trio.lowlevel.TrioToken, cut: Cut, result: Result) -> None:
        """In the thread."""
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(self._end, cut, result)

    def _end(self, cut: Cut, result: Result) -> None:
        with logged("the end of a removal in the kernel"):
            cut.errno = result if isinstance(result, int) else errno_of(result, cut.removal.request.op)
            if not cut.errno:
                self.on_done(cut.unique)
            cut.ended.set()
            del cut.call  # it refers to the cut: no cycle is left behind
            self._leave(cut)
            cut.around.__exit__(None, None, None)
            if cut.reserved is not None:
                log.info("%s has come back from the kernel", removal_text(cut.removal.request))
                cut.reserved.__exit__(None, None, None)
                self.on_late_end(cut.removal)

    def _leave(self, cut: Cut) -> None:
        inode, uid = cut.removal.inode, cut.removal.request.uid
        cuts = self.inodes[inode]
        del cuts[cut]
        if not cuts:
            del self.inodes[inode]
        self._of_uid[uid] -= 1
        if not self._of_uid[uid]:
            del self._of_uid[uid]
        freed, self._freed = self._freed, trio.Event()
        freed.set()

    # The wait, and its end

    async def _wait_ended(self, cut: Cut) -> None:
        notice_s = min(NOTICE_S, (cut.scope.deadline - cut.since) / 2)
        with trio.move_on_after(notice_s):
            await cut.ended.wait()
        if not cut.ended.is_set():
            trio.lowlevel.spawn_system_task(self._look, cut)
            await cut.ended.wait()

    async def _look(self, cut: Cut) -> None:
        """Find out what can be known of what the call waits for."""
        with logged("the search for processes that map a file"):
            removal = cut.removal
            cut.mapped_by = await self.search(self._device(), removal.inode, removal.start, removal.end)
            log.info("%s waits in the kernel: %s", removal_text(removal.request), mappers_text(cut.mapped_by))

    async def _bring_back(self, cut: Cut) -> None:
        """Interrupt the call until its thread has returned; one that does not is left to itself, in its range."""
        with trio.CancelScope(deadline=trio.current_time() + GRACE_S, shield=True):
            while not cut.ended.is_set():
                cut.call.interrupt()
                with trio.move_on_after(SIGNAL_EVERY_S):
                    await cut.ended.wait()
        if not cut.ended.is_set():
            removal = cut.removal
            cut.reserved = self._book.reserved(removal.inode, removal.start, removal.end)
            cut.reserved.__enter__()
            log.warning("%s cannot be interrupted in the kernel, and may still be done", removal_text(removal.request))

    def _refuse(self, cut: Cut) -> None:
        now, removal = trio.current_time(), cut.removal
        if cut.why == "kernel":
            self._held_until = {inode: until for inode, until in self._held_until.items() if until > now}
            self._held_until[removal.inode] = now + removal.policy.retry_after
        self._deny(removal, cut.why, cut.mapped_by)

    def _deny(self, removal: Removal, why: str, mapped_by: tuple[Mapper, ...] = ()) -> None:
        self._deliver(BookEvent("refused", trio.current_time(), removal=removal, why=why, mapped_by=mapped_by))
        raise OSError(EBUSY if why == "shutdown" else removal.policy.errno_number, why)


def _shown(cut: Cut, *, with_processes: bool) -> dict[str, Any]:
    removal, waited_s = cut.removal, trio.current_time() - cut.since
    shown: dict[str, Any] = {
        "op": removal.request.op,
        "path": removal.request.path,
        "inode": removal.inode,
        "from": removal.start,
        "to": None if removal.end >= END else removal.end,
        "since": round(time.time() - waited_s, 3),
        "waited_s": round(waited_s, 3),
        "interruptible": cut.reserved is None,
    }
    if not with_processes:
        return shown
    mapped_by = [mapper._asdict() for mapper in cut.mapped_by]
    return shown | {"pid": removal.request.pid, "uid": removal.request.uid, "mapped_by": mapped_by}
