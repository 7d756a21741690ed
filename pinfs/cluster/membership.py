"""The life of one member: it joins, beats, promises, watches, buries the dead, and ends. Pins and removals:
protocol.py.

`pinfs.cluster.protocol` has the invariants. This file keeps I1 (what a promise means), I4 (the fence) and I5 (who
judges that a member is dead, and when what it began is over).
"""

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from pinfs.cluster.keys import (
    ALL,
    COUNTER,
    Key,
    MemberId,
    MemberValue,
    PinKey,
    RemovalKey,
    Unreadable,
    read_key,
)
from pinfs.cluster.messages import (
    Answer,
    Batch,
    Delete,
    Done,
    Grant,
    KeepAlive,
    KeyValue,
    LeaseDone,
    LeaseGone,
    Operation,
    Put,
    Range,
    Request,
    Revoke,
    Txn,
    absent,
    unchanged,
)
from pinfs.cluster.outputs import Call, Fenced, Joined, Left, Output, Watch
from pinfs.cluster.tasks import Steps, Tasks, Until, never
from pinfs.cluster.view import Peer, View

CLOCK_TRUST: Final = 0.99
"""Two clocks that measure the same duration differ by less than this says (crystals: by a ten-thousandth)."""
DELETES_AT_ONCE: Final = 32
"""etcd takes 128 operations in a transaction (`--max-txn-ops`), and a removal takes two."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations, in seconds of any clock. They may differ between hosts: each is judged by its own.

    `pin_ttl_s`: other hosts take the pins of a silent member for gone after that. `member_ttl_s`: and its removals
    for over. `margin_s`: what a daemon may stall, and its holders need to hear of the fence. `bundle_ttl_s`: of etcd's
    leases, which only bundle keys. `linger_s`: a file stays marked for so long after its last pin. `patience_s`: how
    long a pin waits for a removal that may be over in a moment.
    """

    pin_ttl_s: float = 15.0
    member_ttl_s: float = 60.0
    margin_s: float = 5.0
    beat_s: float = 3.0
    bundle_ttl_s: float = 86400.0
    retry_s: float = 0.2
    linger_s: float = 60.0
    patience_s: float = 0.25

    @property
    def late_s(self) -> float:
        """A system call that begins before the fence must have had its effect so much later, at the latest (I5)."""
        return self.member_ttl_s - self.pin_ttl_s + self.margin_s


@dataclass(frozen=True, slots=True)
class Limits:
    """What one member keeps at most. With these, all tables are bounded: those of other hosts by `hosts` times the
    rest.

    `pins`: EDQUOT. `files` with a mark: EDQUOT. `waiting` pins and removals: EAGAIN and EBUSY. `hosts`: a further one
    does not join.
    """

    pins: int = 100_000
    files: int = 10_000
    waiting: int = 1024
    hosts: int = 64


class State(Enum):
    JOINING = auto()
    JOINED = auto()
    LEAVING = auto()
    ENDED = auto()
    LEFT = auto()


class Ended(Exception):
    """The member is fenced, or leaves: its operations end."""


class OutOfTime(Exception):
    """etcd has not answered until the deadline."""


