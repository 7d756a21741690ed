"""Removals and breaks: what happens when somebody wants bytes that others have pinned (SPEC 3).

A removal is judged once, when it begins. If deny pins or the breaker's own pins are in its way it is refused at once.
If only leases are, it reserves its range, each lease in it starts to break (once, whoever comes later), and the removal
waits: first for the earlier removals of these bytes, then for the pins. It is answered exactly once, READY or REFUSED;
a READY one cuts the bytes and is finished.

What always holds: each pin in the range of a waiting removal is breaking or will be asked (unless the removal is
exempt); what the removal waits for next is an earlier removal or a pin that is breaking; each breaking pin has a
deadline and is wanted by a waiting removal or an orphan, or will be told that it is not; and no new pin appears in a
reserved range. So a removal that has no pin left in its way may cut, and nothing waits beyond a deadline.

Nobody else shall wait for a million pins. So where they are very many, `expire` goes through them in slices:

- holders are asked (`asking`). The break of a pin begins when it is asked, and so does the time it has. Whoever moves
  a pin before that is asked first: nobody can tell but by the clock;
- pins that nobody wants any more, because the removal was refused, stop breaking (`withdrawals`). A removal that comes
  before that finds them breaking, and joins, deadline and all;
- the pins of an owner that is gone are dropped. Until then they stand in the book, but in nobody's way: `owner_gone`.
"""

import errno
import heapq
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from typing import Any, Final, TypeAlias

from pinfs.core.pins import (
    BEFORE_ALL,
    Break,
    Event,
    FilePins,
    Owner,
    Pin,
    PinTable,
    Place,
    Reservation,
    discard,
)
from pinfs.core.policy import Limits, Policy
from pinfs.core.ranges import RangeTree

COOL_DOWN_S: Final = 1.0
"""How long new pins stay out of a range whose breaker gave up waiting, so that it can try again and win (SPEC 3.7)."""

KILL_GRACE_S: Final = 10.0
"""How long a holder may take to die of SIGKILL (it can be in an uninterruptible wait) before the breaker is refused."""

MAX_ORPHANS_PER_FILE: Final = 64
"""With more, they become one that spans them all: reserving a little more beats remembering without end."""

MAX_LOOKS: Final = 64
"""How many pins of the breaker itself are looked past for somebody else's, which only the errno depends on."""

MAX_OWN_LOOKS: Final = 2048
"""How many pins are looked at in search of one of the breaker's own, before anybody is asked. Where it has more than
these and more are in its way, one may be found only when it is its turn to be asked."""

AT_ONCE: Final = 128
"""Pins that are asked, or go, or breaks that end, between two looks at what else is to be done: some 1 ms."""

MAX_ASKING_LEFT: Final = 64
"""How many breakers of one file may have given up and still have holders asked. With more, those of the last ones are
not asked further: who tries again does that."""

UNLINKS: Final = frozenset({"unlink", "rename"})
"""The removals that take the last name as well: policy `unlink` decides about them."""


class Turn(Enum):
    """Where a removal stands. READY, REFUSED and GONE are final answers, and GONE is the breaker's own."""

    WAITING = auto()
    READY = auto()
    REFUSED = auto()
    GONE = auto()


@dataclass(slots=True, eq=False)
class Removal(Reservation):
    """A breaker's request to take [start, end) of an inode, bytes.

    `process` and `handle` say who asks, for the rule about own pins; `pid`, `uid` and `path` are for people.
    `nonblock`: answer EAGAIN where another would wait. `wake` is called when a waiting removal is answered. `exempt`:
    all pins in its way are its own, and policy lets it cut them.
    """

    op: str
    process: Hashable | None = None
    handle: Owner | None = None
    pid: int = 0
    uid: int = 0
    path: str | None = None
    nonblock: bool = False
    wake: Callable[[], None] | None = None
    turn: Turn = field(default=Turn.WAITING, init=False)
    errno: int = field(default=0, init=False)
    why: str = field(default="", init=False)
    exempt: bool = field(default=False, init=False)
    policy: Policy = field(default_factory=Policy, init=False, repr=False)

    @property
    def wants(self) -> bool:
        """Does it wait for pins to go?"""
        return self.turn is Turn.WAITING and not self.exempt

    def owns(self, pin: Pin) -> bool:
        """Is this a pin of the breaker itself (SPEC 3.3)?"""
        return (self.process is not None and self.process == pin.process) or (
            self.handle is not None and self.handle == pin.owner
        )


