"""The one guard of all removals: whoever takes bytes out of a file asks here first, and waits here (SPEC 2 and 3).

The book (`core`) decides; the guard has the clock, makes breakers wait, tells holders, hears of their deaths, and keeps
the count.
"""

import logging
import math
from collections.abc import Callable, Coroutine, Hashable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

import trio

from pinfs.core.breaks import UNLINKS, PinBook, Removal, Turn
from pinfs.core.pins import Break, Event, Owner, Pin, PinSpec, Reservation
from pinfs.core.policy import PolicySet
from pinfs.core.ranges import END
from pinfs.enforce.mappings import Mapping, mappings_of
from pinfs.runtime.parking import OneShot, defer, park
from pinfs.runtime.stats import Stats

log = logging.getLogger("pinfs.guard")

HOLDERS_IN_A_LOG_LINE: Final = 3
NONBLOCKING_BY_HABIT: Final = frozenset({"truncate"})
"""Programs that open with O_NONBLOCK only so that a FIFO does not hang them, and then expect to wait like everybody:
EAGAIN (SPEC 3.7) would make leases useless to the truncate(1) of GNU coreutils."""

ACTED_ON: Final = frozenset({"refused", "revoked", "kill", "break"})
UNPUBLISHED: Final = frozenset({"answered", "kill", "limit"})
"""Events between the core and the guard; people and programs see what they lead to."""


