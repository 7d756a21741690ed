"""The book: all pins and all that goes on about them; the one place that decides whether bytes may be taken away (SPEC
3).

A removal is judged once, when it begins. If deny pins or the breaker's own pins are in its way it is refused at once.
If only leases are, it reserves its range, each lease in it starts to break (once, however many removals come later),
and the removal waits: first for the earlier removals of these bytes, then for the pins. It is answered exactly once,
READY or REFUSED; a READY one cuts the bytes and is finished.

What always holds: each pin in the range of a waiting removal is breaking or will be notified (unless the removal is
exempt); what the removal waits for next is an earlier removal or a pin that is breaking; each breaking pin has a
deadline and a removal or an orphan that waits for it, or will be told that it may stay; and no new pin appears in a
reserved range. So a removal that has no pin left in its way may cut, and nothing waits beyond a deadline.

Commands come in as values (`PinRequest`, `RemovalRequest`, a pin that stands for its id, an owner) with the time, in
seconds; events go out. Nothing here reads a clock, waits, or does input or output.
"""

import errno
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final

from pinfs.core.breaks import Breaks
from pinfs.core.deadlines import Deadlines
from pinfs.core.events import BookEvent, EventKind
from pinfs.core.files import Files, FileState
from pinfs.core.owners import Owner, ProcessId
from pinfs.core.pins import Break, Pin, PinRequest
from pinfs.core.policy import Limits, Policy
from pinfs.core.removals import UNLINKS, Orphan, Removal, RemovalRequest, Reservation, Turn, share_bytes
from pinfs.core.reservations import Reservations, check_not_reserved
from pinfs.core.silence import SilentHolders
from pinfs.core.slices import Notifying, Reaping, SliceLimits, Withdrawals
from pinfs.core.table import PinTable
from pinfs.core.waits import Waiter

COOL_DOWN_S: Final = 1.0
"""How long new pins stay out of a range whose breaker gave up waiting, so that it can try again and win (SPEC 3.7)."""

KILL_GRACE_S: Final = 10.0
"""How long a holder may take to die of SIGKILL (it can be in an uninterruptible wait) before the breaker is refused."""

DEFAULT_SLICES: Final = SliceLimits()

_FEW: Final = 4
"""Pins in a removal's way that are listed once; more are looked through anew for each question."""
_WAITING: Final = Turn.WAITING  # looking into an Enum takes longer


