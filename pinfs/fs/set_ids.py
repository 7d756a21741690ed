"""Set-user-id and set-group-id bits: when a file loses them, and when the daemon must not lose them for it."""

import errno
import os
import stat
from contextlib import AbstractContextManager
from stat import S_ISGID
from typing import Final

from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.seal import Seal
from pinfs.fs.types import CallerLike, os_error
from pinfs.linux.calls import Stat, set_mode
from pinfs.linux.proc import supplementary_groups
from pinfs.linux.syscalls import Privileges
from pinfs.runtime.asitis import AS_IT_IS

ACCESS_ACL: Final = b"system.posix_acl_access"

_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_SGID_EXEC: Final = stat.S_ISGID | stat.S_IXGRP


class SetIds:
    """The rules of setattr_should_drop_suidgid() (fs/attr.c), applied for the caller rather than for the daemon.

    The kernel drops the bits when a process without CAP_FSETID changes the file's data or owner. Here that process is
    the daemon, whose capabilities say nothing about the caller. So calls that change a file keep the bits
    (`keeping`), and the bits go where the caller loses them: where the request says so (FUSE_OPEN_KILL_SUIDGID,
    FUSE_WRITE_KILL_SUIDGID, FATTR_KILL_SUIDGID, FUSE_SETXATTR_ACL_KILL_SGID), and for every caller but root where the
    request has no flag for it (fallocate, copy_file_range).
    """

    def __init__(self, inodes: InodeTable, privileges: Privileges, seal: Seal) -> None:
        self._inodes = inodes
        self._seal = seal
        self._privileges = privileges
        self._st = Stat()

    def drop(self, inode: Inode) -> None:
        """What write(2) and truncate(2) by an ordinary user do: S_ISUID goes, S_ISGID goes from an executable file."""
        mode = stat.S_IMODE(self._inodes.stat(inode).st_mode)
        kept = mode & ~stat.S_ISUID
        if mode & _SGID_EXEC == _SGID_EXEC:
            kept &= ~stat.S_ISGID
        if kept != mode:
            self.chmod(inode, kept)

    def drop_group(self, inode: Inode) -> None:
        """What an ACL costs whose setter is not in the file's group: S_ISGID (posix_acl_update_mode())."""
        mode = stat.S_IMODE(self._inodes.stat(inode).st_mode)
        if mode & stat.S_ISGID:
            self.chmod(inode, mode & ~stat.S_ISGID)

    def check_may_drop(self, inode: Inode, caller: CallerLike) -> None:
        """EPERM: chown(-1, -1) of another user's set-id file.

        The request is the same one by which a passed-through write drops the bits, and that must not fail. Such a
        write needs a handle that is open for writing: without one, the request is the chown.
        """
        if inode.file is not None and inode.file.writer >= 0:
            return
        st = self._inodes.stat(inode)
        drops = st.st_mode & stat.S_ISUID or st.st_mode & _SGID_EXEC == _SGID_EXEC
        if drops and stat.S_ISREG(st.st_mode) and caller.uid not in (0, st.st_uid):
            raise os_error(errno.EPERM)

    def chmod(self, inode: Inode, mode: int) -> None:
        """chmod(2). The kernel has already asked whether the caller may set S_ISGID (is in the file's group)."""
        if not self._seal.files and not mode & S_ISGID:
            set_mode(self._inodes.any_fd(inode), inode.file is None, mode)
            return
        with self._seal.lifted(inode), self._privileges if mode & S_ISGID else AS_IT_IS:
            set_mode(self._inodes.any_fd(inode), inode.file is None, mode)

    def keeping(self, inode: Inode) -> AbstractContextManager[None]:
        """For calls that would drop the bits of `inode` because the daemon makes them."""
        return self._privileges if self.has_set_ids(inode) else AS_IT_IS

    def has_set_ids(self, inode: Inode) -> bool:
        """Whether a file has bits that may have to be kept."""
        st = self._st
        if not self._inodes.stat_into(inode, st):
            st.fill(self._inodes.stat(inode))
        return st.st_mode & _SET_IDS != 0

    def keeping_of(self, fd: int) -> AbstractContextManager[None]:
        """The same for the file of a descriptor, in any thread."""
        return self._privileges if os.fstat(fd).st_mode & _SET_IDS else AS_IT_IS

    def keeping_from(self, attribute: bytes) -> AbstractContextManager[None]:
        """For setting `attribute`: an access ACL would drop S_ISGID because the daemon sets it."""
        return self._privileges if attribute == ACCESS_ACL else AS_IT_IS

    def keeping_without(self, attribute: bytes, inode: Inode, caller: CallerLike) -> AbstractContextManager[None]:
        """For removing `attribute`: with its access ACL a file on tmpfs loses S_ISGID, unless its group is one of the
        caller's or the caller is root (posix_acl_update_mode()). The request has no flag for that."""
        if attribute != ACCESS_ACL:
            return AS_IT_IS
        st = self._inodes.stat(inode)
        is_kept = st.st_mode & stat.S_ISGID and (
            caller.uid == 0 or st.st_gid == caller.gid or st.st_gid in supplementary_groups(caller.pid)
        )
        return self._privileges if is_kept else AS_IT_IS
