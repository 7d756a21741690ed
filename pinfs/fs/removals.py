"""The operations by which bytes leave a file. Each states its removal once and passes through the one guard (SPEC 2).

The order of checks is that of SPEC 2: what the backing itself would refuse, then whether there is anything to take
away, then the pins. A holder is never notified of a removal that would fail anyway.
"""

import errno
import os
import stat
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import trio

from pinfs.core.ranges import END
from pinfs.core.removals import Removal, Turn
from pinfs.enforce.guard import Breaker, Guard, RemovalCall, Removing
from pinfs.fs.backing import Backing
from pinfs.fs.handles import FileHandle
from pinfs.fs.inode import O_PATH_NOFOLLOW, Inode, Name, stale
from pinfs.fs.inodes import InodeTable
from pinfs.fs.leases import after_lease
from pinfs.fs.lives import life_of
from pinfs.fs.set_ids import SetIds
from pinfs.fs.types import CallerLike, StatLike, os_error
from pinfs.linux import syscalls
from pinfs.linux.calls import attributes_of, stat_of

T = TypeVar("T")

_FIXED: Final = syscalls.STATX_ATTR_IMMUTABLE | syscalls.STATX_ATTR_APPEND
_TAKES_RANGE: Final = {
    syscalls.FALLOC_FL_PUNCH_HOLE: "punch_hole",
    syscalls.FALLOC_FL_ZERO_RANGE: "zero_range",
}
_TAKES_TAIL: Final = {
    syscalls.FALLOC_FL_COLLAPSE_RANGE: "collapse_range",
    syscalls.FALLOC_FL_INSERT_RANGE: "insert_range",
}


