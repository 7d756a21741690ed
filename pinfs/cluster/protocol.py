"""Pins and removals across hosts: one `Member` is one life of one daemon in the cluster.

Pure: no clock (`now` is an argument: the local CLOCK_BOOTTIME in seconds, never compared with that of another host), no
input or output, no chance. What comes in are the methods of `Member` and `Membership`, what goes out are the values of
`pinfs.cluster.outputs`, which say what the daemon has to do.

Removals are common and pins are rare. So a file is *marked* before its first pin, and every member promises to ask etcd
from then on before it cuts that file; a removal of a file without a mark costs no round trip. Between pins and
removals of the same member the local book decides: it reserves the range of a pin before `pin_wanted` and until the
answer, and has judged a removal before `removal_wanted`. Modes, deadlines and policies are the book's as well: what is
here carries what it needs.

I1  A member's promise n says: each removal that it begins from now on without asking etcd is of a file without a mark
    up to the n-th ever set; those that it began before are over. etcd counts the marks, and a member that has missed
    one does not promise beyond it.
I2  A pin is acknowledged only by a transaction that finds the mark of its file unchanged, the promise of each member
    up to that mark, and no removal of these bytes, and puts it with the lease of a member that has not been buried.
I3  A marked file is cut only after a transaction that put the removal and found the pins of the file, and, if any were
    in its range, after a read that finds none of them left. The removal's key goes after the cut.
I4  No cut begins and no pin is acknowledged at the fence or later: the time at which the last beat that was done was
    sent, plus `pin_ttl_s` (less what clocks may differ), minus `margin_s`. At the fence all holders are told. A peer
    takes this member's pins away `pin_ttl_s` after it has seen that beat, which was later. Only durations count.
I5  A cut that has begun may take effect late (an NFS server that hangs). The promise and the removals of a dead member
    stand until `member_ttl_s`: until then first pins of a file, and pins in the way of these removals, get EAGAIN.

The watch wakes, answers decide: a watch that is late or loses events makes pins and removals slow or refused, and no
pin unsafe. Two things no protocol cures. A daemon that stalls for longer than `margin_s` tells its holders too late.
And an etcd that is restored from a snapshot has forgotten pins: it has to stay down for `member_ttl_s`, in which all
members meet their fences (a member that sees etcd go back in revisions ends as well, but another may have cut by then).
"""

import errno
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pinfs.cluster.keys import (
    Key,
    MemberId,
    MemberValue,
    PinKey,
    PinValue,
    RemovalKey,
    RemovalValue,
    VerdictKey,
    check_file,
    check_operation,
    overlap,
    pins_of,
    read_key,
    verdict_text,
)
from pinfs.cluster.membership import Ended, Limits, OutOfTime, Timing
from pinfs.cluster.messages import KeyValue, Put, Range, Request, Txn, exists
from pinfs.cluster.outputs import MayCut, Output, RemovalRefused, Told, ToldOver, Waits
from pinfs.cluster.pinning import OwnPin, Pinning, Refusal, Withdrawn
from pinfs.cluster.tasks import Steps, Task, Until, never
from pinfs.cluster.view import Marks, Peer
from pinfs.core.pins import Mode

SERIAL_BITS: Final = 32
ANY_FILE: Final = ""
"""In place of a file: one that is not known before the call (a rename to a name that another host may be giving to a
file right now). While such a removal is under way nothing further is promised."""


@dataclass(frozen=True, slots=True)
class Former:
    """What the journal has of the daemon before, of the same member, if that had joined. (If not: a new incarnation.)

    `fence`: its last one. `pins`: those that it had acknowledged. `is_settled`: no system call of it can still cut
    bytes.
    """

    fence: float
    pins: Mapping[int, tuple[PinKey, PinValue]]
    is_settled: bool


@dataclass(slots=True, eq=False)
class OwnRemoval:
    """`key` None: of a file without a mark, has not asked. `may_cut`: it was allowed, and is under way. `count`: of the
    marks when it began."""

    file: str
    value: RemovalValue
    key: RemovalKey | None = None
    is_sent: bool = False
    may_cut: bool = False
    count: int = 0
    task: Task | None = field(default=None)


