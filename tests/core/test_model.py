"""Holders, breakers, time and deaths in any order, against what SPEC 3 says in plain sets of bytes.

The machine drives a PinBook and keeps its own account of what stands: pins as sets of bytes, removals in order, what
breakers left behind. After each step the book must agree with the account. A second machine does the same with a
book that does everything in slices of a single pin, as it does in large ones with a great many pins: drops those of
the gone, asks holders, tells them that they need not let go. What is left of that, the account takes from the book.
"""

import errno
import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pinfs.core.book import COOL_DOWN_S, DEFAULT_SLICES, KILL_GRACE_S, PinBook
from pinfs.core.events import BookEvent
from pinfs.core.pins import Mode, Pin, PinRequest, PinSpec, State
from pinfs.core.policy import Limits, Policy
from pinfs.core.ranges import END
from pinfs.core.removals import Removal, RemovalRequest, Turn
from pinfs.core.slices import SliceLimits

SIZE = 8
UNIVERSE = 10  # stands for END
MAX_WAITING = 4
OWNERS = ("a", "b", "c")
OUTSIDER = "z"

Byte = tuple[int, int]


def bytes_of(inode: int, start: int, end: int) -> frozenset[Byte]:
    return frozenset((inode, at) for at in range(start, min(end, UNIVERSE)))


def held(pin: Pin) -> frozenset[Byte]:
    return bytes_of(pin.inode, pin.start, pin.end)


@dataclass(eq=False)
class Asked:
    """A removal as the model sees it."""

    request: RemovalRequest
    bytes: frozenset[Byte]
    exempt: bool
    dawdles: bool
    """Does not cut its bytes as soon as it may."""
    answers: list[Turn] = field(default_factory=list)
    removal: Removal = field(init=False)

    @property
    def unfinished(self) -> bool:
        return self.removal.turn in (Turn.WAITING, Turn.READY)

    @property
    def wants(self) -> bool:
        return self.removal.turn is Turn.WAITING and not self.exempt


@dataclass(eq=False)
class Left:
    """What a breaker left behind: bytes that stay reserved while pins in them break, and `until` then."""

    bytes: frozenset[Byte]
    until: float | None = None


inodes = st.sampled_from([1, 1, 1, 2])
which = st.integers(0, 99)
offsets = st.integers(0, SIZE - 1)
policies = st.builds(
    Policy,
    conflict=st.sampled_from(["pin", "pin", "pin", "break", "deny"]),
    on_timeout=st.sampled_from(["deny", "revoke", "kill"]),
    own=st.sampled_from(["deny", "allow"]),
    break_timeout=st.sampled_from([45.0, 45.0, 10.0]),
    retry_after=st.sampled_from([0.0, 5.0, 20.0]),
    unlink=st.sampled_from(["defer", "deny", "break"]),
    errno=st.sampled_from(["EBUSY", "ETXTBSY"]),
    break_timeout_max=st.just(100.0),
)


@st.composite
def specs(draw: st.DrawFn) -> PinSpec:
    start = draw(offsets)
    length = draw(st.integers(0, SIZE - start))
    return PinSpec(start, length, draw(st.sampled_from([Mode.LEASE, Mode.LEASE, Mode.LEASE, Mode.LEASE, Mode.DENY])))


