"""The pins of one member: how they are registered (I2 of `pinfs.cluster.protocol`), and the marks of their files."""

import errno
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from pinfs.cluster.keys import (
    COUNTER,
    MEMBERS,
    Key,
    MarkKey,
    MemberId,
    PinKey,
    PinValue,
    RemovalKey,
    RemovalValue,
    check_file,
    overlap,
    padded,
    pins_of,
    read_key,
    removals_of,
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
    none_newer,
    unchanged,
)
from pinfs.cluster.outputs import Output, Pinned, PinRefused, Unpinned
from pinfs.cluster.tasks import Steps, Task, Until, never
from pinfs.cluster.view import Mark

T = TypeVar("T")


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


class Pinning(Membership):
    """A member that has pins, and cuts nothing."""

    def __init__(self, member: MemberId, timing: Timing, limits: Limits, first_serial: int) -> None:
        super().__init__(member, timing, limits)
        self._serial = first_serial
        self._pins: dict[int, OwnPin] = {}
        self._pin_of: dict[PinKey, int] = {}
        self._held_of: dict[str, dict[int, OwnPin]] = {}
        self._released: dict[PinKey, int] = {}
        """Pins whose keys are still to be deleted."""
        self._waiting = 0

    def pin_wanted(self, pin: int, file: str, value: PinValue, deadline: float, now: float) -> list[Output]:
        """Registers a pin; `Pinned` or `PinRefused` follows by the deadline, or `Fenced`. A pin that moves is a new
        one, and the release of the old one after that. Raises Unreadable (a ValueError) for a file that no key can
        carry."""
        check_file(file)
        self._begin(now)
        refusal = self._refused_at_once(errno.EAGAIN)
        if len(self._pins) >= self._limits.pins:
            refusal = Refusal(errno.EDQUOT, "pins")
        if refusal:
            self._outputs.append(PinRefused(pin, refusal.errno, refusal.why, refusal.host))
        else:
            own = self._pins[pin] = OwnPin(PinKey(file, self.id, self._next_serial()), value)
            self._pin_of[own.key] = pin
            own.task = Task(self._pin(pin, own, deadline))
            self._tasks.run(own.task)
        return self._settled()

    def pin_released(self, pin: int, now: float) -> list[Output]:
        """The holder has let go, or is dead; or the pin is not wanted any more, and no answer follows. The journal has
        to forget the pin before that: the next daemon may find no more pins in it than there are."""
        self._begin(now)
        own = self._pins.get(pin)
        if own and own.task:
            self._tasks.end(own.task, Withdrawn())
        elif own:
            self._released[own.key] = pin
            self._drop_pin(pin)
        return self._settled()

    def is_marked(self, file: str) -> bool:
        """Would a removal of this file have to ask etcd now?"""
        return file in self._view.marks

    def _pin(self, pin: int, own: OwnPin, deadline: float) -> Steps:
        try:
            answer = yield from self._judged(self._registered(own, deadline))
        except Withdrawn:
            self._drop_pin(pin)
            return
        own.task = None
        if isinstance(answer, Refusal):
            self._drop_pin(pin)
            self._outputs.append(PinRefused(pin, answer.errno, answer.why, answer.host))
        else:
            own.revision = answer
            self._hold(pin, own)
            self._outputs.append(Pinned(pin, own.key))
            self._told_pinned(own)

    def _judged(self, work: Generator[Request | Until, Any, T]) -> Generator[Request | Until, Any, T | Refusal]:
        """What `work` returns, or why the pin or the removal that it is for is refused; counted as waiting meanwhile.
        Raises Withdrawn."""
        self._waiting += 1
        try:
            return (yield from work)
        except Refusal as reason:
            return reason
        except OutOfTime:
            return Refusal(errno.EIO, "etcd")
        except Ended:
            return Refusal(errno.EIO, "cluster")
        finally:
            self._waiting -= 1

    def _registered(self, own: OwnPin, deadline: float) -> Generator[Request | Until, Any, int]:
        """I2. The revision of the pin. Raises Refusal, OutOfTime, Ended."""
        file = own.key.file
        patience: float | None = None
        harmless_until = self._removals_known(own)
        while True:
            mark = yield from self._marked(file, deadline)
            yield self._promised(file, mark, deadline)
            own.is_sent = True
            guards = (
                unchanged(f"{MarkKey(file)}", mark.revision),
                none_newer(removals_of(file), harmless_until),
                *self._promise_guards(mark),
            )
            put = Put(str(own.key), str(own.value), self._value.pin_lease)
            found = (Range(removals_of(file), prefix=True),)
            done = yield from self._ask(Txn(guards, (put,), found), deadline)
            if done.succeeded:
                return done.revision
            way = _in_way(done.ranges[0], own.value)
            if way:
                if patience is None:  # one that only cuts is over in a moment
                    patience = min(deadline, self._now + self._timing.patience_s)
                if self._now >= patience:
                    raise Refusal(errno.EAGAIN, "removal", way[0].member.host)
                yield self._cleared_of(way, patience)
            elif self._now >= deadline:
                raise Refusal(errno.EAGAIN, *self._silent_host(mark))
            else:
                harmless_until = done.revision
                yield self._caught_up(done.revision, deadline)

    def _marked(self, file: str, deadline: float) -> Generator[Request | Until, Any, Mark]:
        """Sees to it that the file is marked, and waits until the watch has come so far: which mark it is, only the
        watch tells. Each mark raises the version of one key."""
        while True:
            mark = self._view.marks.get(file)
            if mark:
                return mark
            if len(self._view.marks) >= self._limits.files:
                raise Refusal(errno.EDQUOT, "files")
            if self._now >= deadline:
                raise Refusal(errno.EAGAIN, "watch")
            key = f"{MarkKey(file)}"
            done = yield from self._ask(Txn((absent(key),), (Put(key, "1"), Put(COUNTER, "1"))), deadline)
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
        """The revision up to which all removals of a file are known not to be in the way: to begin with there may be
        none. Only an answer tells, as the watch may have lost one."""
        return 0

    def _silent_host(self, mark: Mark) -> tuple[str, str]:
        silent = [member.host for member, peer in self._view.members.items() if peer.value.promise < mark.count]
        return ("host", min(silent)) if silent else ("watch", "")

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
        return held

    def _begin_life(self) -> Steps:
        self._tasks.start(self._unmark())
        yield from super()._begin_life()

    def _unmark(self) -> Steps:
        """A file without pins loses its mark after a while, which pins that come and go do not pay for. The members
        take turns, in the order of their names."""
        while True:
            yield Until(never, self._now + self._timing.linger_s / 4)
            turn = sorted({*self._view.members, self.id}).index(self.id)
            wanted = {own.key.file for own in self._pins.values() if own.task}
            for file, since in [*self._view.idle_since.items()]:
                mark = self._view.marks.get(file)
                if mark is None or file in wanted or self._now - since < self._timing.linger_s * (1 + turn):
                    continue
                key = f"{MarkKey(file)}"
                guards = (unchanged(key, mark.revision), none_newer(pins_of(file), 0))
                done = yield from self._ask(Txn(guards, (Delete(key),), (Range(key),)))
                if done.succeeded or not done.ranges[0]:
                    self._view.forget_mark(file, mark)

    def _refused_at_once(self, if_crowded: int) -> Refusal | None:
        if self.state is not State.JOINED:
            return Refusal(errno.EIO, "cluster")
        return Refusal(if_crowded, "crowd") if self._waiting >= self._limits.waiting else None

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _told_pinned(self, own: OwnPin) -> None:
        """A pin has been registered; removals that came meanwhile may need it."""

    def _is_known(self, key: PinKey | RemovalKey) -> bool:
        return isinstance(key, PinKey) and key in self._pin_of

    def _noticed(self, key: Key, item: KeyValue | None) -> None:
        super()._noticed(key, item)
        if isinstance(key, PinKey) and item is None and key in self._pin_of:
            self._end("its pins have been deleted")

    def _deleted(self, key: PinKey | RemovalKey) -> None:
        super()._deleted(key)
        if isinstance(key, PinKey) and key in self._released:
            self._outputs.append(Unpinned(self._released.pop(key)))

    def _reviewed(self) -> None:
        for own in self._pins.values():
            if 0 < own.revision <= self._view.revision and own.key not in self._view.pins.get(own.key.file, {}):
                self._end("its pins have been deleted")
                return


def _in_way(found: tuple[KeyValue, ...], value: PinValue) -> list[RemovalKey]:
    removals = ((read_key(item.key), RemovalValue.read(item.value)) for item in found)
    return [key for key, removal in removals if isinstance(key, RemovalKey) and overlap(removal, value)]
