"""The programs of a hostile run: `python -m cluster.programs BASE SEED HOST...`.

One process keeps holders and cutters on all hosts alive, forks them anew when they have died, and ends when the board
says that it is over.

Standard library only, so that a fork is cheap. What may be expected:

- A holder writes its lane (bytes whose offset is its number modulo LANES) into the bytes that it has pinned, and looks
  at them in the source directory itself, behind all caches, as long as the pin stands. A byte, a size or a last name
  that has gone before the pin has is a violation.
- A cutter with files of its own (no other program cuts these) knows what must be there after each removal: nothing that
  was to go, if it has succeeded, and everything, if it has failed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import NoReturn

from cluster.board import Board, Log
from cluster.cutters import HOST_ENDED, LANES, LOST, REFUSED, SIZE, Cutter, own_files

MARKED = 24
"""Bytes of its lane that a holder writes and looks at."""
PIN = "user.pinfs.pin."
SHARED = ("shared0", "shared1", "shared2", "shared3")
HOLDERS, OWN_CUTTERS, SHARED_CUTTERS = 8, 1, 1
NOT_NOW = {*REFUSED, errno.EOPNOTSUPP, errno.ENXIO, errno.ENOENT, errno.ESTALE}
"""A removal is under way (setxattr(2) shows EAGAIN as EOPNOTSUPP), the file has been cut or replaced, or the host is
cut off."""
_PIN = struct.Struct("<QQIiIIQ64s")
_QUERY = struct.Struct("<QQQIIqQQQ")
IOC_PIN, IOC_UNPIN, IOC_QUERY = 0xC068_50A0, 0x4008_50A1, 0xC040_50A2


class HostEndedError(Exception):
    """The host of the program was killed."""


class ViolationError(Exception):
    """A promise is broken."""


@dataclass
class Place:
    """Where a program runs."""

    base: Path
    hosts: tuple[str, ...]
    host: int
    life: int
    """Of the host, as the board has it."""
    board: Board
    log: Log
    root: int = -1
    """Of the mount."""

    @property
    def has_ended(self) -> bool:
        """The host was killed."""
        return self.board.life(self.host) != self.life

    @property
    def source(self) -> Path:
        return self.base / "source"

    @property
    def mount(self) -> Path:
        return Path(f"/proc/self/fd/{self.root}")


def entered(base: Path, host: str) -> int:
    """A descriptor of the root of a host's mount, which stays one when the mount has gone. ENOTCONN: it has."""
    root = os.open(base / host / "mnt", os.O_PATH | os.O_DIRECTORY)
    if os.fstat(root).st_dev == os.stat(base).st_dev:
        raise OSError(errno.ENOTCONN, "nothing is mounted there")
    return root


@dataclass
class Held:
    """A pin that was acknowledged. `looks`: the file in the source."""

    name: str
    id: int
    owner: str
    fd: int
    looks: int
    end: int
    marks: dict[int, int]
    had_name: bool
    is_own: bool

    def damage(self) -> str | None:
        """What is not as the holder has left it."""
        found = os.fstat(self.looks)
        if found.st_size < self.end:
            return f"the file has {found.st_size} bytes"
        if self.had_name and not self.is_own and not found.st_nlink:
            return "the last name has gone"
        data = os.pread(self.looks, SIZE, 0)
        wrong = [at for at, mark in self.marks.items() if data[at] != mark]
        return f"wrong bytes at {wrong}" if wrong else None