@dataclass(slots=True, eq=False)
class Orphan(Reservation):
    """What a breaker leaves behind that gave up while its breaks go on: its reservation, for it to try again.

    `process`: who may come back (None: nobody knows, or several). `deadline`: the end of the cool-down, None while pins
    in it are breaking.
    """

    process: Hashable | None = None
    deadline: float | None = field(default=None, init=False)

    @property
    def wants(self) -> bool:
        return self.order > 0 and self.deadline is None


@dataclass(slots=True, eq=False)
class Withdrawal:
    """Of the breaks in [start, end), those that nobody wants any more end. `after`: how far that has come."""

    inode: int
    start: int
    end: int
    after: tuple[int, int] = (-1, 0)


Timed: TypeAlias = Break | Orphan


class Alarms:
    """What has a deadline, by time. One that is moved or dropped leaves its old entry, to be skipped in its time.

    `on_set` hears of each new deadline.
    """

    def __init__(self) -> None:
        self.on_set: Callable[[float], None] | None = None
        self._heap: list[tuple[float, int, Timed]] = []
        self._count = 0
        self._stale = 0
        """Entries to be skipped."""

    def __len__(self) -> int:
        """How many entries it holds, skipped ones too."""
        return len(self._heap)

    def set(self, item: Timed, deadline: float) -> None:
        """Seconds. Costs O(log n)."""
        self.drop(item)
        item.deadline = deadline
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, item))
        if self._stale > len(self._heap) // 2 + 64:
            self._sweep()
        if self.on_set is not None:
            self.on_set(deadline)

    def drop(self, item: Timed) -> None:
        """It has no deadline any more."""
        if item.deadline is not None:
            item.deadline = None
            self._stale += 1

    def next(self) -> float | None:
        """The earliest deadline, None if there is none; minus infinity: it takes another call to find out, because very
        many entries are to be skipped."""
        for _ in range(AT_ONCE + 1):
            if not self._heap:
                return None
            deadline, _, item = self._heap[0]
            if item.deadline == deadline:
                return deadline
            heapq.heappop(self._heap)
            self._stale -= 1
        return -math.inf

    def due(self, now: float) -> Iterator[Timed]:
        """Take out some of what is due, earliest first. Who gets it must `set` or `drop` it."""
        for _ in range(AT_ONCE):
            if not self._heap or self._heap[0][0] > now:
                return
            deadline, _, item = heapq.heappop(self._heap)
            self._stale -= 1  # no entry of it is left to be skipped
            if item.deadline == deadline:
                yield item

    def _sweep(self) -> None:
        """Answered breaks would otherwise stay until their deadline: a quick pair of programs could fill the memory."""
        self._heap = [entry for entry in self._heap if entry[2].deadline == entry[0]]
        heapq.heapify(self._heap)
        self._stale = 0


