"""Answers the requests that the daemon before had read and not answered: was it executed, or not (SPEC 13).

`pinfs.bridge.once` has written down what is compared here. A request that was executed is answered from the journal, or
from what is found now, and the inode table hears of what the daemon before could not tell it any more. All others are
executed as if they came for the first time. This daemon may die in the middle of it as well: what it decides by stays
in the journal until the request has been answered.
"""

import errno
import os
import stat
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final

from pinfs.bridge import wire
from pinfs.bridge.connection import RESENT, Request
from pinfs.bridge.gate import Gate
from pinfs.bridge.handlers import Handler, Handlers, Route, sized
from pinfs.bridge.once import (
    MAKE_NAMES,
    MOVES_TAIL,
    NAMES_AT,
    Once,
    name_offset,
)
from pinfs.fs import ioctls
from pinfs.fs.control import ControlHandle
from pinfs.fs.handles import FileHandle, Handle
from pinfs.fs.inode import Inode, Name
from pinfs.fs.pins import RELEASED, XATTR_CREATE
from pinfs.fs.restore import Restored
from pinfs.fs.types import Caller, Entry, Opened, SetAttr, os_error
from pinfs.interface.attributes import PREFIX
from pinfs.journal.records import EXECUTED, WAS_EXECUTED, IntentRecord
from pinfs.linux import syscalls
from pinfs.linux.calls import stat_of

_WITHOUT_CREATING: Final = ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)

Answer = Coroutine[Any, Any, bytes | None]
"""The reply to a request that was executed; None: it was not, or may be executed again."""


