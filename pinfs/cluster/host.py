"""One daemon's place in the cluster: members of the protocol, one after the other, at work on a real etcd.

The daemon sees pins and removals by numbers that are given here, unique as long as the daemon lives. A member that
meets its fence is served until it has left, while the next one joins; what belongs to which is kept here.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import trio

from pinfs.cluster import former
from pinfs.cluster.daemon import Daemon, Heard, Matched
from pinfs.cluster.describe import STATES, describe_members
from pinfs.cluster.driver import Driver, Hooks, Step
from pinfs.cluster.etcd import Etcd
from pinfs.cluster.former import LocalPin, boottime
from pinfs.cluster.keys import MemberId, PinKey, PinValue, RemovalKey, RemovalValue
from pinfs.cluster.membership import Limits, State, Timing
from pinfs.cluster.outputs import (
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
    Unpinned,
    Waits,
)
from pinfs.cluster.protocol import Former, Member
from pinfs.cluster.releases import Releases
from pinfs.cluster.store import Store

log = logging.getLogger("pinfs.cluster")

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
CLOSE_LIMIT_S: Final = 2.0


@dataclass(slots=True, eq=False)
class _Alike:
    """Pins of the daemon before that cover the same bytes of one file, and more keys of them than pins. Which key is
    whose cannot be told, and one of them may be about to be deleted: so all stay until the last of the pins goes."""

    pins: set[int]
    spare: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Pin:
    """`is_known`: the daemon has its number. What it is told about the pin before that waits in `told`."""

    driver: Driver
    alike: _Alike | None = None
    answered: trio.Event = field(default_factory=trio.Event)
    refusal: OSError | None = None
    is_known: bool = False
    told: list[Told] = field(default_factory=list)

    def refuse(self, number: int, why: str) -> None:
        self.refusal = OSError(number, why)
        self.answered.set()


@dataclass(slots=True, eq=False)
class _Removal:
    """`is_allowed`: as of MayCut, for as long as its member is not fenced; each beat puts that off."""

    driver: Driver
    heard: Heard
    is_allowed: bool = False


@dataclass(frozen=True, slots=True)
class _Resume:
    state: dict[str, Any]
    pins: tuple[LocalPin, ...]
    matched: Matched


@dataclass(eq=False)
class Host:
    """`run` does the work; until it has joined, and after it has ended, nothing is pinned, and removals are refused.

    `connect` makes a client of etcd: one at first, and another one after etcd was restored. `prefix` is that of the
    cluster's keys, and ends with a slash; `name`: up to 64 letters, digits and `._-`, of no other host. `clock`: in
    seconds. Raises Unreadable (a ValueError) for a name that no key can carry.
    """

    connect: Callable[[], Etcd]
    prefix: str
    name: str
    timing: Timing
    limits: Limits
    daemon: Daemon
    clock: Callable[[], float] = boottime

    def __post_init__(self) -> None:
        MemberId(self.name, "0").check()
        self.fence = -math.inf
        """No cut begins from this time of the clock on (I4 of the protocol); -inf: this host has not joined."""
        self.counters: Counter[str] = Counter()
        self._store = Store(self.connect, self.prefix)
        self._hooks = Hooks(self._moved, self._hear)
        self._numbers = itertools.count(1)
        self._drivers: list[Driver] = []
        """The last one is the present one; those before have been fenced."""
        self._joined: Driver | None = None
        self._stems: dict[str, int] = {}
        self._releases = Releases()
        self._pins: dict[int, _Pin] = {}
        self._removals: dict[int, _Removal] = {}
        self._told: dict[RemovalKey, bool] = {}
        """Removals of other hosts; True: the daemon has heard of them."""
        self._resume: _Resume | None = None
        self._life = 0
        self._since: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._is_leaving = False
        self._nursery: trio.Nursery | None = None

    # The life of a host

    def resume(self, state: dict[str, Any], pins: Iterable[LocalPin], matched: Matched) -> None:
        """Before `run`: goes on for a daemon that has died in this life of the machine. `state` as of Daemon.keep, and
        "is_settled": true in it if no system call of that daemon can still cut bytes (else first pins of files get
        EAGAIN for `Timing.late_s`). `matched` is called once, before anything else is told."""
        self._resume = _Resume(state, tuple(pins), matched)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled, which is for the other hosts as if this one had died: `leave` before that. If it
        ends by an error, the holders of all pins are told."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                resume, self._resume = self._resume, None
                if resume is None or not await self._resumed(resume):
                    self._begin_member()
                await trio.sleep_forever()
        except Exception:
            self._daemon_does(self.daemon.fenced, self._known_pins(), "failed")
            raise
        finally:
            self._end()
            with trio.move_on_after(CLOSE_LIMIT_S, shield=True):
                await self._store.aclose()

    async def leave(self, limit_s: float) -> None:
        """Ends the membership, with what is pinned, once all removals are over; waits for that up to `limit_s`. Other
        hosts then need not wait until this one's times to live are over."""
        self._is_leaving = True
        self._no_longer_joined()
        drivers = [*self._drivers]
        for driver in drivers:
            driver.feed(driver.member.leave)
        with trio.move_on_after(limit_s):
            for driver in drivers:
                await driver.has_left.wait()

    # What the daemon asks for

    def must_ask(self, inode: int) -> bool:
        """Does a removal of bytes of this inode have to go through `removal`? If not, it has to begin, and to be over,
        before the loop goes on. Past the fence everything has to, and is refused there."""
        if self.clock() >= self.fence:
            return True
        return bool(self._stems) and f"{inode:x}" in self._stems

    async def pin(self, file: str, value: PinValue, patience_s: float) -> int:
        """The number of a pin that all hosts honour. What is told about it comes when the caller has gone on to its
        next checkpoint. Raises OSError as of outputs.PinRefused, with its reason and host as text; Unreadable (a
        ValueError) for a file that no key can carry. A caller that is cancelled has no pin."""
        driver = self._joined
        if driver is None:
            raise OSError(errno.EIO, "cluster")
        number = next(self._numbers)
        pin = self._pins[number] = _Pin(driver)
        deadline = self.clock() + patience_s
        try:
            driver.feed(partial(driver.member.pin_wanted, number, file, value, deadline))
            await pin.answered.wait()
        except BaseException:
            self.release(number)
            raise
        if pin.refusal is not None:
            raise pin.refusal
        self.counters["pins"] += 1
        pin.is_known = True
        if pin.told:
            trio.lowlevel.current_trio_token().run_sync_soon(self._tell_late, number)
        return number

    def release(self, pin: int) -> None:
        """The holder has let go. Done with a pin that is gone already."""
        released = self._pins.pop(pin, None)
        if released is None or released.driver.is_fenced or self._nursery is None:
            return
        numbers = [pin]
        if released.alike is not None:
            released.alike.pins.discard(pin)
            numbers += released.alike.spare if not released.alike.pins else ()
        if released.is_known:  # else nothing is told of its end
            self._releases.begin(pin)
        for number in numbers:
            released.driver.feed(partial(released.driver.member.pin_released, number))

    async def until_unpinned(self, pin: int) -> None:
        """Returns when a release has arrived: a removal that begins from now on does not meet the pin on any host."""
        await self._releases.wait(pin)

    def removal(self, file: str, value: RemovalValue, patience_s: float, heard: Heard) -> int:
        """The number of a removal. `heard` is called with what outputs.MayCut, Waits and RemovalRefused say, within
        this call for a file without a mark. Raises Unreadable as `pin` does."""
        number = next(self._numbers)
        driver = self._joined
        if driver is None:
            self.counters["removals refused"] += 1
            self._daemon_does(heard, RemovalRefused(number, errno.EIO, "cluster"))
            return number
        self._removals[number] = _Removal(driver, heard)
        deadline = self.clock() + patience_s
        try:
            driver.feed(partial(driver.member.removal_wanted, number, file, value, deadline))
        except ValueError:
            del self._removals[number]
            raise
        return number

    def may_begin(self, removal: int) -> bool:
        """Right before the system call: is the removal allowed, and this host not cut off meanwhile?"""
        allowed = self._removals.get(removal)
        if allowed is None or not allowed.is_allowed or allowed.driver.is_fenced:
            return False
        return self.clock() < allowed.driver.member.fence

    def removal_over(self, removal: int) -> None:
        """The system call is over, was not made, or the breaker has gone; `heard` is not called any more. Until then
        the removal stands in the way of pins. Done with one that is over."""
        over = self._removals.pop(removal, None)
        if over is not None and not over.driver.has_left.is_set() and self._nursery is not None:
            member = over.driver.member
            step = member.removal_finished if over.is_allowed else member.removal_withdrawn
            over.driver.feed(partial(step, removal))

    def deny(self, removal: RemovalKey, why: str) -> None:
        """The book does not let go for a removal that was told. `why`: a word for its breaker, up to 24 of a-z and _;
        raises Unreadable (a ValueError) for anything else."""
        if self._joined is not None:
            self._joined.feed(partial(self._joined.member.removal_denied, removal, why))

    def forget(self, host: str) -> bool:
        """An operator knows that this host is dead, and that nothing of what it had begun can still change files: its
        pins and its promise end now. False: it has no member, or only those that are at work here."""
        if self._joined is None:
            return False
        own = {driver.member.id for driver in self._drivers}
        dead = [member for member in self._joined.member.members if member.host == host and member not in own]
        self._joined.feed(partial(self._joined.member.forget, dead))
        return bool(dead)

    def status(self) -> dict[str, Any]:
        """For an operator. `since`: unix time at which it joined; seconds are of the clock."""
        driver = self._drivers[-1] if self._drivers else None
        member = driver.member if driver else None
        now = self.clock()
        return {
            "host": self.name,
            "incarnation": member.id.incarnation if member else None,
            "state": STATES[member.state] if member else "stopped",
            "fence_in_s": round(self.fence - now, 3) if self._joined else None,
            "since": self._since,
            "endpoints": self._store.endpoints,
            "interrupted_because": self._store.interrupted_because,
            "members": describe_members(member.members, [driver.member.id for driver in self._drivers], now)
            if member
            else [],
            "marks": len(member.marks) if member else 0,
            "pins": sum(pin.is_known for pin in self._pins.values()),
            "removals": len(self._removals),
            "waiting": member.waiting if member else 0,
            "leaving": [str(before.member.id) for before in self._drivers[:-1]],
            "counters": {**self.counters, **self._store.counters},
        }

    # Members

    def _begin_member(self) -> None:
        self._life = 0
        member = Member(MemberId(self.name, secrets.token_hex(8)), self.timing, self.limits)
        self._start(member, member.join)

    def _start(self, member: Member, step: Step, pins: Mapping[int, _Alike] | None = None) -> None:
        """`pins`: of the daemon before."""
        assert self._nursery is not None
        driver = Driver(member, self._store, self.clock, self._hooks)
        self._drivers.append(driver)
        for number, alike in (pins or {}).items():
            self._pins[number] = _Pin(driver, alike, is_known=True)
        driver.start(self._nursery, step)

    async def _begin_again(self) -> None:
        """With a pause that grows, for the reason may last: too many hosts, or a daemon of another version."""
        await trio.sleep(self._pause_s)
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        if not self._is_leaving:
            self._begin_member()

    async def _resumed(self, resume: _Resume) -> bool:
        """Goes on for the daemon before, if it can. False: its pins are lost."""
        state = former.read_state(resume.state, self.name, self.prefix)
        found = await former.all_pins(self._store, state.fence, self.clock, self.timing.retry_s) if state else None
        if state is None or found is None:
            why = "its fence has come" if state else "it was of another host, cluster or boot"
            log.warning("the pins of the daemon before are lost: %s", why)
            self._daemon_does(resume.matched, {})
            return False
        self._life = state.life + 1
        member = Member(state.member, self.timing, self.limits, self._life)
        numbers: dict[int, int] = {}
        keys: dict[int, tuple[PinKey, PinValue]] = {}
        alikes: dict[int, _Alike] = {}
        for match in former.matches(found, state.member, resume.pins):
            new = [next(self._numbers) for _ in match.keys]
            keys.update(zip(new, ((key, match.value) for key in match.keys), strict=True))
            known = dict(zip(match.tokens, new, strict=False))
            numbers.update(known)
            alikes.update(dict.fromkeys(known.values(), _Alike({*known.values()}, (*new[len(known) :],))))
        ended: list[int] = []
        self._daemon_does(lambda: ended.extend(resume.matched(numbers)))
        self._start(member, partial(member.resume, Former(state.fence, keys, state.is_settled)), alikes)
        for number in ended:  # not before: only now the member has them
            self.release(number)
        return True

    def _moved(self, driver: Driver) -> None:
        """What the fast path looks at is in place before anything is told."""
        if driver is not self._joined:
            return
        member = driver.member
        if member.state is not State.JOINED:
            self._no_longer_joined()
            return
        self._stems = member.marks.stems
        if member.fence != self.fence:
            self.fence = member.fence
            self._keep(driver)

    def _keep(self, driver: Driver) -> None:
        state = former.State(driver.member.id, self._life, driver.member.fence, self.prefix, former.boot_id())
        self._daemon_does(self.daemon.keep, state.to_dict())

    def _no_longer_joined(self) -> None:
        self._joined = None
        self._since = None
        self.fence = -math.inf

    def _end(self) -> None:
        """Nothing goes on any more; callers that wait for a pin get EIO."""
        self._no_longer_joined()
        self._nursery = None
        self._drivers.clear()
        self._releases.all_over()
        for pin in self._pins.values():
            pin.refuse(errno.EIO, "cluster")
        self._pins.clear()
        for number, removal in [*self._removals.items()]:
            if not removal.is_allowed:
                self._refuse(RemovalRefused(number, errno.EIO, "cluster"))
        self._removals.clear()

    def _known_pins(self) -> tuple[int, ...]:
        return tuple(number for number, pin in self._pins.items() if pin.is_known)

    # What a member says

    def _hear(self, driver: Driver, output: Output) -> None:
        match output:
            case Joined():
                self._has_joined(driver)
            case Pinned(number):
                if pin := self._pins.get(number):
                    pin.answered.set()
            case PinRefused(number, code, why, host):
                self.counters["pins refused"] += 1
                if refused := self._pins.pop(number, None):
                    refused.refuse(code, f"{why} at {host}" if host else why)
            case Unpinned(number):
                self._releases.over(number)
            case MayCut(number):
                if allowed := self._removals.get(number):
                    self.counters["removals"] += 1
                    allowed.is_allowed = True
                    self._daemon_does(allowed.heard, output)
            case Waits(number):
                if waiting := self._removals.get(number):
                    self._daemon_does(waiting.heard, output)
            case RemovalRefused():
                self._refuse(output)
            case Told():
                self._tell(output)
            case ToldOver(removal):
                if self._told.pop(removal, False):
                    self._daemon_does(self.daemon.told_over, removal)
            case Fenced(pins, why):
                self._fenced(driver, pins, why)
            case Left():
                self._drivers.remove(driver)
                if not driver.is_fenced:
                    self._all_told_over()
                for number in [number for number, pin in self._pins.items() if pin.driver is driver]:
                    del self._pins[number]

    def _has_joined(self, driver: Driver) -> None:
        driver.has_joined = True
        log.info("joined the cluster as %s", driver.member.id)
        self.counters["joined"] += 1
        self._pause_s = FIRST_PAUSE_S
        self._since = time.time()
        self._keep(driver)
        self._joined = driver
        self.fence = driver.member.fence
        self._stems = driver.member.marks.stems
        self._daemon_does(self.daemon.joined)

    def _refuse(self, refused: RemovalRefused) -> None:
        removal = self._removals.pop(refused.removal, None)
        if removal is not None:
            self.counters["removals refused"] += 1
            self._daemon_does(removal.heard, refused)

    def _tell(self, told: Told) -> None:
        """A pin whose number the daemon does not have yet is told of when it has."""
        self._told.setdefault(told.removal, False)
        standing = {number: pin for number in told.pins if (pin := self._pins.get(number))}
        for pin in standing.values():
            if not pin.is_known:
                pin.told.append(told)
        known = tuple(number for number, pin in standing.items() if pin.is_known)
        if known:
            self._told[told.removal] = True
            self.counters["told"] += 1
            self._daemon_does(self.daemon.told, replace(told, pins=known))

    def _tell_late(self, number: int) -> None:
        pin = self._pins.get(number)
        if pin is None:
            return
        late, pin.told = pin.told, []
        for told in late:
            if told.removal in self._told:
                self._tell(replace(told, pins=(number,)))

    def _fenced(self, driver: Driver, pins: tuple[int, ...], why: str) -> None:
        """I4: holders are told before anybody is answered."""
        known = []
        for number in pins:
            pin = self._pins.pop(number, None)
            if pin is not None and pin.is_known:
                known.append(number)
            elif pin is not None:
                pin.refuse(errno.EIO, "cluster")
        self._releases.all_over()
        if driver.has_joined or known:
            self.counters["fenced"] += 1
            log.warning("%s is cut off from the cluster (%s): %d pins are gone", driver.member.id, why, len(known))
            self._daemon_does(self.daemon.fenced, tuple(known), why)
        elif not self._is_leaving:
            log.warning("%s could not join the cluster: %s", driver.member.id, why)
        self._all_told_over()
        if not self._is_leaving and self._nursery is not None:
            self._nursery.start_soon(self._begin_again)

    def _all_told_over(self) -> None:
        """The pins that removals of other hosts needed are gone."""
        told, self._told = self._told, {}
        for removal, is_heard in told.items():
            if is_heard:
                self._daemon_does(self.daemon.told_over, removal)

    def _daemon_does(self, do: Callable[..., object], *args: object) -> None:
        try:
            do(*args)
        except Exception:
            log.exception("the daemon has failed at %s", getattr(do, "__qualname__", do))