class PinBook(PinTable):
    """All pins, and all that goes on about them: the one place that decides whether bytes may be taken away."""

    def __init__(self, emit: Callable[[Event], None], limits: Limits) -> None:
        super().__init__(emit, limits)
        self.closing = False
        self.is_gone: Callable[[Hashable], bool] = lambda process: False
        """Whether a process has ended; what it has left may still be about."""
        self._waiting: dict[Removal, None] = {}
        self.asking: dict[Removal, Place] = {}
        """Removals whose holders have not all been asked, each with the place of the last that has been. Some have
        given up meanwhile: what they want now is what their orphan wants."""
        self.withdrawals: deque[Withdrawal] = deque()
        self._killed: dict[Hashable, dict[int, Pin]] = {}
        """Processes that have been sent SIGKILL, and the pins for which, by id, as long as these are breaking."""
        self.alarms = Alarms()
        self.gone: dict[Owner, str] = {}
        """Owners that are gone and still have pins, each with the reason; who went first comes first."""
        self.breaking_of: dict[Owner, dict[int, Pin]] = {}
        """The breaking pins of each owner."""
        self._orders = 0

    @property
    def waiting(self) -> int:
        """How many removals wait."""
        return len(self._waiting)

    # -- what breakers say

    def begin(self, removal: Removal, policy: Policy, now: float) -> Turn:
        """Judge a removal, and let it wait where it has to. `policy`: the one of this file, now.

        READY: cut the bytes, then `finish`. WAITING: `removal.wake` will be called; `leave` if the breaker gives up.
        REFUSED: `removal.errno` and `removal.why` (deny, own, max_waiting, shutdown, nonblock) say how.
        """
        removal.policy = policy
        if removal.op in UNLINKS and policy.unlink == "defer":
            removal.turn = Turn.READY  # the name goes, the bytes stay: nothing is taken away
            return removal.turn
        if not self._refused_at_once(removal, now):
            self._reserve(removal)
            if not removal.exempt:
                self.asking[removal] = BEFORE_ALL
                self._ask_holders(removal, now)
            self._advance(removal, now)
        return removal.turn

    def finish(self, removal: Removal, now: float) -> None:
        """The bytes of a READY removal are cut, or will not be: let the next one go on."""
        removal.turn = Turn.GONE
        if removal.order:
            if not removal.exempt:
                self._drop_orphans(removal)
            self._unreserve(removal)
            self._look_again(removal.watchers, now)

    def leave(self, removal: Removal, now: float) -> None:
        """The breaker was interrupted or killed: its breaks go on to their deadlines without it (SPEC 3.7)."""
        if removal.turn is Turn.READY:
            self.finish(removal, now)
        elif removal.turn is Turn.WAITING:
            self._abandon(removal, now)
            removal.turn = Turn.GONE

    def close(self, now: float) -> None:
        """The mount ends: refuse all that wait, and from now on all that would have to."""
        self.closing = True
        self._refuse(list(self._waiting), errno.EBUSY, "shutdown", None, now)
        self._withdraw_some(now)

    @contextmanager
    def reserved(self, inode: int, start: int, end: int) -> Iterator[None]:
        """Inside of it no new pin appears in [start, end): EAGAIN. Removals do not mind."""
        reservation = Reservation(inode, start, end)
        self._reserve(reservation)
        try:
            yield
        finally:
            self._unreserve(reservation)

    def in_the_way(self, removal: Removal) -> Iterator[Pin]:
        """The pins in the range of a removal, deny pins first."""
        file = self.files.get(removal.inode)
        return iter(()) if file is None else file.overlapping(removal.start, removal.end)

    # -- what holders say

    def _before_move(self, pin: Pin, now: float) -> None:
        """One that has yet to be asked is asked now: it may not move as if nobody wanted it, nor to where nobody would
        look for it any more."""
        for removal, asked in self.asking.items():
            if pin.place > asked and _share_bytes(pin, removal):
                self._ask(pin, removal, now)

    def _moved(self, pin: Pin, breaking: Break, now: float) -> None:
        """A breaking pin that moves out of all that is wanted has answered; any other goes on breaking, to the same
        deadline."""
        if self._is_wanted(pin):
            self._look_again(breaking.watchers, now)
        else:
            self._emit(Event("answered", now, pin, breaking=breaking, by="holder"))
            self._stop_breaking(pin, breaking)
            self._look_again(breaking.watchers, now)

    def extend(self, pin: Pin, seconds: float, now: float) -> float:
        """Give a breaking pin until now + `seconds`, at most `break_timeout_max` after its break began (SPEC 7, 8).

        Never earlier than before. Returns the deadline. OSError: ENODATA (not breaking), EINVAL (not a time).
        """
        breaking = pin.breaking
        if breaking is None or breaking.deadline is None:
            raise OSError(errno.ENODATA, "this pin is not breaking")
        if not seconds >= 0:
            raise OSError(errno.EINVAL, "seconds must not be negative")
        latest = min(now + seconds, breaking.since + breaking.policy.break_timeout_max)
        if latest > breaking.deadline and not breaking.killed:
            self.alarms.set(breaking, latest)
        return breaking.deadline

    # -- owners that are gone

    def owner_gone(self, owner: Owner, now: float, by: str = "death") -> None:
        """As `PinTable.owner_gone`. Pins for which it was killed go as well where a handle owns them, which others may
        have: they have had their signal.

        Very many pins go with `expire`, those that somebody waits for first. Whoever begins a removal clears its way of
        those that are left: `bury_in`.
        """
        killed_for = self._killed.get(owner, {})
        if len(self.by_owner.get(owner, ())) + len(killed_for) <= AT_ONCE:
            for pin in list(killed_for.values()):
                self.revoke(pin, now, "kill")
            super().owner_gone(owner, now, by)
            return
        self.gone[owner] = by
        self._more_to_do(now)

    def bury_in(self, inode: int, start: int, end: int, now: float) -> bool:
        """Drop the pins of owners that are gone in [start, end). False: there are too many pins to look at in one go;
        the latest of `gone` is to be waited for."""
        file = self.files.get(inode)
        pins = [] if file is None else list(islice(file.overlapping(start, end), AT_ONCE + 1))
        for pin in pins:
            self._lost(pin, now)
        return len(pins) <= AT_ONCE

    def _lost(self, pin: Pin, now: float) -> bool:
        """Whether this was a pin of somebody who is gone; then it is dropped."""
        by = self.gone.get(pin.owner)
        if by is None and pin.breaking is not None and pin.breaking.killed:
            by = self.gone.get(pin.process)
        if by is not None:
            self._lose(pin, now, by)
        return by is not None

    def _bury(self, owner: Owner, now: float) -> None:
        """Drop some pins of an owner that is gone, first those that somebody waits for.

        The last ones of an index: a dict that loses its first takes ever longer to find the next.
        """
        by = self.gone[owner]
        pins: dict[Any, Pin] = self._killed.get(owner) or self.breaking_of.get(owner) or self.by_owner.get(owner, {})
        for _ in range(min(len(pins), AT_ONCE)):
            self._lose(pins.popitem()[1], now, by)
        if owner not in self._killed and owner not in self.by_owner:
            del self.gone[owner]

    # -- time

    def next_deadline(self) -> float | None:
        """When `expire` has something to do, in the seconds of `now`; None: never, as things stand."""
        return -math.inf if self.gone or self.asking or self.withdrawals else self.alarms.next()

    def _more_to_do(self, now: float) -> None:
        """`expire` has something to do at once."""
        if self.alarms.on_set is not None:
            self.alarms.on_set(now)

    def expire(self, now: float) -> None:
        """Do what the policy says about pins whose deadline is past (SPEC 3.6), end cool-downs, go on with what is done
        in slices.

        Very many take more than one call: see `next_deadline`.
        """
        for item in self.alarms.due(now):
            if isinstance(item, Orphan):
                self._unreserve(item)
            else:
                self._time_out(item, now)
        self._withdraw_some(now)
        if self.asking:
            self._ask_more(next(iter(self.asking)), now)
        if self.gone:
            self._bury(next(iter(self.gone)), now)

    def _time_out(self, breaking: Break, now: float) -> None:
        """SPEC 3.6. Where there is no process to kill, `kill` revokes; one that survives the grace keeps its pin."""
        pin, on_timeout = breaking.pin, breaking.policy.on_timeout
        if self._lost(pin, now):
            return
        if self.withdrawals and not self._is_wanted(pin):
            self._stand(pin, "unwanted", now)
        elif on_timeout == "deny" or breaking.killed:
            self._stand(pin, "timeout", now)
        elif on_timeout == "kill" and pin.process is not None and not self.is_gone(pin.process):
            self._kill(breaking, pin.process, now)
        else:
            self.revoke(pin, now, "policy")

    def _kill(self, breaking: Break, process: Hashable, now: float) -> None:
        breaking.killed = True
        self._killed.setdefault(process, {})[breaking.pin.id] = breaking.pin
        self.alarms.set(breaking, now + KILL_GRACE_S)
        self._emit(Event("kill", now, breaking.pin, breaking=breaking))

    # -- judging

    def _refused_at_once(self, removal: Removal, now: float) -> bool:
        """SPEC 3.2, 3.3, 3.8: what is decided before anybody is told."""
        file, policy = self.files.get(removal.inode, FilePins()), removal.policy
        pins = file.overlapping(removal.start, removal.end)
        removal.exempt = policy.own == "allow" and all(map(removal.owns, pins))
        if not removal.exempt:
            others = (pin for pin in islice(_denying(file, removal), MAX_LOOKS) if not removal.owns(pin))
            refusing = next(others, None)
            if refusing is not None:
                self._refuse([removal], policy.errno_number, "deny", refusing, now)
                return True
            own = self._own_in_the_way(removal, file)
            if own is not None:
                self._refuse([removal], errno.EBUSY, "own", own, now)
                return True
        return self._would_be_one_too_many(removal, file, now)

    def _own_in_the_way(self, removal: Removal, file: FilePins) -> Pin | None:
        """One of the breaker's own pins. It is looked for among all that it has and all that are in its way, whichever
        are fewer."""
        mine = self.of_breaker(removal.process, removal.handle)
        for pin, other in islice(zip(mine, file.overlapping(removal.start, removal.end), strict=False), MAX_OWN_LOOKS):
            if removal.owns(pin) and _share_bytes(pin, removal):
                return pin
            if removal.owns(other):
                return other
        return None

    def _would_be_one_too_many(self, removal: Removal, file: FilePins, now: float) -> bool:
        limited = self.closing or (self.waiting >= self.limits.max_waiting and not removal.nonblock)
        if not limited or self._obstacle(removal) is None:
            return False
        why = "shutdown" if self.closing else "max_waiting"
        if not self.closing:
            self._emit(Event("limit", now, why=why))
        self._refuse([removal], errno.EBUSY, why, file.first(removal.start, removal.end), now)
        return True

    # -- waiting

    def _obstacle(self, removal: Removal) -> Removal | Pin | None:
        """What the removal has to wait for next: the latest of the earlier removals of its bytes, else a pin."""
        file = self.files.get(removal.inode)
        if file is None:
            return None
        return _latest_before(removal, file) or (None if removal.exempt else file.first(removal.start, removal.end))

    def _ask_more(self, removal: Removal, now: float) -> None:
        """Some more. It may turn out only now that the breaker waits for itself: see MAX_OWN_LOOKS."""
        own = next(filter(removal.owns, self._ask_holders(removal, now)), None)
        if own is not None and removal.wants:
            self._refuse([removal], errno.EBUSY, "own", own, now)

    def _ask_holders(self, removal: Removal, now: float) -> list[Pin]:
        """Ask some, from the place in `asking`; the rest when all others have had their turn."""
        place, file = self.asking.pop(removal), self.files.get(removal.inode)
        if file is None:
            return []
        start, end = removal.start, removal.end
        left = file.overlapping(start, end) if place is BEFORE_ALL else file.overlapping_after(start, end, place)
        pins = list(islice(left, AT_ONCE + 1))
        if len(pins) > AT_ONCE:
            pins.pop()
            self.asking[removal] = pins[-1].place
            self._more_to_do(now)
        for pin in pins:
            if pin.breaking is None:
                self._ask(pin, removal, now)
        return pins

    def _ask(self, pin: Pin, removal: Removal, now: float) -> None:
        if removal.wants or self._is_wanted(pin):
            self._break(pin, removal, now)

    def _break(self, pin: Pin, removal: Removal, now: float) -> Break:
        """The break of a pin: begun now, or already under way (SPEC 3.4: each holder is told once)."""
        if pin.breaking is None:
            pin.breaking = Break(pin, removal.policy, now, None, removal.op, removal.start, removal.end)
            self.alarms.set(pin.breaking, now + removal.policy.break_timeout)
            self.breaking_of.setdefault(pin.owner, {})[pin.id] = pin
            self.files[pin.inode].add_breaking(pin)
            self._emit(Event("break", now, pin, removal, pin.breaking))
        return pin.breaking

    def _advance(self, removal: Removal, now: float) -> None:
        """Let the removal go on if nothing is in its way any more, else find it something to watch."""
        obstacle = self._obstacle(removal)
        if obstacle is None:
            self._ready(removal, now)
        elif removal.nonblock:
            self._abandon(removal, now)
            self._refuse([removal], errno.EAGAIN, "nonblock", obstacle if isinstance(obstacle, Pin) else None, now)
        else:
            self._waiting[removal] = None
            if isinstance(obstacle, Pin):
                breaking = obstacle.breaking or self._first_breaking(removal, now)
                _watch(removal, breaking or self._break(obstacle, removal, now))
            else:
                _watch(removal, obstacle)

    def _ready(self, removal: Removal, now: float) -> None:
        removal.turn = Turn.READY
        self.asking.pop(removal, None)
        if removal in self._waiting:
            del self._waiting[removal]
            self._emit(Event("proceeded", now, removal=removal))
            _wake(removal)

    def _refuse(self, removals: Iterable[Removal], code: int, why: str, pin: Pin | None, now: float) -> None:
        """Answer removals of one decision, then let go on what waited for them."""
        reserved = []
        for removal in removals:
            removal.turn, removal.errno, removal.why = Turn.REFUSED, code, why
            if removal.order:
                self.asking.pop(removal, None)
                self._withdraw_request(removal)
                reserved.append(removal)
            self._emit(Event("refused", now, pin, removal, why=why))
            _wake(removal)
        if reserved:
            self.withdrawals.extend(Withdrawal(*hull) for hull in _hulls(reserved))
            self._more_to_do(now)
        for removal in reserved:
            self._look_again(removal.watchers, now)

    def _abandon(self, removal: Removal, now: float) -> None:
        """Take a removal out of the queue, and leave an orphan for its breaks."""
        if not self._leave_orphan(removal, now) or self._asking_left(removal.inode) >= MAX_ASKING_LEFT:
            self.asking.pop(removal, None)
        self._withdraw_request(removal)
        self._look_again(removal.watchers, now)

    def _asking_left(self, inode: int) -> int:
        return sum(removal.inode == inode and removal.turn is not Turn.WAITING for removal in self.asking)

    def _withdraw_request(self, removal: Removal) -> None:
        self._waiting.pop(removal, None)
        _unwatch(removal)
        self._unreserve(removal)

    def _look_again(self, watchers: dict[Reservation, None], now: float) -> None:
        """What they watched has gone or moved: each goes on, or finds something else to watch."""
        for waiter in list(watchers):
            _unwatch(waiter)
            if isinstance(waiter, Removal) and waiter.turn is Turn.WAITING:
                self._advance(waiter, now)
            elif isinstance(waiter, Orphan) and waiter.wants:
                self._watch_or_cool_down(waiter, now)

    def _first_breaking(self, waiter: Removal | Orphan, now: float) -> Break | None:
        """A break that has to end before the waiter can go on. Where all that were asked have answered, the next are
        asked."""
        while True:
            tree = self.files[waiter.inode].breaking
            pin = None if tree is None else tree.first_overlap(waiter.start, waiter.end)
            if pin is not None:
                return pin.breaking
            asking = next((removal for removal in self.asking if _is_inside(removal, waiter)), None)
            if asking is None:
                return None
            self._ask_holders(asking, now)

    # -- the end of a break

    def _break_ended(self, pin: Pin, breaking: Break, now: float) -> None:
        self._end_break(breaking)
        self._look_again(breaking.watchers, now)

    def _stop_breaking(self, pin: Pin, breaking: Break) -> None:
        """The pin stays."""
        self.files[pin.inode].take_breaking(pin)
        self._end_break(breaking)

    def _end_break(self, breaking: Break) -> None:
        pin = breaking.pin
        pin.breaking = None
        self.alarms.drop(breaking)
        discard(self.breaking_of, pin.owner, pin.id)
        if breaking.killed:
            discard(self._killed, pin.process, pin.id)

    def _stand(self, pin: Pin, why: str, now: float) -> None:
        """The break is over and the pin stands: whoever still waits for it is refused. `why`: timeout, unwanted."""
        breaking = pin.breaking
        if breaking is not None:
            self._emit(Event("withdrawn", now, pin, breaking=breaking, why=why))
            self._stop_breaking(pin, breaking)
            refused = [r for r in self._reserved_over(pin) if isinstance(r, Removal) and r.wants]
            self._refuse(refused, breaking.policy.errno_number, why, pin, now)
            self._look_again(breaking.watchers, now)

    def _withdraw_some(self, now: float) -> None:
        """Removals were refused: holders of which nobody else wants anything need not let go any more."""
        left = AT_ONCE
        while self.withdrawals and left > 0:
            withdrawal = self.withdrawals[0]
            pins = self._breaking_after(withdrawal, left)
            if len(pins) < left:
                self.withdrawals.popleft()
            else:
                withdrawal.after = (pins[-1].start, pins[-1].id)
            left -= max(1, len(pins))
            for pin in pins:
                if not self._is_wanted(pin):
                    self._stand(pin, "unwanted", now)

    def _breaking_after(self, withdrawal: Withdrawal, count: int) -> list[Pin]:
        file = self.files.get(withdrawal.inode)
        if file is None or file.breaking is None:
            return []
        return list(islice(file.breaking.overlapping(withdrawal.start, withdrawal.end, withdrawal.after), count))

    def _is_wanted(self, pin: Pin) -> bool:
        return any(isinstance(r, Removal | Orphan) and r.wants for r in self._reserved_over(pin))

    def _reserved_over(self, pin: Pin) -> Iterator[Reservation]:
        reserved = self.files[pin.inode].reserved
        return iter(()) if reserved is None else reserved.overlapping(pin.start, pin.end)

    # -- reservations

    def _reserve(self, reservation: Reservation) -> None:
        self._orders += 1
        reservation.order = self._orders
        file = self.files.setdefault(reservation.inode, FilePins())
        file.reserved = file.reserved or RangeTree()
        file.reserved.insert(reservation.start, reservation.end, reservation.order, reservation)

    def _unreserve(self, reservation: Reservation) -> None:
        file = self.files[reservation.inode]
        if file.reserved is not None:
            file.reserved.remove(reservation.start, reservation.order)
        reservation.order = 0
        if isinstance(reservation, Orphan):
            self.alarms.drop(reservation)
            _unwatch(reservation)
            file.orphans = tuple(orphan for orphan in file.orphans if orphan is not reservation)
        self._forget_if_empty(reservation.inode)

    def _leave_orphan(self, removal: Removal, now: float) -> bool:
        """Keep the range of a removal that gave up as long as pins in it are breaking, and for the cool-down then.

        False: nothing is left behind.
        """
        file = self.files[removal.inode]
        if removal.exempt or self._first_breaking(removal, now) is None:
            return False
        orphan = Orphan(removal.inode, removal.start, removal.end, removal.process)
        crowded = len(file.orphans) >= MAX_ORPHANS_PER_FILE
        for other in file.orphans:
            if crowded or (other.start < removal.end and removal.start < other.end):
                orphan.start, orphan.end = min(orphan.start, other.start), max(orphan.end, other.end)
                if not isinstance(other, Orphan) or other.process != removal.process:
                    orphan.process = None
                self._unreserve(other)
        self._reserve(orphan)
        file.orphans += (orphan,)
        self._watch_or_cool_down(orphan, now)
        return True

    def _drop_orphans(self, removal: Removal) -> None:
        """Somebody has had the turn that they kept; no pin is left there to break."""
        for orphan in self.files[removal.inode].orphans:
            if removal.start <= orphan.start and orphan.end <= removal.end:
                self._unreserve(orphan)

    def _watch_or_cool_down(self, orphan: Orphan, now: float) -> None:
        breaking = self._first_breaking(orphan, now)
        if breaking is not None:
            _watch(orphan, breaking)
        elif orphan.process is not None and self.is_gone(orphan.process):
            self._unreserve(orphan)
        else:
            self.alarms.set(orphan, now + COOL_DOWN_S)


