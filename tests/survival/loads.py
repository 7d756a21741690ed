"""Verified loads: `python loads.py KIND DIRECTORY SEED`, each a process of its own that works until its input ends.

A load does one round after another in a fresh directory, and knows after each call what must be there: names, bytes,
pins. It ends at the first failed call or wrong byte. Its last line is a JSON object: `rounds`, `failure` (null: there
was none), `slow` (calls that took long: [began, ended], time.monotonic()), `left` (what must be in its directory).

Standard library only, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import random
import select
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SLOW_S = 0.02
PAUSE_S = 0.002  # between two rounds: a dozen loads share two processors
BLOCK = 4096
Left = dict[str, list[Any]]
_libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
PUNCH_HOLE, KEEP_SIZE = 2, 1


def check(condition: bool, *what: object) -> None:
    if not condition:
        raise AssertionError(" ".join(map(str, what)))


def fails(number: int, call: Callable[..., object], *args: Any, **keywords: Any) -> None:
    """The call must fail, with this errno."""
    try:
        call(*args, **keywords)
    except OSError as e:
        if e.errno == number:
            return
        raise
    raise AssertionError(f"{call.__name__} has not failed with {errno.errorcode[number]}")


def renameat2(old: str, new: str, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), new)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def reading(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


class Load:
    """One load. `directory` is its own."""

    pause_s = PAUSE_S

    def __init__(self, directory: str, rng: random.Random) -> None:
        self.directory = directory
        self.rng = rng
        os.mkdir(directory)

    def path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def round(self) -> None:
        raise NotImplementedError

    def end(self) -> Left:
        """Let go of everything; what is left, by path below the directory: ["directory"], ["link", target] or
        ["file", text in hexadecimal, links]."""
        return {}


class Names(Load):
    """Creates, links, renames and removes, against an account of its directory.

    `files`: the text of each file, by a number; `names`: what each name leads to.
    """

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        self.names: dict[str, object] = {}
        self.texts: dict[int, bytes] = {}
        self.last = 0

    def round(self) -> None:
        steps = (self._create, self._directory, self._symlink, self._link, self._rename, self._exchange, self._remove)
        self.rng.choice(steps)()
        if self.rng.random() < 0.2:
            self._look()

    def _free_name(self) -> str:
        while (name := f"{self.rng.choice('abcdefgh')}{self.rng.randrange(5)}") in self.names:
            if len(self.names) > 30:
                self._remove()
        return name

    def _some(self, *kinds: type) -> str | None:
        names = [name for name, what in self.names.items() if isinstance(what, kinds)]
        return self.rng.choice(names) if names else None

    def _links(self, number: object) -> int:
        return sum(what == number for what in self.names.values())

    def _create(self) -> None:
        name, text = self._free_name(), self.rng.randbytes(self.rng.randrange(200))
        fd = os.open(self.path(name), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            check(os.write(fd, text) == len(text), "a short write")
            check(os.pread(fd, 300, 0) == text, name, "does not hold what was written")
        finally:
            os.close(fd)
        self.last += 1
        self.names[name], self.texts[self.last] = self.last, text
        fails(errno.EEXIST, os.open, self.path(name), os.O_CREAT | os.O_EXCL | os.O_RDWR)

    def _directory(self) -> None:
        name = self._free_name()
        os.mkdir(self.path(name))
        self.names[name] = None
        fails(errno.EEXIST, os.mkdir, self.path(name))

    def _symlink(self) -> None:
        name = self._free_name()
        target = f"target-{self.rng.random()}"
        os.symlink(target, self.path(name))
        self.names[name] = target
        check(os.readlink(self.path(name)) == target, name, "leads elsewhere")

    def _link(self) -> None:
        if old := self._some(int):
            name = self._free_name()
            if old in self.names:
                os.link(self.path(old), self.path(name))
                self.names[name] = self.names[old]
                check(os.stat(self.path(name)).st_nlink == self._links(self.names[old]), name, "has other links")

    def _rename(self) -> None:
        """Also over a file."""
        if old := self._some(int, str, type(None)):
            what = self.names[old]
            over = self._some(int) if isinstance(what, int) and self.rng.random() < 0.5 else None
            new = over or self._free_name()
            if old not in self.names or self.names.get(new, -1) == what:
                return
            os.rename(self.path(old), self.path(new))
            self.names[new] = self.names.pop(old)
            fails(errno.ENOENT, os.lstat, self.path(old))

    def _exchange(self) -> None:
        first, second = self._some(int, str, type(None)), self._some(int, str, type(None))
        if first and second and first != second:
            renameat2(self.path(first), self.path(second), RENAME_EXCHANGE)
            self.names[first], self.names[second] = self.names[second], self.names[first]
            if self.names[first] != self.names[second]:
                fails(errno.EEXIST, renameat2, self.path(first), self.path(second), RENAME_NOREPLACE)

    def _remove(self) -> None:
        if name := self._some(int, str, type(None)):
            (os.rmdir if self.names[name] is None else os.unlink)(self.path(name))
            del self.names[name]
            fails(errno.ENOENT, os.lstat, self.path(name))

    def _look(self) -> None:
        found = sorted(os.listdir(self.directory))
        check(found == sorted(self.names), "listed", found, "in place of", sorted(self.names))
        if name := self._some(int):
            number = self.names[name]
            check(os.stat(self.path(name)).st_nlink == self._links(number), name, "has other links")
            check(reading(self.path(name)) == self.texts[number], name, "has other bytes")  # type: ignore[index]

    def end(self) -> Left:
        left: Left = {}
        for name, what in self.names.items():
            if isinstance(what, int):
                left[name] = ["file", self.texts[what].hex(), self._links(what)]
            else:
                left[name] = ["directory"] if what is None else ["link", what]
        return left


class Data(Load):
    """Writes, cuts and reads one file, which stays open or is opened again, against the bytes that it must have."""

    SIZE = 16 * BLOCK

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        self.bytes = bytearray()
        self.fd = os.open(self.path("file"), os.O_CREAT | os.O_RDWR, 0o600)

    def round(self) -> None:
        steps = (self._write, self._write, self._write, self._cut, self._punch, self._reopen)
        self.rng.choice(steps)()
        offset = self.rng.randrange(self.SIZE)
        found = os.pread(self.fd, 3 * BLOCK, offset)
        check(
            found == self.bytes[offset : offset + 3 * BLOCK],
            "wrong bytes from",
            offset,
            self._difference(found, offset),
        )
        check(os.fstat(self.fd).st_size == len(self.bytes), "the size is", os.fstat(self.fd).st_size, len(self.bytes))

    def _difference(self, found: bytes, offset: int) -> str:
        wanted = self.bytes[offset : offset + 3 * BLOCK]
        pairs = enumerate(zip(found, wanted, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(found), len(wanted)))
        sizes = f"({len(found)} bytes in place of {len(wanted)})"
        return f"at {offset + at}: {found[at : at + 8].hex()} in place of {wanted[at : at + 8].hex()} {sizes}"

    def _write(self) -> None:
        offset = self.rng.randrange(self.SIZE)
        text = self.rng.randbytes(self.rng.randrange(1, 2 * BLOCK))
        check(os.pwrite(self.fd, text, offset) == len(text), "a short write")
        if len(self.bytes) < offset:
            self.bytes.extend(bytes(offset - len(self.bytes)))
        self.bytes[offset : offset + len(text)] = text

    def _cut(self) -> None:
        size = self.rng.randrange(self.SIZE)
        if self.rng.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path("file"), size)
        del self.bytes[size:]
        self.bytes.extend(bytes(size - len(self.bytes)))

    def _punch(self) -> None:
        offset, length = self.rng.randrange(self.SIZE), self.rng.randrange(1, 2 * BLOCK)
        with suppress(NotImplementedError):
            fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        end = min(offset + length, len(self.bytes))
        if offset < end:
            self.bytes[offset:end] = bytes(end - offset)

    def _reopen(self) -> None:
        os.close(self.fd)
        flags = os.O_RDWR
        if self.rng.random() < 0.3:
            flags |= os.O_TRUNC
            self.bytes.clear()
        self.fd = os.open(self.path("file"), flags)

    def end(self) -> Left:
        os.close(self.fd)
        return {"file": ["file", self.bytes.hex(), 1]}


class Append(Load):
    """Two descriptors append to one file: each line is there once, in order."""

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        flags = os.O_CREAT | os.O_APPEND | os.O_RDWR
        self.fds = [os.open(self.path("log"), flags, 0o600) for _ in range(2)]
        self.count = 0

    def round(self) -> None:
        check(os.write(self.rng.choice(self.fds), struct.pack("<Q", self.count)) == 8, "a short write")
        self.count += 1
        if self.count % 50 == 0:
            found = os.pread(self.fds[0], 1 << 22, 0)
            check(found == self._all(), f"{len(found) / 8} lines in place of {self.count}, or other ones")

    def _all(self) -> bytes:
        return struct.pack(f"<{self.count}Q", *range(self.count))

    def end(self) -> Left:
        for fd in self.fds:
            os.close(fd)
        return {"log": ["file", self._all().hex(), 1]}


class Mapped(Load):
    """Stores to a shared mapping are what read(2) sees, and the other way round."""

    SIZE = 16 * BLOCK

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        self.bytes = bytearray(self.SIZE)
        self.fd = os.open(self.path("file"), os.O_CREAT | os.O_RDWR, 0o600)
        os.ftruncate(self.fd, self.SIZE)
        self.map = mmap.mmap(self.fd, self.SIZE)

    def round(self) -> None:
        offset, text = self.rng.randrange(self.SIZE - 64), self.rng.randbytes(64)
        if self.rng.random() < 0.7:
            self.map[offset : offset + 64] = text
        else:
            check(os.pwrite(self.fd, text, offset) == 64, "a short write")
        self.bytes[offset : offset + 64] = text
        if self.rng.random() < 0.1:
            self.map.flush()
        if self.rng.random() < 0.05:
            self.map.close()
            self.map = mmap.mmap(self.fd, self.SIZE)
        at = self.rng.randrange(self.SIZE - BLOCK)
        check(os.pread(self.fd, BLOCK, at) == self.bytes[at : at + BLOCK], "wrong bytes read from", at)
        check(self.map[at : at + BLOCK] == self.bytes[at : at + BLOCK], "wrong bytes mapped from", at)

    def end(self) -> Left:
        self.map.flush()
        self.map.close()
        os.close(self.fd)
        return {"file": ["file", self.bytes.hex(), 1]}


class Pins(Load):
    """A pin that stays, one that comes and goes, and removals that they refuse."""

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        self.file = self.path("pinned")
        with open(self.file, "wb") as file:
            file.write(b"z" * 16 * BLOCK)
        os.setxattr(self.file, "user.pinfs.pin.stays", b"0:4096,mode=deny")
        self.id = self._pin("stays")["id"]

    def _pin(self, name: str) -> dict[str, Any]:
        pin: dict[str, Any] = json.loads(os.getxattr(self.file, f"user.pinfs.pin.{name}"))
        return pin

    def round(self) -> None:
        pin = self._pin("stays")
        check((pin["id"], pin["length"], pin["state"]) == (self.id, 4096, "held"), "the pin is", pin)
        os.setxattr(self.file, "user.pinfs.pin.goes", b"8192:4096,mode=lease,signal=none", os.XATTR_CREATE)
        fails(errno.EEXIST, os.setxattr, self.file, "user.pinfs.pin.goes", b"0:1", os.XATTR_CREATE)
        check(self._pin("goes")["start"] == 8192, "the other pin is elsewhere")
        fails(errno.EBUSY, os.truncate, self.file, 0)
        fails(errno.EBUSY, os.open, self.file, os.O_WRONLY | os.O_TRUNC)
        if self.rng.random() < 0.5:
            check(os.getxattr(self.file, "user.pinfs.release.goes") == b"released", "not released")
        else:
            os.removexattr(self.file, "user.pinfs.pin.goes")
        fails(errno.ENODATA, os.getxattr, self.file, "user.pinfs.pin.goes")
        check(os.stat(self.file).st_size == 16 * BLOCK, "pinned bytes are gone")

    def end(self) -> Left:
        check(os.getxattr(self.file, "user.pinfs.release.stays") == b"released", "not released")
        return {"pinned": ["file", (b"z" * 16 * BLOCK).hex(), 1]}


@contextmanager
def breaker(call: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """A child process that makes a call which waits; what is yielded waits for its end, and tells its errno or 0."""
    pid = os.fork()
    if not pid:
        number = 255
        with suppress(BaseException):
            try:
                call()
                number = 0
            except OSError as e:
                number = e.errno or 255
        os._exit(number)
    ended: list[int] = []

    def result() -> int:
        if not ended:
            ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return ended[0]

    try:
        yield result
    finally:
        if not ended:
            os.kill(pid, 9)
            result()


class Answered(Load):
    """A breaker waits for a lease until its holder lets go."""

    waits_s = 0.05

    def round(self) -> None:
        path = self.path("leased")
        with open(path, "wb") as file:
            file.write(b"q" * 2 * BLOCK)
        os.setxattr(path, "user.pinfs.pin.lease", b"0:0,mode=lease,signal=none")
        with breaker(lambda: os.truncate(path, 0)) as result:
            time.sleep(self.waits_s * self.rng.random())
            check(os.stat(path).st_size == 2 * BLOCK, "bytes are gone that a lease holds")
            check(os.getxattr(path, "user.pinfs.release.lease") == b"released", "not released")
            number = result()
        check(number == 0, "the breaker's truncate failed with", errno.errorcode.get(number, number))
        check(os.stat(path).st_size == 0, "the breaker has not cut the file")

    def end(self) -> Left:
        return {"leased": ["file", "", 1]}


class Ignored(Load):
    """A lease that is not answered: the breaker is refused when the time is over, and not before.

    The file's policy is `break_timeout = TIMEOUT_S` (`POLICY`).
    """

    TIMEOUT_S = 0.3

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        with open(self.path("ignored"), "wb") as file:
            file.write(b"i" * BLOCK)

    def round(self) -> None:
        path = self.path("ignored")
        os.setxattr(path, "user.pinfs.pin.lease", b"0:0,mode=lease,signal=none")
        began = time.monotonic()
        with breaker(lambda: os.truncate(path, 0)) as result:
            number = result()
        took = time.monotonic() - began
        check(number == errno.EBUSY, "the breaker was answered with", errno.errorcode.get(number, number))
        check(took >= self.TIMEOUT_S * 0.9, "the breaker was refused after", took, "s")
        check(os.stat(path).st_size == BLOCK, "bytes are gone that a lease holds")
        pin = json.loads(os.getxattr(path, "user.pinfs.pin.lease"))
        check(pin["state"] == "held", "the pin is", pin)
        os.removexattr(path, "user.pinfs.pin.lease")

    def end(self) -> Left:
        return {"ignored": ["file", (b"i" * BLOCK).hex(), 1]}


class Nameless(Load):
    """Files that only descriptors lead to, removed ones and O_TMPFILE: their bytes stay."""

    COUNT = 8

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        self.files: list[tuple[int, bytes]] = []

    def round(self) -> None:
        if len(self.files) >= self.COUNT:
            os.close(self.files.pop(self.rng.randrange(self.COUNT))[0])
        text = self.rng.randbytes(2 * BLOCK)
        if self.rng.random() < 0.5:
            fd = os.open(self.directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        else:
            fd = os.open(self.path("gone"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            os.unlink(self.path("gone"))
        check(os.write(fd, text) == len(text), "a short write")
        self.files.append((fd, text))
        for fd, text in self.files:
            check(os.pread(fd, 3 * BLOCK, 0) == text, "a file without a name has other bytes")
            check(os.fstat(fd).st_nlink == 0, "a file without a name has one")
        check(os.listdir(self.directory) == [], "names are left")

    def end(self) -> Left:
        for fd, _ in self.files:
            os.close(fd)
        return {}


class Listing(Load):
    """A directory that is longer than one reply is listed whole, each name once, while other names come and go."""

    STAYS = 400

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        self.stays = [f"stays-{number:03}-{'n' * 60}" for number in range(self.STAYS)]
        for name in self.stays:
            os.close(os.open(self.path(name), os.O_CREAT | os.O_WRONLY, 0o600))

    def round(self) -> None:
        seen: list[str] = []
        with os.scandir(self.directory) as listing:
            for number, entry in enumerate(listing):
                seen.append(entry.name)
                if number % 100 == 0:
                    self._change()
        stays = sorted(name for name in seen if name.startswith("stays"))
        check(stays == self.stays, f"listed {len(stays)} names ({len(set(stays))} different) of {self.STAYS}")
        check(len(set(seen)) == len(seen), "a name was listed twice")

    def _change(self) -> None:
        path = self.path(f"comes-{self.rng.randrange(10)}")
        if os.path.exists(path):
            os.unlink(path)
        else:
            os.mkdir(path)
            os.rmdir(path)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def end(self) -> Left:
        for number in range(10):
            with suppress(FileNotFoundError):
                os.unlink(self.path(f"comes-{number}"))
        return {name: ["file", "", 1] for name in self.stays}


class Attributes(Load):
    """Extended attributes, mode and times of a file."""

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        self.file = self.path("file")
        os.close(os.open(self.file, os.O_CREAT | os.O_WRONLY, 0o600))
        self.values: dict[str, bytes] = {}

    def round(self) -> None:
        name = f"user.{self.rng.choice('abcdef')}"
        if name in self.values and self.rng.random() < 0.4:
            os.removexattr(self.file, name)
            del self.values[name]
            fails(errno.ENODATA, os.removexattr, self.file, name)
        else:
            value = self.rng.randbytes(self.rng.randrange(60))
            os.setxattr(self.file, name, value, os.XATTR_REPLACE if name in self.values else os.XATTR_CREATE)
            self.values[name] = value
            fails(errno.EEXIST, os.setxattr, self.file, name, value, os.XATTR_CREATE)
        mine = sorted(name for name in os.listxattr(self.file) if not name.startswith("user.pinfs"))
        check(mine == sorted(self.values), "the attributes are", mine)
        for name, value in self.values.items():
            check(os.getxattr(self.file, name) == value, name, "has another value")
        mode, when = self.rng.randrange(0o100) << 6 | 0o600, self.rng.randrange(1 << 30)
        os.chmod(self.file, mode)
        os.utime(self.file, (when, when))
        st = os.stat(self.file)
        check((st.st_mode & 0o7777, st.st_mtime) == (mode, when), "mode and time are others")

    def end(self) -> Left:
        os.chmod(self.file, 0o600)
        return {"file": ["file", "", 1]}


class Opening(Load):
    """Opens and closes one file as fast as it can: what it waits is the pause."""

    pause_s = 0.0

    def __init__(self, directory: str, rng: random.Random) -> None:
        super().__init__(directory, rng)
        with open(self.path("file"), "wb") as file:
            file.write(b"opened")

    def round(self) -> None:
        fd = os.open(self.path("file"), os.O_RDONLY)
        try:
            check(os.pread(fd, 10, 0) == b"opened", "wrong bytes")
        finally:
            os.close(fd)
        time.sleep(0.001)

    def end(self) -> Left:
        return {"file": ["file", b"opened".hex(), 1]}


LOADS = {
    kind.__name__.lower(): kind
    for kind in (Names, Data, Append, Mapped, Pins, Answered, Ignored, Nameless, Listing, Attributes, Opening)
}
POLICY = f"""
[[rule]]
path = "**/ignored"
break_timeout = {Ignored.TIMEOUT_S}
retry_after = 0
"""


def work(load: Load, slow: list[tuple[float, float]]) -> int:
    """Round after round until the input ends; how many."""
    waiter = select.poll()
    waiter.register(0, select.POLLIN)
    rounds = 0
    while not waiter.poll(load.pause_s * 1000):
        began = time.monotonic()
        load.round()
        rounds += 1
        if (ended := time.monotonic()) - began > SLOW_S:
            slow.append((began, ended))
    return rounds


def main(kind: str, directory: str, seed: str) -> None:
    failure, left, slow, rounds = None, {}, [], 0  # type: ignore[var-annotated]
    try:
        load = LOADS[kind](directory, random.Random(seed))
        print("begun", flush=True)
        rounds = work(load, slow)
        left = load.end()
    except Exception:
        failure = traceback.format_exc()
    print(json.dumps({"rounds": rounds, "failure": failure, "slow": slow, "left": left}), flush=True)
    os._exit(0)  # not one more call on the mount


if __name__ == "__main__":
    main(*sys.argv[1:])