class Breaker(Protocol):
    """Who asks: `pid` is a thread id in the daemon's pid namespace, 0 where it is not visible there."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RemovalCall:
    """A removal as an operation states it, before it is known whether it is in anybody's way.

    It takes [start, end) of `inode`, in bytes. `path` and `caller` say where and by whom. `handle`: the open file
    description that the caller used, the owner of its pins. `nonblock`: EAGAIN where another call would wait.
    `check` raises what the removal would fail with anyway: it runs before any holder is notified.
    """

    inode: int
    path: Callable[[], str | None]
    op: str
    start: int
    end: int
    caller: Breaker
    check: Callable[[], None]
    handle: Owner | None = None
    nonblock: bool = False


class Holders(Protocol):
    """What the guard needs of `pinfs.enforce.holders.Holders`."""

    on_death: Callable[[Any], None]

    def process_of(self, tid: int, /) -> Any: ...
    def is_gone(self, process: Any, /) -> bool: ...
    def report_deaths(self) -> None: ...
    def signal(self, process: Any, signo: int, value: int, uid: int, /) -> bool: ...
    def kill(self, process: Any, /) -> bool: ...


class Policies(Protocol):
    """Where the policy in force is found."""

    @property
    def current(self) -> PolicySet: ...


class Events(Protocol):
    """Who passes events on to holders and to whoever traces."""

    def publish(self, event: Event) -> None: ...


class Guard:
    """Makes the promises of its `book` come true.

    Hears of deaths through `holders.on_death`, which it sets. `on_handle_event` is called with the owner of a
    handle-owned pin whenever something happens to that pin: somebody may poll the handle.
    """

    def __init__(self, holders: Holders, policies: Policies, events: Events, stats: Stats) -> None:
        self.book = PinBook(self._deliver, policies.current.limits)
        self.on_handle_event: Callable[[Owner], None] | None = None
        self.mount_device = 0
        """st_dev of the mount, known once it stands: mappings are found by it."""
        self._holders = holders
        self._policies = policies
        self._events = events
        self._stats = stats
        self._sooner = trio.Event()
        self._sleeps_until = math.inf
        self._mourners: list[tuple[Owner, OneShot]] = []
        """Breakers that wait until the pins of an owner that is gone, a great many, have been dropped."""
        holders.on_death = self.owner_gone
        self.book.is_gone = holders.is_gone
        self.book.alarms.on_set = self._on_alarm

    # Breakers

    def removal(self, call: RemovalCall) -> AbstractAsyncContextManager[None]:
        """Inside of it the bytes may be cut. Check the arguments again there.

        What is inside must not yield to other tasks: a range where nothing is pinned is not reserved. OSError: EBUSY or
        ETXTBSY (SPEC 3.2, 3.3, 3.6, 3.8), EAGAIN (`nonblock`, and the break goes on). A breaker that is cancelled
        leaves its breaks behind.
        """
        return _Removing(self.book, self._ask(call))

    async def _ask(self, call: RemovalCall) -> Removal | None:
        """Return when the bytes may be cut, with the removal that is to be finished then (None: there is none)."""
        pinned = self.book.touches(call.inode, call.start, call.end)
        if pinned or self.minds_mappings:
            call.check()
        if self.minds_mappings:
            await self._refuse_mapped(call)
            pinned = self.book.touches(call.inode, call.start, call.end)  # that may have taken a while
        if not pinned:
            return None
        self._holders.report_deaths()  # whoever has seen a holder end must not be refused for its pins
        if self.book.gone:
            await self._let_bury(call.inode, call.start, call.end)
        removal = self._begin(call)
        await self._answer(removal)
        return removal

    async def _let_bury(self, inode: int, start: int, end: int) -> None:
        """Come back when no pin of somebody who is gone is left in [start, end)."""
        book = self.book
        while book.gone and not (book.closing or book.bury_in(inode, start, end, trio.current_time())):
            buried = OneShot()
            self._mourners.append((next(reversed(book.gone)), buried))
            await buried.wait()

    def _tell_mourners(self) -> None:
        mourners, self._mourners = self._mourners, []
        for owner, buried in mourners:
            if owner in self.book.gone and not self.book.closing:
                self._mourners.append((owner, buried))
            else:
                buried.set()

    @property
    def minds_mappings(self) -> bool:
        """Whether a removal has to come here even where nothing is pinned: policy `mapped` is `deny` for some file."""
        return self._policies.current.minds_mappings

    async def _refuse_mapped(self, call: RemovalCall) -> None:
        """EBUSY (policy `errno`) for bytes that a process has mapped, as if by a deny pin (SPEC 8, `mapped`)."""
        path = call.path()
        policy = self._policies.current.for_path(path)
        if policy.mapped != "deny" or (call.op in UNLINKS and policy.unlink == "defer"):
            return
        pid = self._process_id(call.caller)
        await park()
        allowed_pid = pid if policy.own == "allow" else 0
        mapping = await trio.to_thread.run_sync(self._first_mapping, call, allowed_pid)
        if mapping is not None:
            removal = Removal(call.inode, call.start, call.end, call.op, pid=pid, uid=call.caller.uid, path=path)
            log.info("[%d, %d) of inode %d is mapped by pid %d", mapping.start, mapping.end, call.inode, mapping.pid)
            self._deliver(Event("refused", trio.current_time(), removal=removal, why="mapped"))
            raise OSError(policy.errno_number, f"mapped by process {mapping.pid}")

    def _first_mapping(self, call: RemovalCall, allowed_pid: int) -> Mapping | None:
        found = mappings_of(self.mount_device, call.inode, call.start, call.end)
        return next((mapping for mapping in found if mapping.pid != allowed_pid), None)

    def _process_id(self, ctx: Breaker) -> int:
        """The pid of the breaker's process, or of its thread where the process cannot be found."""
        return getattr(self._process(ctx), "pid", ctx.pid)

    def _process(self, ctx: Breaker) -> Any:
        with suppress(OSError):  # out of descriptors: then it is a breaker like any other
            return self._holders.process_of(ctx.pid)
        return None

    def _begin(self, call: RemovalCall) -> Removal:
        """Ask the book."""
        process = self._process(call.caller)
        pid = getattr(process, "pid", call.caller.pid)
        nonblock = call.nonblock and getattr(process, "comm", "") not in NONBLOCKING_BY_HABIT
        removal = Removal(
            call.inode, call.start, call.end, call.op, process, call.handle, pid, call.caller.uid, call.path(), nonblock
        )
        policies = self._policies.current
        self.book.limits = policies.limits
        self.book.begin(removal, policies.for_path(removal.path), trio.current_time())
        if removal.turn is Turn.WAITING:
            pins = list(islice(self.book.in_the_way(removal), HOLDERS_IN_A_LOG_LINE + 1))
            defer(lambda: log.info("%s waits for %s", _told(removal), _named(pins)))
        return removal

    async def _answer(self, removal: Removal) -> None:
        """Come back when the removal's turn has come. OSError: it is refused."""
        if removal.turn is Turn.WAITING:
            answered = OneShot()
            removal.wake = answered.set
            try:
                await answered.wait()
            except BaseException:
                self.book.leave(removal, trio.current_time())
                raise
        if removal.turn is Turn.REFUSED:
            raise OSError(removal.errno, removal.why)

    def close(self) -> None:
        """The mount ends: all that wait are refused with EBUSY, and from now on all that would have to."""
        self.book.close(trio.current_time())
        self._tell_mourners()

    # Holders

    def pin(
        self,
        inode: int,
        owner: Owner,
        process: Hashable | None,
        uid: int,
        name: bytes | None,
        spec: PinSpec,
        size: int,
        proxy_uid: int | None = None,
    ) -> Pin:
        """Register or replace a pin. OSError: EINVAL, ENXIO, EAGAIN, EDQUOT (see `PinTable.pin`)."""
        self.book.limits = self._policies.current.limits
        return self.book.pin(inode, owner, process, uid, name, spec, size, trio.current_time(), proxy_uid)

    def release(self, pin: Pin) -> None:
        """The holder lets go."""
        self.book.release(pin, trio.current_time())

    def revoke(self, pin: Pin) -> None:
        """Root takes the pin from its holder."""
        self.book.revoke(pin, trio.current_time())

    def extend(self, pin: Pin, seconds: float) -> float:
        """More time for a breaking pin; returns its deadline on trio's clock. OSError: ENODATA, EINVAL."""
        return self.book.extend(pin, seconds, trio.current_time())

    def owner_gone(self, owner: Owner, by: str = "death") -> None:
        """A process has ended (`death`), or an open file description was closed for the last time (`close`)."""
        self.book.owner_gone(owner, trio.current_time(), by)

    # Time

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the deadlines and drops the pins of the dead, until cancelled; others have their turn in between."""
        task_status.started()
        while True:
            deadline = self.book.next_deadline()
            self._sleeps_until = math.inf if deadline is None else deadline
            self._sooner = trio.Event()
            with trio.move_on_at(self._sleeps_until):
                await self._sooner.wait()
            self.book.expire(trio.current_time())
            self._tell_mourners()

    def _on_alarm(self, deadline: float) -> None:
        if deadline < self._sleeps_until:
            self._sooner.set()

    # Events

    def _deliver(self, event: Event) -> None:
        """What the book emits. The holder's signal goes out first: a breaker waits for what it does."""
        try:
            if event.kind in ACTED_ON:
                self._act(event)
            _count(self._stats, event)
            if event.kind not in UNPUBLISHED:
                self._events.publish(event)
            if event.pin is not None and event.pin.owner is not event.pin.process and self.on_handle_event is not None:
                self.on_handle_event(event.pin.owner)
        except Exception:  # the book is in the middle of a decision, which must not be left half done
            log.exception("while telling of %s", event.kind)

    def _act(self, event: Event) -> None:
        pin = event.pin
        if event.kind == "refused":
            by = f": {_named([pin])}" if pin else ""
            log.info("%s is refused (%s)%s", _told(event.removal), event.why, by)
        elif pin is None:
            return
        elif event.kind == "revoked":
            log.info("%s is revoked (%s)%s", _named([pin]), event.by, _wanted(event.breaking))
        elif pin.process is None:
            return
        elif event.kind == "kill":
            log.info("%s is killed%s", _named([pin]), _wanted(event.breaking))
            self._holders.kill(pin.process)
        elif event.kind == "break" and pin.signal is not None:
            self._holders.signal(pin.process, pin.signal, pin.id, pin.uid)


