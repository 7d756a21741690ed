"""The files of `.pinfs`: what each shows, and to which callers (SPEC 7)."""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from pinfs.config.policies import PolicyBox
from pinfs.core.owners import ProcessId
from pinfs.core.policy import PolicyError, policy_to_toml
from pinfs.enforce.holders import Holders
from pinfs.fs.control import (
    MAX_CHANNELS,
    MAX_CHANNELS_PER_USER,
    MAX_COMMANDS_BYTES,
    MAX_LISTS_PER_USER,
    ChannelHandle,
    ControlFile,
    ControlHandle,
    PolicyFile,
    TextFile,
    check_read_only,
)
from pinfs.fs.events import EventHub, EventQueue, to_line
from pinfs.fs.inode import Inode
from pinfs.fs.pinlist import PinList, PinLister
from pinfs.fs.pins import PinVerbs
from pinfs.fs.types import Caller, CallerLike, os_error
from pinfs.journal.records import HandleKind, HandleRecord
from pinfs.linux.proc import in_our_namespaces, is_kernel_thread
from pinfs.runtime.stats import Stats

MAX_WORDS: Final = 8  # of a program in `.pinfs/upgrade`
MAX_WORD: Final = 4096  # PATH_MAX


@dataclass(slots=True, eq=False)
class EventChannel:
    """The events of one process's own pins; commands go the other way, with the credentials of the open.

    `is_watched`: the process lives, as far as is known, and is watched.
    """

    file: "EventsFile"
    process: ProcessId
    caller: CallerLike
    queue: EventQueue
    is_watched: bool = True
    eventfd: int | None = None
    """The daemon's number of the eventfd that is written to when there is news."""
    _replaced: int | None = None
    """The one before, until the journal has the new one."""

    async def command(self, line: str, unique: int) -> None:
        match line.split():
            case ["eventfd", number]:
                self._set_eventfd(number)
            case ["forget", host]:
                self.file.forgetting.forget(host, self.caller.uid)
            case _:
                await self._pin_command(line, unique)

    def _set_eventfd(self, number: str) -> None:
        """From now on write to the eventfd that the channel's process has open as `number`. EINVAL, ESRCH; EPERM: it
        has become another user's; and as `EventFds.take`."""
        eventfds, process = self.file.verbs.eventfds, self.file.holders.find(self.process)
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise OSError(errno.EINVAL, "not a descriptor")
        if process is None:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        eventfd = eventfds.take(process, int(number), self.caller.uid)
        try:
            self.file.holders.may_act_for(self.caller.uid, process)  # after it: exec of a set-user-id program
        except OSError:
            eventfds.drop(eventfd)
            raise
        self._replaced, self.eventfd = self.eventfd, eventfd
        if self.queue:
            self.news()

    def recorded(self) -> None:
        if self._replaced is not None:
            self.file.verbs.eventfds.drop(self._replaced)
            self._replaced = None

    def news(self) -> None:
        if self.eventfd is not None:
            self.file.verbs.eventfds.signal(self.eventfd)

    async def _pin_command(self, line: str, unique: int) -> None:
        caller = Caller(self.caller.uid, self.caller.gid, self.caller.pid, 0, unique)
        try:
            await self.file.verbs.commands.do(line, caller)
        except FileNotFoundError:
            if not (unique in self.file.verbs.released_before and line.startswith(("release ", "revoke "))):
                raise  # else the daemon before did it, and was killed before its answer

    def close(self) -> None:
        self._replaced, self.eventfd = self.eventfd, None
        self.recorded()
        self.file.closed(self)


class Forgetting:
    """`forget HOST`: an operator says that a host of the cluster is dead."""

    def __init__(self) -> None:
        self.request: Callable[[str], bool] | None = None
        """What the daemon does about it, and whether there was such a host; None: this mount is in no cluster."""

    def forget(self, host: str, uid: int) -> None:
        """EPERM: only root. EOPNOTSUPP: there is no cluster. ESRCH: no such host, or only this one."""
        if uid:
            raise os_error(errno.EPERM)
        if self.request is None:
            raise os_error(errno.EOPNOTSUPP)
        if not self.request(host):
            raise os_error(errno.ESRCH)


