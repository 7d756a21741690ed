"""Programs of a hostile run that cut (see programs.py). Standard library only."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cluster.board import Board, Log

SIZE = 64 * 1024
LANES = 64
FILL = 0x55
"""In the last lane, which no holder has."""
HOST_ENDED = {errno.ENOTCONN, errno.ECONNABORTED}
REFUSED = {errno.EBUSY, errno.EAGAIN, errno.EIO, errno.EINTR}
LOST = {errno.EBADF, errno.ESTALE}
"""An open file without pins, after a take-over: its name was replaced, or the clock of the host is behind that of the
file system (docs/survival.md)."""
KEEP_SIZE, PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def own_files(host: str) -> tuple[str, ...]:
    """That the cutter of this host alone cuts."""
    return f"{host}-own0", f"{host}-own1"


class Found(NamedTuple):
    """A file in the source. `lane`: the last one."""

    inode: int
    size: int
    lane: bytes


class Removal(NamedTuple):
    """`call` takes the bytes from `start` to `end` away; both 0: the name."""

    op: str
    call: Callable[[], object]
    start: int = 0
    end: int = 0


class Place(Protocol):
    @property
    def source(self) -> Path: ...
    @property
    def mount(self) -> Path: ...

    board: Board
    log: Log
    host: int


def punch(fd: int, start: int, length: int) -> None:
    if _libc.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(start), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class LostError(Exception):
    """A removal has done what it has not said, or not done what it has."""


class Cutter:
    """`is_alone`: no other program cuts these files, so what each removal has done can be seen."""

    def __init__(self, place: Place, names: Sequence[str], chance: random.Random, *, is_alone: bool) -> None:
        self.place, self.names, self.chance, self.is_alone = place, names, chance, is_alone
        signal.signal(signal.SIGALRM, _interrupt)

    def live(self) -> None:
        while not self.place.board.is_over:
            name = self.chance.choice(self.names)
            with refused():
                self.prepare(name)
                self.cut(name)
            time.sleep(self.chance.choice([0.0, 0.05, 0.2]))

    # Files

    def prepare(self, name: str) -> None:
        """Makes the file, or gives it its size again."""
        path = self.place.mount / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(fd).st_size < SIZE:
                with refused():  # another host might make it larger meanwhile, so this is a removal as well
                    os.ftruncate(fd, SIZE)
        finally:
            os.close(fd)
        if self.is_alone:
            self.fill(name)

    def fill(self, name: str) -> None:
        """In the source, as a mount would take a request for each byte. Nothing that a holder has written changes."""
        fd = os.open(self.place.source / name, os.O_RDWR)
        try:
            for at in range(LANES - 1, os.fstat(fd).st_size, LANES):
                os.pwrite(fd, bytes([FILL]), at)
        finally:
            os.close(fd)

    def look(self, name: str) -> Found | None:
        try:
            fd = os.open(self.place.source / name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(fd)
            return Found(found.st_ino, found.st_size, os.pread(fd, SIZE, 0)[LANES - 1 :: LANES])
        finally:
            os.close(fd)

    # Removals

    def cut(self, name: str) -> None:
        with self.removal(name) as removal:
            before = self.look(name)
            began = time.monotonic()
            answer = self.answer(removal)
            took_ms = round(1000 * (time.monotonic() - began))
            after = self.look(name)
        text = "done" if answer is None else errno.errorcode[answer]
        details = {"file": name, "op": removal.op, "start": removal.start, "end": removal.end, "answer": text}
        inode = None if before is None else before.inode
        self.place.log.write("cut", began=round(began, 4), took_ms=took_ms, inode=inode, **details)
        wrong = self.wrong(removal, answer, before, after) if self.is_alone else None
        if wrong is None and answer is not None and answer not in REFUSED | LOST:
            wrong = "another errno than any that is documented"
        if wrong is not None:
            self.place.log.write("violation", how=wrong, **details)
            raise LostError(wrong)

    def answer(self, removal: Removal) -> int | None:
        """The errno; None: done. Some lose patience."""
        try:
            try:
                if self.chance.random() < 0.1:
                    signal.setitimer(signal.ITIMER_REAL, self.chance.random() * 0.5 + 0.001)
                removal.call()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except OSError as e:
            if e.errno in HOST_ENDED:
                raise
            return e.errno
        return None

    def wrong(self, removal: Removal, answer: int | None, before: Found | None, after: Found | None) -> str | None:
        if before is None:
            return "the file was not there"
        if answer is not None:
            taken = self.taken(before, after)
            if answer != errno.EINTR or taken is None:
                return taken  # a signal that comes with the answer hides it
        if removal.op == "unlink":
            return None if after is None else "the name is still there"
        if after is None:
            return "the name has gone"
        if removal.op == "rename":
            return "the name is still that of the old file" if after.inode == before.inode else None
        for index, (was, now) in enumerate(zip(before.lane, after.lane, strict=False)):
            if removal.start <= index * LANES + LANES - 1 < removal.end:
                if now:
                    return f"byte {index * LANES + LANES - 1} is still there"
            elif now != was:
                return f"byte {index * LANES + LANES - 1} has gone as well"
        kept = min(removal.start, before.size) if removal.op != "punch" else before.size
        return None if after.size >= kept else f"the size is {after.size}"

    def taken(self, before: Found, after: Found | None) -> str | None:
        """What a removal that has failed has taken all the same."""
        if after is None:
            return "it has failed, and the name has gone"
        if after.inode != before.inode:
            return "it has failed, and the name is another file's"
        if after.size < before.size:
            return f"it has failed, and the size is {after.size} in place of {before.size}"
        return None if after.lane[: len(before.lane)] == before.lane else "it has failed, and bytes have gone"

    @contextmanager
    def removal(self, name: str) -> Iterator[Removal]:
        path = self.place.mount / name
        ops = ["truncate", "ftruncate", "trunc", "punch"] + ["unlink", "rename"] * self.is_alone
        op = self.chance.choice(ops)
        at, length = self.chance.randrange(SIZE), self.chance.randrange(1, 16384)
        if op == "truncate":
            yield Removal(op, lambda: os.truncate(path, at), at, SIZE)
        elif op == "trunc":
            yield Removal(op, lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)), 0, SIZE)
        elif op == "unlink":
            yield Removal(op, lambda: os.unlink(path))
        elif op == "rename":
            new = path.with_name(f"{name}.{self.chance.getrandbits(64):x}")
            os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
            yield Removal(op, lambda: os.rename(new, path))
            if new.exists():
                with refused():
                    os.unlink(new)
        else:
            fd = os.open(path, os.O_RDWR | self.chance.choice([0, 0, os.O_NONBLOCK]))
            try:
                if op == "punch":
                    yield Removal(op, lambda: punch(fd, at, length), at, min(SIZE, at + length))
                else:
                    yield Removal(op, lambda: os.ftruncate(fd, at), at, SIZE)
            finally:
                os.close(fd)


@contextmanager
def refused() -> Iterator[None]:
    """What may be refused."""
    try:
        yield
    except OSError as e:
        if e.errno not in REFUSED | LOST:
            raise


def _interrupt(number: int, frame: Any) -> None:
    raise InterruptedError(errno.EINTR, "interrupted")
