"""The one guard of all removals: an operation that takes bytes out of a file asks here first, and waits here (SPEC 2,
3).

The book (`core`) decides. The guard has the clock, makes breakers wait, notifies holders, hears of their deaths, and
keeps the count.
"""

import logging
import math
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import trio

from pinfs.core.book import PinBook
from pinfs.core.events import BookEvent
from pinfs.core.owners import HandleId, Owner, ProcessId
from pinfs.core.pins import Pin, PinRequest
from pinfs.core.policy import Policy, PolicySet
from pinfs.core.removals import UNLINKS, Removal, RemovalRequest, Turn
from pinfs.enforce.cuts import GRACE_S, Cuts
from pinfs.enforce.mappings import Mapping, mappings_of
from pinfs.enforce.reports import HOLDERS_IN_A_LOG_LINE, break_text, bytes_text, count, pins_text, removal_text
from pinfs.runtime.clock import Clock
from pinfs.runtime.errors import logged
from pinfs.runtime.parking import OneShot, defer, park
from pinfs.runtime.stats import Stats

log = logging.getLogger("pinfs.guard")

NONBLOCKING_BY_HABIT: Final = frozenset({"truncate"})
"""Programs that open with O_NONBLOCK only so that a FIFO does not hang them, and then expect to wait like all others:
EAGAIN (SPEC 3.7) would make leases useless to the truncate(1) of GNU coreutils."""

PAUSE_AFTER_FAILURE_S: Final = 1.0
"""What a long-lived task waits after a turn that failed, so that a lasting failure does not take the processor."""

ACTED_ON: Final = frozenset({"refused", "revoked", "kill", "break"})
UNPUBLISHED: Final = frozenset({"answered", "kill", "limit"})
"""Events between the core and the guard; people and programs see what they lead to."""


class Breaker(Protocol):
    """The caller of a removal: `pid` is a thread id in the daemon's pid namespace, 0 where it is not visible there."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...


class RemovalCall(NamedTuple):
    """A removal as an operation states it, before it is known whether a pin is in its way.

    It takes [start, end) of `inode`, in bytes. `path` and `caller` say where and by whom. `handle`: the open file
    description that the caller used, the owner of its pins. `nonblock`: EAGAIN where another call would wait.
    `check` raises what the removal would fail with anyway: it runs before any holder is notified. `keeps`: it is one of
    several names that goes, and no byte with it, unless other hosts take the other names at the same time.
    """

    inode: int
    path: Callable[[], str | None]
    op: str
    start: int
    end: int
    caller: Breaker
    check: Callable[[], None]
    handle: HandleId | None = None
    nonblock: bool = False
    keeps: bool = False


class Process(Protocol):
    """What the guard needs of a breaker's process."""

    @property
    def id(self) -> ProcessId: ...
    @property
    def pid(self) -> int: ...
    @property
    def comm(self) -> str: ...


class Holders(Protocol):
    """What the guard needs of `pinfs.enforce.holders.Holders`."""

    on_death: Callable[[ProcessId], None]

    def process_of(self, tid: int, /) -> Process | None: ...
    def is_dead(self, process: ProcessId, /) -> bool: ...
    def report_deaths(self) -> None: ...
    def signal(self, process: ProcessId, signo: int, value: int, uid: int, /) -> bool: ...
    def kill(self, process: ProcessId, /) -> bool: ...


class EventFds(Protocol):
    """What the guard needs of `pinfs.enforce.eventfds.EventFds`."""

    def signal(self, eventfd: int, /) -> None: ...


class Hosts(Protocol):
    """What the guard needs of `pinfs.enforce.hosts.OtherHosts`."""

    def must_ask(self, inode: int, /) -> bool: ...
    async def defer(self, removal: Removal, /) -> None: ...
    async def defer_one(self, removal: Removal, /) -> None: ...
    async def ask(self, removal: Removal, /) -> None: ...
    async def wait_answered(self, removal: Removal, /) -> None: ...
    def begin_unseen(self) -> Callable[[], None]: ...
    def check(self, removal: Removal, /) -> None: ...
    def leave(self, removal: Removal, /) -> None: ...
    def over(self, removal: Removal, /) -> None: ...
    def close(self) -> None: ...


