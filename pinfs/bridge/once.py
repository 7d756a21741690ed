"""Exactly once: no request is executed a second time, whatever the moment at which the daemon dies (SPEC 13).

The kernel sends what a daemon has read and not answered to the next one again (FUSE_NOTIFY_RESEND). `REPEATABLE` says
for each opcode why that is safe, or how it is made so. Replies are not written down: what is needed to answer again is
in the journal, or is looked up.

A request that changes names, or takes bytes, writes an intent before it begins: what was there before. Between the
system call and its reply stand three stores: `done` (of a cut), EXECUTED, and the end of the intent. A daemon runs one
request at a time from its system call to its reply, so that one word EXECUTED is enough for all.
`pinfs.bridge.resent` reads what is written here.
"""

import os
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from pinfs.bridge import wire
from pinfs.bridge.handlers import Handler, Route, Work
from pinfs.bridge.intents import Facts, IntentWriter
from pinfs.fs.operations import Operations
from pinfs.fs.pendingpins import PendingPins
from pinfs.fs.pins import XATTR_CREATE
from pinfs.fs.recorder import Recorder
from pinfs.fs.restore import Parts, Restored
from pinfs.fs.types import Caller
from pinfs.interface.attributes import PREFIX
from pinfs.journal.records import EXECUTED
from pinfs.linux import syscalls
from pinfs.linux.calls import stat_of


class How(Enum):
    """How a request that is sent again is executed once. `REPEATED`: its second time changes nothing. `BY_RECORD`: what
    it has made is in the journal under its number. `BY_INTENT`: what was there before is. `NEVER`: it does not come
    again."""

    REPEATED = "repeated"
    BY_RECORD = "record"
    BY_INTENT = "intent"
    NEVER = "never"


class Repeatable(NamedTuple):
    how: How
    because: str


def _repeated(because: str) -> Repeatable:
    return Repeatable(How.REPEATED, because)


def _record(because: str) -> Repeatable:
    return Repeatable(How.BY_RECORD, because)


def _intent(because: str) -> Repeatable:
    return Repeatable(How.BY_INTENT, because)


def _never(because: str) -> Repeatable:
    return Repeatable(How.NEVER, because)


_READS: Final = _repeated("it only reads")
_LOOKS_UP: Final = _repeated("it only reads; the inode may count one lookup too many until the kernel forgets it")
_SYNCS: Final = _repeated("what has reached the disk stays there")
_MAKES: Final = _intent("the name was free before, and leads to something of that kind now")
_REMOVES: Final = _intent("the name no longer leads to what it led to before")
_MOVES: Final = _intent("the new name leads to what the old one led to before, and the old one does not")
_COPIES: Final = _repeated("the caller holds the lock of the target, which gets what the source has now")