class EventsFile:
    """`.pinfs/events`: the events of the opening process's own pins."""

    mode = 0o666

    def __init__(
        self, hub: EventHub, stats: Stats, holders: Holders, verbs: PinVerbs, forgetting: Forgetting | None = None
    ) -> None:
        self.verbs = verbs
        self.forgetting = forgetting or Forgetting()
        self._hub = hub
        self.holders = holders
        self._stats = stats
        self._open: Counter[int] = Counter()  # by uid

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        """EPERM: the daemon cannot see the process (another pid namespace). EMFILE: too many channels are open. EACCES:
        the caller is an NFS server."""
        _must_be_a_program(ctx)
        process = self.holders.process_of(ctx.pid)
        if process is None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if self._open.total() >= MAX_CHANNELS or (ctx.uid and self._open[ctx.uid] >= MAX_CHANNELS_PER_USER):
            self._stats.limit_reached["event_channels"] += 1
            raise OSError(errno.EMFILE, "too many event channels")
        self.holders.hold(process)
        try:
            channel = EventChannel(self, process.id, ctx, self._hub.open_channel(process.id))
        except BaseException:
            self.holders.drop(process.id)
            raise
        self._open[ctx.uid] += 1
        return ChannelHandle(inode, flags, self._hub.read_limit, channel)

    def restore(self, inode: Inode, record: HandleRecord, recorded: bytes) -> ControlHandle:
        """The process may have ended: whatever else has the handle open reads what is left."""
        process_id = ProcessId(record.pid, record.start_time, self.holders.namespace, record.incarnation)
        process = self.holders.process_of(record.pid)
        is_watched = process is not None and process.id == process_id
        if process is not None and is_watched:
            try:
                self.holders.hold(process)
            except ProcessLookupError:
                is_watched = False
        caller = Caller(record.uid, 0, record.pid)
        channel = EventChannel(self, process_id, caller, self._hub.restore_channel(process_id), is_watched)
        self._open[record.uid] += 1
        handle = ChannelHandle(inode, record.flags, self._hub.read_limit, channel)
        handle.restore(record)
        return handle

    def closed(self, channel: EventChannel) -> None:
        """The reader of a channel has gone."""
        _count_down(self._open, channel.caller.uid)
        self._hub.close_channel(channel.process, channel.queue)
        if channel.is_watched:
            self.holders.drop(channel.process)


