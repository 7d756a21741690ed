"""A hostile run: daemons on machines of their own over one directory and an etcd, programs that pin and cut through all
of their mounts, and a schedule of what fails. What the programs see is judged by themselves (programs.py), what is left
at the end here.

The seed (support/seeds.py) gives the same schedule again, and programs that draw the same numbers.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.actor import SYSTEM_PYTHON, eventually
from support.mounts import force_umount, is_mounted
from survival.surviving import Surviving, is_running

from cluster import clocks
from cluster.board import Board, read_logs
from cluster.clocks import Clock
from cluster.network import Machine
from cluster.nodes import Node

PIN_TTL_S, MARGIN_S, MEMBER_TTL_S = 6.0, 3.0, 12.0
"""A machine with few processors must not take a live host for dead, nor a stalled daemon tell its holders too late."""
OPTIONS = (
    f"cluster_pin_ttl={PIN_TTL_S:g}",
    f"cluster_margin={MARGIN_S:g}",
    f"cluster_member_ttl={MEMBER_TTL_S:g}",
    "cluster_pin_timeout=2",
    "cluster_name=hostile",
    "break_timeout=0.5",
    "break_timeout_max=2",
    "retry_after=0.5",
)
OF_HOSTS = {
    "a": ("on_timeout=deny", "unlink=defer"),
    "b": ("on_timeout=revoke", "unlink=break"),
    "c": ("on_timeout=kill", "unlink=deny"),
}
PREFIX = b"/pinfs/hostile/"
CALM_S = 3.0
"""Before a host that is killed: its pins stand for as long as the last beat says, and that must have been possible."""
END_LIMIT_S = 60.0
TESTS = Path(__file__).parents[1]
DETAILS = {"cut": "answer", "not now": "errno", "released": "manner"}


class Host:
    """A machine with a daemon. `number`: on the board."""

    def __init__(self, base: Path, name: str, number: int, machine: Machine, options: Sequence[str]) -> None:
        self.base, self.name, self.number, self.machine = base / name, name, number, machine
        self.clock = Clock(base / f"clock-{name}", clocks.built(base))
        self.source = base / "source"
        self.options = (*options, f"cluster_host={name}", *OF_HOSTS[name])
        self.mount: Surviving | None = None
        self.stopped = 0
        self.deaths = 0

    def start(self, board: Board) -> None:
        prefix = (*self.machine.prefix, *self.clock.prefix)
        self.mount = Surviving(self.base, self.options, source=self.source, prefix=prefix)
        board.born(self.number)

    def kill(self) -> None:
        """Power fails: keeper and daemon die."""
        mount, self.mount = self.mount, None
        assert mount is not None
        os.kill(mount.keeper, signal.SIGSTOP)  # or it might start a daemon meanwhile
        self._signal(mount.daemon, signal.SIGKILL)
        children = Path(f"/proc/{mount.keeper}/task/{mount.keeper}/children").read_text().split()
        for pid in map(int, children):
            self._signal(pid, signal.SIGKILL)
        self._signal(mount.keeper, signal.SIGKILL)
        eventually(lambda: not is_running(mount.keeper))
        force_umount(mount.path)
        self.deaths += 1

    def leave(self) -> None:
        """It is unmounted, in good order."""
        assert self.mount is not None
        self.mount.stop()
        self.mount = None

    def stop_daemon(self) -> None:
        assert self.mount is not None
        self.stopped = self.mount.daemon
        self._signal(self.stopped, signal.SIGSTOP)

    def continue_daemon(self) -> None:
        self._signal(self.stopped, signal.SIGCONT)

    def _signal(self, pid: int, number: int) -> None:
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def status(self) -> dict[str, Any]:
        assert self.mount is not None
        shown: dict[str, Any] = self.mount.status()
        return shown

    def is_joined(self) -> bool:
        return bool(self.status()["cluster"]["state"] == "joined")

    def log(self) -> str:
        path = self.base / "log"
        return path.read_text(errors="replace") if path.exists() else ""


@dataclass(frozen=True)
class Fault:
    """Of a kind, from `at_s` for `lasts_s` seconds; `target`: a number of a host or node."""

    at_s: float
    kind: str
    target: int
    lasts_s: float
    is_silent: bool = False
    clock_s: int = 0

    @property
    def place(self) -> str:
        """Where no other fault may be meanwhile."""
        of = {"cut off": "network of", "node cut off": "network of node"}
        return f"{of.get(self.kind, 'node' if 'node' in self.kind else 'host')} {self.target}"


KINDS = {
    "daemon killed": (4, 0.0, 0.0),
    "daemon stopped": (2, 0.3, MARGIN_S / 3),
    "clock set": (2, 0.0, 0.0),
    "host killed": (4, 0.5, 1.5 * MEMBER_TTL_S),
    "cut off": (4, 0.5, 2 * PIN_TTL_S),
    "node killed": (3, 0.5, 1.5 * PIN_TTL_S),
    "node stopped": (1, 0.5, PIN_TTL_S),
    "node cut off": (2, 0.5, 1.5 * PIN_TTL_S),
}
"""How often, and for how many seconds, from and to."""


def schedule(chance: random.Random, seconds: float, hosts: int, nodes: int) -> list[Fault]:
    """What fails when. The last seconds are calm."""
    faults: list[Fault] = []
    until: dict[str, float] = {}
    at_s = 2.0
    while at_s < seconds - 5:
        [kind] = chance.choices([*KINDS], [often for often, _, _ in KINDS.values()])
        _, shortest, longest = KINDS[kind]
        lasts_s = round(min(chance.uniform(shortest, longest), seconds - 2 - at_s), 2)
        target = chance.randrange(nodes if "node" in kind else hosts)
        clock_s = chance.choice([-1, 1]) * chance.choice([1, 60, 3600, 86400, 10**8])
        fault = Fault(round(at_s, 2), kind, target, lasts_s, chance.random() < 0.5, clock_s)
        if until.get(fault.place, 0.0) <= at_s:
            faults.append(fault)
            until[fault.place] = at_s + lasts_s + 1.0
            at_s += chance.choice([0.2, 1.0, 3.0, 5.0])
        else:
            at_s += 0.5
    return faults


class Hostile:
    """`hosts` and `nodes` are there; the programs begin."""

    def __init__(self, base: Path, seed: str, hosts: Sequence[Host], nodes: Sequence[Node]) -> None:
        self.base, self.hosts, self.nodes = base, hosts, nodes
        self.board = Board(base / "board")
        self.counts: Counter[str] = Counter()
        self._under_way: list[Fault] = []
        self._calm_since = time.monotonic()
        self._latest_s = 0.0
        (base / "log").mkdir()
        try:
            for host in hosts:
                host.start(self.board)
            for host in hosts:
                eventually(host.is_joined)
        except BaseException:
            self._reap_hosts()
            raise
        command = [SYSTEM_PYTHON, "-E", "-s", "-m", "cluster.programs", str(base), seed, *(host.name for host in hosts)]
        with (base / "programs.log").open("wb") as log:
            self._programs = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=TESTS)

    # Faults

    def run(self, faults: Sequence[Fault]) -> None:
        """Until the last one is over, or a promise is broken."""
        began = time.monotonic()
        steps = [(fault.at_s, 1, fault, self._begin) for fault in faults]
        steps += [(fault.at_s + fault.lasts_s, 0, fault, self._undo) for fault in faults]
        for at_s, _, fault, step in sorted(steps, key=lambda step: step[:2]):
            self._wait_until(began + at_s)
            if self.violations():
                break
            step(fault)
        for fault in [*self._under_way]:
            self._undo(fault)

    def wait(self, seconds: float) -> None:
        """Nothing fails meanwhile."""
        self._wait_until(time.monotonic() + seconds)

    def _wait_until(self, at: float) -> None:
        while (left := at - time.monotonic()) > 0:
            before = time.monotonic()
            time.sleep(min(left, 0.05))
            self._latest_s = max(self._latest_s, time.monotonic() - before - 0.05)

    def _begin(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        if fault.kind == "daemon killed":
            mount = self.hosts[fault.target].mount
            assert mount is not None
            mount.kill()
            return
        if fault.kind == "clock set":
            self.hosts[fault.target].clock.step(fault.clock_s)
            return
        if fault.kind == "host killed":
            host = self.hosts[fault.target]
            now = time.monotonic()
            is_calm = not self._under_way and now - self._calm_since > CALM_S
            self.board.killed(host.number, now + PIN_TTL_S / 2 if is_calm else 0.0)
            host.kill()
        self._under_way.append(fault)
        if fault.kind == "daemon stopped":
            self.hosts[fault.target].stop_daemon()
        elif fault.kind == "cut off":
            self.hosts[fault.target].machine.cut_off(silently=fault.is_silent)
            self.board.cut_off(fault.target, is_it=True)
        elif fault.kind.startswith("node"):
            self._break_node(fault)

    def _break_node(self, fault: Fault) -> None:
        node = self.nodes[fault.target]
        assert node.machine is not None
        if fault.kind == "node killed":
            node.kill()
        elif fault.kind == "node stopped":
            node.suspend()
        else:
            node.machine.cut_off(silently=fault.is_silent)

    def _undo(self, fault: Fault) -> None:
        if fault not in self._under_way:
            return
        self._under_way.remove(fault)
        self._calm_since = time.monotonic()
        undo: dict[str, Callable[[], None]]
        if fault.kind.startswith("node"):
            node = self.nodes[fault.target]
            assert node.machine is not None
            undo = {"node killed": node.start_again, "node stopped": node.resume, "node cut off": node.machine.join}
        else:
            host = self.hosts[fault.target]
            undo = {
                "host killed": lambda: host.start(self.board),
                "daemon stopped": host.continue_daemon,
                "cut off": host.machine.join,
            }
            if fault.kind == "cut off":
                self.board.cut_off(host.number, is_it=False)
        undo[fault.kind]()

    # What came of it

    def violations(self) -> list[dict[str, Any]]:
        """What programs have seen that must not be."""
        return [line for line in read_logs(self.base / "log") if line["what"] in ("violation", "failure")]

    def deaths(self) -> list[dict[str, Any]]:
        """Of programs that nothing has killed: a SIGBUS, say. The daemon of host c kills silent holders."""
        ended = [line for line in read_logs(self.base / "log") if line["what"] == "ended"]
        expected = ("c", "holder", -signal.SIGKILL)
        return [line for line in ended if (line["host"], line["kind"], line["status"]) != expected]

    def end(self) -> None:
        """All is well again, and the programs let go."""
        for host in self.hosts:
            eventually(host.is_joined, END_LIMIT_S)
        self.board.end()
        self._programs.wait(END_LIMIT_S)

    def summary(self) -> Counter[str]:
        """What programs did, and what failed."""
        counts = Counter(self.counts)
        for line in read_logs(self.base / "log"):
            detail = DETAILS.get(line["what"])
            counts[f"{line['what']}: {line[detail]}" if detail else line["what"]] += 1
        counts["take-overs"] = sum(host.log().count("takes over") for host in self.hosts)
        counts["longest stall of the director, ms"] = round(1000 * self._latest_s)
        return counts

    def keys(self, kind: str) -> int:
        """In etcd."""
        return self.nodes[0].count(PREFIX + kind.encode() + b"/")

    def held(self) -> list[str]:
        """Names of files without a last name of their own."""
        path = self.base / "source/.pinfs-cluster/held"
        return os.listdir(path) if path.exists() else []

    def close(self) -> None:
        """Nothing of it is left."""
        if self._programs.poll() is None:
            self.board.end()
            with suppress(subprocess.TimeoutExpired):
                self._programs.wait(5)
        self._reap_hosts()
        self._programs.kill()
        self._programs.wait()
        assert not any(is_mounted(host.base / "mnt") for host in self.hosts)

    def _reap_hosts(self) -> None:
        for host in self.hosts:
            if host.mount is not None:
                host.mount.reap()
