"""The processes of the storm: holders that look at every byte of theirs and hear of breaks by the event channel or by
signal, breakers of every kind. Runs inside actors.

Ranges of holders overlap, so each writes only its own lane: the bytes whose offset is its number modulo LANES.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import pickle
import random
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from support import acts as common

from breaks import acts

LANES = 64
SIZE = 64 * 4096
NOT_NOW = {errno.EAGAIN, errno.EOPNOTSUPP, errno.ENXIO}
"""A removal is under way (setxattr(2) shows EAGAIN as EOPNOTSUPP); the file has just been cut."""

Tally = Counter[str]


class LostError(AssertionError):
    """A pinned byte is not what its holder has written."""


def crowd(count: int, work: Callable[..., Tally], *args: Any) -> Tally:
    """Forks `count` children that do work(number, *args), and adds up what they count. SIGBUS or any other end but the
    regular one is a failure."""
    children = [_fork(work, number, *args) for number in range(count)]
    total = Tally()
    for pid, pipe in children:
        with os.fdopen(pipe, "rb") as report:
            data = report.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, f"child ended with {status}: a pinned byte went, or worse"
        total += pickle.loads(data)
    return total


def _fork(work: Callable[..., Tally], *args: Any) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    common.libc.prctl(acts.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.write(writing, pickle.dumps(work(*args)))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


# ---- holders


@dataclass
class Holder:
    """One process that pins, writes, watches and lets go."""

    number: int
    path: str
    mountpoint: str
    chance: random.Random

    def __post_init__(self) -> None:
        self.fd = os.open(self.path, os.O_RDWR)
        self.mapped = self._map()
        self.channel = os.open(f"{self.mountpoint}/.pinfs/events", os.O_RDWR | os.O_NONBLOCK)
        self.by_signal = self.number % 2 == 1
        self.tally = Tally()

    def _map(self) -> mmap.mmap:
        """The mmap module maps no more than there is, and a breaker may just have been here."""
        while True:
            os.ftruncate(self.fd, SIZE)
            with suppress(ValueError):
                return mmap.mmap(self.fd, SIZE)

    def live(self, until: float) -> Tally:
        """Holds one pin after the other."""
        common.catch(signal.SIGIO)
        while time.monotonic() < until:
            start = self.chance.randrange(SIZE)
            length = self.chance.randrange(1, min(SIZE - start, 4 * 4096) + 1)
            try:
                self.hold(start, length)
            except OSError as failure:
                if failure.errno not in NOT_NOW:
                    raise
                self.tally["not now"] += 1
                os.ftruncate(self.fd, SIZE)
        with suppress(OSError):
            self.register(0, 1, "lease", self.chance.choice(["process", "handle"]))  # ends with the process
        return self.tally

    def register(self, start: int, length: int, mode: str, owner: str) -> int:
        """Returns the pin's id."""
        if owner == "handle":
            return acts.pin_handle(self.fd, start, length, mode, -1)
        os.setxattr(self.fd, "user.pinfs.pin.p", f"{start}:{length},mode={mode}".encode())
        return int(json.loads(os.getxattr(self.fd, "user.pinfs.pin.p"))["id"])

    def hold(self, start: int, length: int) -> None:
        """Takes one pin, writes its lane, and looks at it until somebody asks or it has had enough."""
        mode, owner = self.chance.choice(["deny", "lease", "lease"]), self.chance.choice(["process", "handle"])
        pin = self.register(start, length, mode, owner)
        lane = slice(start + (self.number - start) % LANES, start + length, LANES)
        mark = bytes([self.chance.randrange(1, 256)]) * len(range(*lane.indices(SIZE)))
        self.mapped[lane] = mark
        stubborn = self.chance.random() < 0.2  # lets the deadline pass
        for _ in range(60 if stubborn else self.chance.randrange(1, 30)):
            if self.mapped[lane] != mark:
                raise LostError(f"pin {pin} [{start}, {start + length}) {mode} {owner}")
            if self.asked(pin) and not stubborn:
                self.tally["asked by signal" if self.by_signal else "asked by event"] += 1
                break
        if self.mapped[lane] != mark:
            raise LostError(f"pin {pin} [{start}, {start + length}) {mode} {owner}")
        self.let_go(pin, owner)
        self.tally[f"{mode} {owner}"] += 1

    def asked(self, pin: int) -> bool:
        """Whether we hear of this pin's break within a millisecond."""
        return self._signalled(pin) if self.by_signal else self._told(pin)

    def _signalled(self, pin: int) -> bool:
        with suppress(BlockingIOError):
            return common.next_signal(signal.SIGIO, 0.001).value == pin
        return False

    def _told(self, pin: int) -> bool:
        if not select.select([self.channel], [], [], 0.001)[0]:
            return False
        events = [json.loads(line) for line in os.read(self.channel, 1 << 16).splitlines()]
        return any(event["event"] == "break" and event["pin"] == pin for event in events)

    def let_go(self, pin: int, owner: str) -> None:
        """In one of three ways."""
        if self.chance.random() < 0.3:
            os.write(self.channel, f"release {pin}\n".encode())
        elif owner == "handle":
            acts.unpin_handle(self.fd, pin)
        else:
            os.getxattr(self.fd, "user.pinfs.release.p")
        while self._signalled(pin):
            pass  # one that was under way: it would hide the next pin's


def hold(number: int, paths: list[str], mountpoint: str, seconds: float, seed: int) -> Tally:
    """The life of a holder."""
    chance = random.Random(f"holder {seed} {number}")
    holder = Holder(number, paths[number % len(paths)], mountpoint, chance)
    return holder.live(time.monotonic() + seconds)


# ---- breakers


def cut(number: int, paths: list[str], seconds: float, seed: int) -> Tally:
    """Removals of all kinds, one after the other. Counts their answers: one for each that was asked."""
    chance = random.Random(f"breaker {seed} {number}")
    path = paths[number % len(paths)]
    fd, nonblocking = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_NONBLOCK)
    signal.signal(signal.SIGALRM, _interrupt)
    tally, until = Tally(), time.monotonic() + seconds
    while time.monotonic() < until:
        at, length = chance.randrange(SIZE), chance.randrange(1, 8192)
        removal = chance.choice(
            [
                lambda: os.truncate(path, at),  # noqa: B023  (called before the next turn)
                lambda: os.ftruncate(fd, at),  # noqa: B023
                lambda: os.ftruncate(nonblocking, at),  # noqa: B023
                lambda: common.fallocate(fd, acts.PUNCH_HOLE | acts.KEEP_SIZE, at, length),  # noqa: B023
                lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
            ]
        )
        tally["asked for"] += 1
        tally[_killed(removal) if chance.random() < 0.05 else _answer(removal, chance)] += 1
        os.ftruncate(fd, SIZE)
    return tally


def _interrupt(number: int, frame: object) -> None:
    raise InterruptedError(errno.EINTR, "interrupted")


def _answer(removal: Callable[[], object], chance: random.Random) -> str:
    """A fifth of them lose patience."""
    try:
        try:
            if chance.random() < 0.2:
                signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.02 + 0.0001)
            removal()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except OSError as failure:
        return errno.errorcode[failure.errno or 0]
    return "done"


def _killed(removal: Callable[[], object]) -> str:
    """By a child that is killed perhaps before, perhaps after its answer."""
    child = os.fork()
    if not child:
        with suppress(OSError):
            removal()
        os._exit(0)
    time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"