@dataclass(slots=True, eq=False)
class TraceChannel:
    """The events of all pins."""

    hub: EventHub
    queue: EventQueue
    process: None = None
    eventfd: int | None = None

    async def command(self, line: str, unique: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def news(self) -> None:
        """Its readers wait in read(2) and poll(2)."""

    def recorded(self) -> None:
        """It has no eventfd."""

    def close(self) -> None:
        self.hub.close_trace(self.queue)


class TraceFile:
    """`.pinfs/trace`: the events of all pins, for root."""

    mode = 0o400

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        check_read_only(flags)
        _must_be_a_program(ctx)
        return self._handle(inode, flags)

    def restore(self, inode: Inode, record: HandleRecord, recorded: bytes) -> ControlHandle:
        handle = self._handle(inode, record.flags)
        handle.restore(record)
        return handle

    def _handle(self, inode: Inode, flags: int) -> ChannelHandle:
        return ChannelHandle(inode, flags, self._hub.read_limit, TraceChannel(self._hub, self._hub.open_trace()))


class PinsFile:
    """`.pinfs/pins`: every pin, one JSON object a line; a million of them are made as they are read."""

    mode = 0o444

    def __init__(self, verbs: PinVerbs, stats: Stats) -> None:
        self._verbs = verbs
        self._stats = stats
        self._open: Counter[int] = Counter()  # by uid

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        """EMFILE: the caller's user has too many of these open."""
        check_read_only(flags)
        uid = ctx.uid
        if uid and self._open[uid] >= MAX_LISTS_PER_USER:
            self._stats.limit_reached["pin_lists"] += 1
            raise OSError(errno.EMFILE, "too many lists of pins")
        return self._list(inode, flags, uid)

    def restore(self, inode: Inode, record: HandleRecord, recorded: bytes) -> ControlHandle:
        pins = self._list(inode, record.flags, record.uid)
        pins.restore(recorded)
        return pins

    def _list(self, inode: Inode, flags: int, uid: int) -> PinList:
        self._open[uid] += 1
        on_close = partial(_count_down, self._open, uid)
        lister = PinLister(self._verbs.all_ids, lambda: self._verbs.lines(uid).of, on_close)
        return PinList(inode, flags, lister)


class UpgradeHandle(ControlHandle):
    """A write asks for another program to take over."""

    __slots__ = ("_request",)
    record_kind = HandleKind.TEXT

    def __init__(self, inode: Inode, flags: int, request: Callable[[list[str]], None]) -> None:
        super().__init__(inode, flags)
        self._request = request

    async def write(self, offset: int, data: bytes, unique: int = 0) -> int:
        """EFBIG: beyond 64 KiB. EINVAL: not a command."""
        if len(data) > MAX_COMMANDS_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._request(_program(data))
        return len(data)


def _program(data: bytes) -> list[str]:
    try:
        words = json.loads(data)["program"]
    except (ValueError, TypeError, KeyError):
        words = None
    if not isinstance(words, list) or not 1 <= len(words) <= MAX_WORDS or not all(map(_is_word, words)):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if not words[0].startswith("/"):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return words


def _is_word(word: object) -> bool:
    return isinstance(word, str) and 0 < len(word) <= MAX_WORD and "\0" not in word


class UpgradeFile:
    """`.pinfs/upgrade`: `{"program": [...]}` is the command of the `pinfs` that is to take over the mount.

    The daemon runs that program with its own rights, so the writer has to be one that could do the same without pinfs:
    its user, or root, and that of the daemon's own namespaces. Root of a container that the mount is bound into is not.
    """

    mode = 0o200

    def __init__(self) -> None:
        self.request: Callable[[list[str]], None] | None = None
        """What the daemon does about it; None: nothing can take over this mount."""

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        """EACCES: for reading, or by another user. EPERM: from another namespace. EOPNOTSUPP: survive=off."""
        if flags & os.O_ACCMODE != os.O_WRONLY or ctx.uid not in (0, os.geteuid()):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if self.request is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if not in_our_namespaces(ctx.pid):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return UpgradeHandle(inode, flags, self.request)

    def restore(self, inode: Inode, record: HandleRecord, recorded: bytes) -> ControlHandle:
        assert self.request is not None  # else there would have been no take-over
        return UpgradeHandle(inode, record.flags, self.request)


def _must_be_a_program(caller: CallerLike) -> None:
    """EACCES for the kernel's NFS server: a few reads of its clients would wait for events in all of its threads."""
    if is_kernel_thread(caller.pid):
        raise os_error(errno.EACCES)


def _count_down(counts: Counter[int], uid: int) -> None:
    counts[uid] -= 1
    if not counts[uid]:
        del counts[uid]


@dataclass(slots=True, frozen=True)
class Sources:
    """Where the files of `.pinfs` take what they show from."""

    hub: EventHub
    stats: Stats
    holders: Holders
    verbs: PinVerbs
    policies: PolicyBox
    metrics: Callable[[], bytes]
    status: Callable[[], dict[str, Any]]
    in_kernel: Callable[[int], list[dict[str, Any]]]
    """Removals under way there, as a uid may see them."""
    breakers: Callable[[int], list[dict[str, Any]]]
    """Removals that wait for holders, as a uid may see them."""
    upgrade: UpgradeFile
    forgetting: Forgetting = field(default_factory=Forgetting)

    def files(self) -> dict[bytes, ControlFile]:
        """The directory's files by name, in the order in which they are listed."""
        return {
            b"pins": PinsFile(self.verbs, self.stats),
            b"events": EventsFile(self.hub, self.stats, self.holders, self.verbs, self.forgetting),
            b"trace": TraceFile(self.hub),
            b"policy": PolicyFile(lambda: policy_to_toml(self.policies.current).encode(), self._replace_policy),
            b"policy.error": TextFile(0o444, lambda ctx: self.policies.last_error.encode(errors="surrogateescape")),
            b"metrics": TextFile(0o444, lambda ctx: self.metrics()),
            b"status": TextFile(0o444, self._status),
            b"upgrade": self.upgrade,
        }

    def _status(self, ctx: CallerLike) -> bytes:
        asked_by = ctx.uid
        waiting = {"in_kernel": self.in_kernel(asked_by), "breakers": self.breakers(asked_by)}
        return to_line({"v": 1, **self.status(), **waiting})

    def _replace_policy(self, text: bytes, uid: int) -> None:
        """EINVAL: not a policy."""
        try:
            self.policies.replace(text.decode(errors="replace"), f"uid {uid}")
        except PolicyError as e:
            raise OSError(errno.EINVAL, str(e)) from e