class Removals:
    """All removals of one mount.

    Where nothing is pinned and no policy minds mappings (`is_guarded`), which is nearly always, they go straight on.
    Where the kernel may make the backing wait (`Backing.may_wait`), they run outside the event loop, with a deadline.
    Else they may wait for holders, and fail with EBUSY (ETXTBSY by policy `errno`), EINTR when the caller is
    interrupted, and EAGAIN where its handle does not block (SPEC 3).
    """

    def __init__(self, inodes: InodeTable, backing: Backing, guard: Guard, set_ids: SetIds) -> None:
        self._inodes = inodes
        self._backing = backing
        self._guard = guard
        self._set_ids = set_ids
        self._seal = backing.seal
        self._threads = backing.threads
        self.open_writer: Callable[[Inode, bool], Coroutine[Any, Any, AbstractContextManager[int]]] = self._writing
        """`Backing.writing`, where that waits for another process to give up its lease: (inode, nonblock)."""
        self._files = guard.book.files  # an inode is in it iff it has pins or a removal is under way

    def is_guarded(self, inode: Inode) -> bool:
        """Whether a removal from this inode has to ask the guard."""
        return self._is_pinned_here(inode) or self._guard.must_ask(inode.nodeid)

    def _is_pinned_here(self, inode: Inode) -> bool:
        return inode.nodeid in self._files or self._guard.minds_mappings

    # Data

    async def truncate(
        self,
        inode: Inode,
        size: int,
        op: str,
        caller: CallerLike,
        handle: FileHandle | None = None,
        nonblock: bool = False,
    ) -> None:
        """truncate(2) to `size` bytes. `op` names the call in events; `nonblock`: of an open with O_NONBLOCK."""
        if self.truncate_at_once(inode, size, caller):
            return
        may_wait = self._backing.may_wait(inode)
        with await self.open_writer(inode, nonblock) as fd:
            st = os.fstat(fd) if self._threads is None else await self._backing.off_thread(os.fstat, fd)
            takes = size < st.st_size or self._guard.hosts is not None  # another host may make it larger meanwhile
            if not may_wait and (not takes or self._guard.is_free(inode.nodeid, size, END)):
                with self._seal.lifted(inode), self._set_ids.keeping_of(fd):
                    os.ftruncate(fd, size)
                self._done(caller)
                return
            cut = partial(self._ftruncate, size)
            call = RemovalCall(
                inode.nodeid,
                inode.path,
                op,
                size,
                END,
                caller,
                check=partial(self._check_may_shrink, inode, fd, syscalls.STATX_ATTR_APPEND),
                handle=None if handle is None else handle.number,
                nonblock=nonblock or (handle is not None and handle.nonblocking),
            )
            await self._take(inode, call, fd, cut, takes=takes, may_wait=may_wait)

    def truncate_at_once(self, inode: Inode, size: int, caller: CallerLike) -> bool:
        """The usual case of `truncate`: the file is open for writing, and no one is to be asked. False: it is not."""
        file = inode.file
        if file is None or file.writer < 0 or self._backing.may_wait(inode):
            return False
        if self.is_guarded(inode):
            shrinks = self._guard.hosts is not None or size < os.lseek(file.writer, 0, os.SEEK_END)
            if shrinks and not self._guard.is_free(inode.nodeid, size, END):
                return False
        self.cut_open(inode, size, caller)
        return True

    def cut_open(self, inode: Inode, size: int, caller: CallerLike) -> None:
        """The ftruncate(2) itself, of a file that is open for writing."""
        file = inode.file
        assert file is not None
        if self._seal.files or self._set_ids.has_set_ids(inode):
            with self._seal.lifted(inode), self._set_ids.keeping(inode):
                os.ftruncate(file.writer, size)
        else:
            os.ftruncate(file.writer, size)
        self._done(caller)

    def judge_truncate(self, inode: Inode, size: int, caller: CallerLike) -> "JudgedTruncate | None":
        """The same case of `truncate` once more, where `truncate_at_once` has found that pins are in the way: the guard
        has judged. None: it is another case, or the guard has to wait first."""
        file = inode.file
        if file is None or file.writer < 0 or self._backing.may_wait(inode):
            return None
        check = partial(self._check_may_shrink, inode, file.writer, syscalls.STATX_ATTR_APPEND)
        call = RemovalCall(inode.nodeid, inode.path, "truncate", size, END, caller, check)
        removal = self._guard.judge_at_once(call)
        return None if removal is None else JudgedTruncate(self, inode, size, caller, removal)

    def hold_open(self, inode: Inode) -> None:
        """A removal begins that the end of the last handle must not find without a descriptor."""
        assert inode.file is not None
        inode.file.opens += 1

    def end(self, removal: Removal, inode: Inode) -> None:
        """It is over, and so is `hold_open`."""
        try:
            self._guard.book.leave(removal, trio.current_time())
        finally:
            self._backing.release(inode)

    async def _writing(self, inode: Inode, nonblock: bool) -> AbstractContextManager[int]:
        """`Backing.writing`, outside the event loop while another process gives up its lease: truncate(2) waits for
        that as open(2) does, but has no O_NONBLOCK. EAGAIN: as `after_lease`."""
        try:
            return self._backing.writing(inode)
        except BlockingIOError:
            path_fd = self._inodes.open(inode, O_PATH_NOFOLLOW)
            flags = os.O_WRONLY | (os.O_NONBLOCK if nonblock else 0)
            return await after_lease(partial(self._backing.writing, inode), path_fd, flags)

    def _ftruncate(self, size: int, fd: int) -> None:
        with self._set_ids.keeping_of(fd):
            syscalls.ftruncate(fd, size)

    async def fallocate(self, handle: FileHandle, mode: int, offset: int, length: int, caller: CallerLike) -> None:
        """fallocate(2) of `length` bytes from `offset` on. EOPNOTSUPP: the backing does not know this mode."""
        inode = handle.inode
        cut = partial(self._fallocate, mode, offset, length)
        may_wait, guarded = self._backing.may_wait(inode), self.is_guarded(inode)
        with self._backing.writing(inode) as fd:
            taken = await self._taken(fd, mode, offset, length) if guarded or may_wait else None
            if taken is not None and guarded:
                await self._ask(self._backing.must_support_fallocate, fd, mode)
            if taken is None and not may_wait:
                with self._seal.lifted(inode):
                    cut(fd)
                self._done(caller)
            else:
                call = RemovalCall(
                    inode.nodeid,
                    inode.path,
                    *(taken or ("fallocate", offset, offset + length)),
                    caller,
                    check=partial(self._check_may_shrink, inode, fd, _FIXED),
                    handle=handle.number,
                    nonblock=handle.nonblocking,
                )
                await self._take(inode, call, fd, cut, takes=taken is not None, may_wait=may_wait)

    async def _taken(self, fd: int, mode: int, offset: int, length: int) -> tuple[str, int, int] | None:
        """The operation's name and the bytes [start, end) that fallocate(2) takes away; None where it takes nothing."""
        if self._guard.hosts is not None:  # another host may make it larger meanwhile
            return taken_by_fallocate(END, mode, offset, length)
        size = (await self._ask(os.fstat, fd)).st_size
        return taken_by_fallocate(size, mode, offset, length)

    async def _ask(self, call: Callable[..., T], *args: object) -> T:
        """Here, or in a thread where the source may never answer."""
        return call(*args) if self._threads is None else await self._threads.run(args or call, partial(call, *args))

    def _fallocate(self, mode: int, offset: int, length: int, fd: int) -> None:
        with self._set_ids.keeping_of(fd):
            syscalls.fallocate(fd, mode, offset, length)

    async def _take(
        self, inode: Inode, call: RemovalCall, fd: int, cut: Callable[[int], None], *, takes: bool, may_wait: bool
    ) -> None:
        """Have the guard decide, and make `cut` on the descriptor: here, or in a thread where it `may_wait`
        (`Cuts.around` lifts the seal then)."""
        if self._threads is not None:
            await self._ask(call.check)
            call = call._replace(check=_checked)
        if may_wait:
            await self._guard.cut(call, fd, cut, takes=takes)
        else:
            async with self._guard.removal(call):
                with self._seal.lifted(inode):
                    cut(fd)
                self._done(call.caller)

    def _done(self, caller: Breaker) -> None:
        self._guard.cuts.on_done(getattr(caller, "unique", 0))

    def _check_may_shrink(self, inode: Inode, fd: int, attributes: int) -> None:
        """EPERM: the file has become append-only or immutable since it was opened (do_ftruncate(), vfs_fallocate())."""
        if self._seal.attributes(inode, attributes_of(fd)) & attributes:
            raise os_error(errno.EPERM)

    async def until_unlocked(self, *inodes: Inode | None) -> None:
        """Return when the kernel has finished the removals of these files (SPEC 3.9): it locks them meanwhile, and
        calls that need the lock would block the event loop. EBUSY: it does not finish."""
        for inode in inodes:
            if inode is not None and inode.nodeid in self._guard.cuts.inodes:
                await self._guard.until_uncut(inode.nodeid, inode.path())

    # Names

    def takes_all(self, victim: Inode) -> bool:
        """Whether a name that goes takes guarded bytes with it: it is the last one of its file, or could be, as other
        hosts take names as well."""
        if not victim.is_file:
            return False
        if self._guard.must_ask(victim.nodeid):
            return True
        return self._is_pinned_here(victim) and self._inodes.stat(victim).st_nlink == 1

    def _keeps(self, victim: Inode) -> bool:
        """`RemovalCall.keeps`: with other hosts only, as else `takes_all` has seen that there is one name."""
        return self._guard.hosts is not None and self._inodes.stat(victim).st_nlink > 1

    def unlink(self, victim: Inode, name: Name, caller: CallerLike) -> AbstractAsyncContextManager[Removing]:
        """Inside of it a name of `victim` may go."""
        check = partial(self.check_may_go, victim, name[0])
        call = RemovalCall(victim.nodeid, victim.path, "unlink", 0, END, caller, check, keeps=self._keeps(victim))
        return self._guard.removal(call)

    def replace(
        self, victim: Inode, new: Name, moved: Inode | None, old: Name, caller: CallerLike
    ) -> AbstractAsyncContextManager[Removing]:
        """The same for a rename over it: of `moved` (None: not known) from `old` to `new`, the name of `victim`."""
        check = partial(self.check_may_replace, victim, new[0], moved, old[0])
        call = RemovalCall(victim.nodeid, victim.path, "rename", 0, END, caller, check, keeps=self._keeps(victim))
        return self._guard.removal(call)

    def takes_all_of(self, victim: Inode | None, st: os.stat_result) -> bool:
        """`takes_all` of an inode with attributes that are known, for a call in a thread: with other hosts that of any
        file, which they may pin while it goes."""
        if victim is None or not victim.is_file:
            return False
        return self._guard.hosts is not None or (st.st_nlink == 1 and self.is_guarded(victim))

    def check_unknown_apart(self, st: StatLike) -> None:
        """`check_unknown` for a call in a thread: other hosts may pin the file while it goes."""
        if self._guard.hosts is not None and st.st_ino and stat.S_ISREG(st.st_mode):
            raise stale()

    def begin_unseen(self) -> Callable[[], None]:
        """A call begins in a thread that takes a name which leads to no file, as far as this host knows. Call what is
        returned when it is over: until then no host pins a file that it does not know of."""
        hosts = self._guard.hosts
        return _checked if hosts is None else hosts.begin_unseen()

    def hold(self, removing: Removing) -> Callable[[], None]:
        """A call begins in a thread that takes a name of a file. Call what is returned when it is over: until then
        the removal stands, and no host pins a file that it does not know of, for another host may put one under the
        name after `check_apart`."""
        ended, over = removing.hold(), self.begin_unseen()

        def both() -> None:
            over()
            ended()

        return both

    def check_unknown(self, st: StatLike) -> None:
        """Before a name of a file goes that is not known here. ESTALE, by which the kernel looks the name up and tries
        again: other hosts may have pinned it."""
        if st.st_ino and stat.S_ISREG(st.st_mode) and self._guard.must_ask(st.st_ino):
            raise stale()

    def check_unknown_name(self, name: Name) -> None:
        """The same for what is under this name, if anything is."""
        if self._guard.hosts is not None:
            with suppress(FileNotFoundError):
                self.check_unknown(os.stat(name[1], dir_fd=self._inodes.fd(name[0]), follow_symlinks=False))

    def checked(
        self, victim: Inode, st: os.stat_result, op: str, caller: CallerLike
    ) -> AbstractAsyncContextManager[Removing]:
        """`unlink` or `replace` after `check_may_go` or `check_may_replace`; what is inside runs in a thread, where
        `check_apart` comes first. `st`: of the victim."""
        keeps = st.st_nlink > 1
        call = RemovalCall(victim.nodeid, victim.path, op, 0, END, caller, _checked, keeps=keeps)
        return self._guard.removal_in_thread(call)

    def check_apart(self, victim: Inode, life: bytes, name: bytes, directory_fd: int, removing: Removing) -> None:
        """In the thread, right before the call: as `check_still_there`, and EIO as `Guard.check`. `life` of the victim,
        if it tells it from another file with its number.

        With other hosts the server is asked: the kernel may believe for a minute that the name leads to the victim,
        while another host has put a file under it and pinned that one. Until this removal is over it cannot.
        """
        if self._guard.hosts is not None:
            syscalls.wait_for_attributes(directory_fd)
        fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=directory_fd)
        try:
            if self._inodes.key_of(stat_of(os.fstat(fd))) != victim.key or (life and life_of(fd) != life):
                raise stale()
        finally:
            os.close(fd)
        removing.check()

    def check_no_file_apart(self, name: bytes, directory_fd: int) -> None:
        """In the thread, right before a name of a symbolic link or a special file goes. ESTALE: with other hosts it may
        lead to a file by now, which one of them has pinned."""
        if self._guard.hosts is not None:
            syscalls.wait_for_attributes(directory_fd)
            if stat.S_ISREG(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
                raise stale()

    def check_still_there(self, victim: Inode, name: Name) -> None:
        """After the wait. ESTALE: a change behind pinfs has put another file under the name meanwhile."""
        if self.is_guarded(victim) and self._inodes.find_name(name) is not victim:
            raise stale()

    def check_may_go(self, victim: Inode, directory: Inode) -> None:
        """EROFS, EPERM: what may_delete() in the kernel would find in the backing."""
        directory_fd = self._inodes.fd(directory)
        if os.fstatvfs(directory_fd).f_flag & os.ST_RDONLY:
            raise os_error(errno.EROFS)
        if (attributes_of(directory_fd) | self._attributes(victim)) & _FIXED:
            raise os_error(errno.EPERM)

    def check_may_replace(self, victim: Inode, directory: Inode, moved: Inode | None, source: Inode) -> None:
        """The same for a rename over it. EXDEV, ENOTDIR."""
        if self._inodes.stat(source).st_dev != self._inodes.stat(directory).st_dev:
            raise os_error(errno.EXDEV)
        self.check_may_go(victim, directory)
        if moved is not None:
            self.check_may_go(moved, source)
            if moved.kind == stat.S_IFDIR:
                raise os_error(errno.ENOTDIR)

    def _attributes(self, inode: Inode) -> int:
        return self._seal.attributes(inode, attributes_of(self._inodes.fd(inode)))


class JudgedTruncate:
    """A truncate that is ready, waits, or is refused; `cut` or `leave` ends it."""

    __slots__ = ("_caller", "_removal", "_removals", "_size", "inode")

    def __init__(self, removals: Removals, inode: Inode, size: int, caller: CallerLike, removal: Removal) -> None:
        self.inode = inode
        self._removals = removals
        self._size = size
        self._caller = caller
        self._removal = removal
        removals.hold_open(inode)

    def waits(self, wake: Callable[[], None]) -> bool:
        """Whether its turn is still to come; `wake` is called then."""
        self._removal.wake = wake
        return self._removal.turn is Turn.WAITING

    def cut(self) -> None:
        """Its turn has come. OSError: it is refused (SPEC 3)."""
        removal = self._removal
        try:
            if removal.turn is Turn.REFUSED:
                raise OSError(removal.errno, removal.why)
            self._removals.cut_open(self.inode, self._size, self._caller)
        finally:
            self.leave()

    def leave(self) -> None:
        """It is over; the breaks of one that waits go on."""
        self._removals.end(self._removal, self.inode)


def _checked() -> None:
    """Where the check has been made already."""


def taken_by_fallocate(size: int, mode: int, offset: int, length: int) -> tuple[str, int, int] | None:
    """The operation's name and the bytes [start, end) that fallocate(2) takes from `size` bytes; None: none."""
    if offset < 0 or length <= 0 or offset >= size:
        return None
    for flag, op in _TAKES_RANGE.items():
        if mode & flag:
            return op, offset, offset + length
    for flag, op in _TAKES_TAIL.items():
        if mode & flag:
            return op, offset, END
    return None
