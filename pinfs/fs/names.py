"""Names: changed in the source directory and in the inode table together."""

import os
from typing import Final

from pinfs.fs.backing import Backing
from pinfs.fs.inode import Inode, Name
from pinfs.fs.inodes import InodeTable
from pinfs.linux import syscalls
from pinfs.linux.calls import rename_at, unlink_at

KEEPS_VICTIM: Final = syscalls.RENAME_EXCHANGE | syscalls.RENAME_NOREPLACE
"""The flags with which a rename takes no file away."""


class Names:
    """Links, unlinks and renames of known inodes, whose names the table has to follow."""

    def __init__(self, inodes: InodeTable, backing: Backing) -> None:
        self._inodes = inodes
        self._backing = backing
        self._seal = backing.seal
        self._descriptors = inodes.descriptors

    def link(self, inode: Inode, directory: Inode, name: bytes) -> None:
        """link(2). The table learns of the name with its next lookup."""
        directory_fd = os.dup(self._inodes.fd(directory))  # the next line may close the table's own
        try:
            with self._seal.lifted(inode):
                os.link(self._inodes.magic_path(inode), name, dst_dir_fd=directory_fd, follow_symlinks=True)
        finally:
            os.close(directory_fd)

    def unlink(self, victim: Inode, directory: Inode, name: bytes) -> None:
        """unlink(2) of a name of `victim`."""
        self._inodes.keep_for_the_next(victim, directory, name)
        if not self._seal.files:  # nearly always, and `with` takes longer than all that it would do
            self._unlink(victim, directory, name)
            return
        with self._seal.lifted(victim):
            self._unlink(victim, directory, name)

    def _unlink(self, victim: Inode, directory: Inode, name: bytes) -> None:
        self.unlink_unknown(directory, name)
        self.lose(victim, directory, name)

    def unlink_unknown(self, directory: Inode, name: bytes) -> None:
        """unlink(2) of a name whose inode the table need not know."""
        if self._descriptors.close_elsewhere is None:
            unlink_at(self._inodes.fd(directory), name)
            return
        with self._backing.outliving_name(directory, name):
            unlink_at(self._inodes.fd(directory), name)

    def rename(self, old: Name, new: Name, flags: int, moved: Inode | None, victim: Inode | None) -> None:
        """renameat2(2). `moved` is the inode behind `old`, `victim` the one behind `new`; None if it is not known."""
        if victim is not None and victim is not moved:
            self._inodes.keep_reachable(victim, new[0], new[1])
        recorder = self._inodes.recorder
        if recorder is None:
            self._rename(old, new, flags, moved, victim)
            return
        try:
            if moved is not None:
                recorder.renaming(moved, *new)
            if victim is not None and flags & syscalls.RENAME_EXCHANGE:
                recorder.renaming(victim, *old)
            self._rename(old, new, flags, moved, victim)
        finally:
            recorder.rename_ended()

    def _rename(self, old: Name, new: Name, flags: int, moved: Inode | None, victim: Inode | None) -> None:
        if not self._seal.files and self._descriptors.close_elsewhere is None:
            self._rename_bare(old, new, flags, moved, victim)
            return
        with self._seal.lifted(moved), self._seal.lifted(victim), self._backing.outliving_name(new[0], new[1]):
            self._rename_bare(old, new, flags, moved, victim)

    def _rename_bare(self, old: Name, new: Name, flags: int, moved: Inode | None, victim: Inode | None) -> None:
        if old[0] is new[0]:
            directory_fd = self._inodes.fd(new[0])
            rename_at(directory_fd, old[1], directory_fd, new[1], flags)
        else:
            old_fd = os.dup(self._inodes.fd(old[0]))  # the next line may close the table's own
            try:
                rename_at(old_fd, old[1], self._inodes.fd(new[0]), new[1], flags)
            finally:
                os.close(old_fd)
        self.renamed(old, new, flags, moved, victim)  # a seal is put back after it, on what the table can reach

    def renamed(self, old: Name, new: Name, flags: int, moved: Inode | None, victim: Inode | None) -> None:
        """After a rename: have the table follow."""
        if victim is moved:  # neither is known, or both are names of one inode, with which rename(2) does nothing
            return
        if victim is not None and not flags & syscalls.RENAME_EXCHANGE:
            self.lose(victim, new[0], new[1])
        if moved is not None:
            self._inodes.move(moved, old, new)
        if victim is not None and flags & syscalls.RENAME_EXCHANGE:
            self._inodes.move(victim, new, old)

    def lose(self, inode: Inode, directory: Inode, name: bytes) -> None:
        """After an unlink: have the table follow."""
        self._inodes.drop_name(inode, directory, name)
        if inode.name is None:
            self._backing.close_idle(inode)