class Member(Pinning):
    """One life of one daemon. `life`: counts the daemons of this member (0, 1, 2...); each gives its pins and removals
    numbers of its own."""

    def __init__(
        self, member: MemberId, timing: Timing | None = None, limits: Limits | None = None, life: int = 0
    ) -> None:
        super().__init__(member, timing or Timing(), limits or Limits(), life << SERIAL_BITS)
        self._first_serial = self._serial
        self._removals: dict[int, OwnRemoval] = {}
        self._own_keys: set[RemovalKey] = set()
        self._told: dict[RemovalKey, set[int]] = {}

    @property
    def marks(self) -> Marks:
        """The files that removals have to ask about; another object after the watch has begun anew."""
        return self._view.marks

    @property
    def members(self) -> Mapping[MemberId, Peer]:
        """Of the whole cluster."""
        return self._view.members

    @property
    def waiting(self) -> int:
        """Pins and removals that are not answered yet."""
        return self._waiting

    # What the daemon asks for

    def join(self, now: float) -> list[Output]:
        """Begins; `Joined` follows, or `Fenced`."""
        self._begin(now)
        self._tasks.start(self._join())
        return self._settled()

    def resume(self, former: Former, now: float) -> list[Output]:
        """Goes on for a daemon that has died; `Joined` follows, or `Fenced` with the pins of the daemon before.
        Removals that had been told are told again, under the same keys."""
        self.fence = former.fence
        for pin, (key, value) in former.pins.items():
            self._hold(pin, OwnPin(key, value, revision=1, is_sent=True))
        self._begin(now)
        self._unsettled_until = self._settled_at(former.is_settled)
        self._tasks.start(self._resume())
        return self._settled()

    def removal_wanted(self, removal: int, file: str, value: RemovalValue, deadline: float, now: float) -> list[Output]:
        """Asks to cut; `MayCut` or `RemovalRefused` follows by the deadline, at once for a file without a mark and for
        ANY_FILE. Raises Unreadable (a ValueError) for a file or operation that no key can carry."""
        if file != ANY_FILE:
            check_file(file)
        check_operation(value.operation)
        self._begin(now)
        refusal = self._refused_at_once(errno.EBUSY)
        if refusal:
            self._outputs.append(RemovalRefused(removal, refusal.errno, refusal.why))
            return self._settled()
        own = self._removals[removal] = OwnRemoval(file, value, count=self._view.count)
        if self._must_ask(file, value):
            own.key = RemovalKey(file, self.id, self._next_serial())
            self._own_keys.add(own.key)
            own.task = Task(self._remove(removal, own, deadline))
            self._tasks.run(own.task)
        else:
            self._allow(removal, own)
        return self._settled()

    def removal_finished(self, removal: int, now: float) -> list[Output]:
        """The system call that `MayCut` allowed is over, or was not made."""
        self._begin(now)
        self._drop_removal(removal)
        return self._settled()

    def removal_withdrawn(self, removal: int, now: float) -> list[Output]:
        """The breaker has left before `MayCut`; no answer follows. After `MayCut` it has to be finished."""
        self._begin(now)
        own = self._removals.get(removal)
        if own and own.task:
            self._tasks.end(own.task, Withdrawn())
        return self._settled()

    def removal_denied(self, removal: RemovalKey, why: str, now: float) -> list[Output]:
        """The local book does not let go for a removal that was told. `why`: a word for the breaker. Raises Unreadable
        (a ValueError) for what is not one."""
        text = verdict_text(why)
        self._begin(now)
        if removal in self._told and self._is_live():
            self._tasks.start(self._deny(removal, text))
        return self._settled()

    # Removals of this member

    def _must_ask(self, file: str, value: RemovalValue) -> bool:
        """I1: the promise is kept here."""
        return file in self._view.marks

    def _promise(self) -> int:
        if self._now < self._unsettled_until:
            return self._value.promise
        unasked = {own.file for own in self._removals.values() if own.key is None}
        earliest = [mark.earliest for file in unasked if (mark := self._view.marks.get(file))]
        of_any = [own.count for own in self._removals.values() if own.file == ANY_FILE]
        return min([self._view.count, *(count - 1 for count in earliest), *of_any])

    def _remove(self, removal: int, own: OwnRemoval, deadline: float) -> Steps:
        try:
            refusal = yield from self._judged(self._cleared(removal, own, deadline))
        except Withdrawn:
            self._drop_removal(removal)
            return
        own.task = None
        if refusal:
            self._drop_removal(removal)
            self._outputs.append(RemovalRefused(removal, refusal.errno, refusal.why, refusal.host))
        else:
            self._allow(removal, own)

    def _cleared(self, removal: int, own: OwnRemoval, deadline: float) -> Steps:
        """I3: returns when no pin is in the way. Raises Refusal, OutOfTime, Ended."""
        assert own.key is not None
        pins = Range(pins_of(own.file), prefix=True)
        if any(pin.mode is Mode.DENY for pin in self._known_in_way(own).values()):  # else leases would be told in vain
            done = yield from self._ask(Txn((), (pins,)), deadline)
            self._refuse_if_denied(own, done.ranges[0])
        own.is_sent = True
        put = Put(str(own.key), str(own.value), self._value.member_lease)
        done = yield from self._ask(Txn((), (put, pins)), deadline)
        self._refuse_if_denied(own, done.ranges[0])
        way = self._in_way(own, done.ranges[0])
        if not way:
            return
        self._outputs.append(Waits(removal, tuple(sorted({key.member.host for key in way}))))
        put_at = done.revision

        def stand() -> bool:
            known = self._view.pins.get(own.file, {})
            return self._view.revision < put_at or any(key in known for key in way)

        yield Until(lambda: not stand() or own.key in self._view.verdicts, deadline)
        if stand() and own.key in self._view.verdicts:
            member, why = min(self._view.verdicts[own.key].items())
            raise Refusal(errno.EBUSY, why, member.host)
        left = yield from self._left(own, way, deadline)
        if left:
            raise Refusal(errno.EBUSY, "unanswered", left[0].member.host)

    def _left(
        self, own: OwnRemoval, way: list[PinKey], deadline: float
    ) -> Generator[Request | Until, Any, list[PinKey]]:
        """The pins of `way` that stand: the watch may have lost that they were ever put."""
        done = yield from self._ask(Txn((), (Range(pins_of(own.file), prefix=True),)), deadline)
        return [key for key in self._in_way(own, done.ranges[0]) if key in way]

    def _known_in_way(self, own: OwnRemoval) -> dict[PinKey, PinValue]:
        """As the watch has it."""
        known = self._view.pins.get(own.file, {})
        return {key: pin for key, pin in known.items() if key.member != self.id and overlap(pin, own.value)}

    def _in_way(self, own: OwnRemoval, found: tuple[KeyValue, ...]) -> list[PinKey]:
        """Of these pins, those of other members in its range."""
        return [key for key in _pins_in_range(found, own.value) if key.member != self.id]

    def _refuse_if_denied(self, own: OwnRemoval, found: tuple[KeyValue, ...]) -> None:
        for key, pin in _pins_in_range(found, own.value).items():
            if pin.mode is Mode.DENY and key.member != self.id:
                raise Refusal(errno.EBUSY, "deny", key.member.host)

    def _allow(self, removal: int, own: OwnRemoval) -> None:
        own.may_cut = True
        self._outputs.append(MayCut(removal, self.fence))

    def _drop_removal(self, removal: int) -> None:
        own = self._removals.pop(removal, None)
        if own and own.key:
            self._own_keys.discard(own.key)
            if own.is_sent:
                self._doomed[own.key] = None

    def _has_removals(self) -> bool:
        return bool(self._removals)

    def _has_cuts(self) -> bool:
        return any(own.may_cut for own in self._removals.values())

    # Removals of other hosts

    def _tell(self, removal: RemovalKey, value: RemovalValue) -> None:
        """The daemon hears of a removal once for each of its leases."""
        if removal.member == self.id:
            return
        told = self._told.get(removal, set())
        held = self._held_of.get(removal.file, {})
        pins = tuple(
            pin
            for pin, own in held.items()
            if own.value.mode is Mode.LEASE and pin not in told and overlap(own.value, value)
        )
        if pins:
            self._told[removal] = told.union(pins)
            self._outputs.append(Told(removal, value.start, value.end, value.operation, pins))

    def _deny(self, removal: RemovalKey, text: str) -> Steps:
        """One verdict of a member is enough for a removal. It goes with the removal's key."""
        put = Put(str(VerdictKey(removal, self.id)), text, self._value.pin_lease)
        try:
            yield from self._ask(Txn((exists(str(removal)),), (put,)), self._now + self._timing.pin_ttl_s)
        except (OutOfTime, Ended):  # the breaker goes by its own deadline
            return

    def _told_pinned(self, own: OwnPin) -> None:
        for removal, value in self._view.removals.get(own.key.file, {}).items():
            self._tell(removal, value)

    def _take_pins(self) -> tuple[int, ...]:
        self._told.clear()
        return super()._take_pins()

    # What the watch brings

    def _is_known(self, key: PinKey | RemovalKey) -> bool:
        if isinstance(key, PinKey):
            return super()._is_known(key)
        return key in self._own_keys or (key.number <= self._first_serial and self._now < self._unsettled_until)

    def _noticed(self, key: Key, item: KeyValue | None) -> None:
        super()._noticed(key, item)
        if isinstance(key, RemovalKey):
            if item:
                self._tell(key, RemovalValue.read(item.value))
            elif self._told.pop(key, None):
                self._outputs.append(ToldOver(key))

    def _reviewed(self) -> None:
        super()._reviewed()
        for key in [key for key in self._told if key not in self._view.removals.get(key.file, {})]:
            del self._told[key]
            self._outputs.append(ToldOver(key))

    # After another daemon of the same member

    def _resume(self) -> Steps:
        """The member is there, unless others have buried it meanwhile."""
        try:
            done = yield from self._ask(Txn((), (Range(self.id.key),)))
            self._end_unless_member(done.ranges[0])
            own = done.ranges[0][0]
            self._value, self._value_revision = MemberValue.read(own.value), own.mod_revision
            self._last_beat = self._value.beat
            self._tasks.start(self._settle())
            yield from self._begin_life()
        except Ended:
            return

    def _settled_at(self, is_settled: bool) -> float:
        return -math.inf if is_settled else self._now + self._timing.late_s

    def _settle(self) -> Steps:
        """Removals of the daemon before may still be cutting, and so may those that had not asked: until then their
        keys stand, and the promise stays as it is (I5)."""
        yield Until(never, self._unsettled_until)
        for removals in [*self._view.removals.values()]:
            for key in removals:
                self._noticed_own(key)


def _pins_in_range(found: tuple[KeyValue, ...], value: RemovalValue) -> dict[PinKey, PinValue]:
    pins = ((read_key(item.key), PinValue.read(item.value)) for item in found)
    return {key: pin for key, pin in pins if isinstance(key, PinKey) and overlap(pin, value)}