REPEATABLE: Final[dict[int, Repeatable]] = {
    wire.LOOKUP: _LOOKS_UP,
    wire.FORGET: _never("no caller waits for it; removed inodes that the kernel forgot go after the take-over"),
    wire.BATCH_FORGET: _never("as FORGET"),
    wire.INTERRUPT: _never("the kernel sends a new one, after the request that it interrupts"),
    wire.INIT: _never("a mount outlives its daemon only after the reply to it"),
    wire.NOTIFY_REPLY: _never("pinfs asks for none"),
    wire.GETATTR: _READS,
    wire.SETATTR: _repeated("it sets the same again; the caller holds the lock of the file, so nothing comes between"),
    wire.STATX: _READS,
    wire.ACCESS: _READS,
    wire.MKNOD: _MAKES,
    wire.MKDIR: _MAKES,
    wire.SYMLINK: _MAKES,
    wire.LINK: _intent("the name was free before, and leads to the file now"),
    wire.READLINK: _READS,
    wire.UNLINK: _REMOVES,
    wire.RMDIR: _REMOVES,
    wire.RENAME: _MOVES,
    wire.RENAME2: _MOVES,
    wire.OPEN: _record("the handle; with O_TRUNC an intent as well, because others may have written since"),
    wire.CREATE: _record("the handle; until it is there an intent: the name was free before, and leads to a file now"),
    wire.TMPFILE: _record("the handle; a file without one is gone with the daemon"),
    wire.READ: _repeated("it only reads; an event channel knows which request took which lines"),
    wire.WRITE: _repeated("the same bytes at the same place; an event channel knows which commands are done"),
    wire.RELEASE: _repeated("the kernel does not look at the reply, which is EBADF for a handle that is closed"),
    wire.FLUSH: _repeated("it is answered ENOSYS"),
    wire.FSYNC: _SYNCS,
    wire.FALLOCATE: _intent("bytes were taken, or the size has changed by as many; allocating them is repeated"),
    wire.LSEEK: _READS,
    wire.COPY_FILE_RANGE: _COPIES,
    wire.COPY_FILE_RANGE_64: _COPIES,
    wire.IOCTL: _record("the pin, or the release of a pin; file flags are set to the same again"),
    wire.POLL: _repeated("it only reads; a handle that is woken once more is read once more"),
    wire.OPENDIR: _record("the handle"),
    wire.READDIR: _READS,
    wire.READDIRPLUS: _LOOKS_UP,
    wire.RELEASEDIR: _repeated("as RELEASE"),
    wire.FSYNCDIR: _SYNCS,
    wire.SETXATTR: _record("the pin; an attribute is set to the same again, with XATTR_CREATE by an intent"),
    wire.GETXATTR: _record("the release of a pin; else it only reads"),
    wire.LISTXATTR: _READS,
    wire.REMOVEXATTR: _record(
        "the release of a pin; of other attributes an intent: it was there before, and is not now"
    ),
    wire.STATFS: _READS,
    wire.SYNCFS: _SYNCS,
    wire.DESTROY: _repeated("it does nothing"),
}

MAKE_NAMES: Final = (wire.MKNOD, wire.MKDIR, wire.SYMLINK, wire.LINK)
NAMES_AT: Final = {
    wire.MKNOD: wire.MKNOD_IN.size,
    wire.MKDIR: wire.MKDIR_IN.size,
    wire.SYMLINK: 0,
    wire.LINK: 8,
    wire.UNLINK: 0,
    wire.RMDIR: 0,
    wire.RENAME: 8,
    wire.RENAME2: wire.RENAME2_IN.size,
    wire.CREATE: wire.CREATE_IN.size,
}
"""Where the names of a request begin, in bytes of its body."""
MOVES_TAIL: Final = syscalls.FALLOC_FL_COLLAPSE_RANGE | syscalls.FALLOC_FL_INSERT_RANGE
_CUTS: Final = MOVES_TAIL | syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_ZERO_RANGE
_TRUNC_BYTE: Final = os.O_TRUNC >> 8

NOTHING_THERE: Final[Facts] = (0, 0, 0, 0, 0, 0)
FactsOf = Callable[[int, memoryview], Facts | None]
"""The facts before a request on an inode; None: it changes nothing that needs an intent. OSError: the request fails."""


