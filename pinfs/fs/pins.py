"""The verbs of pins, as programs speak them: attributes that act like ioctls, and real ioctls (SPEC 5 and 6)."""

import errno
import os
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from pinfs.core.owners import Owner, ProcessId
from pinfs.core.pins import Pin, PinRequest, PinSpec
from pinfs.enforce.eventfds import EventFds
from pinfs.enforce.guard import Guard
from pinfs.enforce.holders import Holders
from pinfs.enforce.hosts import OtherHosts
from pinfs.enforce.processes import Process
from pinfs.fs import ioctls
from pinfs.fs.backing import Backing
from pinfs.fs.describe import CommOf, FileFacts, PinLines, PinTexts, pin_json
from pinfs.fs.handles import FileHandle, HandleTable, Wake
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.pincommands import PinCommands
from pinfs.fs.pinvalue import DEFAULT_SIGNAL, parse_pin_value
from pinfs.fs.types import CallerLike
from pinfs.interface.attributes import PIN, PINS, RELEASE
from pinfs.linux.proc import find_in_namespace, pid_namespace
from pinfs.runtime.parking import park

if TYPE_CHECKING:
    from pinfs.fs.recorder import Recorder

RELEASED: Final = b"released"
XATTR_CREATE, XATTR_REPLACE = 1, 2
MAX_ATTRIBUTE_BYTES: Final = 65536
SHORTEST_JSON: Final = 224
"""No pin's JSON is shorter, in bytes. Programs try a small buffer first, and what does not fit need not be written."""
ECHOES: Final = 1024


def _fail(number: int, why: str | None = None) -> NoReturn:
    raise OSError(number, why or os.strerror(number))


