"""Members over one simulated etcd without a network: each call is answered at once, unless a test holds it back."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TypeVar

from cluster.simulated_etcd import SimulatedEtcd
from pinfs.cluster.keys import MemberId, PinValue, RemovalValue
from pinfs.cluster.membership import Limits, Timing
from pinfs.cluster.messages import Batch, Txn, Unknown
from pinfs.cluster.outputs import Call, Output, Watch
from pinfs.cluster.protocol import Member
from pinfs.core.pins import Mode

TIMING = Timing()
OutputT = TypeVar("OutputT")


def pin(start: int, end: int, mode: Mode = Mode.DENY) -> PinValue:
    return PinValue(start, end, mode)


def cut(start: int, end: int) -> RemovalValue:
    return RemovalValue(start, end, "truncate")


class Together:
    """`deaf`: hosts whose watch delivers nothing. `silent`: hosts whose calls never reach etcd. `said`: what came out
    but calls and watches, by host."""

    def __init__(self) -> None:
        self.etcd = SimulatedEtcd()
        self.etcd.on_batch = self._on_batch
        self.now = 100.0
        self.members: dict[str, Member] = {}
        self.said: dict[str, list[Output]] = defaultdict(list)
        self.calls: list[tuple[str, Call]] = []
        """All that were sent."""
        self.deaf: set[str] = set()
        self.silent: set[str] = set()
        self._streams: dict[str, int] = {}
        self._work: deque[tuple[str, Output | Batch]] = deque()
        self._missed: list[tuple[str, Output | Batch]] = []
        self._still: set[str] = set()
        self._is_at_work = False

    def join(self, *hosts: str, timing: Timing = TIMING, limits: Limits | None = None) -> None:
        for host in hosts:
            self.members[host] = Member(MemberId(host, "1"), timing, limits)
            self.do(host, self.members[host].join(self.now))

    def do(self, host: str, outputs: list[Output]) -> None:
        """Carries outputs out, and all that follows from them, in the order in which it happens."""
        self._work.extend((host, output) for output in outputs)
        if self._is_at_work:
            return
        self._is_at_work = True
        while self._work:
            host, happened = self._work.popleft()
            if host in self._still:
                self._missed.append((host, happened))
            elif isinstance(happened, Batch):
                if host in self._streams and host not in self.deaf:
                    self.do(host, self.members[host].watched(self._streams[host], happened, self.now))
            else:
                self._carry_out(host, happened)
        self._is_at_work = False

    def _carry_out(self, host: str, output: Output) -> None:
        match output:
            case Call(number, request):
                self.calls.append((host, output))
                answer = Unknown() if host in self.silent else self.etcd.handle(request, self.now)
                self.do(host, self.members[host].answered(number, answer, self.now))
            case Watch(stream, revision):
                self._streams[host] = stream
                self._work.extend((host, batch) for batch in self.etcd.since(revision))
            case _:
                self.said[host].append(output)

    def pass_time(self, seconds: float, *, without: tuple[str, ...] = ()) -> None:
        """Each member does in the meantime what is due, but for those that stand still, and go on in the end."""
        until = self.now + seconds
        self._still = set(without)
        while True:
            due = {host: m.next_deadline() for host, m in self.members.items() if host not in without}
            host = min(due, key=lambda name: due[name])
            if due[host] > until:
                break
            self.now = max(self.now, due[host])
            self.do(host, self.members[host].tick(self.now))
        self.now = until
        self._still = set()
        self._work.extend(self._missed)
        self._missed.clear()
        for host in without:
            self.do(host, self.members[host].tick(self.now))

    def wants_pin(self, host: str, number: int, value: PinValue, file: str = "f1", wait_s: float = 2.0) -> None:
        self.do(host, self.members[host].pin_wanted(number, file, value, self.now + wait_s, self.now))

    def wants_cut(self, host: str, number: int, value: RemovalValue, file: str = "f1", wait_s: float = 30.0) -> None:
        self.do(host, self.members[host].removal_wanted(number, file, value, self.now + wait_s, self.now))

    def heard(self, host: str, kind: type[OutputT]) -> list[OutputT]:
        """What this host's daemon was handed, of one kind."""
        return [output for output in self.said[host] if isinstance(output, kind)]

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.etcd.keys if key.startswith(prefix))

    def hear(self, host: str) -> None:
        """The watch of a deaf host goes on; what it has missed is lost."""
        self.deaf.discard(host)

    def txns(self, host: str) -> list[Txn]:
        return [call.request for name, call in self.calls if name == host and isinstance(call.request, Txn)]

    def _on_batch(self, batch: Batch) -> None:
        self._work.extend((host, batch) for host in self.members)
