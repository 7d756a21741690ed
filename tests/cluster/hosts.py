"""Hosts for tests: each with a daemon that writes down what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from pinfs.cluster.daemon import Daemon
from pinfs.cluster.etcd import Endpoint, Etcd
from pinfs.cluster.etcd import Limits as ClientLimits
from pinfs.cluster.former import boottime
from pinfs.cluster.host import Host
from pinfs.cluster.keys import PinValue, RemovalKey, RemovalValue
from pinfs.cluster.membership import Limits, Timing
from pinfs.cluster.outputs import MayCut, RemovalRefused, Told, Waits
from pinfs.core.pins import Mode

LIMIT_S = 60
"""For what has to come sooner or later, however busy the machine is."""
CLIENT = ClientLimits(call_s=2.0, attempt_s=1.0, bad_for_s=0.5)
STEADY = Timing(pin_ttl_s=20.0, member_ttl_s=60.0, margin_s=5.0, beat_s=0.5, retry_s=0.05, linger_s=600.0)
"""For tests in which no host is silent."""
MORTAL = Timing(pin_ttl_s=3.0, member_ttl_s=6.0, margin_s=1.0, beat_s=0.2, retry_s=0.05, linger_s=600.0)
FILE = "2a.1f"
INODE = 0x2A


def pin(start: int, end: int, mode: Mode = Mode.DENY) -> PinValue:
    return PinValue(start, end, mode)


def lease(start: int, end: int) -> PinValue:
    return PinValue(start, end, Mode.LEASE)


def cut(start: int, end: int) -> RemovalValue:
    return RemovalValue(start, end, "truncate")


class Recorder(Daemon):
    """`on_told`: what it does then besides."""

    def __init__(self) -> None:
        self.joins = 0
        self.toldings: list[Told] = []
        self.over: list[RemovalKey] = []
        self.fences: list[tuple[tuple[int, ...], str]] = []
        self.fenced_at: list[float] = []
        """CLOCK_BOOTTIME."""
        self.kept: dict[str, Any] = {}
        self.on_told: Callable[[Told], None] = lambda _: None
        self._changed = trio.Event()

    def joined(self) -> None:
        assert self.kept
        self.joins += 1
        self.change()

    def told(self, told: Told) -> None:
        self.toldings.append(told)
        self.on_told(told)
        self.change()

    def told_over(self, removal: RemovalKey) -> None:
        self.over.append(removal)
        self.change()

    def fenced(self, pins: tuple[int, ...], why: str) -> None:
        self.fences.append((pins, why))
        self.fenced_at.append(boottime())
        self.change()

    def keep(self, state: dict[str, Any]) -> None:
        self.kept = state
        self.change()

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(LIMIT_S):
            while not holds():
                await self._changed.wait()


class Breaker:
    """One removal and all that it hears."""

    def __init__(self, host: Host, value: RemovalValue, file: str = FILE, patience_s: float = LIMIT_S) -> None:
        self.host = host
        self.waits: list[Waits] = []
        self.refused: RemovalRefused | None = None
        self.allowed: MayCut | None = None
        self.answered_at = 0.0
        self._changed = trio.Event()
        self.number = host.removal(file, value, patience_s, self._hear)

    def _hear(self, heard: MayCut | Waits | RemovalRefused) -> None:
        assert not self.is_answered
        if isinstance(heard, Waits):
            self.waits.append(heard)
        else:
            self.answered_at = boottime()
            if isinstance(heard, MayCut):
                self.allowed = heard
            else:
                self.refused = heard
        self._changed.set()
        self._changed = trio.Event()

    @property
    def is_answered(self) -> bool:
        return self.allowed is not None or self.refused is not None

    async def answer(self) -> tuple[int, str, str]:
        """errno, why and host; (0, "", "") if it may cut."""
        await self._until(lambda: self.is_answered)
        return (self.refused.errno, self.refused.why, self.refused.host) if self.refused else (0, "", "")

    async def waiting(self) -> None:
        await self._until(lambda: self.waits or self.is_answered)
        assert self.waits

    def over(self) -> None:
        self.host.removal_over(self.number)

    async def _until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(LIMIT_S):
            while not holds():
                await self._changed.wait()


class Machine:
    """A host that runs, until `stop`."""

    def __init__(self, host: Host, daemon: Recorder) -> None:
        self.host = host
        self.daemon = daemon
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self._scope:
                await self.host.run(task_status)
        finally:
            self._stopped.set()

    async def stop(self) -> None:
        """As if it had died."""
        self._scope.cancel()
        await self._stopped.wait()


class Cluster:
    """Hosts in one loop, of one prefix."""

    def __init__(
        self,
        nursery: trio.Nursery,
        prefix: str,
        connect: Callable[[], Etcd],
        timing: Timing,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.nursery = nursery
        self.prefix = prefix
        self.connect = connect
        self.timing = timing
        self.clock = clock

    def make(self, name: str, connect: Callable[[], Etcd] | None = None, limits: Limits | None = None) -> Machine:
        daemon = Recorder()
        host = Host(
            connect or self.connect, self.prefix, name, self.timing, limits or Limits(), daemon, clock=self.clock
        )
        return Machine(host, daemon)

    async def start(self, name: str, connect: Callable[[], Etcd] | None = None) -> Machine:
        """One that has joined."""
        machine = self.make(name, connect)
        await self.nursery.start(machine.run)
        await machine.daemon.until(lambda: machine.daemon.joins)
        return machine


def connecting(*endpoints: Endpoint) -> Callable[[], Etcd]:
    return partial(Etcd, [*endpoints], limits=CLIENT)


@asynccontextmanager
async def cluster(prefix: bytes, *endpoints: Endpoint, timing: Timing = STEADY) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        yield Cluster(nursery, prefix.decode(), connecting(*endpoints), timing)
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], object]) -> None:
    """Asks again and again what no event tells."""
    with trio.fail_after(LIMIT_S):
        while not holds():
            await trio.sleep(0.01)
