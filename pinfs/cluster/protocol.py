"""Pins and removals across hosts: one `Member` is one life of one daemon in the cluster.

Pure: no clock (`now` is an argument: the local CLOCK_BOOTTIME in seconds, never compared with that of another host), no
input or output, no chance. What comes in are the methods of `Member` and `Membership`, what goes out are the values of
`pinfs.cluster.outputs`, which say what the daemon has to do.

Removals are common and pins are rare. So a file is *marked* before its first pin, and every member promises to ask etcd
from then on before it cuts that file; a removal of a file without a mark asks no one. Between pins and removals of the
same member the local book decides: it reserves the range of a pin before `pin_wanted` and until the answer, and has
judged a removal before `removal_wanted`.

I1  A member's promise n says: each removal that it begins from now on without asking etcd is of a file without a mark up
    to the n-th ever set; those that it began before are over. Marks are counted by etcd, and a member that has missed one
    does not promise beyond it.
I2  A pin is acknowledged only by a transaction that finds the mark of its file unchanged, the promise of each member up
    to that mark, no removal of these bytes, and this member alive.
I3  A marked file is cut only after a transaction that put the removal and found the pins of the file, and after a read
    that finds none left of those in its range; the removal's key goes after the cut.
I4  No cut begins and no pin is acknowledged at the fence or later: the sending of the last beat that was done, plus
    `pin_ttl_s` (less what clocks may differ), minus `margin_s`. At the fence all holders are told. Only local durations
    count. No peer takes this member's pins away before `pin_ttl_s` after it has seen that beat, which was later.
I5  A cut that has begun may take effect late (an NFS server that hangs). A dead member's promise and removals stand until
    `member_ttl_s`, so first pins and pins of its bytes have to wait for `Timing.late_s` after its fence.

The watch wakes, answers decide: a watch that is late or loses events makes pins and removals slow or refused, and no pin
unsafe. What no protocol cures: a daemon that stalls for longer than `margin_s` tells its holders too late. A restored
etcd has forgotten what came after its snapshot: it has to stay down for `member_ttl_s`, so that every member is fenced;
going back in revisions is noticed as well, and ends the member.
"""

import errno
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pinfs.cluster.keys import (
    COUNTER,
    MEMBERS,
    Key,
    MarkKey,
    MemberId,
    MemberValue,
    PinKey,
    PinValue,
    RemovalKey,
    RemovalValue,
    VerdictKey,
    check_file,
    check_operation,
    padded,
    pins_of,
    read_key,
    removals_of,
    verdict_text,
)
from pinfs.cluster.membership import Ended, Limits, Membership, OutOfTime, State, Timing
from pinfs.cluster.messages import (
    Compare,
    Delete,
    KeyValue,
    Put,
    Range,
    Request,
    Txn,
    absent,
    all_above,
    exists,
    none_newer,
    unchanged,
)
from pinfs.cluster.outputs import (
    MayCut,
    Output,
    Pinned,
    PinRefused,
    RemovalRefused,
    Told,
    ToldOver,
    Waits,
)
from pinfs.cluster.tasks import Steps, Task, Until, never
from pinfs.cluster.view import Mark
from pinfs.core.pins import Mode

SERIAL_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Former:
    """What the journal has of the daemon before, of the same member.

    `fence`: its last one. `pins`: those that it had acknowledged. `is_settled`: no system call of it can still cut bytes.
    """

    fence: float
    pins: Mapping[int, tuple[PinKey, PinValue]]
    is_settled: bool


class Refusal(Exception):
    """A pin or a removal is refused."""

    def __init__(self, number: int, why: str, host: str = "") -> None:
        super().__init__(why)
        self.errno = number
        self.why = why
        self.host = host


class Withdrawn(Exception):
    """The daemon does not want it any more."""


@dataclass(slots=True, eq=False)
class OwnPin:
    """`revision`: of its registration, 0 before it. `is_sent`: its key may be in etcd."""

    key: PinKey
    value: PinValue
    revision: int = 0
    is_sent: bool = False
    task: Task | None = None


@dataclass(slots=True, eq=False)
class OwnRemoval:
    """`key` None: of a file without a mark, has not asked. `may_cut`: it was allowed, and is under way."""

    file: str
    value: RemovalValue
    key: RemovalKey | None = None
    is_sent: bool = False
    may_cut: bool = False
    task: Task | None = field(default=None)


