"""The checker: several hosts with the real `Member`, over a simulated etcd, in a world where everything that can go
wrong does.

The oracle knows only what programs see. A pin counts from the moment in which its holder was told that it is pinned,
until the holder has let go, was told that it is gone, or has died with its host. It is a violation if a cut takes
effect on bytes of such a pin, if a request is not answered in time, or if anything is left when all is over.

Everything is drawn from one seed: `World(Scenario(...), seed)` does the same each time.
"""

from __future__ import annotations

import heapq
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cluster.host import HOLDS_S, Host, Standing
from cluster.simulated_etcd import SimulatedEtcd, Snapshot
from pinfs.cluster.keys import COUNTER
from pinfs.cluster.membership import State, Timing
from pinfs.cluster.messages import Answer, Batch, Request, Unknown
from pinfs.cluster.protocol import Member

QUICK = Timing(
    pin_ttl_s=6.0, member_ttl_s=20.0, margin_s=2.0, beat_s=1.0, bundle_ttl_s=86400.0, retry_s=0.1, linger_s=2.0
)
"""Shorter than on real hosts, so that more happens in each second."""
FAULTS = {
    "cut off": 8,
    "crash": 4,
    "restart": 4,
    "stall": 8,
    "watch lost": 2,
    "early": 4,
    "snapshot": 4,
    "restore": 2,
    "forget": 12,
}
TOLD_LINES = 30
SHORT_LEASE_S = 3600.0
"""A leader that is stuck may end leases early whose time is shorter than that."""


@dataclass(frozen=True)
class Scenario:
    """`faults_every_s`: 0: none. `loss`: share of messages; `gaps`: share of revisions that a watch loses.
    `late_cut_s`: how late a system call may take effect, and `late_cuts` the share of those that do. `unseen`: the
    share of removals that take whatever file has come to a name meanwhile, and of requests that are of a new file.
    `stall_s`: how long a daemon stalls at most. `faults`: which, and how often each among the others."""

    member: type[Member] = Member
    timing: Timing = QUICK
    hosts: int = 3
    files: int = 3
    pace_s: float = 0.05
    faults_every_s: float = 3.0
    loss: float = 0.01
    gaps: float = 0.003
    late_cut_s: float = 13.5
    late_cuts: float = 0.05
    unseen: float = 0.0
    stall_s: float = 1.6
    down_s: float = 20.5
    faults: Mapping[str, int] = field(default_factory=lambda: FAULTS)

    def without_faults(self) -> Scenario:
        """The same world in which messages take time, and nothing fails."""
        return replace(self, faults_every_s=0, loss=0, gaps=0, late_cut_s=0)


class ViolationError(AssertionError):
    """What must not happen."""