def _denying(file: FilePins, removal: Removal) -> Iterator[Pin]:
    """The pins that refuse this removal (SPEC 3.2), as policy `conflict` and `unlink` have it."""
    conflict = removal.policy.conflict
    if removal.op in UNLINKS and removal.policy.unlink == "deny":
        conflict = "deny"
    if conflict == "deny":
        return file.overlapping(removal.start, removal.end)
    if conflict == "break" or file.deny is None:
        return iter(())
    return file.deny.overlapping(removal.start, removal.end)


def _latest_before(removal: Removal, file: FilePins) -> Removal | None:
    """The latest of the unfinished removals that came before this one and share bytes with it.

    The latest, not the first: so those who wait form a chain, and the end of one wakes one.
    """
    if file.reserved is None:
        return None
    others = file.reserved.overlapping(removal.start, removal.end)
    earlier = [r for r in others if isinstance(r, Removal) and (not removal.order or r.order < removal.order)]
    return max(earlier, key=lambda r: r.order, default=None)


def _share_bytes(one: Pin | Reservation, other: Pin | Reservation) -> bool:
    return one.inode == other.inode and one.start < other.end and other.start < one.end


def _is_inside(inner: Reservation, outer: Reservation) -> bool:
    return inner.inode == outer.inode and outer.start <= inner.start and inner.end <= outer.end


def _hulls(removals: Iterable[Removal]) -> list[tuple[int, int, int]]:
    """(inode, start, end) of what removals of each inode span."""
    spans: dict[int, tuple[int, int]] = {}
    for removal in removals:
        start, end = spans.get(removal.inode, (removal.start, removal.end))
        spans[removal.inode] = (min(start, removal.start), max(end, removal.end))
    return [(inode, start, end) for inode, (start, end) in spans.items()]


def _watch(waiter: Reservation, obstacle: Reservation | Break) -> None:
    waiter.watching = obstacle
    obstacle.watchers[waiter] = None


def _unwatch(waiter: Reservation) -> None:
    if waiter.watching is not None:
        waiter.watching.watchers.pop(waiter, None)
        waiter.watching = None


def _wake(removal: Removal) -> None:
    if removal.wake is not None:
        removal.wake()
