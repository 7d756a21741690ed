"""The seal: while a file has pins, its backing inode carries the append-only flag, and the kernel itself refuses to
take bytes away from it, wherever that comes from (SPEC 12).

The flag stands without the daemon. It does not stop writes in place or past the end, mappings, or reads; what it does
stop and pinfs permits (a truncate beside the pin, chmod, link, rename, attributes, a deferred unlink, a descriptor for
writing) happens inside of `with seal.lifted(inode):`, the only place where a sealed file is without its flag. That
window lasts for the system call, or for as long as the cut takes in a thread.

A seal is set before a pin is registered and lifted an idle second after the last pin has ended, so that a pin and its
release in a row pay for neither. The flag of a file that its owner has made append-only (chattr +a) is the owner's: it
is never touched.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, Protocol

import trio

from pinfs.core.book import PinBook
from pinfs.core.policy import Policy, PolicySet
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.seallist import SealedFile, SealList, is_sealed, lift, lists_of, read_list
from pinfs.linux import inodeflags
from pinfs.linux.filehandles import handle_of, open_handle
from pinfs.linux.inodeflags import APPEND
from pinfs.linux.syscalls import STATX_ATTR_APPEND
from pinfs.runtime.asitis import AS_IT_IS
from pinfs.runtime.errors import logged

log = logging.getLogger("pinfs.seal")

IDLE_S: Final = 1.0
"""How long a seal may outlast its last pin."""
PATH_MAX: Final = 4096
"""Bytes: no system call takes a longer path. The handle of the file leads to it as well."""
SLICE: Final = 64
"""Seals that are lifted between two turns of other tasks."""

WITH_SET_IDS: Final = "it has a set-id bit, which no write could drop"
"""A write by a user drops the bits. The kernel does that with the file's lock held, and ext4_setattr() refuses it on a
file that is append-only: the write would fail with EPERM."""

SEALED_BY_NO_HOST: Final = "other hosts change the source as well (cluster=...), and cannot lift the seals of this one"
"""A seal is an agreement between calls of one daemon: whatever the flag would refuse lifts it, and puts it back. The
protocol between hosts says which bytes may be cut and when, not who has lifted a flag: a host that put one back would
stop a cut of another one that is allowed, and one that died with it would leave it to nobody. Nor would it help where
clusters are needed: NFS, CephFS and Lustre show no flag that their servers heed, and on GFS2 and OCFS2 each change of
it is a lock that all hosts wait for."""

_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class InodeFlags(Protocol):
    """`pinfs.linux.inodeflags`, or what a test puts in its place."""

    def get_flags(self, fd: int, /) -> int: ...
    def set_flags(self, fd: int, flags: int, /) -> None: ...


class Policies(Protocol):
    """Where the policy in force is found."""

    @property
    def current(self) -> PolicySet: ...


class _Sealed:
    """A file with a seal, or whose seal waits for `lifters`: the calls that need it without the flag.

    `is_set`: the inode carries the flag, and pinfs has set it. `is_own`: its owner has.
    """

    __slots__ = ("inode", "is_own", "is_set", "lifters", "listed")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.is_set = False
        self.is_own = False
        self.lifters = 0
        self.listed: SealedFile | None = None


class Seal:
    """The seals of one mount. Sets none before `start`."""

    def __init__(self, inodes: InodeTable, book: PinBook, policies: Policies, flags: InodeFlags = inodeflags) -> None:
        self.unavailable_because = "it has not been tried yet"
        self.count = 0
        """Files that carry the flag by pinfs."""
        self._inodes = inodes
        self._pinned = book.files
        self._policies = policies
        self.flags = flags
        self.files: dict[int, _Sealed] = {}
        """By node id. These have to stay in the inode table, so that their seals can be lifted."""
        self._idle: dict[int, None] = {}
        self._became_idle = trio.Event()
        self._list: SealList | None = None
        self._reported: set[str] = set()

    # Its beginning and its end

    def start(self, unavailable_because: str, path: Path, source: str) -> None:
        """`unavailable_because`: what trying has shown, empty where seals work. `path`: of the list.

        Lifts what a daemon that was killed has left behind, also where no new seals are set.
        """
        lists = lists_of(self._inodes.root.fd, source)
        left = self._lift_left_behind(file for old in lists for file in read_list(old))
        self.unavailable_because = unavailable_because
        if unavailable_because and not left:
            _unlink(lists)
            return
        try:
            self._list = SealList(path, source)
            for file in left:
                self._list.add(file)
            _unlink(old for old in lists if old != path)
        except OSError as e:
            self.unavailable_because = unavailable_because or f"the list {path} cannot be written: {e.strerror}"

    def resume(self, unavailable_because: str, path: Path, source: str) -> None:
        """In place of `start`, where this daemon takes over and the inodes are known: the seals stand. Those of files
        that nothing refers to any more are lifted. `resumed` says when the pins are known."""
        self.unavailable_because = unavailable_because
        lists = lists_of(self._inodes.root.fd, source)
        listed = [file for old in lists for file in read_list(old)]
        kept, unknown = [], []
        for file in listed:
            inode = self._inodes.find_key(file.device, file.ino)
            if inode is None:
                unknown.append(file)
            else:
                record = self.files[inode.nodeid] = _Sealed(inode)
                record.listed = file
                record.is_set = is_sealed(self._inodes.root.fd, file)
                self.count += record.is_set
                kept.append(file)
        kept += self._lift_left_behind(unknown)
        try:
            self._list = SealList.resume(path, source, kept)
            _unlink(old for old in lists if old != path)
        except OSError as e:
            self.unavailable_because = unavailable_because or f"the list {path} cannot be written: {e.strerror}"

    def resumed(self) -> None:
        """The pins are restored: lift the seals of files without any, and set those that were lifted for a call when
        the daemon before ended."""
        for nodeid, record in list(self.files.items()):
            with logged("a seal after the take-over"):
                if not self._has_pins(nodeid):
                    self._drop(record)
                elif not record.is_set and not self.unavailable_because:
                    self._set(record)

    def _lift_left_behind(self, listed: Iterable[SealedFile]) -> list[SealedFile]:
        """Returns what could not be lifted."""
        lifted, left = 0, []
        for file in listed:
            try:
                lifted += lift(self._inodes.root.fd, file)
            except OSError as e:
                left.append(file)
                log.info("the seal of %s, inode %d, cannot be lifted: %s", os.fsdecode(file.path), file.ino, e.strerror)
        if lifted:
            log.info("lifted the seals of %d files, left by a daemon that was killed", lifted)
        return left

    def close(self) -> None:
        """Lift all: the mount has ended in good order. A file with a cut under way has no flag, and is not touched: its
        inode may stay locked."""
        for record in list(self.files.values()):
            with logged("lifting a seal"):
                self._drop(record, forget=False)
        self.files.clear()
        if self._list is not None:
            self._list.close()

    # Pins

    def is_sealed(self, nodeid: int) -> bool:
        """Whether the kernel refuses to take bytes from this file, as far as pinfs knows."""
        record = self.files.get(nodeid)
        return record is not None and (record.is_set or record.is_own)

    def before_pin(self, inode: Inode) -> None:
        """Seal a file that is about to get a pin. EOPNOTSUPP: it cannot be sealed, and policy `seal` is `require`."""
        record = self.files.get(inode.nodeid)
        if record is None or not (record.is_set or record.is_own or record.lifters):
            policy = self._policy(inode)
            if policy.seal != "off":
                self._begin(record or _Sealed(inode), policy)

    def _policy(self, inode: Inode) -> Policy:
        policies = self._policies.current
        return policies.for_path(inode.path()) if policies.rules else policies.base

    def _begin(self, record: _Sealed, policy: Policy) -> None:
        why = self.unavailable_because
        if not why:
            try:
                self._set(record)
            except OSError as e:
                why = e.strerror or ""
                self._report(e)
            else:
                self.files[record.inode.nodeid] = record
        if why and policy.seal == "require":
            raise OSError(errno.EOPNOTSUPP, f"policy seal=require, and the file cannot be sealed: {why}")

    def _report(self, failure: OSError) -> None:
        why = failure.strerror or ""
        if why not in self._reported:
            self._reported.add(why)
            log.info("some files are pinned without a seal: %s", why)

    def unpinned(self, nodeid: int) -> None:
        """A file may have no pins any more: look again soon, and lift its seal then."""
        if nodeid in self.files:
            if not self._idle:
                self._became_idle.set()
            self._idle[nodeid] = None

    def left_by_pins(self, nodeid: int) -> None:
        """A file has no pins and no removals any more: it stays in the inode table until its seal is lifted."""
        if nodeid in self.files:
            self.unpinned(nodeid)
        else:
            self._inodes.drop_id_if_unreferenced(nodeid)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Lift the seals of files without pins, until cancelled."""
        task_status.started()
        while True:
            self._became_idle = trio.Event()
            if not self._idle:
                await self._became_idle.wait()
            await trio.sleep(IDLE_S)
            idle, self._idle = self._idle, {}
            for number, nodeid in enumerate(idle, 1):
                with logged("lifting a seal"):
                    self._lift_if_unpinned(nodeid)
                if not number % SLICE:
                    await trio.lowlevel.checkpoint()

    def _lift_if_unpinned(self, nodeid: int) -> None:
        record = self.files.get(nodeid)
        if record is not None and not record.lifters and not self._has_pins(nodeid):
            self._drop(record)

    def _has_pins(self, nodeid: int) -> bool:
        file = self._pinned.get(nodeid)
        return file is not None and bool(file.deny or file.lease)

    # Calls that the flag would refuse

    def lifted(self, inode: Inode | None) -> AbstractContextManager[None]:
        """Inside of it the backing file is without the flag, if pinfs has set it. None: an inode that is not known."""
        if inode is None or not self.files:
            return AS_IT_IS
        record = self.files.get(inode.nodeid)
        return AS_IT_IS if record is None else _Lifted(self, record)

    def cutting(self, inode: Inode | None) -> AbstractContextManager[None]:
        """The same for a cut in a thread, which may wait in the kernel with the inode's lock: no flag is set meanwhile
        either, as that would wait for the lock. A pin that comes is sealed at the end of the cut.

        Entered and left on the event loop only; left when the thread has ended (`Cuts.around`).
        """
        if inode is None or self.unavailable_because:
            return self.lifted(inode)
        record = self.files.get(inode.nodeid)
        if record is None:
            record = self.files[inode.nodeid] = _Sealed(inode)
        return _Lifted(self, record)

    def lift_for(self, record: _Sealed) -> None:
        """A call begins that needs the file without the flag."""
        if record.is_set:
            self._clear(record)
        record.lifters += 1

    def put_back(self, record: _Sealed) -> None:
        """That call has ended. The flags are read again, as it may have changed those of the owner."""
        record.lifters -= 1
        if record.lifters or self.files.get(record.inode.nodeid) is not record:
            return
        if not self._has_pins(record.inode.nodeid) or self._policy(record.inode).seal == "off":
            self._drop(record)
            return
        try:
            self._set(record)
        except OSError as e:  # the next call, or pin, tries again
            self._report(e)

    def attributes(self, inode: Inode, attributes: int) -> int:
        """STATX_ATTR_* of an inode without what is pinfs's own."""
        record = self.files.get(inode.nodeid)
        return attributes if record is None or not record.is_set else attributes & ~STATX_ATTR_APPEND

    def hides_append(self, inode: Inode) -> bool:
        """Whether the append-only flag that the backing file shows is not its owner's."""
        record = self.files.get(inode.nodeid)
        return record is not None and record.is_set

    # The flag

    def _set(self, record: _Sealed) -> None:
        fd, close = self._descriptor(record)
        try:
            flags = self.flags.get_flags(fd)
            record.is_own = bool(flags & APPEND)
            if record.is_own:
                self._unlist(record)
                return
            st = os.fstat(fd)
            if st.st_mode & _SET_IDS:
                raise OSError(errno.EOPNOTSUPP, WITH_SET_IDS)
            if record.listed is None:
                self._enlist(record, fd, st)
            self.flags.set_flags(fd, flags | APPEND)
        except OSError:
            self._unlist(record)
            raise
        finally:
            if close:
                os.close(fd)
        record.is_set = True
        self.count += 1

    def _clear(self, record: _Sealed) -> None:
        fd, close = self._descriptor(record)
        try:
            self.flags.set_flags(fd, self.flags.get_flags(fd) & ~APPEND)
        finally:
            if close:
                os.close(fd)
        record.is_set = False
        self.count -= 1

    def _drop(self, record: _Sealed, *, forget: bool = True) -> None:
        """Lift it for good. A file that nothing leads to any more, behind pinfs, has gone with its flag."""
        try:
            if record.is_set:
                self._clear(record)
            self._unlist(record)
        except OSError as e:
            log.info("the seal of inode %d cannot be lifted: %s", record.inode.nodeid, e.strerror)
            self.count -= record.is_set
        finally:
            self.files.pop(record.inode.nodeid, None)
            if forget:
                self._inodes.drop_id_if_unreferenced(record.inode.nodeid)

    def _descriptor(self, record: _Sealed) -> tuple[int, bool]:
        """A descriptor for the ioctls, and whether it is to be closed."""
        inode = record.inode
        if inode.file is not None:
            return inode.file.any_fd, False
        try:
            return os.open(self._inodes.magic_path(inode), _READ), True
        except OSError:
            if record.listed is None or not record.listed.handle:
                raise
            return open_handle(self._inodes.root.fd, record.listed.handle, _READ), True

    def _enlist(self, record: _Sealed, fd: int, st: os.stat_result) -> None:
        if self._list is None:
            raise OSError(errno.ENOENT, "there is no list of seals")
        handle = b""
        if st.st_dev == self._inodes.device:
            with suppress(OSError):
                handle = handle_of(fd)
        path = os.fsencode(record.inode.path() or "")
        file = SealedFile(st.st_dev, st.st_ino, handle, path if len(path) < PATH_MAX else b"")
        self._list.add(file)
        record.listed = file

    def _unlist(self, record: _Sealed) -> None:
        if record.listed is not None and self._list is not None:
            self._list.remove(record.listed.device, record.listed.ino)
            record.listed = None


def _unlink(lists: Iterable[Path]) -> None:
    for path in lists:
        with suppress(OSError):
            path.unlink()


class _Lifted:
    __slots__ = ("_record", "_seal")

    def __init__(self, seal: Seal, record: _Sealed) -> None:
        self._seal = seal
        self._record = record

    def __enter__(self) -> None:
        self._seal.lift_for(self._record)

    def __exit__(self, *_: object) -> None:
        self._seal.put_back(self._record)