class World:
    """Time, chance, etcd, the network, and the oracle."""

    def __init__(self, scenario: Scenario, seed: int, is_traced: bool = False) -> None:
        self.scenario = scenario
        self.seed = seed
        self.chance = random.Random(f"cluster {seed}")
        self.now = 0.0
        self.etcd = SimulatedEtcd()
        self.counts: Counter[str] = Counter()
        self.trace: list[str] | None = [] if is_traced else None
        self.standing: dict[tuple[str, int, int], Standing] = {}
        self.is_working = True
        self._made = [0] * scenario.files
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._etcd_is_down = False
        self._snapshot: Snapshot | None = None
        self._streams: list[Callable[[Batch], None]] = []
        self.etcd.on_batch = self._on_batch
        self.hosts = [Host(self, "abcdefgh"[number]) for number in range(scenario.hosts)]
        for host in self.hosts:
            host.boot()
        if scenario.faults_every_s:
            self.at(self.chance.expovariate(1 / scenario.faults_every_s), self._fault)
        if scenario.timing.bundle_ttl_s < SHORT_LEASE_S:
            self.at(1.0, self._expire)

    def run(self, seconds: float) -> None:
        """Raises ViolationError."""
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, do = heapq.heappop(self._queue)
            do()
        self.now = until

    def wind_up(self) -> None:
        """In a world without faults: programs end, marks are forgotten, members leave, and nothing is left but the
        count of marks. Raises ViolationError."""
        self.is_working = False
        members = [daemon.member for host in self.hosts for daemon in host.daemons]
        self.run(max(HOLDS_S) + self.scenario.timing.linger_s * (2 + len(self.hosts)))
        for host in self.hosts:
            host.leave()
        self.run(5.0)
        if [*self.etcd.keys] != [COUNTER] or self.etcd.leases:
            self.violation("left in etcd:", *self.etcd.keys, *self.etcd.leases)
        for member in members:
            tables = (member._pins, member._pin_of, member._held_of, member._removals, member._own_keys, member._told)
            if any(tables) or member._doomed or member.state is not State.LEFT or len(member._tasks):
                self.violation("left in the member of", member.id, *tables, member._doomed, member.state)

    def at(self, delay_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + max(0.0, delay_s), next(self._order), do))

    def say(self, *words: object) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:9.4f} {' '.join(map(str, words))}")

    def violation(self, *words: object) -> None:
        text = " ".join(map(str, words))
        self.say("VIOLATION", text)
        raise ViolationError(f"seed {self.seed}, {self.now:.3f} s: {text}")

    def told(self) -> str:
        """What the trace has about the file of a violation: how the pin came, and what came last."""
        assert self.trace is not None
        found = re.search(r"cuts (\w+) .* under pin (\d+) of (\w)", self.trace[-1])
        if not found:
            return "\n".join(self.trace[-TOLD_LINES:])
        file, pin, host = found.groups()
        about = re.compile(rf"/{file}[/']|(CUT|file=') ?{file}\b|FAULT|FENCED|joined|loses|VIOLATION")
        lines = [line for line in self.trace if about.search(line)]
        came = max(number for number, line in enumerate(lines) if f"{host} PINNED {pin} " in line)
        before, after = lines[:came][-TOLD_LINES:], lines[came:]
        if len(after) > TOLD_LINES:
            after = [after[0], "...", *after[-TOLD_LINES:]]
        return "\n".join([*before, *after])

    # Files

    def named(self, name: int) -> str:
        """The file that this name leads to now."""
        return f"{name << 16 | self._made[name]:x}"

    def make(self, name: int) -> None:
        """From now on it leads to a new one; programs that have the old one open go on with that."""
        self._made[name] += 1

    # The oracle

    def pinned(self, host: Host, pin: int, what: Standing) -> None:
        self.counts["pins"] += 1
        self.say(host.name, "PINNED", pin, what)
        self.standing[host.name, host.boots, pin] = what

    def pin_over(self, host: Host, pin: int, why: str) -> None:
        if self.standing.pop((host.name, host.boots, pin), None):
            self.say(host.name, "pin", pin, "is over:", why)

    def cut(self, host: str, file: str, start: int, end: int) -> None:
        self.counts["cuts"] += 1
        self.say(host, "CUT", file, start, end)
        for (_, _, pin), what in self.standing.items():
            if what.file == file and what.start < end and start < what.end:
                self.violation(
                    f"{host} cuts {file} [{start},{end}) under pin {pin} of {what.host} [{what.start},{what.end})"
                )

    # The network

    def lag(self, is_slow: bool) -> float:
        return self.chance.expovariate(500) * (10 if is_slow else 1)

    def is_lost(self) -> bool:
        return self.chance.random() < self.scenario.loss

    def carry(self, host: Host, request: Request, back: Callable[[Answer], None]) -> None:
        """One request in fifty dawdles beyond its sender's patience, and is done all the same."""
        is_answered = False

        def arrive() -> None:
            if self._etcd_is_down or host.is_cut_off or self.is_lost():
                return
            answer = self.etcd.handle(request, self.now)
            if not self.is_lost():
                self.at(self.lag(host.is_slow), lambda: return_(answer))

        def return_(answer: Answer) -> None:
            nonlocal is_answered
            if not is_answered and not (host.is_cut_off and not isinstance(answer, Unknown)):
                is_answered = True
                back(answer)

        dawdles = self.chance.random() < 0.02 and self.scenario.loss > 0
        self.at(self.chance.uniform(0, 6) if dawdles else self.lag(host.is_slow), arrive)
        self.at(host.true_seconds(1.0), lambda: return_(Unknown()))

    def stream(self, host: Host, from_revision: int, deliver: Callable[[Batch], None]) -> None:
        """A watch: in order, late, and, in the scenario, with gaps and repetitions."""
        last = 0.0

        def push(batch: Batch) -> None:
            nonlocal last
            if self.chance.random() < self.scenario.gaps:
                self.counts["lost by a watch"] += 1
                self.say(host.name, "loses revision", batch.revision)
                return
            dawdles = self.chance.random() < 0.05 and self.scenario.loss > 0
            last = max(last, self.now + self.lag(host.is_slow) * (10 if dawdles else 1)) + 1e-9
            self.at(last - self.now, lambda: arrive(batch))
            if self.chance.random() < self.scenario.gaps:  # "watch response travelling back in time"
                self.at(last + 0.5 - self.now, lambda: arrive(batch))

        def arrive(batch: Batch) -> None:
            nonlocal last
            if host.is_cut_off:
                last = max(last, self.now + 0.2) + 1e-9
                self.at(last - self.now, lambda: arrive(batch))
            else:
                deliver(batch)

        for batch in [*self.etcd.since(from_revision)]:
            push(batch)
        self._streams.append(push)

    def _on_batch(self, batch: Batch) -> None:
        for event in batch.events:
            self.say("  etcd:", batch.revision, event)
        for push in self._streams:
            push(batch)

    # Faults

    def _expire(self) -> None:
        """etcd ends leases up to a second late."""
        for lease in self.etcd.expired(self.now):
            self.etcd.revoke(lease)
        self.at(0.5, self._expire)

    def _fault(self) -> None:
        self.at(self.chance.expovariate(1 / self.scenario.faults_every_s), self._fault)
        host = self.chance.choice(self.hosts)
        kind = self.chance.choices([*self.scenario.faults], [*self.scenario.faults.values()])[0]
        match kind:
            case "cut off" if not host.is_cut_off:
                self._cut_off(host, self.chance.choice([0.3, 2, 5, 9, 30]))
            case "crash" if host.is_up:
                host.crash(self.chance.choice([0.1, 5, 30]))
            case "restart" if host.can_restart():
                host.restart(self.chance.uniform(0.1, self.scenario.stall_s))
            case "stall" if host.can_stall():
                host.stall(self.chance.choice([0.01, 0.1, 1, self.scenario.stall_s]))
            case "watch lost" if host.is_up:
                host.lose_watch()
            case "early":
                short = [number for number, lease in self.etcd.leases.items() if lease.ttl_s < SHORT_LEASE_S]
                if not short:
                    return
                self.etcd.revoke(self.chance.choice(short))
            case "forget" if host.is_dead() and self._forget(host):
                pass
            case "forget alive" if host.is_up and self._forget(host):
                pass
            case "snapshot":
                self._snapshot = self.etcd.snapshot()
            case "restore" if self._snapshot and not self._etcd_is_down:
                self._restore(self._snapshot)
            case _:
                return
        self.counts[kind] += 1
        self.say("FAULT", kind, host.name)

    def _forget(self, dead: Host) -> bool:
        """An operator says so on another host. False: that one knows of none of its members."""
        others = [host for host in self.hosts if host is not dead and host.can_stall()]
        return bool(others) and self.chance.choice(others).forget(dead.name)

    def _cut_off(self, host: Host, seconds: float) -> None:
        host.is_cut_off = True

        def mend() -> None:
            host.is_cut_off = False

        self.at(seconds, mend)

    def _restore(self, snapshot: Snapshot) -> None:
        """An operator who keeps to the rules has etcd down until all members are fenced, and what they began is
        over."""
        self._etcd_is_down = True
        self._snapshot = None
        self._streams.clear()

        def up() -> None:
            self.etcd.restore(snapshot)
            self._etcd_is_down = False

        self.at(self.scenario.down_s, up)