class Resent:
    """Answers resent requests. `routes`: of all others; `gate`: stands before files whose pins are not there yet."""

    def __init__(
        self, once: Once, restored: Restored, handlers: Handlers, routes: dict[int, Route], gate: Gate | None = None
    ) -> None:
        self._once = once
        self._restored = restored
        self._handlers = handlers
        self._routes = routes
        self._gate = gate
        self._ops = once.ops
        self._parts = once.parts
        self._inodes = once.parts.inodes
        self._recorder = once.recorder
        self._answers: dict[int, Callable[[int, Caller, memoryview], Answer]] = {
            wire.UNLINK: self._removed,
            wire.RMDIR: self._removed,
            wire.OPEN: self._opened,
            wire.CREATE: self._created,
            wire.TMPFILE: self._made_nameless,
            wire.OPENDIR: self._opened_directory,
            wire.FALLOCATE: self._fallocated,
            wire.SETXATTR: self._set_attribute,
            wire.GETXATTR: self._released,
            wire.REMOVEXATTR: self._removed_attribute,
            wire.IOCTL: self._ioctl,
        }

    def handler(self, opcode: int, route: Route) -> Handler:
        """What answers resent requests that would take this route."""
        handler = partial(self.answer, opcode)
        return handler if self._gate is None else self._gate.before(opcode, Route(handler, route.shortest)).handler

    async def answer(self, opcode: int, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """The reply to a request with a route, executed now where it was not."""
        try:
            reply = await self._answer_of(opcode, nodeid, ctx, body)
            if reply is not None:
                self._recorder.slots.words[EXECUTED] = ctx.unique
                return reply
        finally:
            self._drop_intent(ctx.unique)
        return await self._routes[opcode].handler(nodeid, ctx, body)

    def _answer_of(self, opcode: int, nodeid: int, ctx: Caller, body: memoryview) -> Answer:
        if opcode in MAKE_NAMES:
            return self._made(opcode, nodeid, ctx, body)
        if opcode in (wire.RENAME, wire.RENAME2):
            return self._renamed(opcode, nodeid, ctx, body)
        return self._answers.get(opcode, _not_executed)(nodeid, ctx, body)

    def begin(self, requests: Iterable[Request]) -> None:
        """These come first: what their answers have counted is counted again."""
        unanswered = {request.unique & ~RESENT for request in requests if request.is_resent}
        self._recorder.take_back_lookups(self._inodes, unanswered)

    def finish(self, requests: Iterable[Request]) -> None:
        """These are all that there are: what is known of others, whose callers have ended, is of no use any more."""
        for unique in self._restored.intents.keys() - {request.unique & ~RESENT for request in requests}:
            self._drop_intent(unique)

    def _drop_intent(self, unique: int) -> None:
        if slot := self._restored.intent_slots.pop(unique, 0):
            self._recorder.slots.free(slot)

    def _intent(self, ctx: Caller) -> IntentRecord | None:
        return self._restored.intents.get(ctx.unique)

    def _is_executed(self, ctx: Caller) -> bool:
        intent = self._intent(ctx)
        return intent is not None and intent.opcode == WAS_EXECUTED

    # Names

    async def _made(self, opcode: int, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """MKNOD, MKDIR, SYMLINK, LINK."""
        await self._once.reach(opcode, nodeid, body)
        name = _name_at(body, NAMES_AT[opcode])
        if self._is_executed(ctx):
            return await self._entry(nodeid, ctx, name, is_counted=True)
        st = self._once.behind(nodeid, name) if self._intent(ctx) else None
        if st is None or not self._is_of_kind(opcode, st, body):
            return None
        return await self._entry(nodeid, ctx, name, is_counted=False)

    def _is_of_kind(self, opcode: int, st: os.stat_result, body: memoryview) -> bool:
        kind = stat.S_IFMT(st.st_mode)
        if opcode == wire.LINK:
            inode = self._inodes.known(wire.U64.unpack_from(body)[0])
            return inode is not None and self._inodes.key_of(stat_of(st)) == inode.key
        if opcode == wire.MKNOD:
            return kind == (stat.S_IFMT(wire.MKNOD_IN.unpack_from(body)[0]) or stat.S_IFREG)
        return kind == (stat.S_IFDIR if opcode == wire.MKDIR else stat.S_IFLNK)

    async def _entry(self, nodeid: int, ctx: Caller, name: bytes, *, is_counted: bool) -> bytes:
        """The entry of a name. `is_counted`: the daemon before has counted this lookup. ENOENT."""
        reply = await self._handlers.lookup(nodeid, _for_good(ctx), memoryview(name + b"\0"))
        (found,) = wire.U64.unpack_from(reply)
        if not found:
            raise os_error(errno.ENOENT)
        if is_counted:
            self._ops.forget([(found, 1)])
        return reply

    async def _removed(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """UNLINK, RMDIR."""
        if self._is_executed(ctx):
            return b""
        intent = self._intent(ctx)
        if intent is None:
            return None
        await self._once.reach(wire.UNLINK, nodeid, body)
        name = wire.name_of(body)
        if _leads_to(self._once.behind(nodeid, name), intent.device, intent.ino):
            return None
        self._lose(self._inodes.find_key(intent.device, intent.ino), (self._inodes.get(nodeid), name))
        return b""

    def _lose(self, victim: Inode | None, name: Name) -> None:
        """The table has not heard that a name is gone."""
        if victim is not None:
            self._inodes.drop_name(victim, *name)
            if victim.name is None:
                self._parts.backing.close_idle(victim)

    async def _renamed(self, opcode: int, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """RENAME, RENAME2."""
        if self._is_executed(ctx):
            return b""
        intent = self._intent(ctx)
        if intent is None:
            return None
        await self._once.reach(opcode, nodeid, body)
        new_parent, flags, _ = wire.RENAME2_IN.unpack_from(body.tobytes().ljust(wire.RENAME2_IN.size, b"\0"))
        exchanges = opcode == wire.RENAME2 and bool(flags & syscalls.RENAME_EXCHANGE)
        name, new_name = wire.names_of(body, NAMES_AT[opcode])
        old_st, new_st = self._once.behind(nodeid, name), self._once.behind(new_parent, new_name)
        if not _leads_to(new_st, intent.device, intent.ino) or _leads_to(old_st, intent.device, intent.ino):
            return None
        old, new = (self._inodes.get(nodeid), name), (self._inodes.get(new_parent), new_name)
        moved = self._inodes.find_key(intent.device, intent.ino)
        other = self._inodes.find_key(intent.other_device, intent.other_ino) if intent.other_ino else None
        if other is not None and not exchanges:
            self._lose(other, new)
        self._move(moved, old, new)
        if exchanges:
            self._move(other, new, old)
        return b""

    def _move(self, inode: Inode | None, old: Name, new: Name) -> None:
        """The table may not have heard that an inode was renamed."""
        if inode is None:
            return
        if (inode.parent, inode.name) == new or new in (inode.links or ()):
            self._inodes.drop_name(inode, *old)
        else:
            self._inodes.move(inode, old, new)

    # Handles

    def _handle(self, ctx: Caller) -> Handle | None:
        return self._restored.handles_by_unique.get(ctx.unique)

    async def _opened(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """OPEN."""
        handle = self._handle(ctx)
        if handle is not None:
            return wire.open_out(_opened_as(handle))
        flags, open_flags = wire.OPEN_IN.unpack_from(body)
        if not flags & os.O_TRUNC or not self._is_cut(nodeid, ctx):
            return None
        again = wire.OPEN_IN.pack(flags & ~os.O_TRUNC, open_flags)
        return await self._handlers.open(nodeid, ctx, memoryview(again))

    def _is_cut(self, nodeid: int, ctx: Caller) -> bool:
        """Whether O_TRUNC has been executed. Else it is once more: other writers cannot tell when it was, as long as
        its caller waits for it."""
        intent, inode = self._intent(ctx), self._inodes.known(nodeid)
        if intent is None or inode is None:
            return False
        return bool(intent.done) or self._inodes.stat(inode).st_size < intent.size

    async def _created(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """CREATE."""
        handle, intent = self._handle(ctx), self._intent(ctx)
        if handle is not None:
            return self._creation(handle)
        if intent is None:
            return None
        await self._once.reach(wire.CREATE, nodeid, body)
        name = wire.name_of(body, NAMES_AT[wire.CREATE])
        st = self._once.behind(nodeid, name)
        if st is None or not stat.S_ISREG(st.st_mode):
            return None
        if not intent.was_there:
            return await self._open_created(nodeid, ctx, body)
        if not intent.done and st.st_size >= intent.size:
            return None
        flags, *rest = wire.CREATE_IN.unpack_from(body)
        again = wire.CREATE_IN.pack(flags & ~os.O_TRUNC, *rest) + name + b"\0"
        return await self._handlers.create(nodeid, ctx, memoryview(again))

    async def _open_created(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        """Open a file that the request has made: with rights that its mode may not give a second time."""
        flags, *_ = wire.CREATE_IN.unpack_from(body)
        entry = await self._ops.lookup(nodeid, wire.name_of(body, NAMES_AT[wire.CREATE]), _for_good(ctx))
        try:
            return self._handlers.created(await self._open(entry, flags & _WITHOUT_CREATING, ctx), entry)
        except BaseException:
            self._ops.forget([(entry.nodeid, 1)])
            raise

    async def _open(self, entry: Entry, flags: int, ctx: Caller) -> Opened:
        try:
            return await self._ops.open(entry.nodeid, flags, ctx)
        except PermissionError:  # the daemon is not root, and has to ask the mode
            mode = stat.S_IMODE(entry.st.st_mode)
            await self._ops.setattr(entry.nodeid, SetAttr(mode=mode | stat.S_IRUSR | stat.S_IWUSR), None, ctx)
            try:
                return await self._ops.open(entry.nodeid, flags, ctx)
            finally:
                await self._ops.setattr(entry.nodeid, SetAttr(mode=mode), None, ctx)

    async def _made_nameless(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """TMPFILE."""
        handle = self._handle(ctx)
        return None if handle is None else self._creation(handle)

    def _creation(self, handle: Handle) -> bytes:
        entry = Entry(handle.inode.nodeid, self._inodes.stat(handle.inode))
        return self._handlers.created(_opened_as(handle), entry)

    async def _opened_directory(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """OPENDIR."""
        handle = self._handle(ctx)
        return None if handle is None else wire.open_out(_opened_as(handle))

    # Bytes

    async def _fallocated(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """FALLOCATE."""
        if self._is_executed(ctx):
            return b""
        intent, inode = self._intent(ctx), self._inodes.known(nodeid)
        if intent is None or inode is None:
            return None
        _, _, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
        if not intent.done and not (mode & MOVES_TAIL and self._has_moved(inode, intent, mode, length)):
            return None
        if ctx.uid:
            await self._ops.setattr(nodeid, SetAttr(kill_suidgid=True), None, ctx)
        return b""

    def _has_moved(self, inode: Inode, intent: IntentRecord, mode: int, length: int) -> bool:
        grown = self._inodes.stat(inode).st_size - intent.size
        return grown >= length if mode & syscalls.FALLOC_FL_INSERT_RANGE else grown <= -length

    # Attributes

    async def _set_attribute(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """SETXATTR."""
        route = self._once.plain[wire.SETXATTR]
        name = _name_at(body, name_offset(route))
        if name.startswith(PREFIX):
            return b"" if ctx.unique in self._restored.pins_by_unique else None
        if self._is_executed(ctx):
            return b""
        intent, inode = self._intent(ctx), self._inodes.known(nodeid)
        if intent is None or intent.was_there or inode is None or not self._once.intents.has_attribute(inode, name):
            return None
        again = bytearray(body)
        size, flags = wire.SETXATTR_IN.unpack_from(again)
        wire.SETXATTR_IN.pack_into(again, 0, size, flags & ~XATTR_CREATE)
        return await route.handler(nodeid, ctx, memoryview(again))

    async def _removed_attribute(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """REMOVEXATTR."""
        name = wire.name_of(body)
        if name.startswith(PREFIX):
            return b"" if self._is_executed(ctx) else None
        if self._is_executed(ctx):
            return b""
        intent, inode = self._intent(ctx), self._inodes.known(nodeid)
        if intent is None or not intent.was_there or inode is None or self._once.intents.has_attribute(inode, name):
            return None
        return b""

    # Pins

    async def _released(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """GETXATTR, where it releases a pin."""
        return sized(RELEASED, wire.GETXATTR_IN.unpack_from(body)[0]) if self._is_executed(ctx) else None

    async def _ioctl(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
        """IOCTL."""
        _, _, cmd, _, _, out_size = wire.IOCTL_IN.unpack_from(body)
        pin = self._restored.pins_by_unique.get(ctx.unique)
        if cmd == ioctls.PIN and pin is not None:
            wanted = ioctls.decode_pin(body[wire.IOCTL_IN.size :].tobytes())
            return wire.IOCTL_OUT.pack(0, 0, 0, 0) + wanted.answered(pin.id)[:out_size]
        if cmd == ioctls.UNPIN and self._is_executed(ctx):
            return wire.IOCTL_OUT.pack(0, 0, 0, 0)
        return None


async def _not_executed(nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
    """Of all other opcodes: they may be executed again."""
    return None


def _for_good(ctx: Caller) -> Caller:
    """For a lookup that no later daemon takes back: once executed, the request is answered without another one."""
    return ctx._replace(unique=0)


def _leads_to(st: os.stat_result | None, device: int, ino: int) -> bool:
    return st is not None and (st.st_dev, st.st_ino) == (device, ino)


def _name_at(body: memoryview, offset: int) -> bytes:
    return body[offset:].tobytes().partition(b"\0")[0]


def _opened_as(handle: Handle) -> Opened:
    """The reply to the open of a handle. The kernel drops what it has cached of it, which is always right."""
    if isinstance(handle, FileHandle):
        file = handle.inode.file
        return Opened(handle.number, 0, 0 if file is None else file.backing_id or 0)
    if isinstance(handle, ControlHandle):
        return Opened(handle.number, handle.fopen_flags, 0)
    return Opened(handle.number, 0, 0)
