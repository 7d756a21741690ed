"""Verified loads on a mount whose daemon is killed again and again, and what must be so at the end."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import seeds
from support.actor import SYSTEM_PYTHON, eventually

from .loads import LOADS, POLICY
from .surviving import LIMIT_S, Surviving, records_of

PROGRAM = Path(__file__).with_name("loads.py")
DEATHS_IN_A_ROW = 3
ALWAYS_THERE = {"TEXT", "STREAM", "SILENT"}
"""Kinds of records that do not belong to anything that could be closed."""


@dataclass
class Report:
    """What a load said at its end."""

    kind: str
    rounds: int
    failure: str | None
    slow: list[tuple[float, float]]
    left: dict[str, list[Any]]


@dataclass
class Storm:
    """`kinds` of loads at work on a mount; each may be there several times."""

    mount: Surviving
    kinds: Sequence[str] = tuple(LOADS)
    reports: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{seeds.SEED} {self.kinds}")
        self.mount.policy(POLICY)
        self.loads = {f"{kind}-{number}": self._start(kind, number) for number, kind in enumerate(self.kinds)}
        for name, load in self.loads.items():
            assert load.stdout is not None
            assert load.stdout.readline() == "begun\n", f"{name} has not begun"

    def _start(self, kind: str, number: int) -> subprocess.Popen[str]:
        directory = self.mount.path / f"{kind}-{number}"
        command = [
            *self.mount.prefix,
            SYSTEM_PYTHON,
            "-S",
            str(PROGRAM),
            kind,
            str(directory),
            str(self.chance.random()),
        ]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill(self, times: int, longest_s: float, within_s: float = math.inf) -> None:
        """Kill the daemon, or the one that is about to take over, after random times. Ends early after a failure, or
        after `within_s`. After DEATHS_IN_A_ROW one has to serve: a busy machine would never have one otherwise."""
        end = time.monotonic() + within_s
        for number in range(times):
            time.sleep(self.chance.uniform(0.0, longest_s))
            if time.monotonic() > end or any(load.poll() is not None for load in self.loads.values()):
                return
            self.mount.kill()
            if number % DEATHS_IN_A_ROW == DEATHS_IN_A_ROW - 1:
                self.mount.status()

    def end(self) -> None:
        """Have all loads come to an end."""
        for name, load in self.loads.items():
            try:
                said, _ = load.communicate("\n", timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                where = Path(f"/proc/{load.pid}/stack").read_text()
                load.kill()
                said = json.dumps({"rounds": 0, "failure": f"hangs:\n{where}", "slow": [], "left": {}})
            self.reports.append(Report(name, **json.loads(said.splitlines()[-1])))

    def reap(self) -> None:
        for load in self.loads.values():
            load.kill()
            load.communicate()

    # What must be so

    def check(self) -> None:
        """No failed call and no wrong byte; the source is what the loads say; nothing is left of what is closed."""
        failures = {report.kind: report.failure for report in self.reports if report.failure}
        assert not failures, "\n".join(f"{kind}: {failure}" for kind, failure in failures.items())
        assert all(report.rounds for report in self.reports), "a load has done nothing"
        for report in self.reports:
            assert tree(self.mount.source / report.kind) == report.left, report.kind
        assert self.mount.pins() == []
        status = self.mount.status()
        assert (status["pins"], status["waiting"]) == (0, 0)
        with suppress(AssertionError):
            eventually(self._nothing_is_left, LIMIT_S)
        left = {kind: bodies for kind, bodies in records_of(self.mount.daemon).items() if kind not in ALWAYS_THERE}
        assert not any(left.values()), left

    def _nothing_is_left(self) -> bool:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return set(self.left_records()) <= ALWAYS_THERE

    def left_records(self) -> dict[str, int]:
        return {kind: len(ids) for kind, ids in records_of(self.mount.daemon).items() if ids}

    def pauses(self) -> list[float]:
        """The longest wait of any call after each death, in seconds."""
        slow = [(began, ended) for report in self.reports for began, ended in report.slow if "opening" in report.kind]
        return [
            max((ended - began for began, ended in slow if began - 0.05 <= at <= ended), default=0.0)
            for at in self.mount.kills
        ]

    def told(self) -> str:
        """For people."""
        pauses = self.pauses() or [0.0]
        rounds = ", ".join(f"{report.kind} {report.rounds}" for report in self.reports)
        return (
            f"{len(self.mount.kills)} kills; pause: median {statistics.median(pauses):.3f} s, "
            f"longest {max(pauses):.3f} s; rounds: {rounds}"
        )


def tree(directory: Path) -> dict[str, list[Any]]:
    """What lies in a directory, as loads tell it."""
    found: dict[str, list[Any]] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = ["link", os.readlink(path)]
        elif path.is_dir():
            found[name] = ["directory"]
        else:
            found[name] = ["file", path.read_bytes().hex(), path.stat().st_nlink]
    return found
