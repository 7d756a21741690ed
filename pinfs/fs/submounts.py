"""File systems that are mounted below the source.

Whatever the daemon does on one whose server has stopped (FUSE, NFS and their like) waits, perhaps for ever. So it asks
the root of such a file system in a thread first, and goes on when it has got an answer. What stops to answer between
that and the call itself still holds up the daemon; only the source's own file system has to be prompt.
"""

import os
import select
from contextlib import suppress
from typing import Final

import trio

from pinfs.fs.inode import FOREIGN_IDS, Inode
from pinfs.fs.inodes import InodeTable
from pinfs.linux import mountinfo, syscalls
from pinfs.runtime.errors import logged
from pinfs.runtime.parking import park

MAY_HANG: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "lustre", "gpfs", "beegfs", "orangefs", "ncpfs", "coda"}
    | {"fuse", "fuseblk", "autofs", "virtiofs"}
)
"""Types of file systems that wait for a server; those of FUSE may also begin with `fuse.`."""
IDLE_S: Final = 1.0
"""After this time descriptors that keep a submount busy (umount(2): EBUSY) are closed."""
_PROBES: Final = trio.CapacityLimiter(64)
"""Threads of their own: however many wait for dead servers, there is one for what waits for a disk."""


class Submounts:
    """Which submounts of the source may hang, and descriptors on all of them that are not to be kept for long."""

    def __init__(self, inodes: InodeTable) -> None:
        self.names: set[bytes] = set()
        """Last components of the mount points of file systems that may hang; elsewhere a name may be the same."""
        self._devices: set[int] = set()
        self._inodes = inodes
        self._kept = trio.Event()
        inodes.descriptors.on_foreign = self._foreign_kept
        self.refresh()

    def _foreign_kept(self) -> None:
        self._kept.set()

    def refresh(self) -> None:
        """Read the table of mounts."""
        below = os.readlink(f"/proc/self/fd/{self._inodes.root.fd}").rstrip("/") + "/"
        slow = [entry for entry in mountinfo.mounts() if _may_hang(entry.fstype) and entry.point.startswith(below)]
        self.names.clear()
        self.names.update(os.fsencode(os.path.basename(entry.point)) for entry in slow)
        self._devices = {entry.dev for entry in slow}

    def may_hang(self, nodeid: int) -> bool:
        """Whether an inode lies on a file system that may hang."""
        if nodeid < FOREIGN_IDS or not self._devices:
            return False
        inode = self._inodes.known(nodeid)
        return inode is not None and not isinstance(inode.key, int) and inode.key[0] in self._devices

    async def reach(self, nodeid: int) -> None:
        """Return when the file system of an inode answers."""
        inode = self._inodes.known(nodeid)
        while inode is not None and inode.parent is not None and inode.name is not None:
            if not self.may_hang(inode.parent.nodeid):
                await self.reach_name(inode.parent, inode.name)
                return
            inode = inode.parent

    async def reach_name(self, directory: Inode, name: bytes) -> None:
        """Return when what is mounted on `name` in `directory` answers. What it answers the call itself will tell."""
        await park()
        probing = [os.dup(self._inodes.fd(directory))]
        try:
            await trio.to_thread.run_sync(_probe, probing, name, limiter=_PROBES, abandon_on_cancel=True)
        finally:
            while probing:
                os.close(probing.pop())

    async def run(self) -> None:
        """Follow the table of mounts, and let go of descriptors, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_mounts)
            nursery.start_soon(self._let_go)

    async def _follow_mounts(self) -> None:
        with open(mountinfo.PATH, "rb") as table, select.epoll() as changes:
            changes.register(table.fileno(), select.EPOLLPRI)
            while True:
                await trio.lowlevel.wait_readable(changes.fileno())
                changes.poll(0)
                with logged("reading the table of mounts"):
                    self.refresh()

    async def _let_go(self) -> None:
        while True:
            await self._kept.wait()
            await trio.sleep(IDLE_S)
            self._kept = trio.Event()
            with logged("closing descriptors of submounts"):
                self._inodes.descriptors.let_go_of_foreign()


def _may_hang(fstype: str) -> bool:
    return fstype in MAY_HANG or fstype.startswith("fuse.")


def _probe(probing: list[int], name: bytes) -> None:
    directory_fd = probing.pop()  # this thread's now: the task that waits for it may leave
    with suppress(OSError):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        with suppress(OSError):
            syscalls.wait_for_attributes(fd)
        os.close(fd)
    os.close(directory_fd)