class Once:
    """Writes the intents of one mount. `restored`: what the daemon before has left, where this one takes over;
    `pending`: the pins that it still restores."""

    def __init__(
        self,
        recorder: Recorder,
        ops: Operations,
        parts: Parts,
        restored: Restored | None = None,
        pending: PendingPins | None = None,
    ) -> None:
        self.recorder = recorder
        self.ops = ops
        self.parts = parts
        self.restored = restored
        self.pending = pending
        self.plain: dict[int, Route] = {}
        """The routes without intents."""
        self.intents = IntentWriter(recorder, parts.inodes, parts.guard.book.files)
        self._inodes = parts.inodes
        self._slow_names = ops.submounts.names
        parts.guard.cuts.on_done = self.intents.done

    def routes(self, routes: dict[int, Route]) -> dict[int, Route]:
        """Those of these routes that need intents, with them."""
        self.plain = dict(routes)
        wrapped = {
            opcode: self._names(opcode, routes, facts_of)
            for opcode, facts_of in (
                *((opcode, self._of_free_name(opcode)) for opcode in MAKE_NAMES),
                *((opcode, self._of_victim) for opcode in (wire.UNLINK, wire.RMDIR)),
                *((opcode, self._of_rename(opcode)) for opcode in (wire.RENAME, wire.RENAME2)),
                (wire.CREATE, self._of_create),
            )
        }
        wrapped |= {
            wire.OPEN: self._open(routes[wire.OPEN].handler),
            wire.FALLOCATE: self._with_intent(wire.FALLOCATE, routes[wire.FALLOCATE].handler, self._of_fallocate),
            wire.SETXATTR: self._setxattr(routes[wire.SETXATTR]),
            wire.REMOVEXATTR: self._removexattr(routes[wire.REMOVEXATTR].handler),
        }
        return {opcode: Route(handler, routes[opcode].shortest) for opcode, handler in wrapped.items()}

    # Intents of handlers

    def _with_intent(self, opcode: int, handler: Handler, facts_of: FactsOf) -> Handler:
        words, free, cuts = self.recorder.slots.words, self.recorder.slots.free, self.intents.cuts
        is_cut = opcode in (wire.OPEN, wire.CREATE, wire.FALLOCATE)

        async def once(nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
            facts = facts_of(nodeid, body)
            if facts is None:
                return await handler(nodeid, ctx, body)
            unique = ctx[4]
            slot = self.intents.write(unique, opcode, facts)
            if is_cut:
                cuts[unique] = slot
            try:
                reply = await handler(nodeid, ctx, body)
                words[EXECUTED] = unique
                return reply
            finally:
                if is_cut:
                    del cuts[unique]
                if slot:
                    free(slot)

        return once

    # Names

    def _names(self, opcode: int, routes: dict[int, Route], facts_of: FactsOf) -> Handler:
        """For a request with names: what is mounted there may have to be waited for."""
        once, slow_names = self._with_intent(opcode, routes[opcode].handler, facts_of), self._slow_names

        async def after_answer(nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
            await self.reach(opcode, nodeid, body)
            return await once(nodeid, ctx, body)

        def work(nodeid: int, ctx: Caller, body: memoryview) -> Work:
            return after_answer(nodeid, ctx, body) if slow_names else once(nodeid, ctx, body)

        return work

    async def reach(self, opcode: int, nodeid: int, body: memoryview) -> None:
        """Return when what is mounted on the names of a request answers."""
        if not self._slow_names:
            return
        old, *new = body[NAMES_AT[opcode] :].tobytes().split(b"\0")[:2]
        await self._reach_name(nodeid, old)
        if opcode in (wire.RENAME, wire.RENAME2) and new:
            await self._reach_name(wire.U64.unpack_from(body)[0], new[0])

    async def _reach_name(self, nodeid: int, name: bytes) -> None:
        directory = self._inodes.known(nodeid)
        if name in self._slow_names and directory is not None:
            await self.ops.submounts.reach_name(directory, name)

    def behind(self, nodeid: int, name: bytes) -> os.stat_result | None:
        """What a name leads to; None: nothing. OSError: as lstat(2)."""
        directory = self._inodes.known(nodeid)
        if directory is None or b"/" in name:  # of .pinfs, or malformed
            return None
        try:
            return os.stat(name, dir_fd=self._inodes.fd(directory), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _is_free(self, nodeid: int, name: bytes) -> bool:
        directory = self._inodes.known(nodeid)
        if directory is None or b"/" in name:
            return False
        return not os.access(name, os.F_OK, dir_fd=self._inodes.fd(directory), follow_symlinks=False)

    def _of_free_name(self, opcode: int) -> FactsOf:
        offset = NAMES_AT[opcode]

        def facts(nodeid: int, body: memoryview) -> Facts | None:
            name, _, _ = body[offset:].tobytes().partition(b"\0")
            return NOTHING_THERE if self._is_free(nodeid, name) else None

        return facts

    def _of_victim(self, nodeid: int, body: memoryview) -> Facts | None:
        st = self.behind(nodeid, wire.name_of(body))
        if st is None:
            return None
        self._keep(st)
        return st.st_dev, st.st_ino, 0, 0, 0, 0

    def _of_rename(self, opcode: int) -> FactsOf:
        offset = NAMES_AT[opcode]

        def facts(nodeid: int, body: memoryview) -> Facts | None:
            (new_parent,) = wire.U64.unpack_from(body)
            name, new_name = wire.names_of(body, offset)
            old, new = self.behind(nodeid, name), self.behind(new_parent, new_name)
            if old is None:
                return None
            if new is None:
                return old.st_dev, old.st_ino, 0, 0, 0, 0
            self._keep(new)
            return old.st_dev, old.st_ino, new.st_dev, new.st_ino, 0, 0

        return facts

    def _keep(self, st: os.stat_result) -> None:
        """Before the last name of a file goes: a file that is in use must not go with this daemon."""
        if st.st_nlink == 1:
            victim = self._inodes.find(stat_of(st))
            if victim is not None:
                self.intents.keep(victim)

    # Bytes

    def _of_create(self, nodeid: int, body: memoryview) -> Facts | None:
        name, _, _ = body[16:].tobytes().partition(b"\0")
        if self._is_free(nodeid, name):
            return NOTHING_THERE
        if not body[1] & _TRUNC_BYTE:
            return None
        st = self.behind(nodeid, name)
        return None if st is None else (st.st_dev, st.st_ino, 0, 0, st.st_size, 1)

    def _open(self, handler: Handler) -> Handler:
        once = self._with_intent(wire.OPEN, handler, self._of_open)

        def open_(nodeid: int, ctx: Caller, body: memoryview) -> Work:
            return once(nodeid, ctx, body) if body[1] & _TRUNC_BYTE else handler(nodeid, ctx, body)

        return open_

    def _of_open(self, nodeid: int, body: memoryview) -> Facts | None:
        inode = self._inodes.known(nodeid)
        return None if inode is None else (0, 0, 0, 0, self._inodes.stat(inode).st_size, 1)

    def _of_fallocate(self, nodeid: int, body: memoryview) -> Facts | None:
        _, _, _, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
        inode = self._inodes.known(nodeid) if mode & _CUTS else None
        return None if inode is None else (0, 0, 0, 0, self._inodes.stat(inode).st_size, 1)

    # Attributes

    def _setxattr(self, route: Route) -> Handler:
        """Only with XATTR_CREATE: the same value may be set again."""
        handler, offset = route.handler, name_offset(route)
        once = self._with_intent(wire.SETXATTR, handler, self._of_attribute(offset))

        def setxattr(nodeid: int, ctx: Caller, body: memoryview) -> Work:
            return once(nodeid, ctx, body) if body[4] & XATTR_CREATE else handler(nodeid, ctx, body)

        return setxattr

    def _removexattr(self, handler: Handler) -> Handler:
        """Pins have records."""
        once, size = self._with_intent(wire.REMOVEXATTR, handler, self._of_attribute(0)), len(PREFIX)

        def removexattr(nodeid: int, ctx: Caller, body: memoryview) -> Work:
            return handler(nodeid, ctx, body) if body[:size].tobytes() == PREFIX else once(nodeid, ctx, body)

        return removexattr

    def _of_attribute(self, offset: int) -> FactsOf:
        def facts(nodeid: int, body: memoryview) -> Facts | None:
            name, _, _ = body[offset:].tobytes().partition(b"\0")
            inode = self._inodes.known(nodeid)
            if inode is None or name.startswith(PREFIX):
                return None
            return 0, 0, 0, 0, 0, self.intents.has_attribute(inode, name)

        return facts


def name_offset(route: Route) -> int:
    """Where the name of a SETXATTR begins, in bytes of the body, which depends on SETXATTR_EXT: the shortest one holds
    a name of one byte."""
    return route.shortest - wire.IN_SIZE - 2