class Policies(Protocol):
    """Where the policy in force is found."""

    @property
    def current(self) -> PolicySet: ...


class Events(Protocol):
    """What passes events on to holders and to tracing readers."""

    def publish(self, event: BookEvent) -> None: ...


class Guard:
    """Makes the promises of its `book` come true.

    Hears of deaths through `holders.on_death`, which it sets. `on_handle_event` is called with the handle of a
    handle-owned pin whenever something happens to that pin: a program may poll the handle. What this and the book's own
    callbacks raise is logged.
    """

    def __init__(self, holders: Holders, eventfds: EventFds, policies: Policies, events: Events, stats: Stats) -> None:
        self.book = PinBook(self._deliver, policies.current.limits)
        self.clock = Clock()
        self.on_handle_event: Callable[[Owner], None] = lambda handle: None
        self.mount_device = 0
        """st_dev of the mount, known once it stands: mappings are found by it."""
        self.record: Callable[[BookEvent], None] = lambda event: None
        """Hears of each event after it has been told: writes breaks down where they outlive the daemon."""
        self.hosts: Hosts | None = None
        """The other hosts of a cluster; None: there is none."""
        self.cuts = Cuts(self.book, self._deliver, stats, lambda: self.mount_device)
        self.cuts.before = self.check
        self.cuts.on_late_end = self._over_elsewhere
        self._holders = holders
        self._eventfds = eventfds
        self._policies = policies
        self._events = events
        self._stats = stats
        self._sooner = trio.Event()
        self._sleeps_until = math.inf
        self._reap_waiters: list[tuple[Owner, OneShot]] = []
        """Breakers that wait until the pins of a dead owner, a great many, have been reaped."""
        holders.on_death = self.owner_gone
        self.book.is_dead = holders.is_dead
        self.book.files.on_failure = _log_failure
        self.book.deadlines.on_set = self._on_deadline

    # Breakers

    def removal(self, call: RemovalCall) -> AbstractAsyncContextManager["Removing"]:
        """Inside of it the bytes may be cut. Check the arguments again there.

        What is inside must not yield to other tasks (`cut` may): a range where nothing is pinned is not reserved.
        OSError: EBUSY or ETXTBSY (SPEC 3.2, 3.3, 3.6, 3.10), EAGAIN (`nonblock`, and the break goes on). A breaker that
        is cancelled leaves its breaks behind.
        """
        return Removing(self, self._ask(call))

    def removal_in_thread(self, call: RemovalCall) -> AbstractAsyncContextManager["Removing"]:
        """The same for one whose inside yields to other tasks: its range is reserved on all hosts, if there are
        others."""
        return Removing(self, self._ask(call, reserve=self.hosts is not None))

    async def cut(self, call: RemovalCall, fd: int, cut: Callable[[int], None], *, takes: bool = True) -> None:
        """The same for a call `cut` on the backing that the kernel may make wait (SPEC 3.9): it runs in a thread, on a
        duplicate of `fd`, with a deadline, and its range stays reserved meanwhile, whether pins are in it or not.

        `takes`: else it takes no bytes away (a file grows), and asks no pin. OSError: as `removal` and `Cuts.run`.
        """
        unique = getattr(call.caller, "unique", 0)
        if not takes:
            request = self._request(call, self._process(call.caller))
            policy = self._policies.current.for_path(request.path)
            await self.cuts.run(Removal(call.inode, call.start, call.end, request, policy), fd, cut, unique)
            return
        removal = await self._ask(call, reserve=True)
        assert removal is not None
        try:
            await self.cuts.run(removal, fd, cut, unique)
        finally:
            self.finish(removal)

    def finish(self, removal: Removal) -> None:
        """The bytes of a READY removal are cut, or will not be: at once, or, of a call that does not come back, later
        (the range of that stays reserved here and on all hosts)."""
        self.book.finish(removal, self.clock.now())
        if not self.cuts.is_under_way(removal):
            self._over_elsewhere(removal)

    def _over_elsewhere(self, removal: Removal) -> None:
        if self.hosts is not None:
            self.hosts.over(removal)

    def check(self, removal: Removal) -> None:
        """Right before the system call, in any thread. EIO: this host has been cut off from the others since the
        removal was allowed."""
        if self.hosts is not None:
            self.hosts.check(removal)

    async def until_uncut(self, inode: int, path: str | None) -> None:
        """Return when the kernel is at no removal of this file. EBUSY: after its `break_timeout` it still is."""
        policy = self._policies.current.for_path(path)
        await self.cuts.until_over(inode, policy.break_timeout + GRACE_S)

    async def _ask(self, call: RemovalCall, *, reserve: bool = False) -> Removal | None:
        """Return when the bytes may be cut, with the removal that is to be finished then (None: there is none, as
        nothing is pinned; with `reserve` there always is one)."""
        pinned = not self.is_untouched(call.inode, call.start, call.end)
        if pinned or self.minds_mappings:
            call.check()
        if self.minds_mappings:
            await self._refuse_mapped(call)
            pinned = not self.is_untouched(call.inode, call.start, call.end)  # that may have taken a while
        if not (pinned or reserve):
            return None
        self._holders.report_deaths()  # a breaker that has seen a holder end must not be refused for its pins
        if self.book.reaping.dead_owners:
            await self._wait_reaped(call)
        removal = self._begin(call)
        if self.hosts is None:
            await self._wait_answered(removal)
        else:
            await self._wait_answered_everywhere(removal, self.hosts, call.keeps)
        return removal

    async def _wait_answered_everywhere(self, removal: Removal, hosts: Hosts, keeps: bool) -> None:
        """The same where other hosts may have pinned the bytes. Holders are told here and there at the same time."""
        if removal.turn is Turn.READY and not removal.order:
            await (hosts.defer_one if keeps else hosts.defer)(removal)  # nothing is taken away, here and there
            return
        try:
            if removal.turn is not Turn.REFUSED:
                await hosts.ask(removal)
            await self._wait_answered(removal)
            await hosts.wait_answered(removal)
        except BaseException:
            hosts.leave(removal)
            self.book.leave(removal, self.clock.now())
            raise

    def judge_at_once(self, call: RemovalCall) -> Removal | None:
        """The removal of a call that meets pins, judged. None: that has to wait (for the pins of dead owners, or for
        what policy `mapped` wants to know), and is left to `removal`. What `check` raises passes through."""
        if self.minds_mappings or self.hosts is not None:
            return None
        call.check()
        self._holders.report_deaths()
        return None if self.book.reaping.dead_owners else self._begin(call)

    async def _wait_reaped(self, call: RemovalCall) -> None:
        """Return when no pin of a dead owner is left in the removal's range."""
        book = self.book
        dead = book.reaping.dead_owners
        while dead and not (book.closing or book.reap_in(call.inode, call.start, call.end, self.clock.now())):
            reaped = OneShot()
            self._reap_waiters.append((next(reversed(dead)), reaped))
            await reaped.wait()

    def _wake_reap_waiters(self) -> None:
        waiters, self._reap_waiters = self._reap_waiters, []
        for owner, reaped in waiters:
            if owner in self.book.reaping.dead_owners and not self.book.closing:
                self._reap_waiters.append((owner, reaped))
            else:
                reaped.set()

    def is_free(self, inode: int, start: int, end: int) -> bool:
        """Whether a removal of these bytes may go on at once: none is pinned or reserved, and no policy minds
        mappings."""
        return not self.minds_mappings and self.is_untouched(inode, start, end)

    def is_untouched(self, inode: int, start: int, end: int) -> bool:
        """Whether these bytes are neither pinned nor reserved, by what is known here without asking other hosts."""
        return not (self.book.touches(inode, start, end) or self.must_ask(inode))

    def must_ask(self, inode: int) -> bool:
        """Whether other hosts may have bytes of this file pinned."""
        return self.hosts is not None and self.hosts.must_ask(inode)

    def policy_for(self, path: str | None) -> Policy:
        """The policy in force for a file."""
        return self._policies.current.for_path(path)

    @property
    def minds_mappings(self) -> bool:
        """Whether a removal has to come here even where nothing is pinned: policy `mapped` is `deny` for some file."""
        return self._policies.current.minds_mappings

    async def _refuse_mapped(self, call: RemovalCall) -> None:
        """EBUSY (policy `errno`) for bytes that a process has mapped, as if by a deny pin (SPEC 8, `mapped`)."""
        path = call.path()
        policy = self._policies.current.for_path(path)
        if policy.mapped != "deny" or (call.op in UNLINKS and (call.keeps or policy.unlink == "defer")):
            return
        request = self._request(call, self._process(call.caller))
        await park()
        allowed_pid = request.pid if policy.own == "allow" else 0
        mapping = await trio.to_thread.run_sync(self._first_mapping, call, allowed_pid)
        if mapping is not None:
            log.info("%s is mapped by pid %d", bytes_text(request, mapping.start, mapping.end), mapping.pid)
            removal = Removal(call.inode, call.start, call.end, request, policy)
            self._deliver(BookEvent("refused", self.clock.now(), removal=removal, why="mapped"))
            raise OSError(policy.errno_number, f"mapped by process {mapping.pid}")

    def _first_mapping(self, call: RemovalCall, allowed_pid: int) -> Mapping | None:
        found = mappings_of(self.mount_device, call.inode, call.start, call.end)
        return next((mapping for mapping in found if mapping.pid != allowed_pid), None)

    def _process(self, caller: Breaker) -> Process | None:
        with suppress(OSError):  # no descriptor is left: then it is a breaker like any other
            return self._holders.process_of(caller.pid)
        return None

    def _request(self, call: RemovalCall, process: Process | None) -> RemovalRequest:
        """The pid is that of the breaker's process, or of its thread where the process cannot be found."""
        pid, process_id = (call.caller.pid, None) if process is None else (process.pid, process.id)
        inode, path, op, start, end, caller, _, handle, nonblock, _ = call
        if nonblock and process is not None and process.comm in NONBLOCKING_BY_HABIT:
            nonblock = False
        return RemovalRequest(inode, start, end, op, process_id, handle, pid, caller.uid, path(), nonblock)

    def _begin(self, call: RemovalCall) -> Removal:
        """Let the book judge."""
        request = self._request(call, self._process(call.caller))
        policies = self._policies.current
        self.book.table.limits = policies.limits
        policy = policies.for_path(request.path)
        if call.keeps:
            policy = replace(policy, unlink="defer")
        removal = self.book.begin(request, policy, self.clock.now())
        if removal.turn is Turn.WAITING:
            pins = self.book.files[call.inode].some(call.start, call.end, HOLDERS_IN_A_LOG_LINE + 1)
            defer(partial(_log_waiting, request, pins))
        return removal

    async def _wait_answered(self, removal: Removal) -> None:
        """Return when the removal's turn has come. OSError: it is refused."""
        if removal.turn is Turn.WAITING:
            answered = OneShot()
            removal.wake = answered.set
            try:
                await answered.wait()
            except BaseException:
                self.book.leave(removal, self.clock.now())
                raise
        if removal.turn is Turn.REFUSED:
            raise OSError(removal.errno, removal.why)

    def close(self) -> None:
        """The mount ends: all that wait are refused with EBUSY, and from now on all that would have to."""
        self.book.close(self.clock.now())
        if self.hosts is not None:
            self.hosts.close()
        self.cuts.close()
        self._wake_reap_waiters()

    # Holders

    def pin(self, request: PinRequest, size: int) -> Pin:
        """Register or replace a pin of a file of `size` bytes. OSError: EINVAL, ENXIO, EAGAIN, EDQUOT
        (`PinBook.pin`)."""
        self.book.table.limits = self._policies.current.limits
        return self.book.pin(request, size, self.clock.now())

    def release(self, pin: Pin) -> None:
        """The holder lets go."""
        self.book.release(pin, self.clock.now())

    def revoke(self, pin: Pin) -> None:
        """Root takes the pin from its holder."""
        self.book.revoke(pin, self.clock.now())

    def lose(self, pin: Pin, kill: bool) -> None:
        """Other hosts may take this pin for gone (SPEC 14): its holder is told, or killed, before they may cut."""
        process = pin.process
        self._notify(pin)
        self.book.revoke(pin, self.clock.now(), "cluster")
        if kill and process is not None:
            log.info("%s is killed: this host is cut off", pins_text([pin]))
            self._holders.kill(process)

    def extend(self, pin: Pin, seconds: float) -> float:
        """More time for a breaking pin; returns its deadline on trio's clock. OSError: ENODATA, EINVAL."""
        return self.book.extend(pin, seconds, self.clock.now())

    def owner_gone(self, owner: Owner, by: str = "death") -> None:
        """A process has ended (`death`), or an open file description was closed for the last time (`close`)."""
        self.book.owner_gone(owner, self.clock.now(), by)

    # Time

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the deadlines and reaps the pins of dead owners, until cancelled; others have their turn in between."""
        task_status.started()
        while True:
            await self._sleep_until_due()
            failed = True
            with logged("a turn of the guard"):
                self.book.expire(self.clock.now())
                self._wake_reap_waiters()
                failed = False
            if failed:
                await trio.sleep(PAUSE_AFTER_FAILURE_S)

    async def _sleep_until_due(self) -> None:
        deadline = self.book.next_deadline()
        self._sleeps_until = math.inf if deadline is None else deadline
        self._sooner = trio.Event()
        with trio.move_on_at(self._sleeps_until):
            await self._sooner.wait()

    def _on_deadline(self, deadline: float) -> None:
        if deadline < self._sleeps_until:
            self._sooner.set()

    # What the book tells. It is in the middle of a decision then, which must not be left half done.

    def _deliver(self, event: BookEvent) -> None:
        """The holder is notified first: a breaker waits for what the holder does."""
        self._tell(event)

    def _tell(self, event: BookEvent) -> None:
        try:
            if event.kind in ACTED_ON:
                self._act(event)
            count(self._stats, event)
            if event.kind not in UNPUBLISHED:
                self._events.publish(event)
            self.record(event)
            pin = event.pin
            if pin is not None and pin.owner != pin.process:
                self.on_handle_event(pin.owner)
        except Exception:
            log.exception("while telling of %s", event.kind)

    def _act(self, event: BookEvent) -> None:
        pin, removal = event.pin, event.removal
        if event.kind == "refused" and removal is not None:
            by = f": {pins_text([pin])}" if pin else f": host {removal.pinned_at}" if removal.pinned_at else ""
            log.info("%s is refused (%s)%s", removal_text(removal.request), event.why, by)
        elif pin is None:
            return
        elif event.kind == "revoked":
            log.info("%s is revoked (%s)%s", pins_text([pin]), event.by, break_text(event.breaking))
        elif event.kind == "break":
            self._notify(pin)
        elif event.kind == "kill" and pin.process is not None:
            log.info("%s is killed%s", pins_text([pin]), break_text(event.breaking))
            self._holders.kill(pin.process)

    def _notify(self, pin: Pin) -> None:
        spec, process = pin.spec, pin.process
        if spec.signal is not None and process is not None:
            self._holders.signal(process, spec.signal, pin.id, pin.uid)
        if spec.eventfd is not None:
            self._eventfds.signal(spec.eventfd)


def _log_waiting(request: RemovalRequest, pins: list[Pin]) -> None:
    log.info("%s waits for %s", removal_text(request), pins_text(pins))


def _log_failure(when: str, failure: Exception) -> None:
    log.error("%s", when, exc_info=failure)


@dataclass(slots=True)
class Removing:
    """A removal from the question to the end of the cut. A class, as generators that are dropped while they are parked
    come to a bad end."""

    guard: Guard
    answer: Coroutine[Any, Any, Removal | None]
    removal: Removal | None = None
    _calls: int = 0
    _is_left: bool = False

    def check(self) -> None:
        """`Guard.check`."""
        if self.removal is not None:
            self.guard.check(self.removal)

    def hold(self) -> Callable[[], None]:
        """A call begins that the breaker may leave behind, in a thread. The removal stands until what is returned has
        been called, once."""
        self._calls += 1
        return self._ended

    def _ended(self) -> None:
        self._calls -= 1
        if self._is_left:
            self._finish()

    async def __aenter__(self) -> "Removing":
        self.removal = await self.answer
        return self

    async def __aexit__(self, *failure: object) -> None:
        self._is_left = True
        self._finish()

    def _finish(self) -> None:
        if self.removal is not None and not self._calls:
            self.guard.finish(self.removal)
            self.removal = None