class Breaks(RuleBasedStateMachine):
    slices = DEFAULT_SLICES

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.events: list[BookEvent] = []
        self.book = PinBook(self.hear, Limits(max_waiting=MAX_WAITING), self.slices)
        self.standing: dict[int, frozenset[Byte]] = {}
        self.owners: dict[int, str] = {}
        self.breaking: dict[int, float] = {}
        self.asked: list[Asked] = []
        self.left: list[Left] = []
        self.killed: set[Hashable] = set()
        self.silent: dict[Hashable, float] = {}
        """Until when holders that let a deadline pass are not notified again."""

    def hear(self, event: BookEvent) -> None:
        self.events.append(event)
        pin = event.pin
        if pin is None:
            return
        if event.kind == "break":
            assert pin.id not in self.breaking, "a holder is told once for each break"
            assert not self.is_silent(pin), "a silent holder is not bothered"
            assert event.breaking is not None
            assert event.breaking.deadline is not None
            self.breaking[pin.id] = event.breaking.deadline
        elif event.kind == "kill":
            self.breaking[pin.id] = self.now + KILL_GRACE_S
            self.killed.add(pin.process)
        elif event.kind in ("withdrawn", "released", "revoked", "answered"):
            self.breaking.pop(pin.id, None)
        if event.kind == "withdrawn" and event.why == "timeout":
            assert event.breaking is not None
            until = self.now + event.breaking.policy.retry_after
            self.silent[pin.owner] = max(until, self.silent.get(pin.owner, until))
        if event.kind in ("released", "revoked"):
            del self.standing[pin.id]

    # Holders

    def is_silent(self, pin: Pin) -> bool:
        return self.silent.get(pin.owner, self.now) > self.now

    def reserved(self) -> frozenset[Byte]:
        asked = [a.bytes for a in self.asked if a.unfinished and a.removal.order]
        return frozenset().union(*asked, *(left.bytes for left in self.left))

    @rule(inode=inodes, owner=st.sampled_from(OWNERS), name=st.sampled_from([None, b"n", b"m"]), spec=specs())
    def pin(self, inode: int, owner: str, name: bytes | None, spec: PinSpec) -> None:
        old = None if name is None else self.book.table.find(inode, owner, name)
        before = frozenset() if old is None else held(old)
        wanted = bytes_of(inode, spec.start, spec.end)
        hardens = (
            old is not None
            and (old.state is State.BREAKING or self.will_be_asked(old.id))
            and (old.mode, spec.mode) == (Mode.LEASE, Mode.DENY)
        )
        refuse = (wanted - before) & self.reserved() or (hardens and wanted & self.reserved())
        spec_before = None if old is None else old.spec
        try:
            pin = self.book.pin(PinRequest(inode, owner, owner, 7, name, spec), SIZE, self.now)
        except OSError as e:
            assert e.errno == errno.EAGAIN
            assert refuse, "a pin was refused whose bytes nobody wants"
            assert old is None or old.spec is spec_before
            return
        assert not refuse, "a pin slipped into a range that a removal has reserved"
        assert old is None or pin is old
        self.standing[pin.id], self.owners[pin.id] = wanted, owner

    @precondition(lambda self: self.standing)
    @rule(which=which, by=st.sampled_from(["holder", "holder", "root"]))
    def let_go(self, which: int, by: str) -> None:
        pin = self.book.table.by_id[sorted(self.standing)[which % len(self.standing)]]
        if by == "holder":
            self.book.release(pin, self.now)
        else:
            self.book.revoke(pin, self.now)
        assert pin.id not in self.standing

    @precondition(lambda self: self.breaking)
    @rule(which=which, seconds=st.sampled_from([0.0, 10.0, 60.0, 1000.0]))
    def extend(self, which: int, seconds: float) -> None:
        pin = self.book.table.by_id[sorted(self.breaking)[which % len(self.breaking)]]
        assert pin.breaking is not None
        killed, before = pin.breaking.killed, self.breaking[pin.id]
        limit = min(self.now + seconds, pin.breaking.since + 100.0)
        self.breaking[pin.id] = before if killed else max(before, limit)
        assert self.book.extend(pin, seconds, self.now) == self.breaking[pin.id]

    @precondition(lambda self: len(self.standing) > 4)
    @rule(owner=st.sampled_from(OWNERS))
    def die(self, owner: str) -> None:
        self.book.owner_gone(owner, self.now)
        assert self.book.reaping.dead_owners or owner not in [self.owners[pin] for pin in self.standing]
        assert set(self.book.reaping.dead_owners) <= {self.owners[pin] for pin in self.standing} | set(OWNERS)
        self.killed.discard(owner)
        self.silent.pop(owner, None)

    def reap(self, asked: Asked) -> None:
        """What the guard does before it lets a removal begin: nobody who is gone may be in its way."""
        removal = asked.request
        while self.book.reaping.dead_owners and not self.book.reap_in(
            removal.inode, removal.start, removal.end, self.now
        ):
            last = next(reversed(self.book.reaping.dead_owners))
            while last in self.book.reaping.dead_owners:
                self.pass_time(0.0)

    # Breakers

    def judge(self, asked: Asked, policy: Policy) -> str:
        """SPEC 3.2, 3.3, 3.10 by sets: what must become of a removal at once."""
        request = asked.request
        hit = [self.book.table.by_id[pin] for pin, at in self.standing.items() if at & asked.bytes]
        own = [pin for pin in hit if pin.owner == request.process]
        deny = {
            "pin": [pin for pin in hit if pin.mode is Mode.DENY],
            "deny": hit,
            "break": [],
        }["deny" if request.op == "unlink" and policy.unlink == "deny" else policy.conflict]
        asked.exempt = policy.own == "allow" and hit == own
        if [pin for pin in deny if pin not in own] and not asked.exempt:
            return "deny"
        if own and not asked.exempt:
            return "own"
        if any(map(self.is_silent, hit)) and not asked.exempt:
            return "unanswered"
        ahead = [a for a in self.asked if a.unfinished and a.removal.order and a.bytes & asked.bytes]
        if not ahead and (asked.exempt or not hit):
            return "ready"
        if request.nonblock:
            return "nonblock"
        return "max_waiting" if len(self.now_in(Turn.WAITING)) >= MAX_WAITING else "wait"

    @rule(
        inode=inodes,
        start=offsets,
        length=st.integers(1, SIZE) | st.none(),
        op=st.sampled_from(["truncate", "punch_hole", "unlink"]),
        breaker=st.sampled_from([OUTSIDER, OUTSIDER, *OWNERS]),
        nonblock=st.sampled_from([False, False, False, True]),
        dawdles=st.sampled_from([False, False, False, True]),
        policy=policies,
    )
    def begin(
        self,
        inode: int,
        start: int,
        length: int | None,
        op: str,
        breaker: str,
        nonblock: bool,
        dawdles: bool,
        policy: Policy,
    ) -> None:
        end = END if length is None else min(start + length, SIZE + 1)
        request = RemovalRequest(inode, start, end, op, process=breaker, nonblock=nonblock)
        asked = Asked(request, bytes_of(inode, start, end), False, dawdles)
        if op == "unlink" and policy.unlink == "defer":
            removal = self.book.begin(request, policy, self.now)
            assert removal.turn is Turn.READY
            self.book.finish(removal, self.now)
            return
        self.reap(asked)
        assert not any(
            self.standing[pin] & asked.bytes and self.owners[pin] in self.book.reaping.dead_owners
            for pin in self.standing
        )
        expected = self.judge(asked, policy)
        told = len([e for e in self.events if e.kind == "break"])
        removal = asked.removal = self.book.begin(request, policy, self.now)
        removal.wake = lambda: asked.answers.append(removal.turn)
        turn = removal.turn
        if expected == "ready":
            assert turn is Turn.READY
        elif expected == "wait":
            assert turn is Turn.WAITING
        else:
            assert (turn, removal.why) == (Turn.REFUSED, expected)
            refused_by_pins = dict.fromkeys(("deny", "unanswered"), policy.errno_number)
            code = (refused_by_pins | {"nonblock": errno.EAGAIN}).get(expected, errno.EBUSY)
            assert removal.errno == code
        if expected == "nonblock":
            self.leave_behind(asked)
        elif turn is Turn.REFUSED:
            assert told == len([e for e in self.events if e.kind == "break"]), "a holder was bothered for nothing"
        self.asked.append(asked)

    def leave_behind(self, asked: Asked) -> None:
        wanted = [pin for pin, at in self.standing.items() if at & asked.bytes]
        if asked.exempt or not any(pin in self.breaking or self.will_be_asked(pin) for pin in wanted):
            return
        merged = Left(asked.bytes)
        for left in list(self.left):
            if left.bytes & merged.bytes:
                self.left.remove(left)
                merged.bytes |= left.bytes
        self.left.append(merged)

    def now_in(self, turn: Turn) -> list[Asked]:
        return [asked for asked in self.asked if asked.removal.turn is turn]

    @precondition(lambda self: self.now_in(Turn.WAITING))
    @rule(which=which)
    def leave(self, which: int) -> None:
        waiting = self.now_in(Turn.WAITING)
        asked = waiting[which % len(waiting)]
        self.leave_behind(asked)
        self.book.leave(asked.removal, self.now)
        assert asked.removal.turn is Turn.GONE
        assert not asked.answers, "a breaker that gave up is not answered"

    @precondition(lambda self: self.now_in(Turn.READY))
    @rule(which=which)
    def finish(self, which: int) -> None:
        ready = self.now_in(Turn.READY)
        self.cut(ready[which % len(ready)])

    def cut(self, asked: Asked) -> None:
        taken = {pin for pin, at in self.standing.items() if at & asked.bytes}
        if asked.exempt:
            assert {self.owners[pin] for pin in taken} <= {asked.removal.request.process}
        else:
            assert not taken, "pinned bytes were taken without release, revocation or death"
        if not asked.exempt:
            self.left = [left for left in self.left if not left.bytes <= asked.bytes]
        self.book.finish(asked.removal, self.now)
        self.what_is_left_cools_down()
        assert asked.removal.turn is Turn.GONE

    @invariant()
    def what_must_hold(self) -> None:
        self.what_is_left_cools_down()
        self.who_may_cut_mostly_does()
        self.the_book_agrees()
        self.each_breaking_pin_is_wanted_and_each_wanted_pin_breaks()
        self.nothing_waits_in_vain_or_beyond_a_deadline()
        self.every_removal_is_answered_at_most_once()

    def who_may_cut_mostly_does(self) -> None:
        while ready := [asked for asked in self.now_in(Turn.READY) if not asked.dawdles]:
            self.cut(ready[0])

    # Time

    @rule(seconds=st.sampled_from([0.5, COOL_DOWN_S, 10.0, 45.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.left = [left for left in self.left if left.until is None or left.until > self.now]
        while (deadline := self.book.next_deadline()) is not None and deadline <= self.now:
            self.book.expire(self.now)

    @precondition(lambda self: self.killed)
    @rule()
    def killed_holders_die(self) -> None:
        for process in sorted(map(str, self.killed)):
            self.die(process)

    # What must hold

    def what_is_left_cools_down(self) -> None:
        for left in self.left:
            if left.until is None and not any(self.standing[pin] & left.bytes for pin in self.breaking):
                left.until = self.now + COOL_DOWN_S

    def the_book_agrees(self) -> None:
        assert {pin.id: held(pin) for pin in self.book.table.by_id.values()} == self.standing
        assert {p.id: p.deadline for p in self.book.table.by_id.values() if p.state is State.BREAKING} == self.breaking
        of_owners = {pin: owner for owner, pins in self.book.breaks.of_owner.items() for pin in pins}
        assert of_owners == {pin: self.owners[pin] for pin in self.breaking}
        of_files = [file.breaking.overlapping(0, END) for file in self.book.files.states.values() if file.breaking]
        assert {pin.id: held(pin) for pins in of_files for pin in pins} == {
            pin: self.standing[pin] for pin in self.breaking
        }
        assert self.book.waiting == len(self.now_in(Turn.WAITING))
        for inode in (1, 2):
            assert self.book.table.count_of_file(inode) == len(list(self.book.table.of_file(inode)))
        touched = {at for bytes_ in self.standing.values() for at in bytes_} | self.reserved()
        assert set(self.book.files) == {inode for inode, _ in touched}
        for inode, at in [(inode, at) for inode in (1, 2) for at in range(SIZE)]:
            assert self.book.touches(inode, at, at + 1) == ((inode, at) in touched)

    def each_breaking_pin_is_wanted_and_each_wanted_pin_breaks(self) -> None:
        wanting = [a.bytes for a in self.asked if a.wants]
        for pin, at in self.standing.items():
            if any(bytes_ & at for bytes_ in wanting):
                assert pin in self.breaking or self.will_be_asked(pin)
            elif pin in self.breaking:
                left = any(left.bytes & at for left in self.left if left.until is None)
                assert left or self.will_be_told_that_it_may_stay(pin)

    def will_be_asked(self, number: int) -> bool:
        """Is a slice to come that asks this pin, and does somebody want it?"""
        pin, at = self.book.table.by_id[number], self.standing[number]
        wanting = [a.bytes for a in self.asked if a.wants] + [left.bytes for left in self.left if left.until is None]
        return any(bytes_ & at for bytes_ in wanting) and any(
            at & bytes_of(removal.inode, removal.start, removal.end) and pin.sort_key > asked
            for removal, asked in self.book.notifying.notified_up_to.items()
        )

    def will_be_told_that_it_may_stay(self, number: int) -> bool:
        pin, at = self.book.table.by_id[number], self.standing[number]
        return any(
            at & bytes_of(w.inode, w.start, w.end) and pin.sort_key[1:] > w.after for w in self.book.withdrawals.queue
        )

    def nothing_waits_in_vain_or_beyond_a_deadline(self) -> None:
        for place, asked in enumerate(self.asked):
            if asked.removal.turn is not Turn.WAITING:
                continue
            ahead = [a for a in self.asked[:place] if a.unfinished and a.removal.order and a.bytes & asked.bytes]
            pins = [pin for pin, at in self.standing.items() if at & asked.bytes and not asked.exempt]
            deadlines = [self.breaking[pin] for pin in pins if pin in self.breaking]
            assert ahead or deadlines
            assert all(self.now < deadline <= self.now + 100.0 + KILL_GRACE_S for deadline in deadlines)

    def every_removal_is_answered_at_most_once(self) -> None:
        for asked in self.asked:
            assert len(asked.answers) <= 1
            assert asked.removal.turn is not Turn.WAITING or not asked.answers

    def teardown(self) -> None:
        for owner in OWNERS:
            self.die(owner)
        while self.book.reaping.dead_owners:
            self.book.expire(self.now)
        while ready := self.now_in(Turn.READY):
            self.cut(ready[0])
        assert not self.now_in(Turn.WAITING), "somebody waits for nobody"
        self.pass_time(COOL_DOWN_S + 1000)
        assert not self.book.breaks.of_owner
        assert (self.book.files.states, self.book.table.by_id, self.book.table.by_owner, self.book.table.usage) == (
            {},
            {},
            {},
            {},
        )
        assert (self.book.table.pinned_bytes, self.book.next_deadline(), self.book.waiting) == (0, None, 0)


class BreaksInSlices(Breaks):
    slices = SliceLimits(pins=1)

    @precondition(lambda self: self.book.next_deadline() == -math.inf)
    @rule()
    def go_on(self) -> None:
        self.book.expire(self.now)


class TestBreaks(Breaks.TestCase):  # type: ignore[misc,valid-type]  # (made anew for each machine)
    settings = settings(max_examples=5 * settings().max_examples, stateful_step_count=50, print_blob=True)


class TestBreaksInSlices(BreaksInSlices.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=8 * settings().max_examples, stateful_step_count=50, print_blob=True)
