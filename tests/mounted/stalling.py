"""A FUSE file system that answers late: stalling.py SOURCE MOUNTPOINT passes SOURCE through, but for what has a name
that begins with `slow-OPERATION`. That operation on it waits for SIGUSR1, whatever signals its callers get. The
file SOURCE.stalls is there as soon as one does."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from typing import Any, cast

import trio
from bridge.double import Double

from pinfs.bridge import mount
from pinfs.bridge.negotiate import Requested
from pinfs.bridge.transports import Bridged
from pinfs.fs.operations import Operations
from pinfs.runtime.parking import park

BY_NAME = {"lookup", "mknod", "mkdir", "symlink", "unlink", "rmdir", "rename", "create"}
BY_NODE = {
    "getattr",
    "setattr",
    "open",
    "opendir",
    "link",
    "getxattr",
    "setxattr",
    "listxattr",
    "removexattr",
    "readlink",
}
BY_HANDLE = {"read", "write", "fsync", "readdir", "fallocate", "lseek", "release"}


class Stalling(Double):
    """Remembers the names of nodes, to know which of them stall."""

    def __init__(self, source: str) -> None:
        super().__init__(source, timeout_s=0.0)
        self.names: dict[int, str] = {}
        self.marker = f"{source}.stalls"

    def entry(self, parent: int, name: bytes) -> Any:
        entry = super().entry(parent, name)
        self.names[entry.nodeid] = os.fsdecode(name)
        return entry

    async def stall(self, operation: str, name: str) -> None:
        if name.startswith(f"slow-{operation}"):
            await park()
            os.close(os.open(self.marker, os.O_CREAT | os.O_WRONLY))
            with trio.CancelScope(shield=True):
                await self.gate.wait()


def gated(operation: str, name_of: Any) -> Any:
    async def call(self: Stalling, *args: Any, **how: Any) -> Any:
        await self.stall(operation, name_of(self, *args))
        return await getattr(Double, operation)(self, *args, **how)

    return call


for operation in BY_NAME:
    setattr(Stalling, operation, gated(operation, lambda self, parent, name, *_: os.fsdecode(name)))
for operation in BY_NODE:
    setattr(Stalling, operation, gated(operation, lambda self, node, *_: self.names.get(node, "")))
for operation in BY_HANDLE:
    setattr(Stalling, operation, gated(operation, lambda self, fh, *_: self.names.get(self.handles[fh][1], "")))


async def open_gate_on_signal(double: Double) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            double.gate.set()


async def main(*words: str) -> None:
    source, mountpoint = words
    fd = mount.mount("stalling", mountpoint, mount.MountFlags(allow_other=True))
    double = Stalling(source)
    transport = Bridged(fd, cast(Operations, double), Requested(passthrough=False), lambda _: None, Counter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_gate_on_signal, double)
        async with trio.open_nursery() as serving:
            await serving.start(transport.run)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