class Member(Membership):
    """One life of one daemon. `life`: counts the daemons of this member (0, 1, 2...); each gives its pins and removals
    numbers of its own."""

    def __init__(
        self, member: MemberId, timing: Timing | None = None, limits: Limits | None = None, life: int = 0
    ) -> None:
        super().__init__(member, timing or Timing(), limits or Limits())
        self._first_serial = self._serial = life << SERIAL_BITS
        self._pins: dict[int, OwnPin] = {}
        self._pin_of: dict[PinKey, int] = {}
        self._held_of: dict[str, dict[int, OwnPin]] = {}
        self._removals: dict[int, OwnRemoval] = {}
        self._own_keys: set[RemovalKey] = set()
        self._told: dict[RemovalKey, set[int]] = {}
        self._unsettled_until = -math.inf
        """What the daemon before has begun may take effect until then."""

    # What the daemon asks for

    def join(self, now: float) -> list[Output]:
        """Begins; `Joined` follows, or `Fenced`."""
        self._begin(now)
        self._tasks.start(self._join())
        return self._settled()

    def resume(self, former: Former, now: float) -> list[Output]:
        """Goes on for a daemon that has died; `Joined` follows, or `Fenced` with the pins of the daemon before."""
        self.fence = former.fence
        for pin, (key, value) in former.pins.items():
            self._hold(pin, OwnPin(key, value, revision=1, is_sent=True))
        self._begin(now)
        self._unsettled_until = self._settled_at(former.is_settled)
        self._tasks.start(self._resume())
        return self._settled()

    def pin_wanted(self, pin: int, file: str, value: PinValue, deadline: float, now: float) -> list[Output]:
        """Registers a pin; `Pinned` or `PinRefused` follows by the deadline, or `Fenced`. A pin that moves is a new one, and
        the release of the old one after that. Raises Unreadable (a ValueError) for a file that no key can carry."""
        check_file(file)
        self._begin(now)
        refusal = self._refused_at_once()
        if len(self._pins) >= self._limits.pins:
            refusal = Refusal(errno.EDQUOT, "pins")
        elif refusal and refusal.errno == errno.EBUSY:
            refusal = Refusal(errno.EAGAIN, refusal.why)
        if refusal:
            self._outputs.append(PinRefused(pin, refusal.errno, refusal.why))
        else:
            own = self._pins[pin] = OwnPin(PinKey(file, self.id, self._next_serial()), value)
            self._pin_of[own.key] = pin
            own.task = Task(self._pin(pin, own, deadline))
            self._tasks.run(own.task)
        return self._settled()

    def pin_released(self, pin: int, now: float) -> list[Output]:
        """The holder has let go, or is dead; or the pin is not wanted any more, and no answer follows. The journal has to
        forget the pin before that: the next daemon may find no more pins in it than there are."""
        self._begin(now)
        own = self._pins.get(pin)
        if own and own.task:
            self._tasks.end(own.task, Withdrawn())
        elif own:
            self._drop_pin(pin)
        return self._settled()

    def removal_wanted(self, removal: int, file: str, value: RemovalValue, deadline: float, now: float) -> list[Output]:
        """Asks to cut; `MayCut` or `RemovalRefused` follows by the deadline, at once for a file without a mark. Raises
        Unreadable (a ValueError) for a file or operation that no key can carry."""
        check_file(file)
        check_operation(value.operation)
        self._begin(now)
        refusal = self._refused_at_once()
        if refusal:
            self._outputs.append(RemovalRefused(removal, refusal.errno, refusal.why))
            return self._settled()
        own = self._removals[removal] = OwnRemoval(file, value)
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

    def is_marked(self, file: str) -> bool:
        """Would a removal of this file have to ask etcd now?"""
        return file in self._view.marks

    # Pins

    def _pin(self, pin: int, own: OwnPin, deadline: float) -> Steps:
        refusal: Refusal | None = None
        try:
            own.revision = yield from self._registered(own, deadline)
        except Refusal as reason:
            refusal = reason
        except OutOfTime:
            refusal = Refusal(errno.EIO, "etcd does not answer")
        except Ended:
            refusal = Refusal(errno.EIO, "cluster")
        except Withdrawn:
            self._drop_pin(pin)
            return
        own.task = None
        if refusal:
            self._drop_pin(pin)
            self._outputs.append(PinRefused(pin, refusal.errno, refusal.why))
        else:
            self._hold(pin, own)
            self._outputs.append(Pinned(pin, own.key))
            for removal, value in self._view.removals.get(own.key.file, {}).items():
                self._tell(removal, value)

    def _registered(self, own: OwnPin, deadline: float) -> Generator[Request | Until, Any, int]:
        """I2. The revision of the pin. Raises Refusal, OutOfTime, Ended."""
        file = own.key.file
        patience = min(deadline, self._now + self._timing.patience_s)
        harmless_until = self._removals_known(own)
        while True:
            mark = yield from self._marked(file, deadline)
            yield self._promised(file, mark, deadline)
            own.is_sent = True
            guards = (
                exists(self.id.key),
                unchanged(f"{MarkKey(file)}", mark.revision),
                none_newer(removals_of(file), harmless_until),
                *self._promise_guards(mark),
            )
            put = Put(str(own.key), str(own.value), self._value.pin_lease)
            found = (Range(self.id.key), Range(removals_of(file), prefix=True))
            done = yield from self._ask(Txn(guards, (put,), found), deadline)
            if done.succeeded:
                return done.revision
            self._end_unless_member(done.ranges[0])
            way = _removals_in_range(done.ranges[1], own.value)
            if way and self._now >= patience:
                raise Refusal(errno.EAGAIN, "removal", way[0].member.host)
            if self._now >= deadline:
                raise Refusal(errno.EAGAIN, *self._silent_host(mark))
            if way:
                yield self._cleared_of(way, patience)
            else:
                harmless_until = done.revision
                yield self._caught_up(done.revision, deadline)

    def _marked(self, file: str, deadline: float) -> Generator[Request | Until, Any, Mark]:
        """Sees to it that the file is marked, and waits until the watch has come so far: which mark it is, only the watch
        tells. Each mark raises the version of one key."""
        while True:
            mark = self._view.marks.get(file)
            if mark:
                return mark
            if len(self._view.marks) >= self._limits.files:
                raise Refusal(errno.EDQUOT, "files")
            if self._now >= deadline:
                raise Refusal(errno.EAGAIN, "the watch is late")
            guards = (exists(self.id.key), absent(f"{MarkKey(file)}"))
            marking = (Put(f"{MarkKey(file)}", "1"), Put(COUNTER, "1"))
            done = yield from self._ask(Txn(guards, marking, (Range(self.id.key),)), deadline)
            if not done.succeeded:
                self._end_unless_member(done.ranges[0])
            yield self._caught_up(done.revision, deadline)

    def _caught_up(self, revision: int, deadline: float) -> Until:
        return Until(lambda: self._view.revision >= revision, deadline)

    def _promised(self, file: str, mark: Mark, deadline: float) -> Until:
        """All members have promised to ask for this file, or the mark is another one by now."""
        return Until(lambda: self._is_promised(mark) or self._view.marks.get(file) != mark, deadline)

    def _cleared_of(self, removals: list[RemovalKey], deadline: float) -> Until:
        return Until(lambda: not any(key in self._view.removals.get(key.file, {}) for key in removals), deadline)

    def _is_promised(self, mark: Mark) -> bool:
        return all(peer.value.promise >= mark.count for peer in self._view.members.values())

    def _promise_guards(self, mark: Mark) -> tuple[Compare, ...]:
        """Members' values go on behind the promise: so greater than its digits is the same promise, or a later one."""
        return (all_above(MEMBERS, padded(mark.count)),)

    def _removals_known(self, own: OwnPin) -> int:
        """The revision up to which all removals of a file are known not to be in the way: to begin with there may be none.
        Only an answer tells, as the watch may have lost one."""
        return 0

    def _silent_host(self, mark: Mark) -> tuple[str, str]:
        silent = [member.host for member, peer in self._view.members.items() if peer.value.promise < mark.count]
        return ("host", min(silent)) if silent else ("the watch is late", "")

    def _hold(self, pin: int, own: OwnPin) -> None:
        self._pins[pin] = own
        self._pin_of[own.key] = pin
        self._held_of.setdefault(own.key.file, {})[pin] = own

    def _drop_pin(self, pin: int) -> None:
        own = self._pins.pop(pin)
        del self._pin_of[own.key]
        held = self._held_of.get(own.key.file, {})
        if held.pop(pin, None) and not held:
            del self._held_of[own.key.file]
        if own.is_sent:
            self._doomed[own.key] = None

    def _take_pins(self) -> tuple[int, ...]:
        held = tuple(pin for pins in self._held_of.values() for pin in pins)
        for pin in held:
            self._drop_pin(pin)
        self._told.clear()
        return held

    # Removals

    def _must_ask(self, file: str, value: RemovalValue) -> bool:
        """I1: the promise is kept here."""
        return file in self._view.marks

    def _promise(self) -> int:
        if self._now < self._unsettled_until:
            return self._value.promise
        unasked = {own.file for own in self._removals.values() if own.key is None}
        earliest = [mark.earliest for file in unasked if (mark := self._view.marks.get(file))]
        return min([self._view.count, *(count - 1 for count in earliest)])

    def _remove(self, removal: int, own: OwnRemoval, deadline: float) -> Steps:
        refusal: Refusal | None = None
        try:
            yield from self._cleared(removal, own, deadline)
        except Refusal as reason:
            refusal = reason
        except OutOfTime:
            refusal = Refusal(errno.EIO, "etcd does not answer")
        except Ended:
            refusal = Refusal(errno.EIO, "cluster")
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
        done = yield from self._ask(Txn((exists(self.id.key),), (put, pins), (Range(self.id.key),)), deadline)
        if not done.succeeded:
            self._end_unless_member(done.ranges[0])
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

    def _left(self, own: OwnRemoval, way: list[PinKey], deadline: float) -> Generator[Request | Until, Any, list[PinKey]]:
        """The pins of `way` that stand: the watch may have lost that they were ever put."""
        done = yield from self._ask(Txn((), (Range(pins_of(own.file), prefix=True),)), deadline)
        return [key for key in self._in_way(own, done.ranges[0]) if key in way]

    def _known_in_way(self, own: OwnRemoval) -> dict[PinKey, PinValue]:
        """As the watch has it."""
        known = self._view.pins.get(own.file, {})
        return {key: pin for key, pin in known.items() if key.member != self.id and _overlap(pin, own.value)}

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
            if own.value.mode is Mode.LEASE and pin not in told and _overlap(own.value, value)
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

    # What the watch brings

    def _is_known(self, key: PinKey | RemovalKey) -> bool:
        if isinstance(key, PinKey):
            return key in self._pin_of
        return key in self._own_keys or (key.number <= self._first_serial and self._now < self._unsettled_until)

    def _noticed(self, key: Key, item: KeyValue | None) -> None:
        super()._noticed(key, item)
        if isinstance(key, RemovalKey):
            if item:
                self._tell(key, RemovalValue.read(item.value))
            elif self._told.pop(key, None):
                self._outputs.append(ToldOver(key))
        elif isinstance(key, PinKey) and item is None and key in self._pin_of:
            self._end("its pins have been deleted")

    def _reviewed(self) -> None:
        for key in [key for key in self._told if key not in self._view.removals.get(key.file, {})]:
            del self._told[key]
            self._outputs.append(ToldOver(key))
        for own in [*self._pins.values()]:
            if 0 < own.revision <= self._view.revision and own.key not in self._view.pins.get(own.key.file, {}):
                self._end("its pins have been deleted")
                return

    # What the others add to a life

    def _begin_life(self) -> Steps:
        self._tasks.start(self._unmark())
        yield from super()._begin_life()

    def _unmark(self) -> Steps:
        """A file without pins loses its mark after a while, which pins that come and go do not pay for. The members take
        turns, in the order of their names."""
        while True:
            yield Until(never, self._now + self._timing.linger_s / 4)
            turn = sorted({*self._view.members, self.id}).index(self.id)
            wanted = {own.key.file for own in self._pins.values() if own.task}
            for file, since in [*self._view.idle_since.items()]:
                mark = self._view.marks.get(file)
                if mark is None or file in wanted or self._now - since < self._timing.linger_s * (1 + turn):
                    continue
                key = f"{MarkKey(file)}"
                guards = (
                    exists(self.id.key),
                    unchanged(key, mark.revision),
                    none_newer(pins_of(file), 0),
                    none_newer(removals_of(file), 0),
                )
                done = yield from self._ask(Txn(guards, (Delete(key),), (Range(key),)))
                if done.succeeded or not done.ranges[0]:
                    self._view.forget_mark(file, mark)

    def _resume(self) -> Steps:
        """The member is there, unless others have buried it meanwhile."""
        try:
            done = yield from self._ask(Txn((), (Range(self.id.key), Range(self.id.obituary))))
            self._end_unless_member(() if done.ranges[1] else done.ranges[0])
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
        """Removals of the daemon before may still be cutting, and so may those that had not asked: until then their keys
        stand, and the promise stays as it is (I5)."""
        yield Until(never, self._unsettled_until)
        for removals in [*self._view.removals.values()]:
            for key in removals:
                self._noticed_own(key)

    def _refused_at_once(self) -> Refusal | None:
        if self.state is not State.JOINED:
            return Refusal(errno.EIO, "cluster")
        return Refusal(errno.EBUSY, "crowd") if len(self._tasks) >= self._limits.waiting else None

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial


def _overlap(one: PinValue | RemovalValue, other: PinValue | RemovalValue) -> bool:
    return one.start < other.end and other.start < one.end


def _pins_in_range(found: tuple[KeyValue, ...], value: RemovalValue) -> dict[PinKey, PinValue]:
    pins = ((read_key(item.key), PinValue.read(item.value)) for item in found)
    return {key: pin for key, pin in pins if isinstance(key, PinKey) and _overlap(pin, value)}


def _removals_in_range(found: tuple[KeyValue, ...], value: PinValue) -> list[RemovalKey]:
    removals = ((read_key(item.key), RemovalValue.read(item.value)) for item in found)
    return [key for key, removal in removals if isinstance(key, RemovalKey) and _overlap(removal, value)]
