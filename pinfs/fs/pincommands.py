"""The commands of the event channel (SPEC 7): lines that a holder writes about its pins."""

import errno
import os
from typing import TYPE_CHECKING, NoReturn

from pinfs.core.pins import Pin, PinRequest
from pinfs.enforce.guard import Guard
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.pinvalue import PinValue, parse_pin_value
from pinfs.fs.types import CallerLike

if TYPE_CHECKING:
    from pinfs.fs.pins import PinVerbs


class PinCommands:
    """What they do is what the verbs of pins do."""

    def __init__(self, verbs: "PinVerbs", guard: Guard, inodes: InodeTable) -> None:
        self._verbs = verbs
        self._guard = guard
        self._table = guard.book.table
        self._inodes = inodes

    async def do(self, line: str, ctx: CallerLike) -> None:
        """`release ID`, `resize ID START LENGTH`, `extend ID SECONDS`, `revoke ID`.

        EINVAL, ENOENT, EPERM, ENODATA (extend: not breaking), and what registering a pin may say (resize).
        """
        match line.split():
            case ["release", number]:
                pin = self._commanded(number, ctx)
                await self._verbs.release(self._inodes.get(pin.inode), pin, ctx)
            case ["resize", number, start, length] if "," not in start + length:
                wanted = parse_pin_value(f"{start}:{length}".encode())
                pin = self._commanded(number, ctx)
                await self._resize(self._inodes.get(pin.inode), pin, wanted, ctx)
            case ["extend", number, text]:
                seconds = _seconds(text)
                self._extend(self._commanded(number, ctx), seconds)
            case ["revoke", number]:
                pin = self._commanded(number, ctx)
                if not self._verbs.is_admin(ctx.uid):
                    _fail(errno.EPERM)
                await self._verbs.let_go_everywhere(pin, ctx, revoke=True)
            case _:
                _fail(errno.EINVAL, f"unknown command {line!r}")

    async def _resize(self, inode: Inode, pin: Pin, wanted: PinValue, ctx: CallerLike) -> None:
        """Move or shrink a process's pin while a truncate holds back setxattr on its file."""
        if pin.name is None:
            _fail(errno.EINVAL, "only the range can change, and only that of a process's pin")
        if pin.dirty:
            await self._verbs.flush(inode)
        spec = pin.spec.with_range(wanted.spec.start, wanted.spec.length)
        hosts = self._verbs.hosts
        number = 0 if hosts is None else await hosts.pin(pin.inode, spec)
        try:
            if self._table.by_id.get(pin.id) is not pin:
                _fail(errno.ENOENT, "it went away meanwhile")
            size = self._inodes.stat(inode).st_size
            request = PinRequest(pin.inode, pin.owner, pin.process, pin.uid, pin.name, spec, pin.proxy_uid)
            self._verbs.record(self._guard.pin(request, size), ctx)
        except BaseException:
            if hosts is not None:
                hosts.release(number)
            raise
        if hosts is not None:
            before = hosts.number_of(pin)
            hosts.commit(pin, number)
            await hosts.until_unpinned(before)

    def _extend(self, pin: Pin, seconds: float) -> None:
        self._guard.extend(pin, seconds)
        recorder = self._verbs.recorder
        if recorder is not None and pin.breaking is not None:
            recorder.extended(pin.breaking)

    def _commanded(self, number: str, ctx: CallerLike) -> Pin:
        if not number.isascii() or not number.isdigit() or len(number) > 19:
            _fail(errno.EINVAL, "not COMMAND ID")
        pin = self._table.by_id.get(int(number))
        if pin is None:
            _fail(errno.ENOENT, "no such pin")
        if not self._verbs.may_see(pin, ctx.uid):
            _fail(errno.EPERM)
        return pin


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        _fail(errno.EINVAL, "not a number of seconds")
    if not 0 <= seconds < 1e9:
        _fail(errno.EINVAL, "not a number of seconds")
    return seconds


def _fail(number: int, why: str | None = None) -> NoReturn:
    raise OSError(number, why or os.strerror(number))