class PinBook:
    """The table, the reservations, the breaks and the unfinished work, and the rules that join them.

    `emit` hears each event, in order, and must not call back. `is_dead`: whether a process has ended; what it has left
    may still be about. `ended`: how many pins have ended, by reason: holder, death, close, root, policy, kill. `on_end`
    is called with each pin that has just ended, after its event; `files.on_failure` hears what it raises.

    `subscribed`: a reader is there for pins that come and go undisturbed. There is none nearly always, and then no
    events are made of that: they would be a third of what a pin costs.
    """

    def __init__(self, emit: Callable[[BookEvent], None], limits: Limits, slices: SliceLimits = DEFAULT_SLICES) -> None:
        self.files = Files()
        self.table = PinTable(self.files, limits, self._limit_reached)
        self.deadlines = Deadlines(slices.pins)
        self.reservations = Reservations(self.files, self.deadlines)
        self.breaks = Breaks(self.files, self.deadlines)
        self.notifying = Notifying(self.files, slices, self._notify, self.deadlines.announce)
        self.withdrawals = Withdrawals(self.files, self.breaks, slices, self._keep_pin)
        self.reaping = Reaping(self.table, self.breaks, slices, self._drop_pin)
        self.silent = SilentHolders()
        self.closing = False
        self.is_dead: Callable[[ProcessId], bool] = lambda process: False
        self.ended: Counter[str] = Counter()
        self.on_end: Callable[[Pin], None] | None = None
        self.subscribed = True
        self._emit = emit
        self._slices = slices
        self._few = min(_FEW, slices.own_scan)
        self._waiting: dict[Removal, None] = {}

    def set_subscribed(self, subscribed: bool) -> None:
        """See `subscribed`."""
        self.subscribed = subscribed

    @property
    def waiting(self) -> int:
        """How many removals wait."""
        return len(self._waiting)

    def first_waiting(self, count: int) -> list[Removal]:
        """At most `count` of the removals that wait, in the order in which they came."""
        return list(islice(self._waiting, count))

    def touches(self, inode: int, start: int, end: int) -> bool:
        """Is any byte of [start, end) pinned or reserved? False: a removal may go on at once."""
        file = self.files.get(inode)
        return file is not None and (file.first(start, end) is not None or file.is_reserved(start, end))

    # -- commands of holders

    def pin(self, request: PinRequest, size: int, now: float) -> Pin:
        """Register a pin of a file of `size` bytes, or replace the owner's pin of that name in one step.

        A replaced pin keeps its id; one that cannot be replaced stays as it was. OSError: EINVAL (not a range), ENXIO
        (not inside the file), EAGAIN (a removal of these bytes is under way), EDQUOT (limits). SPEC 3.1, 4, 5.
        """
        inode, name, spec = request.inode, request.name, request.spec
        spec.check(size)
        table = self.table
        old = None if name is None else table.find(inode, request.owner, name)
        file = self.files.get(inode)
        if file is not None and file.reserved is not None:
            if old is not None and old.breaking is None:
                self.notifying.before_move(old, now)
            check_not_reserved(file, spec, old)
        charge = spec.length or size - spec.start
        if old is None:
            pin = table.insert(request, charge, now)
        else:
            pin = old
            table.replace(pin, request, charge, now)
        if self.subscribed:
            self._emit(BookEvent("pinned", now, pin, why="replaced" if old else None))
        if pin.breaking is not None:
            self._moved(pin, pin.breaking, now)
        return pin

    def release(self, pin: Pin, now: float, by: str = "holder") -> None:
        """The holder lets go, or can hold no longer. `by`: holder, death, close."""
        self._end(pin, "released", now, by)

    def revoke(self, pin: Pin, now: float, by: str = "root") -> None:
        """Take the pin from its holder. `by`: root, policy, kill, cluster."""
        self._end(pin, "revoked", now, by)

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
            self.deadlines.set(breaking, latest)
        return breaking.deadline

    def owner_gone(self, owner: Owner, now: float, by: str = "death") -> None:
        """A process has ended, or the last reference to an open file description was closed (SPEC 4).

        Very many pins go with `expire`. Before a removal begins, `reap_in` clears its way of those that are left.
        """
        self.silent.forget(owner)
        if self.reaping.is_small(owner):
            self.reaping.at_once(owner, by, now)
        else:
            self.reaping.dead_owners[owner] = by
            self.deadlines.announce(now)

    def reap_in(self, inode: int, start: int, end: int, now: float) -> bool:
        """Drop the pins of dead owners in [start, end). False: there are too many pins to look at in one slice; the
        latest of `reaping.dead_owners` is to be waited for."""
        file = self.files.get(inode)
        return file is None or self.reaping.reap_in(file.overlapping(start, end), now)

    def restore_ended(self, pin: Pin, now: float, by: str) -> None:
        """A pin of the daemon before whose owner has ended while there was none: told, and not restored. `by`: death,
        close."""
        self.ended[by] += 1
        if self.subscribed:
            self._emit(BookEvent("released", now, pin, by=by))

    # -- commands of breakers

    def begin(self, request: RemovalRequest, policy: Policy, now: float) -> Removal:
        """Judge a removal, and let it wait where it has to. `policy`: the one of this file, now.

        Its `turn` is READY: cut the bytes, then `finish`. WAITING: its `wake` will be called; `leave` if the breaker
        gives up. REFUSED: its `errno` and `why` (deny, own, unanswered, max_waiting, shutdown, nonblock) say how.
        """
        removal = Removal(request.inode, request.start, request.end, request, policy)
        if request.op in UNLINKS and policy.unlink == "defer":
            removal.turn = Turn.READY  # the name goes, the bytes stay: nothing is taken away
        elif not self._is_refused_at_once(removal, now):
            self.reservations.add(removal)
            if not removal.exempt:
                self.notifying.begin(removal, now)
            if removal.turn is _WAITING:  # else a silent holder was found among those to be notified
                self._advance(removal, now)
        return removal

    def finish(self, removal: Removal, now: float) -> None:
        """The bytes of a READY removal are cut, or will not be: let the next one go on."""
        removal.turn = Turn.GONE
        if removal.order:
            if not removal.exempt:
                self.reservations.drop_orphans(removal)
            self.reservations.remove(removal)
            self._look_again(removal.watchers, now)

    def leave(self, removal: Removal, now: float) -> None:
        """The breaker was interrupted or killed: its breaks go on to their deadlines without it (SPEC 3.7)."""
        if removal.turn is Turn.READY:
            self.finish(removal, now)
        elif removal.turn is _WAITING:
            self._abandon(removal, now)
            removal.turn = Turn.GONE

    def refuse(self, removal: Removal, code: int, why: str, now: float) -> None:
        """Refuse a removal that waits or is READY for a reason from outside of the book."""
        if removal.turn in (Turn.WAITING, Turn.READY):
            self._refuse([removal], code, why, None, now)

    def withdraw(self, removal: Removal, now: float) -> None:
        """The breaker of another host waits no more, and has been answered there: its breaks end, as those of a removal
        that is refused."""
        if removal.turn is Turn.READY:
            self.finish(removal, now)
        elif removal.turn is _WAITING:
            removal.turn = Turn.GONE
            self.notifying.drop(removal)
            self._take_from_queue(removal)
            self.withdrawals.add([removal])
            self.deadlines.announce(now)
            self._look_again(removal.watchers, now)

    def close(self, now: float) -> None:
        """The mount ends: refuse all that wait, and from now on all that would have to."""
        self.closing = True
        self._refuse(list(self._waiting), errno.EBUSY, "shutdown", None, now)
        self.withdrawals.step(now)

    @contextmanager
    def reserved(self, inode: int, start: int, end: int) -> Iterator[None]:
        """Inside of it no new pin appears in [start, end): EAGAIN. Removals do not mind."""
        reservation = Reservation(inode, start, end)
        self.reservations.add(reservation)
        try:
            yield
        finally:
            self.reservations.remove(reservation)

    # -- time

    def next_deadline(self) -> float | None:
        """When `expire` has something to do, in the seconds of `now`; None: never, as things stand."""
        unfinished = self.reaping.dead_owners or self.notifying.notified_up_to or self.withdrawals.queue
        return -math.inf if unfinished else self.deadlines.next()

    def expire(self, now: float) -> None:
        """Do what the policy says about pins whose deadline is past (SPEC 3.6), end cool-downs, do one slice of each
        kind of unfinished work.

        Very many take more than one call: see `next_deadline`.
        """
        for item in self.deadlines.due(now):
            if isinstance(item, Orphan):
                self.reservations.remove(item)
            else:
                self._time_out(item, now)
        self.withdrawals.step(now)
        if self.notifying.notified_up_to:
            self._notify_more(next(iter(self.notifying.notified_up_to)), now)
        self.reaping.step(now)

    def _time_out(self, breaking: Break, now: float) -> None:
        """SPEC 3.6. Where there is no process to kill, `kill` revokes; one that survives the grace keeps its pin."""
        pin, on_timeout = breaking.pin, breaking.policy.on_timeout
        if self.reaping.drop_if_dead(pin, now):
            return
        if self.withdrawals.queue and not self.breaks.is_waited_for(pin):
            self._keep_pin(pin, "unwanted", now)
        elif on_timeout == "deny" or breaking.killed:
            self._keep_pin(pin, "timeout", now)
        elif on_timeout == "kill" and pin.process is not None and not self.is_dead(pin.process):
            self.breaks.kill(breaking, now + KILL_GRACE_S)
            self._emit(BookEvent("kill", now, pin, breaking=breaking))
        else:
            self.revoke(pin, now, "policy")

    # -- judging

    def _is_refused_at_once(self, removal: Removal, now: float) -> bool:
        """SPEC 3.2, 3.3, 3.8, 3.10: what is decided before any holder is notified."""
        file = self.files.get(removal.inode)
        if file is None:
            file = FileState()
        policy = removal.policy
        few: list[Pin] | None = file.some(removal.start, removal.end, self._few + 1)
        if few is not None and len(few) > self._few:
            few = None
        removal.exempt = policy.own == "allow" and all(map(removal.request.owns, _in_the_way(removal, file, few)))
        if not removal.exempt:
            refusing = self._denying(removal, file, few)
            if refusing is not None:
                self._refuse([removal], policy.errno_number, "deny", refusing, now)
                return True
            own = self._own_in_the_way(removal, file, few)
            if own is not None:
                self._refuse([removal], errno.EBUSY, "own", own, now)
                return True
            if len(self.silent):
                silent = self.silent.first(_in_the_way(removal, file, few), self._slices.silent_scan, now)
                if silent is not None:
                    self._refuse([removal], policy.errno_number, "unanswered", silent, now)
                    return True
        return self._is_one_too_many(removal, file, now)

    def _denying(self, removal: Removal, file: FileState, few: list[Pin] | None) -> Pin | None:
        """A pin that refuses this removal (SPEC 3.2), as policy `conflict` and `unlink` have it."""
        conflict = removal.policy.conflict
        if removal.request.op in UNLINKS and removal.policy.unlink == "deny":
            conflict = "deny"
        if conflict == "deny":
            pins = _in_the_way(removal, file, few)
        elif conflict == "break" or file.deny is None:
            return None
        else:
            pins = file.deny.overlapping(removal.start, removal.end)
        for pin in islice(pins, self._slices.deny_scan):
            if not removal.request.owns(pin):
                return pin
        return None

    def _own_in_the_way(self, removal: Removal, file: FileState, few: list[Pin] | None) -> Pin | None:
        """One of the breaker's own pins. It is looked for among all that the breaker has and all that are in the way,
        whichever are fewer."""
        request = removal.request
        if few is not None:
            for pin in few:
                if request.owns(pin):
                    return pin
            return None
        own = self.table.of_breaker(request.process, request.handle)
        in_the_way = file.overlapping(removal.start, removal.end)
        for mine, other in islice(zip(own, in_the_way, strict=False), self._slices.own_scan):
            if request.owns(mine) and share_bytes(mine, removal):
                return mine
            if request.owns(other):
                return other
        return None

    def _is_one_too_many(self, removal: Removal, file: FileState, now: float) -> bool:
        """Refuse a removal that would have to wait where no more may (SPEC 3.10)."""
        crowded = self.waiting >= self.table.limits.max_waiting and not removal.request.nonblock
        if not (self.closing or crowded) or self._obstacle(removal) is None:
            return False
        why = "shutdown" if self.closing else "max_waiting"
        if not self.closing:
            self._limit_reached(why, now)
        self._refuse([removal], errno.EBUSY, why, file.first(removal.start, removal.end), now)
        return True

    def _limit_reached(self, limit: str, now: float) -> None:
        self._emit(BookEvent("limit", now, why=limit))

    # -- waiting

    def _obstacle(self, removal: Removal) -> Removal | Pin | None:
        """What the removal has to wait for next: the latest of the earlier removals of its bytes, else a pin."""
        file = self.files.get(removal.inode)
        if file is None:
            return None
        earlier = self.reservations.latest_before(removal)
        if earlier is not None:
            return earlier
        return None if removal.exempt else file.first(removal.start, removal.end)

    def _advance(self, removal: Removal, now: float) -> None:
        """Let the removal go on if nothing is in its way any more, else find something that it waits for next."""
        obstacle = self._obstacle(removal)
        if obstacle is None:
            self._ready(removal, now)
        elif removal.request.nonblock:
            self._abandon(removal, now)
            self._refuse([removal], errno.EAGAIN, "nonblock", obstacle if isinstance(obstacle, Pin) else None, now)
        else:
            self._waiting[removal] = None
            if isinstance(obstacle, Pin):
                breaking = obstacle.breaking or self._first_breaking(removal, now)
                if removal.turn is _WAITING:  # no silent holder was found meanwhile
                    removal.watch(breaking or self._begin_break(obstacle, removal, now))
            else:
                removal.watch(obstacle)

    def _ready(self, removal: Removal, now: float) -> None:
        removal.turn = Turn.READY
        self.notifying.drop(removal)
        if removal in self._waiting:
            del self._waiting[removal]
            self._emit(BookEvent("proceeded", now, removal=removal))
            removal.wake()

    def _refuse(self, removals: Iterable[Removal], code: int, why: str, pin: Pin | None, now: float) -> None:
        """Answer removals of one decision, then let go on what waited for them."""
        reserved = []
        for removal in removals:
            waited = removal in self._waiting
            removal.turn, removal.errno, removal.why = Turn.REFUSED, code, why
            if removal.order:
                self.notifying.drop(removal)
                self._take_from_queue(removal)
                reserved.append(removal)
            self._emit(BookEvent("refused", now, pin, removal, why=why))
            if waited:
                removal.wake()
        if reserved:
            self.withdrawals.add(reserved)
            self.deadlines.announce(now)
        for removal in reserved:
            self._look_again(removal.watchers, now)

    def _abandon(self, removal: Removal, now: float) -> None:
        """Take a removal out of the queue, and leave an orphan for its breaks."""
        has_orphan = not removal.exempt and self._first_breaking(removal, now) is not None
        if has_orphan:
            self.watch_or_cool_down(self.reservations.leave_orphan(removal), now)
        if not has_orphan or self.notifying.is_crowded(removal.inode):
            self.notifying.drop(removal)
        self._take_from_queue(removal)
        self._look_again(removal.watchers, now)

    def _take_from_queue(self, removal: Removal) -> None:
        self._waiting.pop(removal, None)
        removal.unwatch()
        self.reservations.remove(removal)

    def _look_again(self, watchers: dict[Waiter, None], now: float) -> None:
        """What they watched has gone or moved: each goes on, or finds something else to watch."""
        for waiter in list(watchers):
            waiter.unwatch()
            if isinstance(waiter, Removal) and waiter.turn is _WAITING:
                self._advance(waiter, now)
            elif isinstance(waiter, Orphan) and waiter.breaks_pins:
                self.watch_or_cool_down(waiter, now)

    def watch_or_cool_down(self, orphan: Orphan, now: float) -> None:
        """An orphan waits for the next break in its range; where there is none, its cool-down begins."""
        breaking = self._first_breaking(orphan, now)
        if breaking is not None:
            orphan.watch(breaking)
        elif orphan.process is not None and self.is_dead(orphan.process):
            self.reservations.remove(orphan)
        else:
            self.reservations.cool_down(orphan, now + COOL_DOWN_S)

    def _first_breaking(self, waiter: Removal | Orphan, now: float) -> Break | None:
        """A break that has to end before the waiter can go on. Where all notified holders have answered, the next are
        notified."""
        while True:
            file = self.files[waiter.inode]
            tree = file.breaking
            pin = None if tree is None else tree.first_overlap(waiter.start, waiter.end)
            if pin is not None:
                breaking: Break | None = pin.breaking
                return breaking
            removal = self.notifying.inside(waiter)
            if removal is None:
                return None
            self.notifying.go_on(removal, now)

    # -- the break of a pin

    def _notify(self, pin: Pin, removal: Removal, now: float) -> None:
        """Start the break of a pin in the way of a removal, if a breaker still waits for it."""
        if pin.breaking is not None:
            return
        if self.silent.has(pin.owner, now):
            if removal.breaks_pins:
                self._refuse([removal], removal.policy.errno_number, "unanswered", pin, now)
        elif removal.breaks_pins or self.breaks.is_waited_for(pin):
            self._begin_break(pin, removal, now)

    def _notify_more(self, removal: Removal, now: float) -> None:
        """Some more. Only now may it turn out that the breaker waits for itself: see `SliceLimits.own_scan`."""
        own = next(filter(removal.request.owns, self.notifying.go_on(removal, now)), None)
        if own is not None and removal.breaks_pins:
            self._refuse([removal], errno.EBUSY, "own", own, now)

    def _begin_break(self, pin: Pin, removal: Removal, now: float) -> Break:
        breaking = self.breaks.begin(pin, removal, now)
        self._emit(BookEvent("break", now, pin, removal, breaking))
        return breaking

    def _moved(self, pin: Pin, breaking: Break, now: float) -> None:
        """A breaking pin that moves out of all that breakers wait for has answered; any other goes on breaking, to the
        same deadline."""
        if not self.breaks.is_waited_for(pin):
            self._emit(BookEvent("answered", now, pin, breaking=breaking, by="holder"))
            self.breaks.keep(breaking)
        self._look_again(breaking.watchers, now)

    def _keep_pin(self, pin: Pin, why: str, now: float) -> None:
        """The break is over and the pin stays: removals that still wait for it are refused. `why`: timeout,
        unwanted."""
        breaking = pin.breaking
        if breaking is None:
            return
        self._emit(BookEvent("withdrawn", now, pin, breaking=breaking, why=why))
        self.breaks.keep(breaking)
        if why == "timeout":
            self.silent.add(pin.owner, now + breaking.policy.retry_after, now)
        over = self.files[pin.inode].reserved_over(pin)
        refused = [r for r in over if isinstance(r, Removal) and r.breaks_pins]
        self._refuse(refused, breaking.policy.errno_number, why, pin, now)
        self._look_again(breaking.watchers, now)

    def _drop_pin(self, pin: Pin, by: str, now: float) -> None:
        """A pin whose owner is dead."""
        if pin.breaking is not None and pin.breaking.killed:
            self.revoke(pin, now, "kill")
        else:
            self.release(pin, now, by)

    def _end(self, pin: Pin, kind: EventKind, now: float, by: str) -> None:
        breaking = pin.breaking
        self.table.remove(pin)
        self.ended[by] += 1
        if self.subscribed or breaking is not None or kind != "released":
            why = by if by == "cluster" else None
            self._emit(BookEvent(kind, now, pin, breaking=breaking, by=by, why=why))
        if self.on_end is not None:
            try:
                self.on_end(pin)
            except Exception as e:  # this is in the middle of a decision, which must not be left half done
                self.files.on_failure(f"after the end of pin {pin.id}", e)
        self.files.drop_if_empty(pin.inode)
        if breaking is not None:
            self.breaks.end(breaking)
            self._look_again(breaking.watchers, now)


def _in_the_way(removal: Removal, file: FileState, few: list[Pin] | None) -> Iterable[Pin]:
    """All pins in the way of a removal; `few`: where they have been listed."""
    return file.overlapping(removal.start, removal.end) if few is None else few
