"""The fast path: the operations that programs call most, in their usual case, as plain functions.

Nothing is waited for here, and nothing is decided here: each function asks what `Operations` asks, and where a request
is unusual (a pin or a lease in its way, a file system that has to answer first, a file that the kernel has locked) it
says so before it has changed anything, and `Operations` does the whole. With a journal, what changes names writes its
intent here, from what it has looked at in any case.
"""

import os
from collections.abc import Container
from errno import ENOENT
from stat import S_IFREG
from typing import Final, NamedTuple, Protocol

from pinfs.fs.attributes import Attributes
from pinfs.fs.backing import Backing
from pinfs.fs.control import CONTROL_NAME
from pinfs.fs.directories import DirectoryHandle
from pinfs.fs.handles import FileHandle
from pinfs.fs.inode import FOREIGN_IDS, Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.names import KEEPS_VICTIM, Names
from pinfs.fs.opens import Opens
from pinfs.fs.pins import XATTR_CREATE, PinVerbs
from pinfs.fs.removals import JudgedTruncate, Removals
from pinfs.fs.set_ids import SetIds
from pinfs.fs.types import CallerLike, make_caller, os_error
from pinfs.fs.uncached import UncachedFiles
from pinfs.interface.attributes import PREFIX, RELEASE
from pinfs.linux.calls import Stat, mkdir_at, rmdir_at, stat_at, stat_fd

UNUSUAL_NAMES: Final = frozenset({b"", b".", b"..", CONTROL_NAME})
_MODE_BITS: Final = 0o7777
_O_TRUNC: Final = os.O_TRUNC  # in C, names of a module are not looked up


class Request(CallerLike, Protocol):
    """A request, as it came: its caller, and its number."""

    @property
    def opcode(self) -> int: ...
    @property
    def unique(self) -> int: ...


class Intents(Protocol):
    """Where the intent of a request stands until it has been executed (SPEC 13)."""

    def begin(self, request: Request, st: Stat | None, other: Stat | None) -> int:
        """Write down what the names of a request lead to; None: to nothing. Returns where."""

    def begin_cut(self, request: Request, size: int) -> int:
        """The same for a request that is about to cut a file of `size` bytes."""

    def executed(self, request: Request, slot: int) -> None: ...
    def drop(self, request: Request, slot: int) -> None: ...
    def has_attribute(self, inode: Inode, name: bytes) -> bool: ...
    def begin_removing_attribute(self, request: Request) -> int: ...
    def keep(self, victim: Inode) -> None:
        """Before the last name of a file goes: a file that is in use must not go with this daemon."""


class Collaborators(NamedTuple):
    """What `Operations` works with, and so does its fast path."""

    inodes: InodeTable
    backing: Backing
    pins: PinVerbs
    names: Names
    opens: Opens
    removals: Removals
    attributes: Attributes
    set_ids: SetIds
    uncached: UncachedFiles
    slow_names: set[bytes]