@dataclass(slots=True)
class _Removing:
    """A removal from the question to the end of the cut. A class, as generators that are dropped while they are parked
    come to a bad end."""

    book: PinBook
    answer: Coroutine[Any, Any, Removal | None]
    removal: Removal | None = None

    async def __aenter__(self) -> None:
        self.removal = await self.answer

    async def __aexit__(self, *failure: object) -> None:
        if self.removal is not None:
            self.book.finish(self.removal, trio.current_time())


def _told(removal: Reservation | None) -> str:
    """A removal, for the log."""
    if not isinstance(removal, Removal):
        return "a removal"
    where = f"{removal.path!r}" if removal.path is not None else f"inode {removal.inode}"
    end = "end" if removal.end >= END else removal.end
    return f"{removal.op} of {where} [{removal.start}, {end}) by pid {removal.pid} uid {removal.uid}"


def _wanted(breaking: Break | None) -> str:
    """Why a pin has been broken, for the log."""
    if breaking is None:
        return ""
    end = "end" if breaking.end >= END else breaking.end
    return f": {breaking.op} wants [{breaking.start}, {end})"


def _named(pins: Iterable[Pin]) -> str:
    """Some of the pins in the way, for the log."""
    named = []
    for pin in islice(pins, HOLDERS_IN_A_LOG_LINE + 1):
        end = "end" if pin.end >= END else pin.end
        named.append(f"pin {pin.id} [{pin.start}, {end}) of pid {getattr(pin.process, 'pid', None)} uid {pin.uid}")
    return ", ".join([*named[:HOLDERS_IN_A_LOG_LINE], *["and others"] * (len(named) > HOLDERS_IN_A_LOG_LINE)])


def _count(stats: Stats, event: Event) -> None:
    breaking = event.breaking
    match event.kind:
        case "break":
            stats.breaks_started += 1
        case "refused" if isinstance(event.removal, Removal):
            stats.refusals[event.removal.op, event.why or ""] += 1
        case "limit":
            stats.limit_reached[event.why or ""] += 1
    if breaking is not None:
        _count_end_of_break(stats, event, breaking)


def _count_end_of_break(stats: Stats, event: Event, breaking: Break) -> None:
    match event.kind:
        case "released" | "answered":
            stats.breaks_answered += 1
            stats.break_seconds.add(event.now - breaking.since)
        case "withdrawn" if event.why == "timeout" and not breaking.killed:
            stats.breaks_timed_out["deny"] += 1
        case "revoked" if event.by == "policy":
            stats.breaks_timed_out["revoke"] += 1
        case "kill":
            stats.breaks_timed_out["kill"] += 1