class PinVerbs:
    """Registers, shows and releases pins on behalf of callers, and checks their permissions (SPEC 4)."""

    def __init__(
        self,
        guard: Guard,
        holders: Holders,
        inodes: InodeTable,
        backing: Backing,
        handles: HandleTable,
        eventfds: EventFds,
    ) -> None:
        self.handles = handles
        self.eventfds = eventfds
        self.commands = PinCommands(self, guard, inodes)
        self._guard = guard
        self._book = guard.book
        self._table = guard.book.table
        self._breaking_of = guard.book.breaks.of_owner
        self._holders = holders
        self._inodes = inodes
        self._backing = backing
        self._seal = backing.seal
        self.hosts: OtherHosts | None = None
        """The other hosts of a cluster, which honour pins as well; None: there is none."""
        self.recorder: Recorder | None = None
        """Writes down which pins there are; None: the mount does not outlive the daemon."""
        self._released_by = 0
        """The request that releases a pin right now."""
        self.released_before: frozenset[int] = frozenset()
        """The requests by which pins were released before this daemon took over, as far as they may come again."""
        self._texts = PinTexts()
        self._admins = {0, os.geteuid()}
        self._pid_namespace = pid_namespace("self")
        self._echoes: OrderedDict[tuple[int, ProcessId | None, bytes], None] = OrderedDict()
        """Releases by getxattr that plain pyfuse3 will ask for once more, oldest first."""

    # Attributes

    async def set(self, inode: Inode, attribute: bytes, value: bytes, flags: int, ctx: CallerLike) -> None:
        """Register or replace the caller's pin. Errors: EINVAL, ENXIO, EAGAIN, EDQUOT, EPERM, ESRCH (SPEC 5)."""
        if self.set_at_once(inode, attribute, value, flags, ctx):
            return
        name, wanted = attribute[len(PIN) :], parse_pin_value(value)
        # Now: after a wait the caller's number may be another process's.
        named_by = None if wanted.eventfd is None else self._caller(ctx)
        process = self._caller(ctx) if wanted.pid is None else await self._named(wanted.pid, ctx)
        old = self._replaced(inode, process, name, flags)
        if old is not None and old.dirty and not _covers(wanted.spec, old):
            await self.flush(inode)
            old = self._table.find(inode.nodeid, process.id, name)  # it may have gone meanwhile
        uid, proxy_uid = (ctx.uid, None) if wanted.pid is None else (process.uids[0], ctx.uid)
        spec = wanted.spec
        if named_by is not None and wanted.eventfd is not None:
            spec = self._with_eventfd(spec, wanted.eventfd, named_by, ctx.uid)
        request = PinRequest(inode.nodeid, process.id, process.id, uid, name, spec, proxy_uid)
        if number := await self._pin_elsewhere(inode, spec):
            old = self._table.find(inode.nodeid, process.id, name)  # it may have gone meanwhile, or come
        before = 0 if self.hosts is None or old is None else self.hosts.number_of(old)
        self._register(request, inode, process, old, ctx, number)
        if before and self.hosts is not None:
            await self.hosts.until_unpinned(before)

    def set_at_once(self, inode: Inode, attribute: bytes, value: bytes, flags: int, ctx: CallerLike) -> bool:
        """The usual case of `set`: the caller's own pin, and no bytes of a device to be written. False: it is not.
        Errors as there."""
        name = attribute[len(PIN) :]
        if not name or not attribute.startswith(PIN) or inode.kind != stat.S_IFREG:
            _fail(errno.EINVAL, "pins are set as user.pinfs.pin.NAME on regular files")
        spec, pid, eventfd = parse_pin_value(value)
        if pid is not None or self.hosts is not None:
            return False
        process = self._caller(ctx)
        old = self._replaced(inode, process, name, flags)
        if old is not None and old.spec.dirty and not _covers(spec, old):
            return False
        if eventfd is not None:
            spec = self._with_eventfd(spec, eventfd, process, ctx.uid)
        owner = process.id
        request = PinRequest(inode.nodeid, owner, owner, ctx.uid, name, spec)
        self._register(request, inode, process, old, ctx)
        return True

    def _replaced(self, inode: Inode, process: Process, name: bytes, flags: int) -> Pin | None:
        """The pin that a pin of this name replaces. EEXIST, ENODATA: as the flags of setxattr(2) have it."""
        old = self._table.find(inode.nodeid, process.id, name)
        if flags:
            if flags & XATTR_CREATE and old is not None:
                _fail(errno.EEXIST)
            if flags & XATTR_REPLACE and old is None:
                _fail(errno.ENODATA)
        return old

    def _with_eventfd(self, spec: PinSpec, number: int, caller: Process, uid: int) -> PinSpec:
        """The spec with the eventfd that the caller has open as `number`: `_register` has its use from here on. Errors
        as `EventFds.take`."""
        return spec.with_eventfd(self.eventfds.take(caller, number, uid))

    def _register(
        self,
        request: PinRequest,
        inode: Inode,
        process: Process | None,
        old: Pin | None,
        ctx: CallerLike,
        number: int = 0,
    ) -> Pin:
        """Each pin keeps an eye on its process, from here to `on_end`, and uses its eventfd. `old`: the pin that it
        replaces. `number`: of `_pin_elsewhere`. ESRCH where the process has just ended."""
        eventfd = request.spec.eventfd
        replaced = None if old is None else old.spec.eventfd
        is_held = False
        try:
            if old is None and process is not None:
                self._holders.hold(process)
                is_held = True
            self._seal.before_pin(inode)
            pin = self._guard.pin(request, self._inodes.size(inode))
        except BaseException:
            if is_held and process is not None:
                self._holders.drop(process.id)
            self._seal.unpinned(inode.nodeid)
            if eventfd is not None:
                self.eventfds.drop(eventfd)
            if self.hosts is not None:
                self.hosts.release(number)
            raise
        self.record(pin, ctx)
        if self.hosts is not None:
            self.hosts.commit(pin, number)
            if self.recorder is not None:  # another host may take the name, and then this daemon may die
                self._inodes.fd(inode)
                self.recorder.pinned(inode)
        if replaced is not None:  # now that no record names it
            self.eventfds.drop(replaced)
        return pin

    async def _pin_elsewhere(self, inode: Inode, spec: PinSpec) -> int:
        """Returns when the other hosts honour the pin, with their number of it, for `_register`; 0: there are none.
        Errors as `OtherHosts.pin`."""
        if self.hosts is None:
            return 0
        try:
            spec.check(self._inodes.size(inode))
            return await self.hosts.pin(inode.nodeid, spec)
        except BaseException:
            if spec.eventfd is not None:
                self.eventfds.drop(spec.eventfd)
            raise

    def record(self, pin: Pin, ctx: CallerLike) -> None:
        """Write the pin down for the next daemon."""
        if self.recorder is not None:
            self.recorder.pin(pin, ctx)

    def _caller(self, ctx: CallerLike) -> Process:
        """EPERM: not visible."""
        process = self._holders.caller(ctx.pid)
        if process is None:
            _fail(errno.EPERM, "the daemon cannot see your process (another pid namespace): pin by ioctl")
        return process

    async def _named(self, pid: int, ctx: CallerLike) -> Process:
        """The process that the caller calls `pid`. ESRCH: none. EPERM: another user's, or the caller is not visible."""
        if not ctx.pid:
            _fail(
                errno.EPERM,
                "the daemon cannot see your process, so it does not know which pid namespace the number is from",
            )
        namespace = pid_namespace(ctx.pid)
        if namespace not in (None, self._pid_namespace):
            await park()
            pid = await trio.to_thread.run_sync(find_in_namespace, pid, namespace)
        process = self._holders.process_by_pid(pid)
        self._holders.may_act_for(ctx.uid, process)
        return process

    async def get(self, inode: Inode, attribute: bytes, ctx: CallerLike, size: int | None) -> bytes:
        """A pin, all pins of the file, or a release. ENODATA: no such pin."""
        if name := _verb_name(attribute, RELEASE):
            return await self._get_release(inode, name, ctx, size)
        return self.look(inode, attribute, ctx, size)

    def look(self, inode: Inode, attribute: bytes, ctx: CallerLike, size: int | None) -> bytes:
        """`get`, but for releases."""
        if attribute == PINS:
            return _with_room(self._listing(inode, ctx), size)
        if name := _verb_name(attribute, PIN):
            pin = self._find(inode, name, ctx)
            if size and size < SHORTEST_JSON:
                _fail(errno.ERANGE)
            comm = None if pin.process is None else self._holders.comm_of(pin.process)
            return _with_room(self._texts.of(pin, inode.path(), comm, self._seal.is_sealed(inode.nodeid)), size)
        _fail(errno.ENODATA)

    async def _get_release(self, inode: Inode, name: bytes, ctx: CallerLike, size: int | None) -> bytes:
        """Release by getxattr. A caller that only asks for the size (0), or has too small a buffer, releases nothing.

        Where the size is not known (plain pyfuse3), the question for the size releases, and the same question once
        more gets the same answer.
        """
        if size is None:
            return await self._release_and_echo(inode, name, ctx)
        pin = self._find(inode, name, ctx)
        if size >= len(RELEASED):
            await self.release(inode, pin, ctx)
        return RELEASED

    def release_at_once(self, inode: Inode, attribute: bytes, ctx: CallerLike, size: int) -> bytes | None:
        """The usual case of `_get_release`: nothing is to be waited for. None: there is. ENODATA."""
        name = attribute[len(RELEASE) :]
        if not name:
            _fail(errno.ENODATA)
        pin = self._find(inode, name, ctx)
        if size >= len(RELEASED):
            if pin.spec.dirty or self.hosts is not None:
                return None
            self._let_go(pin, ctx)
        return RELEASED

    async def _release_and_echo(self, inode: Inode, name: bytes, ctx: CallerLike) -> bytes:
        process = self._holders.process_of(ctx.pid)
        echo = inode.nodeid, None if process is None else process.id, name
        answered_before = self._echoes.pop(echo, echo) is None
        try:
            pin = self._find(inode, name, ctx)
        except OSError:
            if answered_before:
                return RELEASED
            raise
        await self.release(inode, pin, ctx)
        self._echoes[echo] = None
        while len(self._echoes) > ECHOES:
            self._echoes.popitem(last=False)
        return RELEASED

    async def remove(self, inode: Inode, attribute: bytes, ctx: CallerLike) -> None:
        """Release the caller's pin. ENODATA: no such pin."""
        if not self.remove_at_once(inode, attribute, ctx):
            await self.release(inode, self._find(inode, attribute[len(PIN) :], ctx), ctx)

    def remove_at_once(self, inode: Inode, attribute: bytes, ctx: CallerLike) -> bool:
        """The usual case of `remove`: no bytes of a device are to be written. False: there are. ENODATA."""
        name = attribute[len(PIN) :]
        if not name or not attribute.startswith(PIN):
            _fail(errno.ENODATA)
        pin = self._find(inode, name, ctx)
        if pin.spec.dirty or self.hosts is not None:
            return False
        self._let_go(pin, ctx)
        return True

    def _find(self, inode: Inode, name: bytes, ctx: CallerLike) -> Pin:
        """The caller's own pin, or the one that its uid registered for another process."""
        process = self._holders.caller(ctx.pid)
        pin = None if process is None else self._table.find(inode.nodeid, process.id, name)
        pin = pin or self._table.find_proxy(inode.nodeid, name, ctx.uid)
        if pin is None:
            _fail(errno.ENODATA)
        return pin

    async def release(self, inode: Inode, pin: Pin, ctx: CallerLike) -> None:
        """End a pin for its holder, with the bytes of a device on the backing. Errors of fdatasync(2)."""
        if pin.dirty:
            await self.flush(inode)
            if self._table.by_id.get(pin.id) is not pin:
                return  # it went away meanwhile: released all the same
        await self.let_go_everywhere(pin, ctx)

    async def let_go_everywhere(self, pin: Pin, ctx: CallerLike, revoke: bool = False) -> None:
        """End a pin, and return when the other hosts need not mind it any more."""
        number = 0 if self.hosts is None else self.hosts.number_of(pin)
        self._let_go(pin, ctx, revoke)
        if self.hosts is None:
            return
        unique = getattr(ctx, "unique", 0)
        slot = 0 if self.recorder is None or not unique else self.recorder.executed(unique)
        try:
            await self.hosts.until_unpinned(number)
        finally:
            if self.recorder is not None and slot:
                self.recorder.answered(unique, slot)

    def _let_go(self, pin: Pin, ctx: CallerLike, revoke: bool = False) -> None:
        self._released_by = getattr(ctx, "unique", 0)
        try:
            if revoke:
                self._guard.revoke(pin)
            else:
                self._guard.release(pin)
        finally:
            self._released_by = 0

    async def flush(self, inode: Inode) -> None:
        """Write a device's bytes to the backing: what the kernel does when it unpins pages that it has dirtied."""
        fd = self._inodes.open(inode, os.O_RDONLY) if inode.file is None else os.dup(inode.file.any_fd)
        try:
            await self._backing.off_thread(os.fdatasync, fd)
        finally:
            self._backing.close_descriptor(fd)

    def _listing(self, inode: Inode, ctx: CallerLike) -> bytes:
        """All pins of the file as JSON, as many as an attribute can hold (64 KiB)."""
        shown: list[str] = []
        room = MAX_ATTRIBUTE_BYTES - 64
        path, sealed = inode.path(), self._seal.is_sealed(inode.nodeid)
        for pin in self._table.of_file(inode.nodeid):
            text = pin_json(pin, path, self._comm_of(pin, ctx.uid), sealed)
            room -= len(text) + 2
            if room < 0:
                break  # a million pins are counted, not looked at
            shown.append(text)
        more = self._table.count_of_file(inode.nodeid) - len(shown)
        return f'{{"v": 1, "pins": [{", ".join(shown)}], "more": {more}}}'.encode()

    def all_ids(self) -> list[int]:
        """The ids of all pins, for `lines`."""
        return list(self._table.by_id)

    def lines(self, uid: int) -> PinLines:
        """Makes the lines of one read of `.pinfs/pins`, as `uid` may see them (SPEC 4)."""
        return PinLines(self._table.by_id, self._facts, lambda pin: self._comm_of(pin, uid))

    def _facts(self, nodeid: int) -> FileFacts:
        """For `PinLines`."""
        return self._inodes.get(nodeid).path(), self._seal.is_sealed(nodeid)

    def _comm_of(self, pin: Pin, uid: int) -> CommOf | None:
        """For `pin_json`."""
        return self._holders.comm_of if self.may_see(pin, uid) else None

    def may_see(self, pin: Pin, uid: int) -> bool:
        """Whether `uid` may know whose pin it is, and end it (SPEC 4)."""
        return self.is_admin(uid) or uid == pin.uid

    def is_admin(self, uid: int) -> bool:
        """Root, and the daemon's own user."""
        return uid in self._admins

    # Ioctls

    async def ioctl(self, handle: FileHandle, cmd: int, data: bytes, out_size: int, ctx: CallerLike) -> bytes:
        """ENOTTY: unknown number. Else as each verb says."""
        if cmd == ioctls.PIN:
            return await self._ioctl_pin(handle, ioctls.decode_pin(data), ctx)
        if cmd == ioctls.UNPIN:
            await self.release(handle.inode, self._of_handle(handle, ioctls.decode_unpin(data)), ctx)
            return b""
        if cmd == ioctls.QUERY:
            return self._ioctl_query(handle, ioctls.decode_query(data))
        _fail(errno.ENOTTY)

    async def _ioctl_pin(self, handle: FileHandle, wanted: ioctls.PinRequest, ctx: CallerLike) -> bytes:
        """EACCES: the handle is not open for writing."""
        if not handle.writable:
            _fail(errno.EACCES)
        process = self._holders.process_of(ctx.pid)
        spec = PinSpec(
            wanted.start,
            wanted.length,
            wanted.mode,
            DEFAULT_SIGNAL[wanted.mode] if wanted.signal < 0 else wanted.signal or None,
            wanted.dirty,
            wanted.note,
        )
        if wanted.eventfd is not None:
            spec = self._with_eventfd(spec, wanted.eventfd, self._caller(ctx), ctx.uid)
        process_id = None if process is None else process.id
        request = PinRequest(handle.inode.nodeid, handle.number, process_id, ctx.uid, None, spec)
        number = await self._pin_elsewhere(handle.inode, spec)
        pin = self._register(request, handle.inode, process, None, ctx, number)
        return wanted.answered(pin.id)

    def _ioctl_query(self, handle: FileHandle, pin_id: int) -> bytes:
        pins = self._table.by_owner.get(handle.number, {})
        pin = self._of_handle(handle, pin_id or next((first.id for first in pins.values()), 0))
        following = pin.id + 1  # mostly; else it has to be looked for, which takes its time with a million pins
        if following not in pins:
            following = next(
                (other.id for other in pins.values() if other.id > pin.id), 0
            )  # they stand in rising order
        remaining = None if pin.deadline is None else max(0.0, pin.deadline - trio.current_time())
        return ioctls.encode_query(pin, remaining, following)

    def _of_handle(self, handle: FileHandle, pin_id: int) -> Pin:
        """ENOENT: this handle has no such pin."""
        pin = self._table.by_id.get(pin_id)
        if pin is None or pin.owner != handle.number:
            _fail(errno.ENOENT)
        return pin

    # Handles

    def handle_closed(self, handle: FileHandle) -> None:
        """The last reference to an open file description is gone, and so are its pins (SPEC 4)."""
        owner = handle.number
        if owner in self._table.by_owner:
            self._guard.owner_gone(owner, "close")

    def is_urgent(self, handle: FileHandle, wake: Wake | None) -> bool:
        """Whether one of the handle's pins is being broken; `wake` is called when that changes."""
        if wake is not None:
            handle.wakes = [*handle.wakes[-15:], wake]
        return handle.number in self._breaking_of

    def on_handle_event(self, owner: Owner) -> None:
        """Something happened to a pin of this handle: a program that polls it shall look again."""
        handle = None if isinstance(owner, ProcessId) else self.handles.find(owner)
        if isinstance(handle, FileHandle):
            wakes, handle.wakes = handle.wakes, []
            for wake in wakes:
                wake()

    def on_end(self, pin: Pin) -> None:
        """A pin less: one reason less to keep an eye on its process."""
        if self.recorder is not None:
            self.recorder.pin_ended(pin, self._released_by)
        if pin.process is not None:
            self._holders.drop(pin.process)
        if pin.spec.eventfd is not None:
            self.eventfds.drop(pin.spec.eventfd)
        if self.hosts is not None:
            self.hosts.ended(pin)
            inode = self._inodes.known(pin.inode)
            if self.recorder is not None and inode is not None and not self._table.count_of_file(pin.inode):
                self.recorder.unpinned(inode)


def _verb_name(attribute: bytes, prefix: bytes) -> bytes:
    return attribute[len(prefix) :] if attribute.startswith(prefix) else b""


def _covers(wanted: PinSpec, old: Pin) -> bool:
    return wanted.dirty and wanted.start <= old.start and wanted.end >= old.end


def _with_room(text: bytes, size: int | None) -> bytes:
    """A caller that asks how large it is (size 0) is told a little more: numbers in it may be longer when it is
    read."""
    return text if size != 0 else text + bytes(max(0, min(len(text) // 8 + 16, MAX_ATTRIBUTE_BYTES - len(text))))
