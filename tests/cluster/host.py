"""One host of the checker: its clock, its daemon with a small book of its own, its holders and breakers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pinfs.cluster.keys import MemberId, PinKey, PinValue, RemovalKey, RemovalValue
from pinfs.cluster.membership import State
from pinfs.cluster.messages import Answer, Batch
from pinfs.cluster.outputs import (
    Call,
    Fenced,
    Joined,
    Left,
    MayCut,
    Output,
    Pinned,
    PinRefused,
    RemovalRefused,
    Told,
    ToldOver,
    Waits,
    Watch,
)
from pinfs.cluster.protocol import ANY_FILE, Former, Member
from pinfs.core.pins import Mode

if TYPE_CHECKING:
    from cluster.world import World

BYTES = 8
ANY_BYTES = RemovalValue(0, BYTES, "rename")
BREAK_TIMEOUT_S = 1.0
WAIT_S = 3.0
LATEST_ANSWER_S = 8.0
"""How long after its deadline a request may be answered: a call or two that were lost, and a stall."""
HOLDS_S = (0.005, 0.05, 0.05, 0.5, 0.5, 3.0, 12.0)


@dataclass(frozen=True)
class Standing:
    """A pin that a holder relies on."""

    host: str
    file: str
    start: int
    end: int


@dataclass
class Pin:
    """`key` None: not registered yet. The holder lives as long as its host."""

    file: str
    value: PinValue
    key: PinKey | None = None


@dataclass
class Removal:
    """`name`: of ANY_FILE, where it takes the file that has come there since it led to `before`."""

    file: str
    value: RemovalValue
    is_cutting: bool = False
    name: int = 0
    before: str = ""


class Daemon:
    """One process: a member, and the calls and watch that it waits for. A fenced one is served until it has left."""

    def __init__(self, host: Host, member: Member) -> None:
        self.host = host
        self.member = member
        self.is_alive = True
        self._alarm = 0

    def feed(self, call: Callable[[float], list[Output]]) -> None:
        """Something comes in; what goes out is done at once."""
        if not self.is_alive:
            return
        for output in call(self.host.clock()):
            self._do(output)
        self._alarm += 1
        alarm = self._alarm
        wait_s = self.member.next_deadline() - self.host.clock()
        if wait_s < 1e9:
            self.host.later(wait_s, lambda: self._ring(alarm))

    def _ring(self, alarm: int) -> None:
        if alarm == self._alarm:
            self.feed(self.member.tick)

    def _do(self, output: Output) -> None:
        match output:
            case Call(number, request):
                self.host.world.carry(self.host, request, lambda answer: self._come(number, answer))
            case Watch(stream, revision):
                self.host.world.stream(self.host, revision, lambda batch: self._watched(stream, batch))
            case Left():
                self.is_alive = False
                self.host.left(self)
            case _:
                self.host.do(self, output)

    def _come(self, number: int, answer: Answer) -> None:
        self.host.later(0, lambda: self.feed(lambda now: self.member.answered(number, answer, now)))

    def _watched(self, stream: int, batch: Batch) -> None:
        self.host.later(0, lambda: self.feed(lambda now: self.member.watched(stream, batch, now)))


class Host:
    """`boots`: counts the lives of the machine; pins die with each."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.boots = 0
        self.is_up = False
        self.is_cut_off = False
        self.is_leaving = False
        self.is_slow = world.chance.random() < 0.25
        self._rate = 1 + world.chance.uniform(-0.005, 0.005)
        self._skew = world.chance.uniform(-1e6, 1e6)
        self._stalled_until = 0.0
        self._disturbed_until = 0.0
        self._incarnation = 0
        self._life = 0
        self._last = 0
        self._cuts_until = 0.0
        self.daemons: list[Daemon] = []
        self.pins: dict[int, Pin] = {}
        self.removals: dict[int, Removal] = {}

    # Time

    def clock(self) -> float:
        return self.world.now * self._rate + self._skew

    def true_seconds(self, local: float) -> float:
        return local / self._rate

    def later(self, local: float, do: Callable[[], None]) -> None:
        """In this life of the machine, and when its daemon does not stall."""
        boots = self.boots

        def go() -> None:
            if self.boots != boots or not self.is_up:
                return
            if self._stalled_until > self.world.now:
                self.world.at(self._stalled_until - self.world.now + 1e-6, go)
            else:
                do()

        self.world.at(self.true_seconds(max(0.0, local)) + 1e-7, go)

    # Lives

    def boot(self) -> None:
        self.boots += 1
        self.is_up = True
        self.pins, self.removals = {}, {}
        self._new_member()
        self.later(0.5, self._work)

    def crash(self, back_s: float) -> None:
        """The machine goes, and its holders with it. What it has asked of the server is done all the same."""
        for pin in self.pins:
            self.world.pin_over(self, pin, "its host has crashed")
        self.is_up = False
        self._end_daemons()
        self.world.at(back_s, self.boot)

    def restart(self, after_s: float) -> None:
        """The daemon dies, and the next one takes over with its journal: pins stand, breakers' calls begin anew."""
        member = self.daemons[-1].member
        self._disturb(after_s)
        for number in [number for number, pin in self.pins.items() if pin.key is None]:
            del self.pins[number]
        for number in [number for number, removal in self.removals.items() if not removal.is_cutting]:
            del self.removals[number]
        pins = {number: (pin.key, pin.value) for number, pin in self.pins.items() if pin.key}
        former = Former(member.fence, pins, is_settled=not self.removals)
        self._life += 1
        self._end_daemons()
        self.later(after_s, lambda: self._resume(member.id, former))

    def _resume(self, member: MemberId, former: Former) -> None:
        scenario = self.world.scenario
        daemon = Daemon(self, scenario.member(member, scenario.timing, life=self._life))
        self.daemons.append(daemon)
        daemon.feed(lambda now: daemon.member.resume(former, now))

    def _end_daemons(self) -> None:
        for daemon in self.daemons:
            daemon.is_alive = False
        self.daemons.clear()

    def _new_member(self) -> None:
        self._incarnation += 1
        scenario = self.world.scenario
        member = MemberId(self.name, f"{self._incarnation:x}")
        daemon = Daemon(self, scenario.member(member, scenario.timing))
        self.daemons.append(daemon)
        daemon.feed(daemon.member.join)

    def can_restart(self) -> bool:
        """One pause at a time: two of them may exceed the margin together, against which there is no help."""
        return self.can_stall() and self.daemons[-1].member.state is State.JOINED

    def can_stall(self) -> bool:
        return self.is_up and bool(self.daemons) and self.world.now > self._disturbed_until

    def is_dead(self) -> bool:
        """For sure, with all that it had begun."""
        return not self.is_up and self.world.now > self._cuts_until

    def forget(self, host: str) -> bool:
        member = self.daemons[-1].member
        dead = [known for known in member.members if known.host == host]
        self.daemons[-1].feed(lambda now: member.forget(dead, now))
        return bool(dead)

    def stall(self, seconds: float) -> None:
        self._stalled_until = self.world.now + seconds
        self._disturb(seconds)

    def _disturb(self, seconds: float) -> None:
        self._disturbed_until = self.world.now + seconds + 1.0

    def lose_watch(self) -> None:
        for daemon in self.daemons:
            daemon.feed(partial(daemon.member.watch_lost, daemon.member._stream))

    def leave(self) -> None:
        self.is_leaving = True
        for daemon in [*self.daemons]:
            daemon.feed(daemon.member.leave)

    def left(self, daemon: Daemon) -> None:
        if daemon in self.daemons:
            self.daemons.remove(daemon)

    # What the member says

    def do(self, daemon: Daemon, output: Output) -> None:
        world = self.world
        match output:
            case Joined():
                world.say(self.name, "joined as", daemon.member.id)
            case Pinned(number, key):
                pin = self.pins[number]
                pin.key = key
                world.pinned(self, number, Standing(self.name, pin.file, pin.value.start, pin.value.end))
                self.later(world.chance.choice(HOLDS_S), lambda: self._let_go(number))
            case PinRefused(number, _, why, _):
                del self.pins[number]
                world.counts[f"pin refused: {why}"] += 1
            case MayCut(number, until):
                self._cut(daemon, number, until)
            case RemovalRefused(number, _, why, _):
                del self.removals[number]
                world.counts[f"removal refused: {why}"] += 1
            case Waits():
                world.counts["waits"] += 1
                if world.chance.random() < 0.1:
                    number = output.removal
                    self.later(world.chance.choice([0.01, 0.3]), lambda: self._withdraw(number))
            case Told():
                self._break(daemon, output)
            case ToldOver():
                world.counts["told over"] += 1
            case Fenced(pins, why):
                world.counts[f"fenced: {why}"] += 1
                world.say(self.name, "FENCED:", why)
                for number in pins:
                    world.pin_over(self, number, "its holder was told")
                    self.pins.pop(number, None)  # it may have let go at this very moment
                for number in [number for number, pin in self.pins.items() if pin.key]:
                    world.violation(f"{self.name} did not name pin {number} at its fence")
                if not self.is_leaving:
                    self.later(0.1, self._new_member)

    def _cut(self, daemon: Daemon, number: int, until: float) -> None:
        """The system call takes effect whatever becomes of the daemon, and of the host."""
        world, removal = self.world, self.removals[number]
        if self.clock() >= until:
            world.counts["too late to cut"] += 1
            del self.removals[number]
            self.later(0, lambda: daemon.feed(lambda now: daemon.member.removal_finished(number, now)))
            return
        removal.is_cutting = True
        takes_s = 0.0
        if world.scenario.late_cut_s:
            takes_s = world.chance.expovariate(300)
            if world.chance.random() < world.scenario.late_cuts:
                takes_s = world.chance.uniform(0, world.scenario.late_cut_s)
        boots = self.boots

        def take_effect() -> None:
            self._take(removal)
            if self.boots == boots:
                self.later(0, finish)

        def finish() -> None:
            del self.removals[number]
            daemon.feed(lambda now: daemon.member.removal_finished(number, now))

        takes_s = min(takes_s, world.scenario.late_cut_s)
        self._cuts_until = max(self._cuts_until, world.now + takes_s)
        world.at(takes_s, take_effect)

    def _take(self, removal: Removal) -> None:
        world, file = self.world, removal.file
        if file == ANY_FILE:
            file = world.named(removal.name)
            if file == removal.before:
                return
            world.counts["files taken unseen"] += 1
        world.cut(self.name, file, removal.value.start, removal.value.end)

    def _break(self, daemon: Daemon, told: Told) -> None:
        self.world.counts["told"] += 1
        for number in told.pins:
            delay_s = self.world.chance.choice([0.01, 0.1, 0.5, None])
            if delay_s is not None:
                self.later(delay_s, partial(self._let_go, number))
        self.later(BREAK_TIMEOUT_S, lambda: self._deny(daemon, told.removal, told.pins))

    def _deny(self, daemon: Daemon, removal: RemovalKey, pins: tuple[int, ...]) -> None:
        if any(number in self.pins for number in pins):
            daemon.feed(lambda now: daemon.member.removal_denied(removal, "unanswered", now))

    def _let_go(self, number: int) -> None:
        if number in self.pins and self.pins[number].key and self.daemons:
            self.world.pin_over(self, number, "its holder lets go")
            del self.pins[number]
            daemon = self.daemons[-1]
            daemon.feed(lambda now: daemon.member.pin_released(number, now))

    def _withdraw(self, number: int) -> None:
        removal = self.removals.get(number)
        if removal and not removal.is_cutting and self.daemons:
            del self.removals[number]
            daemon = self.daemons[-1]
            daemon.feed(lambda now: daemon.member.removal_withdrawn(number, now))

    # What programs do

    def _work(self) -> None:
        world = self.world
        if not world.is_working:
            return
        self.later(world.chance.expovariate(1 / world.scenario.pace_s), self._work)
        if not self.daemons:
            return
        daemon, chance = self.daemons[-1], world.chance
        name = chance.randrange(world.scenario.files)
        if chance.random() < world.scenario.unseen:
            world.make(name)
        file = world.named(name)
        start = chance.randrange(BYTES)
        end = chance.randrange(start + 1, BYTES + 1)
        self._last += 1
        number = self._last
        deadline = self.clock() + WAIT_S
        if chance.random() < 0.4:
            if self._is_taken(self.removals.values(), file, start, end):
                return
            pin = self.pins[number] = Pin(file, PinValue(start, end, chance.choice([*Mode])))
            daemon.feed(lambda now: daemon.member.pin_wanted(number, file, pin.value, deadline, now))
        elif chance.random() < world.scenario.unseen:
            removal = self.removals[number] = Removal(ANY_FILE, ANY_BYTES, name=name, before=file)
            daemon.feed(lambda now: daemon.member.removal_wanted(number, ANY_FILE, ANY_BYTES, deadline, now))
        else:
            if self._is_taken(self.pins.values(), file, start, end):
                return
            world.counts["asked removals" if daemon.member.is_marked(file) else "unasked removals"] += 1
            removal = self.removals[number] = Removal(file, RemovalValue(start, end, "truncate"))
            daemon.feed(lambda now: daemon.member.removal_wanted(number, file, removal.value, deadline, now))
        self.later(WAIT_S + LATEST_ANSWER_S, lambda: self._check_answered(number))

    def _is_taken(self, others: Iterable[Pin | Removal], file: str, start: int, end: int) -> bool:
        """The local book: pins and removals of one host do not meet."""
        return any(o.file == file and o.value.start < end and start < o.value.end for o in others)

    def _check_answered(self, number: int) -> None:
        pin, removal = self.pins.get(number), self.removals.get(number)
        if pin and not pin.key:
            self.world.violation(f"{self.name} was not answered about pin {number}")
        if removal and not removal.is_cutting:
            self.world.violation(f"{self.name} was not answered about removal {number}")
