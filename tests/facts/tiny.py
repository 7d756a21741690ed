"""A plain pyfuse3 file system of some empty files, in a process of its own, that reports every call as it comes.

Its files are named for what their handlers do: opening `broken` raises ValueError; a setattr of `wait1`, `wait2`...
waits until the test says go; `f` and everything else just works. Run as a program it is the file system: `tiny.py
MOUNTPOINT MAX_TASKS`.
"""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pyfuse3
import trio

sys.path.append(str(Path(__file__).parents[1]))  # as a program
from support.actor import Actors
from support.mounts import force_umount

NAMES = [b"", b"f", b"broken", *(b"wait%d" % i for i in range(8))]  # a file's inode is its index + 1; the root has 1
LIMIT_S = 20.0


class Call(NamedTuple):
    """A call of a handler: its name, the inode, the flags of an open or the size of a setattr, the caller's pid."""

    name: str
    inode: int
    value: int
    pid: int


class Tiny(Actors):
    """The test's side. `prefix` is a command to run it under; `connection` is mounted on `base`/mnt already."""

    def __init__(
        self,
        base: Path,
        *,
        max_tasks: int = 99,
        prefix: Sequence[str] = (),
        connection: int | None = None,
    ) -> None:
        super().__init__()
        self.path = base / "mnt"
        if connection is None:
            self.path.mkdir()
        self.name = str(self.path / "f")
        mountpoint, pass_fds = (str(self.path), []) if connection is None else (f"/dev/fd/{connection}", [connection])
        program = [*prefix, sys.executable, __file__, mountpoint, str(max_tasks)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(program, stdin=pipe, stdout=pipe, pass_fds=pass_fds)
        self.seen: list[Call] = []
        assert self.next().name == "ready"

    def __enter__(self) -> Tiny:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.kill()
        self.process.wait()
        force_umount(self.path)
        self.dismiss()
        self.process.stdin.close()
        self.process.stdout.close()

    def readable(self, limit_s: float = 0) -> bool:
        """Whether a call is reported within `limit_s` seconds."""
        assert self.process.stdout
        return bool(select.select([self.process.stdout], [], [], limit_s)[0])

    def next(self) -> Call:
        """The next call that was reported; fails when none comes."""
        assert self.readable(LIMIT_S), f"no call came; seen: {self.seen}"
        assert self.process.stdout
        name, *numbers = os.read(self.process.stdout.fileno(), LINE).decode().split()
        self.seen.append(Call(name, *map(int, numbers)))
        return self.seen[-1]

    def until(self, name: str, inode: int | None = None) -> Call:
        """The next call of that handler."""
        while (call := self.next()).name != name or inode not in (None, call.inode):
            pass
        return call

    def go(self, name: str) -> None:
        """Lets one waiting setattr of a file go on."""
        os.write(self.process.stdin.fileno(), bytes([inode_of(name)]))  # type: ignore[union-attr]


LINE = 48  # reports have a fixed length, so that one read takes one


def inode_of(name: str) -> int:
    """The inode of a file."""
    return NAMES.index(name.encode()) + 1


def report(name: str, inode: int = 0, value: int = 0, pid: int = 0) -> None:
    os.write(1, f"{name} {inode} {value} {pid}".ljust(LINE).encode())


class Operations(pyfuse3.Operations):
    """The file system's side."""

    def __init__(self) -> None:
        super().__init__()
        self.going = {inode: trio.Event() for inode in range(1, len(NAMES) + 1)}

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        if name not in NAMES:
            raise pyfuse3.FUSEError(2)
        return await self.getattr(NAMES.index(name) + 1, ctx)

    async def getattr(self, inode: int, ctx: Any) -> Any:
        report("getattr", inode, 0, ctx.pid if ctx else 0)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o777 if inode == 1 else stat.S_IFREG | 0o666
        entry.st_nlink = 1
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        report("open", inode, flags, ctx.pid)
        if NAMES[inode - 1] == b"broken":
            raise ValueError("not a FUSEError")
        return pyfuse3.FileInfo(fh=inode)

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        report("setattr", inode, attr.st_size, ctx.pid)
        if NAMES[inode - 1].startswith(b"wait"):
            await self.going[inode].wait()
        return await self.getattr(inode, ctx)

    async def listen(self) -> None:
        """Takes the test's go."""
        while True:
            await trio.lowlevel.wait_readable(0)
            for inode in os.read(0, 16):
                self.going[inode].set()


async def main(max_tasks: int, operations: Operations) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operations.listen)
        await pyfuse3.main(1, max_tasks)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    operations = Operations()
    pyfuse3.init(operations, sys.argv[1], {"fsname=tiny"})
    report("ready")
    trio.run(main, int(sys.argv[2]), operations)
