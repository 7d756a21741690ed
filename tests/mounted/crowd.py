"""Many processes at once, forked from one actor: holders that look after their bytes, breakers that try to take them.

Runs inside actors (standard library only).
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from support import acts

GRANULE = 4096
PUNCH = 2 | 1  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
RETRY = {errno.EOPNOTSUPP, errno.ENXIO}  # a removal is under way (EAGAIN, as setxattr(2) has it); the file is too short

Tally = Counter[str]


def crowd(count: int, work: Callable[..., Tally], *args: Any) -> tuple[Tally, list[int]]:
    """Forks `count` children that do work(number, *args). Returns the sum of their tallies, and exit statuses but 0."""
    pipes = [_fork(work, number, *args) for number in range(count)]
    total, statuses = Tally(), []
    for pid, pipe in pipes:
        with os.fdopen(pipe, "rb") as reading:
            if report := reading.read():
                total += pickle.loads(report)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return total, [status for status in statuses if status]


def _fork(work: Callable[..., Tally], *args: Any) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.write(writing, pickle.dumps(work(*args)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def hold(number: int, paths: list[str], size: int, seconds: float, seed: int) -> Tally:
    """Pins random ranges, fills them through a mapping and looks at them again and again: it dies of SIGBUS, or fails,
    if a byte goes while its pin stands. Gives a lease back when the signal comes. Its last pin goes with its death."""
    chance = random.Random(f"holder {seed} {number}")
    path = paths[number % len(paths)]
    acts.catch(signal.SIGIO)
    fd = os.open(path, os.O_RDWR)
    address = acts.map_fd(fd, size)
    tally = Tally()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = chance.randrange(size)
        length = chance.randrange(1, min(size - start, 4 * GRANULE) + 1)
        mode = chance.choice(["deny", "lease", "lease"])
        tally += _hold_once(fd, address, size, start, length, mode, chance)
    _register(fd, size, "0:1,mode=deny")
    return tally


def _hold_once(fd: int, address: int, size: int, start: int, length: int, mode: str, chance: random.Random) -> Tally:
    if not _register(fd, size, f"{start}:{length},mode={mode}"):
        return Tally(not_now=1)
    mark = bytes([chance.randrange(1, 256)])
    acts.poke(address + start, mark)  # brings the page back if a hole was there
    asked = False
    for _ in range(chance.randrange(1, 20)):
        acts.poke(address + start + length - 1, b"\1")
        assert acts.peek(address + start, 1) != b"\0"
        assert acts.peek(address + start + length - 1, 1) != b"\0"
        asked = asked or _signalled()
        if asked:
            break
    os.getxattr(fd, "user.pinfs.release.p")
    while _signalled():
        pass  # one that was under way when we released
    return Tally({mode: 1, "asked": asked})


def _signalled() -> bool:
    try:
        acts.next_signal(signal.SIGIO, 0.001)
    except OSError:
        return False
    return True


def _register(fd: int, size: int, value: str) -> bool:
    try:
        os.setxattr(fd, "user.pinfs.pin.p", value.encode())
    except OSError as failure:
        if failure.errno not in RETRY:
            raise
        os.ftruncate(fd, size)
        return False
    return True


def cut(number: int, paths: list[str], size: int, seconds: float, seed: int) -> Tally:
    """Truncates and punches at random, and makes the file long again. Returns how it was answered."""
    chance = random.Random(f"breaker {seed} {number}")
    path = paths[number % len(paths)]
    fd = os.open(path, os.O_RDWR)
    tally = Tally()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        at = chance.randrange(size)
        tally[_answer(chance.choice([_truncate, _ftruncate, _punch, _o_trunc]), path, fd, at)] += 1
        os.ftruncate(fd, size)
    return tally


def _answer(removal: Callable[[str, int, int], None], path: str, fd: int, at: int) -> str:
    try:
        removal(path, fd, at)
    except OSError as failure:
        return errno.errorcode[failure.errno or 0]
    return "done"


def _truncate(path: str, fd: int, at: int) -> None:
    os.truncate(path, at)


def _ftruncate(path: str, fd: int, at: int) -> None:
    os.ftruncate(fd, at)


def _punch(path: str, fd: int, at: int) -> None:
    acts.fallocate(fd, PUNCH, at, 2 * GRANULE)


def _o_trunc(path: str, fd: int, at: int) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def truncate_each(number: int, paths: list[str]) -> Tally:
    """Truncates the file of its number."""
    return Tally([_answer(_truncate, paths[number], -1, 0)])
