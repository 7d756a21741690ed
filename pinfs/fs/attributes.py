"""Attributes of inodes, as chmod(2), chown(2), utimensat(2) and chattr(1) change them."""

import os
import stat

from pinfs.fs import fileflags
from pinfs.fs.backing import Backing
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.set_ids import SetIds
from pinfs.fs.types import CallerLike, SetAttr
from pinfs.linux import syscalls
from pinfs.linux.calls import NOW, remove_attribute, set_attribute, set_times


class Attributes:
    """Changes attributes of the backing's inodes, sealed or not."""

    def __init__(self, inodes: InodeTable, backing: Backing, set_ids: SetIds) -> None:
        self._inodes = inodes
        self._backing = backing
        self._seal = backing.seal
        self._set_ids = set_ids

    def change(self, inode: Inode, changes: SetAttr, caller: CallerLike) -> os.stat_result:
        """All of SETATTR but the size. EPERM: `SetIds.check_may_drop`; errors of the calls."""
        if changes.kill_suidgid:
            self._set_ids.drop(inode)
        is_nothing = changes.is_nothing
        if is_nothing:
            self._set_ids.check_may_drop(inode, caller)
        if changes.uid is not None or changes.gid is not None or is_nothing:
            uid = -1 if changes.uid is None else changes.uid
            gid = -1 if changes.gid is None else changes.gid
            with self._seal.lifted(inode), self._set_ids.keeping(inode):
                os.chown(self._inodes.handle(inode), uid, gid)
        if changes.mode is not None:
            self._set_ids.chmod(inode, stat.S_IMODE(changes.mode))
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            self.set_times(inode, changes.atime_ns, changes.mtime_ns)
        return self._inodes.stat(inode)

    def set_times(self, inode: Inode, atime_ns: int | None, mtime_ns: int | None) -> None:
        """utimensat(2). Nanoseconds, or NOW; None leaves one alone."""
        if not self._seal.files:
            self._set_times(inode, atime_ns, mtime_ns)
            return
        with self._seal.lifted(inode):
            self._set_times(inode, atime_ns, mtime_ns)

    def set_extended(self, inode: Inode, name: bytes, value: bytes, flags: int) -> None:
        """setxattr(2), of an attribute that is not pinfs's."""
        with self._seal.lifted(inode), self._set_ids.keeping_from(name):
            set_attribute(self._inodes.handle(inode), name, value, flags)

    def remove_extended(self, inode: Inode, name: bytes, caller: CallerLike) -> None:
        """removexattr(2), of an attribute that is not pinfs's."""
        with self._seal.lifted(inode), self._set_ids.keeping_without(name, inode, caller):
            remove_attribute(self._inodes.handle(inode), name)

    def _set_times(self, inode: Inode, atime_ns: int | None, mtime_ns: int | None) -> None:
        if atime_ns is None or mtime_ns is None or (atime_ns == NOW) != (mtime_ns == NOW):
            syscalls.utimens(self._inodes.magic_path(inode), atime_ns, mtime_ns, now=NOW)
        elif atime_ns == NOW:
            set_times(self._inodes.any_fd(inode), inode.file is None, NOW, NOW)
        else:
            set_times(self._inodes.any_fd(inode), inode.file is None, atime_ns, mtime_ns)

    def flags_ioctl(self, inode: Inode, cmd: int, data: bytes, uid: int) -> bytes:
        """`fileflags.ioctl` on an open file: the flags are its own, never that of pinfs."""
        with self._seal.lifted(inode if cmd in fileflags.SETTING else None):
            answer = fileflags.ioctl(self._backing.any_fd(inode), cmd, data, uid)
        return fileflags.without_append(cmd, answer) if self._seal.hides_append(inode) else answer