class Holder:
    def __init__(self, place: Place, number: int, chance: random.Random) -> None:
        self.place = place
        self.lane = place.host * HOLDERS + number
        self.chance = chance
        self.channel = os.open(place.mount / ".pinfs/events", os.O_RDWR | os.O_NONBLOCK)
        self.said: dict[int, set[str]] = {}
        """Kinds of events of each pin."""
        self.files = [*SHARED, *(name for host in place.hosts for name in own_files(host))]

    def live(self) -> None:
        while not self.place.board.is_over:
            try:
                self.turn()
            except OSError as e:
                if e.errno in HOST_ENDED:
                    self.host_ended()
                if e.errno not in NOT_NOW:
                    raise
                self.place.log.write("not now", errno=errno.errorcode[e.errno or 0])
                time.sleep(0.05)

    def turn(self) -> None:
        name = self.chance.choice(self.files)
        fd = os.open(self.place.mount / name, os.O_RDWR)
        try:
            looks = os.open(self.place.source / name, os.O_RDONLY)
            try:
                if os.fstat(fd).st_ino == os.fstat(looks).st_ino:
                    self.hold(name, fd, looks)
            finally:
                os.close(looks)
        finally:
            os.close(fd)

    def hold(self, name: str, fd: int, looks: int) -> None:
        size = SIZE if name in SHARED else min(SIZE, os.fstat(looks).st_size)
        if size < 2 * LANES:
            time.sleep(0.01)
            return
        start = self.chance.randrange(size - LANES)
        end = start + self.chance.randrange(LANES, min(size - start, 16384) + 1)
        mode, owner = self.chance.choice(["deny", "lease", "lease"]), self.chance.choice(["process", "handle"])
        asked, log = time.monotonic(), self.place.log
        try:
            if name in SHARED and os.fstat(fd).st_size < end:
                os.ftruncate(fd, SIZE)
            pin = self.register(fd, start, end - start, mode, owner)
        except OSError as e:
            if e.errno not in LOST:
                raise
            log.write("not now", errno=errno.errorcode[e.errno])
            return
        lane = range(start + (self.lane - start) % LANES, end, LANES)
        spots = {*lane[:: len(lane) // MARKED + 1], lane[-1]}
        host = self.place.hosts[self.place.host]
        held = Held(name, pin, owner, fd, looks, end, {}, bool(os.fstat(looks).st_nlink), name.startswith(f"{host}-"))
        took_ms = round(1000 * (time.monotonic() - asked))
        log.write("pinned", pin=pin, file=name, start=start, end=end, mode=mode, owner=owner, took_ms=took_ms)
        for at in spots:
            mark = self.chance.randrange(1, 256)
            try:
                os.pwrite(fd, bytes([mark]), at)
            except OSError as e:
                if e.errno in HOST_ENDED:
                    self.stand(held)
                raise
            held.marks[at] = mark
        self.watch(held)

    def register(self, fd: int, start: int, length: int, mode: str, owner: str) -> int:
        if owner == "handle":
            flags = {"deny": 0, "lease": 1}[mode]
            return int(_PIN.unpack(ioctl(fd, IOC_PIN, _PIN.pack(start, length, flags, 0, 0, 0, 0, b"")))[6])
        os.setxattr(fd, f"{PIN}p", f"{start}:{length},mode={mode},signal=none".encode())
        return int(json.loads(os.getxattr(fd, f"{PIN}p"))["id"])

    def watch(self, held: Held) -> None:
        """Looks at the bytes until it is asked for them, or has had enough."""
        manner = self.chance.choices(["answers", "silent", "dies"], [24, 8, 1])[0]
        [lasts_s] = self.chance.choices([0.02, 0.1, 0.3, 1.0, 4.0, 12.0], [3, 4, 5, 2, 1, 1])  # some for a time to live
        until = time.monotonic() + lasts_s
        board, clings = self.place.board, self.chance.random() < 0.5
        while not board.is_over and (time.monotonic() < until or (clings and board.is_cut_off(self.place.host))):
            if not self.look(held):
                return
            self.hear(0.02)
            if manner == "answers" and "break" in self.said.get(held.id, ()):
                break
            if self.place.has_ended:
                self.stand(held)
        if manner == "dies":
            self.look(held)
            self.place.log.write("died", pin=held.id)
            os._exit(0)
        if self.look(held):
            self.release(held)
            self.place.log.write("released", pin=held.id, manner=manner)

    def look(self, held: Held) -> bool:
        """Whether the pin stands."""
        damage = held.damage()
        if damage is None and not {"revoked", "released"} & self.said.get(held.id, set()):
            return True
        seen = time.monotonic()
        try:
            stands = self.stands(held)
        except OSError as e:
            if e.errno in HOST_ENDED:
                self.stand(held)
            raise
        if stands and damage is not None:
            self.violation(held, damage, seen)
        self.place.log.write("revoked", pin=held.id)
        return stands

    def stands(self, held: Held) -> bool:
        """By what the daemon says. It has told the holder before others could cut."""
        self.hear(0)
        if {"revoked", "released"} & self.said.get(held.id, set()):
            return False
        try:
            if held.owner == "handle":
                ioctl(held.fd, IOC_QUERY, _QUERY.pack(held.id, 0, 0, 0, 0, 0, 0, 0, 0))
            else:
                os.getxattr(held.fd, f"{PIN}p")
        except OSError as e:
            if e.errno in HOST_ENDED:
                raise
            return e.errno != errno.ENODATA
        return True

    def hear(self, limit_s: float) -> None:
        try:
            if limit_s:
                select.select([self.channel], [], [], limit_s)
            lines = os.read(self.channel, 1 << 16).splitlines()
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno in HOST_ENDED:
                return  # what follows sees it
            raise
        for event in map(json.loads, lines):
            if "pin" in event:
                self.said.setdefault(event["pin"], set()).add(event["event"])

    def release(self, held: Held) -> None:
        ways = ["channel", "verb", "verb"]
        way = self.chance.choice(ways)
        try:
            if way == "channel":
                os.write(self.channel, f"release {held.id}\n".encode())
            elif held.owner == "handle":
                ioctl(held.fd, IOC_UNPIN, struct.pack("<Q", held.id))
            elif self.chance.random() < 0.5:
                os.getxattr(held.fd, "user.pinfs.release.p")
            else:
                os.removexattr(held.fd, f"{PIN}p")
        except OSError as e:
            if e.errno in HOST_ENDED:
                self.host_ended()
            if e.errno not in (errno.ENODATA, errno.ENOENT, errno.EINVAL):
                raise
            self.hear(0)
            if "revoked" not in self.said.get(held.id, ()):
                self.violation(held, f"its release by {way} failed with {e}", time.monotonic())

    def stand(self, held: Held) -> NoReturn:
        """The host has been killed: its pins keep their bytes for a while."""
        self.check_host_ended()
        while time.monotonic() < self.place.board.stand_until(self.place.host) and not self.place.board.is_over:
            damage, now = held.damage(), time.monotonic()
            if damage is not None and now < self.place.board.stand_until(self.place.host):
                self.violation(held, f"of a host that was killed: {damage}", now)
            time.sleep(0.02)
        self.place.log.write("stood", pin=held.id)
        raise HostEndedError

    def check_host_ended(self) -> None:
        if not self.place.has_ended:
            raise ViolationError("the mount has ended, and its host was not killed")

    def host_ended(self) -> NoReturn:
        self.check_host_ended()
        raise HostEndedError

    def violation(self, held: Held, what: str, seen: float) -> NoReturn:
        said = sorted(self.said.get(held.id, ()))
        self.place.log.write("violation", pin=held.id, file=held.name, how=what, said=said, seen=seen)
        raise ViolationError(what)


# ---- the process above them


def _holder(place: Place, number: int, chance: random.Random) -> None:
    Holder(place, number, chance).live()


def _own_cutter(place: Place, number: int, chance: random.Random) -> None:
    Cutter(place, own_files(place.hosts[place.host]), chance, is_alone=True).live()


def _shared_cutter(place: Place, number: int, chance: random.Random) -> None:
    Cutter(place, SHARED, chance, is_alone=False).live()


KINDS: dict[str, tuple[Callable[[Place, int, random.Random], None], int]] = {
    "holder": (_holder, HOLDERS),
    "own": (_own_cutter, OWN_CUTTERS),
    "cutter": (_shared_cutter, SHARED_CUTTERS),
}


class Keeper:
    """Keeps a program alive for each kind, host and number."""

    def __init__(self, base: Path, seed: str, hosts: tuple[str, ...]) -> None:
        self.base, self.seed, self.hosts = base, seed, hosts
        self.board = Board(base / "board")
        self.log = Log(base / "log" / "keeper")
        self.children: dict[int, tuple[str, int, int]] = {}
        self.wanted = [
            (kind, host, n) for kind, (_, count) in KINDS.items() for host in range(len(hosts)) for n in range(count)
        ]
        self.forks = 0

    def run(self) -> None:
        while not self.board.is_over or self.children:
            if not self.board.is_over:
                for what in self.wanted:
                    if what not in self.children.values() and self.board.life(what[1]) % 2:
                        self.fork(*what)
            time.sleep(0.02)
            self.reap()

    def fork(self, kind: str, host: int, number: int) -> None:
        self.forks += 1
        life = self.board.life(host)
        pid = os.fork()
        if pid:
            self.children[pid] = (kind, host, number)
            return
        log = Log(self.base / "log" / f"{kind}-{self.hosts[host]}-{number}")
        place = Place(self.base, self.hosts, host, life, self.board, log)
        try:
            place.root = entered(self.base, self.hosts[host])
            KINDS[kind][0](place, number, random.Random(f"{self.seed} {kind} {host} {number} {self.forks}"))
        except HostEndedError:
            os._exit(0)
        except OSError as e:
            if e.errno in HOST_ENDED and place.has_ended:
                os._exit(0)
            log.write("failure", how=traceback.format_exc())
            os._exit(1)
        except BaseException:
            log.write("failure", how=traceback.format_exc())
            os._exit(1)
        os._exit(0)

    def reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                what = self.children.pop(ended[0])
                status = os.waitstatus_to_exitcode(ended[1])
                if status:
                    self.log.write("ended", kind=what[0], host=self.hosts[what[1]], number=what[2], status=status)


def main() -> None:
    base, seed, *hosts = sys.argv[1:]
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    Keeper(Path(base), seed, tuple(hosts)).run()


if __name__ == "__main__":
    main()