class Membership:
    """A member without pins."""

    def __init__(self, member: MemberId, timing: Timing, limits: Limits) -> None:
        self.id = member.check()
        self.state = State.JOINING
        self.fence = math.inf
        """I4: no cut begins, and no pin is acknowledged, from this local time on."""
        self._timing = timing
        self._limits = limits
        self._now = -math.inf
        self._outputs: list[Output] = []
        self._tasks = Tasks(self._send)
        self._view = View()
        self._stream = 0
        self._is_stale = True
        """The watch has to begin anew, from a read."""
        self._counted = (0, 0)
        """A revision, and the count of marks as of then."""
        self._last_call = 0
        self._floors: dict[int, int] = {}
        """The newest revision that was known when a call was sent: its answer is not older."""
        self._newest = 0
        self._cluster_id = 0
        self._value = MemberValue(0, 0, 0, 0, 0, 0)
        """As of the last put of the own key that etcd has confirmed, at `_value_revision`."""
        self._value_revision = 0
        self._last_beat = 0
        self._beat_due = -math.inf
        self._unsettled_until = -math.inf
        """What the daemon before has begun may take effect until then."""
        self._doomed: dict[PinKey | RemovalKey, None] = {}
        self._buried: set[MemberId] = set()
        """Silent members whose pin leases have been revoked."""
        self._forgotten: set[MemberId] = set()
        """Members that an operator has called dead; some of them since the last look: `_has_forgotten`."""
        self._has_forgotten = False

    # What comes in

    def answered(self, number: int, answer: Answer, now: float) -> list[Output]:
        """The answer to a `Call`."""
        self._begin(now)
        floor = self._floors.pop(number, 0)
        if isinstance(answer, Done) and self._is_live() and not self._is_of_this_history(answer, floor):
            self._end("restored")
        try:
            self._tasks.answered(number, answer)
        except Unreadable as error:
            self._end(f"unreadable: {error}")
        return self._settled()

    def watched(self, stream: int, batch: Batch, now: float) -> list[Output]:
        """What a watch has delivered: all events of its revisions, in their order; `Watch` has the number."""
        self._begin(now)
        if stream == self._stream and not self._is_stale and self._is_live() and batch.revision > self._view.revision:
            try:
                if self._follows(batch):
                    for key, item in self._view.take(batch, now):
                        self._noticed(key, item)
                else:
                    self._is_stale = True
            except Unreadable as error:
                self._end(f"unreadable: {error}")
            self._newest = max(self._newest, batch.revision)
        return self._settled()

    def watch_lost(self, stream: int, now: float) -> list[Output]:
        """The watch cannot be resumed where it was (compaction)."""
        self._begin(now)
        self._is_stale |= stream == self._stream
        return self._settled()

    def etcd_restored(self, now: float) -> list[Output]:
        """The client has met another history of the store than the one that is known here."""
        self._begin(now)
        self._end("restored")
        return self._settled()

    def forget(self, members: Iterable[MemberId], now: float) -> list[Output]:
        """An operator knows that their hosts are dead, and that nothing of what they had begun can still take effect:
        they are buried at once. One that lives all the same is fenced as soon as it hears of that."""
        self._begin(now)
        self._forgotten.update(member for member in members if member in self._view.members and member != self.id)
        self._has_forgotten = bool(self._forgotten)
        return self._settled()

    def tick(self, now: float) -> list[Output]:
        """Due at `next_deadline`, by a task of the daemon that waits for nothing else."""
        self._begin(now)
        return self._settled()

    def leave(self, now: float) -> list[Output]:
        """Ends the membership once all removals are finished. Release the pins before: those that stand go with it."""
        self._begin(now)
        if self.state is State.JOINED:
            self.state = State.LEAVING
            self._tasks.start(self._retire(), lasting=True)
        elif self.state is State.JOINING:
            self._end("left before it had joined")
        return self._settled()

    def next_deadline(self) -> float:
        """Local seconds; infinity: there is none."""
        return min(self._tasks.next_deadline(), self.fence if self._is_live() else math.inf)

    # What holds for each entry

    def _begin(self, now: float) -> None:
        self._now = max(self._now, now)
        if self._is_live() and self._now >= self.fence:
            self._end("silent")

    def _settled(self) -> list[Output]:
        """Everything that can go on has gone on."""
        while self._tasks.advance(self._now):
            pass
        if not self._is_live():
            self._tasks.end_all(Ended())  # the one that has ended the member may have gone on
        outputs, self._outputs = self._outputs, []
        return outputs

    def _is_live(self) -> bool:
        return self.state not in (State.ENDED, State.LEFT)

    def _is_of_this_history(self, answer: Done, floor: int) -> bool:
        """Linearizable answers never go back behind what was known when they were asked for, unless etcd was restored
        from a snapshot."""
        self._cluster_id = self._cluster_id or answer.cluster_id
        self._newest = max(self._newest, answer.revision)
        return answer.cluster_id == self._cluster_id and answer.revision >= floor

    def _send(self, request: Request) -> int:
        self._last_call += 1
        self._floors[self._last_call] = self._newest
        self._outputs.append(Call(self._last_call, request))
        return self._last_call

    def _ask(self, txn: Txn, deadline: float = math.inf) -> Generator[Request | Until, Any, Done]:
        """Asks until etcd has answered. Each transaction here may be repeated: it is guarded, or puts a key of its own
        with the value that it has. Raises OutOfTime, Ended."""
        while True:
            answer = yield txn
            if isinstance(answer, Done):
                return answer
            if isinstance(answer, LeaseGone):
                self._end("its lease has ended")
                raise Ended
            if self._now >= deadline:
                raise OutOfTime
            yield Until(never, min(deadline, self._now + self._timing.retry_s))

    def _end(self, why: str) -> None:
        """The fence (I4). Holders are told in the same breath, before anybody is answered."""
        if self._is_live():
            if self.state is not State.LEAVING:
                self._tasks.start(self._retire(), lasting=True)
            self.state = State.ENDED
            self._outputs.append(Fenced(self._take_pins(), why))
            self._tasks.end_all(Ended())

    def _end_unless_member(self, found: tuple[KeyValue, ...]) -> None:
        """`found`: what etcd has of the own key. Raises Ended."""
        if not found:
            self._end("buried by another host")
            raise Ended

    # What pins and removals add (pinning.py, protocol.py)

    def _take_pins(self) -> tuple[int, ...]:
        """The pins that stand, which are forgotten here."""
        return ()

    def _has_cuts(self) -> bool:
        """Are there removals that have been allowed and not finished?"""
        return False

    def _has_removals(self) -> bool:
        return False

    def _is_known(self, key: PinKey | RemovalKey) -> bool:
        """Is this key of our own one that we want?"""
        return False

    def _promise(self) -> int:
        """I1: each removal that begins from now on without asking etcd is of a file without a mark up to this count,
        and those that began before are over."""
        return self._view.count

    def _noticed(self, key: Key, item: KeyValue | None) -> None:
        """A key has changed; None: it was deleted."""
        if isinstance(key, PinKey | RemovalKey) and item:
            self._noticed_own(key)
        if key == self.id and item is None:
            self._end("buried by another host")

    def _noticed_own(self, key: PinKey | RemovalKey) -> None:
        """A put of ours that no operation wants came late: away with it."""
        if key.member == self.id and not self._is_known(key):
            self._doomed[key] = None

    def _deleted(self, key: PinKey | RemovalKey) -> None:
        """A key of our own that was over is gone."""

    def _reviewed(self) -> None:
        """All keys may have changed."""

    # Joining, and what goes on from then on

    def _join(self) -> Steps:
        try:
            pin_lease = yield from self._granted()
            member_lease = yield from self._granted()
            counted = yield from self._ask(Txn((), (Range(COUNTER),)))
            promise = counted.ranges[0][0].version if counted.ranges[0] else 0  # cuts begin after all that is read
            pin_ttl_ms, member_ttl_ms = (round(1000 * s) for s in (self._timing.pin_ttl_s, self._timing.member_ttl_s))
            value = MemberValue(promise, 1, pin_ttl_ms, member_ttl_ms, pin_lease, member_lease)
            self._value, self._last_beat = value, 1
            self.fence = self._fence_of(self._now)
            register = Txn((absent(self.id.key),), (Put(self.id.key, str(value), member_lease),), (Range(self.id.key),))
            done = yield from self._ask(register)
            if not done.succeeded:  # an attempt whose answer was lost has done it
                self._end_unless_member(done.ranges[0])
            self._value_revision = done.revision if done.succeeded else done.ranges[0][0].mod_revision
            yield from self._begin_life()
        except Ended:
            return

    def _begin_life(self) -> Steps:
        """The own key is there."""
        for steps in (self._beat(), self._keep_watching(), self._keep_leases(), self._bury(), self._sweep()):
            self._tasks.start(steps)
        yield Until(lambda: not self._is_stale)
        if len(self._view.members) > self._limits.hosts:
            self._end(f"more than {self._limits.hosts} hosts")
            return
        self.state = State.JOINED
        self._outputs.append(Joined())

    def _granted(self) -> Generator[Request | Until, Any, int]:
        """A lease. One whose answer is lost stays without keys until its time is over."""
        while True:
            answer = yield Grant(self._timing.bundle_ttl_s)
            if isinstance(answer, LeaseDone):
                return answer.lease
            yield Until(never, self._now + self._timing.retry_s)

    def _fence_of(self, sent: float) -> float:
        """The fence, if a beat that was sent at this time was done. Peers count from when they see it, which is
        later."""
        return sent + self._timing.pin_ttl_s * CLOCK_TRUST - self._timing.margin_s

    def _beat(self) -> Steps:
        """One key is heartbeat and promise: each put of it proves life (I4), and none goes back behind another.

        The guard is the revision of the last one. If it fails, the key shows why: a later beat of ours, whose answer
        was lost; an earlier one: etcd was restored from a snapshot; none: this member has been buried.
        """
        me = self.id.key
        while True:
            yield Until(lambda: self._promise() > self._value.promise, self._beat_due)
            sent = self._now
            self._last_beat += 1
            value = self._value._replace(promise=self._promise(), beat=self._last_beat)
            put = Put(me, str(value), value.member_lease)
            answer = yield Txn((unchanged(me, self._value_revision),), (put, Range(COUNTER)), (Range(me),))
            if isinstance(answer, LeaseGone):
                self._end("its lease has ended")
                return
            if not isinstance(answer, Done):
                yield Until(never, self._now + self._timing.retry_s)
            elif answer.succeeded:
                self._value, self._value_revision = value, answer.revision
                self.fence = max(self.fence, self._fence_of(sent))
                self._beat_due = sent + self._timing.beat_s
                self._counted = (answer.revision, answer.ranges[0][0].version if answer.ranges[0] else 0)
            elif not answer.ranges[0]:
                self._end("buried by another host")
                return
            else:
                found = MemberValue.read(answer.ranges[0][0].value)
                if found.beat < self._value.beat:
                    self._end("restored")
                    return
                self._value, self._value_revision = found, answer.ranges[0][0].mod_revision

    def _has_missed_marks(self) -> bool:
        """The watch is where a beat has counted them, and short of some."""
        revision, count = self._counted
        return self._view.revision >= revision and self._view.count < count

    def _follows(self, batch: Batch) -> bool:
        return self._view.follows(batch)

    def _keep_watching(self) -> Steps:
        """From a read of everything, then from its revision on. While a read is under way, the promise stays as it
        was."""
        while True:
            yield Until(lambda: self._is_stale or self._has_missed_marks())
            self._is_stale = True
            done = yield from self._ask(Txn((), (Range(ALL, prefix=True),)))
            self._view = self._view.reloaded(done.revision, done.ranges[0], self._now)
            if self._view.count < self._value.promise:
                self._end("restored")
                return
            self._is_stale = False
            self._stream += 1
            self._outputs.append(Watch(self._stream, done.revision + 1))
            for item in done.ranges[0]:
                self._noticed(read_key(item.key), item)
            self._reviewed()

    def _keep_leases(self) -> Steps:
        """etcd may end a lease early (etcd-io/etcd#15247: a leader on a slow disk), and its clock starts anew with each
        leader. So its leases are long, and say nothing about life."""
        while True:
            yield Until(never, self._now + self._timing.bundle_ttl_s / 24)
            for lease in (self._value.pin_lease, self._value.member_lease):
                if isinstance((yield KeepAlive(lease)), LeaseGone):
                    self._end("its lease has ended")
                    return

    def _bury(self) -> Steps:
        """I5: a member whose key has not changed for its `pin_ttl_s`, by this host's clock, is behind its fence, and
        its pins go. What it has begun to cut counts as under way until its `member_ttl_s`. A read makes sure that the
        watch has not lost its beats; a beat that comes after that read is answered behind the fence."""
        while True:
            yield Until(lambda: self._has_forgotten, self._now + self._timing.beat_s / 3)
            self._has_forgotten = False
            self._buried &= self._view.members.keys()
            for member in [*self._forgotten]:
                yield from self._bury_forgotten(member)
            for member, peer in [*self._view.members.items()]:
                if member == self.id or not self._is_silent(peer, peer.value.pin_ttl_ms):
                    continue
                if member not in self._buried:
                    yield from self._bury_pins(member, peer)
                elif self._is_silent(peer, peer.value.member_ttl_ms) and isinstance(
                    (yield Revoke(peer.value.member_lease)), LeaseDone | LeaseGone
                ):
                    self._view.forget_member(member)

    def _is_silent(self, peer: Peer, ttl_ms: int) -> bool:
        return self._now - peer.since >= ttl_ms / 1000

    def _bury_pins(self, member: MemberId, peer: Peer) -> Steps:
        answer = yield Txn((), (Range(member.key),))
        if not isinstance(answer, Done):
            return
        if not answer.ranges[0]:
            self._view.forget_member(member)
        elif answer.ranges[0][0].mod_revision != peer.revision:
            self._view.saw_member(answer.ranges[0][0], self._now)
        elif isinstance((yield Revoke(peer.value.pin_lease)), LeaseDone | LeaseGone):
            self._buried.add(member)

    def _bury_forgotten(self, member: MemberId) -> Steps:
        """If a revocation is not answered, the next round asks again."""
        peer = self._view.members.get(member)
        for lease in (peer.value.pin_lease, peer.value.member_lease) if peer else ():
            if not isinstance((yield Revoke(lease)), LeaseDone | LeaseGone):
                return
        self._forgotten.discard(member)
        self._view.forget_member(member)

    def _sweep(self) -> Steps:
        """Deletes keys of our own that are over, several at once."""
        while True:
            yield Until(lambda: bool(self._doomed))
            keys = [*self._doomed][:DELETES_AT_ONCE]
            deletes: list[Operation] = []
            for key in keys:
                deletes.append(Delete(str(key)))
                if isinstance(key, RemovalKey):
                    deletes.append(Delete(key.verdicts, prefix=True))
            yield from self._ask(Txn((), tuple(deletes)))
            for key in keys:
                self._doomed.pop(key, None)
                self._deleted(key)

    def _retire(self) -> Steps:
        """Ends both leases as soon as nothing of this member can still take effect: sooner than others would bury
        it."""
        yield Until(lambda: not (self._has_removals() if self._is_live() else self._has_cuts()))
        yield Until(never, self._unsettled_until)
        self.state = State.ENDED
        self._take_pins()
        give_up = self._now + self._timing.member_ttl_s
        for lease in (self._value.pin_lease, self._value.member_lease):
            while lease and not isinstance((yield Revoke(lease)), LeaseDone | LeaseGone):
                if self._now >= give_up:
                    break
                yield Until(never, self._now + self._timing.retry_s)
        self.state = State.LEFT
        self._outputs.append(Left())