class FastOperations:
    """`st` holds what the last call has found. A function that gives nothing back (None, False) leaves the request to
    `Operations`. Each may raise OSError as that does."""

    def __init__(self, parts: Collaborators, in_kernel: Container[int], pinned_owners: Container[object]) -> None:
        """`in_kernel`: node ids of files that the kernel has locked for a removal; `pinned_owners`: who has pins."""
        self.st = Stat()
        self.intents: Intents | None = None
        """None: the mount ends with its daemon."""
        self.intent = 0
        """That of the request under way; 0: it has none."""
        self.is_missing = False
        """Whether the last lookup gave nothing because there is no such name."""
        self._other = Stat()
        self._inodes = parts.inodes
        self._by_id = parts.inodes.by_id
        self._backing = parts.backing
        self._pins = parts.pins
        self._handles = parts.pins.handles
        self._names = parts.names
        self._opens = parts.opens
        self._removals = parts.removals
        self._attributes = parts.attributes
        self._set_ids = parts.set_ids
        self._uncached = parts.uncached
        self._slow_names = parts.slow_names
        self._in_kernel = in_kernel
        self._pinned_owners = pinned_owners

    # Intents

    def _begin(self, request: Request, st: Stat | None, other: Stat | None) -> None:
        if self.intents is not None:
            self.intent = self.intents.begin(request, st, other)

    def _executed(self, request: Request) -> None:
        if self.intents is not None and self.intent:
            intent, self.intent = self.intent, 0
            self.intents.executed(request, intent)

    def drop_intent(self, request: Request) -> None:
        """The request has failed, or is left to `Operations`."""
        if self.intents is not None and self.intent:
            intent, self.intent = self.intent, 0
            self.intents.drop(request, intent)

    # Names

    def _directory(self, parent: int, name: bytes) -> Inode | None:
        """The directory of a name that can be looked at without waiting."""
        if name in UNUSUAL_NAMES or parent >= FOREIGN_IDS or name in self._slow_names:
            return None
        return self._by_id.get(parent)

    def _unlocked_directory(self, parent: int, name: bytes) -> Inode | None:
        """The same, to change something in it."""
        return None if self._in_kernel else self._directory(parent, name)

    def lookup(self, parent: int, name: bytes, request: Request) -> Inode | None:
        """One lookup more. None: see `is_missing`."""
        directory, st = self._directory(parent, name), self.st
        self.is_missing = False
        if directory is None:
            return None
        error = stat_at(self._inodes.fd(directory), name, st)
        if error:
            self.is_missing = error == ENOENT
            return None
        inode = self._inodes.intern(directory, name, st)
        self._inodes.looked_up(inode, request.unique)
        return inode

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Take from the lookup count. Never fails."""
        self._inodes.forget(nodeid, nlookup)

    def mkdir(self, parent: int, name: bytes, mode: int, request: Request) -> Inode | None:
        """mkdir(2), and one lookup."""
        directory = self._begin_making(parent, name, request)
        if directory is None:
            return None
        directory_fd = self._inodes.fd(directory)
        with self._backing.creating_as(request):
            mkdir_at(directory_fd, name, mode)
        return self._made(directory, name, request)

    def symlink(self, parent: int, name: bytes, target: bytes, request: Request) -> Inode | None:
        """symlink(2), and one lookup."""
        directory = self._begin_making(parent, name, request)
        if directory is None:
            return None
        directory_fd = self._inodes.fd(directory)
        with self._backing.creating_as(request):
            os.symlink(target, name, dir_fd=directory_fd)
        return self._made(directory, name, request)

    def link(self, nodeid: int, parent: int, name: bytes, request: Request) -> Inode | None:
        """link(2), and one lookup."""
        inode = self._unlocked(nodeid)
        directory = None if inode is None else self._begin_making(parent, name, request)
        if inode is None or directory is None:
            return None
        self._names.link(inode, directory, name)
        return self._made(directory, name, request)

    def _begin_making(self, parent: int, name: bytes, request: Request) -> Inode | None:
        """The directory of a name that is about to be made. Where there is one, that fails, and needs no intent."""
        directory = self._unlocked_directory(parent, name)
        if directory is None or self.intents is None:
            return directory
        if stat_at(self._inodes.fd(directory), name, self._other) == ENOENT:
            self._begin(request, None, None)
        return directory

    def _made(self, directory: Inode, name: bytes, request: Request) -> Inode:
        if error := stat_at(self._inodes.fd(directory), name, self.st):
            raise os_error(error)
        inode = self._inodes.intern(directory, name, self.st)
        self._inodes.looked_up(inode)
        self._executed(request)
        return inode

    def unlink(self, parent: int, name: bytes, request: Request) -> bool:
        """unlink(2), where no bytes go that are guarded."""
        directory, st = self._unlocked_directory(parent, name), self.st
        if directory is None:
            return False
        victim = self._inodes.hold_for_unlink(directory, name, st)
        if victim is None:
            self._removals.check_unknown(st)
        elif self._removals.takes_all(victim):
            return False
        self._begin_removing(victim, st, request)
        if victim is None:
            self._names.unlink_unknown(directory, name)
        else:
            self._names.unlink(victim, directory, name)
        self._executed(request)
        return True

    def rmdir(self, parent: int, name: bytes, request: Request) -> bool:
        """rmdir(2)."""
        directory, st = self._unlocked_directory(parent, name), self.st
        if directory is None:
            return False
        victim = self._inodes.hold_for_unlink(directory, name, st)
        self._begin_removing(victim, st, request)
        rmdir_at(self._inodes.fd(directory), name)
        if victim is not None:
            self._inodes.drop_name(victim, directory, name)
        self._executed(request)
        return True

    def _begin_removing(self, victim: Inode | None, st: Stat, request: Request) -> None:
        if self.intents is not None and st.st_ino:
            if victim is not None and st.st_nlink == 1:
                self.intents.keep(victim)
            self._begin(request, st, None)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, request: Request) -> bool:
        """renameat2(2), where no bytes go that are guarded."""
        source, target = self._unlocked_directory(parent, name), self._unlocked_directory(new_parent, new_name)
        if source is None or target is None:
            return False
        st, other, inodes = self.st, self._other, self._inodes
        if stat_at(inodes.fd(source), name, st):
            return False
        old, new = (source, name), (target, new_name)
        moved, victim = inodes.behind(old, st), None
        error = stat_at(inodes.fd(target), new_name, other)
        if not error:
            victim = inodes.behind(new, other)
            takes = victim is not moved and not flags & KEEPS_VICTIM
            if victim is None:
                self._removals.check_unknown(other)
            elif takes and self._removals.takes_all(victim):
                return False
        elif error != ENOENT:
            return False
        if self.intents is not None:
            if victim is not None and other.st_nlink == 1:
                self.intents.keep(victim)
            self._begin(request, st, None if error else other)
        self._names.rename(old, new, flags, moved, victim)
        self._executed(request)
        return True

    # Attributes

    def getattr(self, nodeid: int) -> Inode | None:
        """fstatat(2)."""
        inode = self._by_id.get(nodeid)
        if inode is None or nodeid >= FOREIGN_IDS:
            return None
        if nodeid in self._uncached and (inode.file is None or inode.file.writer < 0):
            return None  # they may be cached again
        return inode if self._inodes.stat_into(inode, self.st) else None

    def _unlocked(self, nodeid: int) -> Inode | None:
        """An inode of the source that the kernel does not lock."""
        return None if self._in_kernel or nodeid >= FOREIGN_IDS else self._by_id.get(nodeid)

    def chmod(self, nodeid: int, mode: int) -> Inode | None:
        """chmod(2)."""
        inode = self._unlocked(nodeid)
        if inode is None:
            return None
        self._set_ids.chmod(inode, mode & _MODE_BITS)
        return self._changed(inode)

    def utimes(self, nodeid: int, atime_ns: int | None, mtime_ns: int | None) -> Inode | None:
        """utimensat(2). Nanoseconds, or NOW; None leaves one alone."""
        inode = self._unlocked(nodeid)
        if inode is None:
            return None
        self._attributes.set_times(inode, atime_ns, mtime_ns)
        return self._changed(inode)

    def truncate(self, nodeid: int, size: int, request: Request) -> Inode | None:
        """truncate(2), where no one is to be asked."""
        inode = self._unlocked(nodeid)
        if inode is None or not self._removals.truncate_at_once(inode, size, request):
            return None
        return self._changed(inode)

    def judge_truncate(self, nodeid: int, size: int, request: Request) -> JudgedTruncate | None:
        """truncate(2) of a path, where `truncate` has found that pins are in the way."""
        inode = self._unlocked(nodeid)
        if inode is None:
            return None
        caller = make_caller((request.uid, request.gid, request.pid, 0, request.unique))  # it may outlast the request
        return self._removals.judge_truncate(inode, size, caller)

    def stat(self, inode: Inode) -> os.stat_result:
        """fstatat(2)."""
        return self._inodes.stat(inode)

    def _changed(self, inode: Inode) -> Inode:
        if not self._inodes.stat_into(inode, self.st):
            self.st.fill(self._inodes.stat(inode))
        return inode

    # Files

    def open(self, nodeid: int, flags: int, kill_suidgid: bool, request: Request) -> FileHandle | None:
        """open(2) of an existing file. With O_TRUNC, where no one is to be asked."""
        inode = self._by_id.get(nodeid)
        cuts = flags & _O_TRUNC
        if inode is None or nodeid >= FOREIGN_IDS or (kill_suidgid and not cuts):
            return None
        if cuts and (self._in_kernel or inode.kind != S_IFREG):
            return None
        self._backing.close_idle_if_moved(inode)
        try:
            self._backing.open(inode, flags)
        except BlockingIOError:  # another process has a lease
            return None
        try:
            if cuts and not self._cut(inode, kill_suidgid, request):
                self._backing.release(inode)
                return None
            return self._opens.handle(inode, flags, request, False)
        except BaseException:
            self._backing.release(inode)
            raise

    def _cut(self, inode: Inode, kill_suidgid: bool, request: Request) -> bool:
        """The O_TRUNC of an open. `kill_suidgid`: the caller may not keep the set-id bits."""
        if self.intents is not None:
            self.intent = self.intents.begin_cut(request, self._inodes.size(inode))
        if not self._removals.truncate_at_once(inode, 0, request):
            return False
        if kill_suidgid:
            self._set_ids.drop(inode)
        self._executed(request)
        return True

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, kill_suidgid: bool, request: Request
    ) -> FileHandle | None:
        """open(2) with O_CREAT, and one lookup, where that makes a file or has nothing to cut."""
        directory, st = self._unlocked_directory(parent, name), self.st
        if directory is None:
            return None
        if self.intents is not None or kill_suidgid:
            if stat_at(self._inodes.fd(directory), name, st) != ENOENT:
                return None
            self._begin(request, None, None)
        try:
            fd = self._opens.make(directory, name, mode, flags, request)
        except BlockingIOError:
            return None
        error = stat_fd(fd, st)
        if error or (flags & _O_TRUNC and st.st_size):  # it was there
            os.close(fd)
            return None
        inode = self._opens.made(directory, name, flags, fd, st)
        try:
            handle = self._opens.handle(inode, flags, request, True)
        except BaseException:
            self._opens.abandon(inode)
            raise
        self._executed(request)
        return handle

    def backing_id(self, inode: Inode) -> int:
        """Of an open file; 0: no passthrough."""
        return self._backing.passthrough_id(inode)

    def cache_flags(self, inode: Inode, with_entry: bool) -> int:
        """FOPEN_* of a handle without passthrough. `with_entry`: `st` is of this inode, and goes out as well."""
        if not with_entry:
            assert inode.file is not None
            if error := stat_fd(inode.file.any_fd, self.st):
                raise os_error(error)
        return self._opens.cache_flags(inode, with_entry, self.st)

    def release(self, fh: int) -> bool:
        """The last reference to a handle of a file without pins was closed."""
        handle = self._handles.find(fh)
        if type(handle) is not FileHandle or self._in_kernel or handle.number in self._pinned_owners:
            return False
        self._handles.pop(fh)
        try:
            self._backing.release(handle.inode)
        finally:
            self._inodes.drop_if_unreferenced(handle.inode)
        return True

    def file(self, fh: int) -> Inode | None:
        """The file of a handle, whose descriptors may be used."""
        handle = self._handles.find(fh)
        return handle.inode if type(handle) is FileHandle and not self._in_kernel else None

    def read(self, fh: int, offset: int, size: int) -> bytes | None:
        """pread(2)."""
        inode = self.file(fh)
        return None if inode is None else os.pread(self._backing.reader(inode), size, offset)

    def write(self, fh: int, offset: int, data: memoryview) -> int:
        """pwrite(2). Returns how many bytes; -1: the request is unusual."""
        inode = self.file(fh)
        return -1 if inode is None else os.pwrite(self._backing.writer(inode), data, offset)

    def statfs(self, nodeid: int) -> os.statvfs_result | None:
        """statvfs(3)."""
        inode = self._by_id.get(nodeid)
        return None if inode is None or nodeid >= FOREIGN_IDS else self._backing.statvfs(inode)

    def fsync(self, fh: int, datasync: bool) -> bool:
        """fsync(2), where there is no disk."""
        inode = self.file(fh)
        if inode is None or not self._backing.in_memory:
            return False
        (os.fdatasync if datasync else os.fsync)(self._backing.any_fd(inode))
        return True

    def opendir(self, nodeid: int, request: Request) -> int:
        """opendir(3). Returns the handle's number; 0: the request is unusual."""
        inode = self._by_id.get(nodeid)
        if inode is None or nodeid >= FOREIGN_IDS:
            return 0
        fd = self._backing.open_directory(inode)
        return self._handles.add(DirectoryHandle(inode, os.O_RDONLY, fd), request)

    # Extended attributes

    def setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int, request: Request) -> bool:
        """setxattr(2), and a pin."""
        inode = self._unlocked(nodeid)
        if inode is None:
            return False
        if name.startswith(PREFIX):
            return self._pins.set_at_once(inode, name, value, flags, request)
        if flags & XATTR_CREATE and self.intents is not None:
            return False
        self._attributes.set_extended(inode, name, value, flags)
        return True

    def getxattr(self, nodeid: int) -> int | bytes | None:
        """Where getxattr(2) finds an attribute that is not pinfs's: a descriptor or a path."""
        inode = self._by_id.get(nodeid)
        return None if inode is None or nodeid >= FOREIGN_IDS else self._inodes.handle(inode)

    def pin_text(self, nodeid: int, name: bytes, size: int, request: Request) -> bytes | None:
        """getxattr(2) of a pin, or of all pins of a file, or the release of a pin. `size`: of the caller's buffer."""
        inode = self._unlocked(nodeid)
        if inode is None:
            return None
        if name.startswith(RELEASE):
            return self._pins.release_at_once(inode, name, request, size)
        return self._pins.look(inode, name, request, size)

    def removexattr(self, nodeid: int, name: bytes, request: Request) -> bool:
        """removexattr(2), and the release of a pin."""
        inode = self._unlocked(nodeid)
        if inode is None:
            return False
        if name.startswith(PREFIX):
            return self._pins.remove_at_once(inode, name, request)
        if self.intents is not None and self.intents.has_attribute(inode, name):
            self.intent = self.intents.begin_removing_attribute(request)
        self._attributes.remove_extended(inode, name, request)
        self._executed(request)
        return True
