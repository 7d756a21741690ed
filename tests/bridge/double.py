"""A plain passthrough with the methods of Operations: what the bridge is tested with, without pins and inode tables.

Every node is an O_PATH descriptor; nothing is ever forgotten but by the counts that tests look at.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import SimpleNamespace

import trio

from pinfs.fs.types import Entry, Opened, SetAttr
from pinfs.fs.uncached import UncachedFiles
from pinfs.linux import syscalls
from pinfs.linux.calls import NOW
from pinfs.runtime.parking import park

O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Double:
    """`registry`: what registers backing files (bridge.passthrough), or None."""

    in_threads = needs_entries = False
    fast = exports = None
    directories = SimpleNamespace(with_entries=True)

    def __init__(self, source: str, registry=None, *, timeout_s: float = 60.0) -> None:
        self.entry_timeout_s = self.attr_timeout_s = timeout_s
        self.uncached = UncachedFiles(lambda inode, flags: -1)
        self.registry = registry
        self.nodes: dict[int, int] = {1: os.open(source, os.O_PATH | os.O_DIRECTORY)}
        self.lookups: Counter[int] = Counter()
        self.handles: dict[int, tuple[int, int]] = {}  # fh -> descriptor, nodeid
        self.backing: dict[int, list[int]] = {}  # nodeid -> [backing id, opens, descriptor]
        self.last_fh = 0
        self.gate = trio.Event()  # truncating to WAIT waits for it
        self.wakes: list[Callable[[], None]] = []
        self.calls: Counter[str] = Counter()

    def path(self, nodeid: int) -> str:
        return f"/proc/self/fd/{self.nodes[nodeid]}"

    # names

    def entry(self, parent: int, name: bytes) -> Entry:
        fd = os.open(name, O_PATH, dir_fd=self.nodes[parent])
        st = os.fstat(fd)
        if st.st_ino in self.nodes:
            os.close(fd)
        else:
            self.nodes[st.st_ino] = fd
        self.lookups[st.st_ino] += 1
        return Entry(st.st_ino, st)

    async def lookup(self, parent, name, ctx) -> Entry:
        self.calls[f"lookup of {os.fsdecode(name)}"] += 1
        return self.entry(parent, name)

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        for nodeid, count in forgets:
            self.lookups[nodeid] -= count

    async def mknod(self, parent, name, mode, rdev, ctx) -> Entry:
        os.mknod(name, mode & ~ctx.umask, rdev, dir_fd=self.nodes[parent])
        return self.entry(parent, name)

    async def mkdir(self, parent, name, mode, ctx) -> Entry:
        os.mkdir(name, mode & ~ctx.umask, dir_fd=self.nodes[parent])
        return self.entry(parent, name)

    async def symlink(self, parent, name, target, ctx) -> Entry:
        os.symlink(target, name, dir_fd=self.nodes[parent])
        return self.entry(parent, name)

    async def link(self, nodeid, parent, name, ctx) -> Entry:
        os.link(self.path(nodeid), name, dst_dir_fd=self.nodes[parent], follow_symlinks=True)
        return self.entry(parent, name)

    async def readlink(self, nodeid, ctx) -> bytes:
        return os.readlink(b"", dir_fd=self.nodes[nodeid])

    async def unlink(self, parent, name, ctx) -> None:
        os.unlink(name, dir_fd=self.nodes[parent])

    async def rmdir(self, parent, name, ctx) -> None:
        os.rmdir(name, dir_fd=self.nodes[parent])

    async def rename(self, parent, name, new_parent, new_name, flags, ctx) -> None:
        syscalls.renameat2(self.nodes[parent], name, self.nodes[new_parent], new_name, flags)

    # attributes

    async def getattr(self, nodeid, ctx, fh=None) -> os.stat_result:
        return os.fstat(self.nodes[nodeid])

    async def statx_btime(self, nodeid, fh):
        return os.fstat(self.nodes[nodeid]), syscalls.birth_time_ns(self.nodes[nodeid])

    async def setattr(self, nodeid, changes: SetAttr, fh, ctx) -> os.stat_result:
        if changes.size == WAIT:
            await park()
            await self.gate.wait()
        elif changes.size is not None:
            os.truncate(self.path(nodeid), changes.size)
        if changes.kill_suidgid:
            self.calls["kill_suidgid"] += 1
        if changes.uid is not None or changes.gid is not None:
            os.chown(
                self.path(nodeid),
                -1 if changes.uid is None else changes.uid,
                -1 if changes.gid is None else changes.gid,
            )
        if changes.mode is not None:
            os.chmod(self.path(nodeid), changes.mode & 0o7777)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            syscalls.utimens(os.fsencode(self.path(nodeid)), changes.atime_ns, changes.mtime_ns, now=NOW)
        return os.fstat(self.nodes[nodeid])

    async def access(self, nodeid, mask, ctx) -> None: ...

    # files

    def opened(self, nodeid: int, fd: int) -> Opened:
        self.last_fh += 1
        self.handles[self.last_fh] = fd, nodeid
        backing = self.backing.get(nodeid)
        if backing is None:
            backing_id = self.registry.open(fd) if self.registry else 0
            backing = self.backing[nodeid] = [backing_id, 0]
        backing[1] += 1
        return Opened(self.last_fh, 0, backing[0])

    async def open(self, nodeid, flags, ctx, kill_suidgid=False) -> Opened:
        self.calls["kill_suidgid"] += kill_suidgid
        return self.opened(nodeid, os.open(self.path(nodeid), flags & ~os.O_NOFOLLOW))

    async def create(self, parent, name, mode, flags, ctx, *, kill_suidgid=False) -> tuple[Opened, Entry]:
        fd = os.open(name, flags | os.O_CREAT, mode & ~ctx.umask, dir_fd=self.nodes[parent])
        entry = self.entry(parent, name)
        return self.opened(entry.nodeid, fd), entry

    async def tmpfile(self, parent, mode, flags, ctx) -> tuple[Opened, Entry]:
        fd = os.open(b".", flags | os.O_TMPFILE, mode & ~ctx.umask, dir_fd=self.nodes[parent])
        st = os.fstat(fd)
        self.nodes[st.st_ino] = os.open(f"/proc/self/fd/{fd}", os.O_PATH)
        self.lookups[st.st_ino] += 1
        return self.opened(st.st_ino, fd), Entry(st.st_ino, st)

    async def read(self, fh, offset, size, unique=0) -> bytes:
        self.calls["read"] += 1
        return os.pread(self.handles[fh][0], size, offset)

    async def write(self, fh, offset, data, *, kill_suidgid=False, unique=0) -> int:
        self.calls["write"] += 1
        self.calls["kill_suidgid"] += kill_suidgid
        return os.pwrite(self.handles[fh][0], data, offset)

    async def release(self, fh) -> None:
        fd, nodeid = self.handles.pop(fh)
        backing = self.backing[nodeid]
        backing[1] -= 1
        if not backing[1]:
            del self.backing[nodeid]
            if backing[0]:
                self.registry.close(backing[0])
        os.close(fd)

    async def fsync(self, fh, datasync) -> None:
        await park()
        await trio.to_thread.run_sync(os.fsync, self.handles[fh][0])

    async def fallocate(self, fh, mode, offset, length, ctx) -> None:
        syscalls.fallocate(self.handles[fh][0], mode, offset, length)

    async def lseek(self, fh, offset, whence) -> int:
        return os.lseek(self.handles[fh][0], offset, whence)

    async def copy_file_range(self, fh_in, offset_in, fh_out, offset_out, length, ctx) -> int:
        self.calls["copy_file_range"] += 1
        return os.copy_file_range(self.handles[fh_in][0], self.handles[fh_out][0], length, offset_in, offset_out)

    async def poll(self, fh, events, wake) -> int:
        if wake:
            self.wakes.append(wake)
        return 0x2 if self.calls["urgent"] else 0

    async def ioctl(self, fh, cmd, data, out_size, ctx) -> bytes:
        """_IOWR('P', 1, 8 bytes) turns its bytes around."""
        if cmd != REVERSE:
            raise OSError(errno.ENOTTY, "no such ioctl")
        return bytes(data[::-1])

    # directories

    async def opendir(self, nodeid, ctx) -> Opened:
        self.last_fh += 1
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.nodes[nodeid])
        self.handles[self.last_fh] = fd, nodeid
        return Opened(self.last_fh, 0, 0)

    async def readdir(self, fh, offset, plus, add, unique=0) -> None:
        fd, nodeid = self.handles[fh]
        for place, name in enumerate(sorted(os.listdir(fd))[offset:], offset + 1):
            encoded = os.fsencode(name)
            with suppress(FileNotFoundError):
                entry = self.entry(nodeid, encoded)
                self.lookups[entry.nodeid] -= not plus
                if not add(encoded, place, entry if plus else (entry.nodeid, entry.st.st_mode >> 12)):
                    self.lookups[entry.nodeid] -= plus
                    return

    async def releasedir(self, fh) -> None:
        os.close(self.handles.pop(fh)[0])

    async def fsyncdir(self, fh, datasync) -> None:
        os.fsync(self.handles[fh][0])

    async def statfs(self, ctx, nodeid=1) -> os.statvfs_result:
        return os.fstatvfs(self.nodes[1])

    async def syncfs(self, nodeid) -> None: ...

    # attributes by name

    async def setxattr(self, nodeid, name, value, flags, ctx, kill_sgid=False) -> None:
        os.setxattr(self.path(nodeid), name, value, flags)

    async def getxattr(self, nodeid, name, ctx, size=None) -> bytes:
        self.calls["getxattr"] += 1
        if name == b"user.fail":
            raise ZeroDivisionError("a mistake")
        return os.getxattr(self.path(nodeid), name)

    async def listxattr(self, nodeid, ctx) -> list[bytes]:
        return [os.fsencode(name) for name in os.listxattr(self.path(nodeid))]

    async def removexattr(self, nodeid, name, ctx) -> None:
        os.removexattr(self.path(nodeid), name)

    def close(self) -> None:
        for fd in (*self.nodes.values(), *(fd for fd, _ in self.handles.values())):
            os.close(fd)


WAIT = 0x7777
REVERSE = 3 << 30 | 8 << 16 | ord("P") << 8 | 1
