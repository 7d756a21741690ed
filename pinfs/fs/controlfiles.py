"""The files of `.pinfs`: what each shows, and to which callers (SPEC 7)."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pinfs.config.policies import PolicyBox
from pinfs.core.owners import ProcessId
from pinfs.core.policy import PolicyError, policy_to_toml
from pinfs.enforce.holders import Holders
from pinfs.fs.control import (
    MAX_CHANNELS,
    MAX_CHANNELS_PER_USER,
    MAX_LISTS_PER_USER,
    ChannelHandle,
    ControlFile,
    ControlHandle,
    PolicyFile,
    Stream,
    TextFile,
    check_read_only,
)
from pinfs.fs.events import EventHub, EventQueue, to_line
from pinfs.fs.inodes import Inode
from pinfs.fs.pins import PinVerbs
from pinfs.fs.types import CallerLike, os_error
from pinfs.linux.proc import is_kernel_thread
from pinfs.runtime.stats import Stats


@dataclass(slots=True, eq=False)
class EventChannel:
    """The events of one process's own pins; commands go the other way, with the credentials of the open."""

    file: "EventsFile"
    process: ProcessId
    caller: CallerLike
    queue: EventQueue

    async def command(self, line: str) -> None:
        await self.file.verbs.command(line, self.caller)

    def close(self) -> None:
        self.file.closed(self)


class EventsFile:
    """`.pinfs/events`: the events of the opening process's own pins."""

    mode = 0o666

    def __init__(self, hub: EventHub, stats: Stats, holders: Holders, verbs: PinVerbs) -> None:
        self.verbs = verbs
        self._hub = hub
        self._stats = stats
        self._holders = holders
        self._open: Counter[int] = Counter()  # by uid

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        """EPERM: the daemon cannot see the process (another pid namespace). EMFILE: too many channels are open. EACCES:
        the caller is an NFS server."""
        _must_be_a_program(ctx)
        process = self._holders.process_of(ctx.pid)
        if process is None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if self._open.total() >= MAX_CHANNELS or (ctx.uid and self._open[ctx.uid] >= MAX_CHANNELS_PER_USER):
            self._stats.limit_reached["event_channels"] += 1
            raise OSError(errno.EMFILE, "too many event channels")
        self._holders.hold(process)
        try:
            channel = EventChannel(self, process.id, ctx, self._hub.open_channel(process.id))
        except BaseException:
            self._holders.drop(process.id)
            raise
        self._open[ctx.uid] += 1
        return ChannelHandle(inode, flags, self._hub.read_limit, channel)

    def closed(self, channel: EventChannel) -> None:
        """The reader of a channel has gone."""
        _count_down(self._open, channel.caller.uid)
        self._hub.close_channel(channel.process, channel.queue)
        self._holders.drop(channel.process)


@dataclass(slots=True, eq=False)
class TraceChannel:
    """The events of all pins."""

    hub: EventHub
    queue: EventQueue

    async def command(self, line: str) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

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
        self._open[uid] += 1
        return Stream(inode, flags, self._lines(uid), partial(_count_down, self._open, uid))

    def _lines(self, uid: int) -> Iterator[bytes]:
        for pin_id in self._verbs.all_ids():  # as they are at the first read
            shown = self._verbs.shown(pin_id, uid)
            if shown is not None:
                yield to_line(shown)


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

    def files(self) -> dict[bytes, ControlFile]:
        """The directory's files by name, in the order in which they are listed."""
        return {
            b"pins": PinsFile(self.verbs, self.stats),
            b"events": EventsFile(self.hub, self.stats, self.holders, self.verbs),
            b"trace": TraceFile(self.hub),
            b"policy": PolicyFile(lambda: policy_to_toml(self.policies.current).encode(), self._replace_policy),
            b"policy.error": TextFile(0o444, lambda ctx: self.policies.last_error.encode(errors="surrogateescape")),
            b"metrics": TextFile(0o444, lambda ctx: self.metrics()),
            b"status": TextFile(0o444, self._status),
        }

    def _status(self, ctx: CallerLike) -> bytes:
        return to_line({"v": 1, **self.status(), "in_kernel": self.in_kernel(ctx.uid)})

    def _replace_policy(self, text: bytes, ctx: CallerLike) -> None:
        """EINVAL: not a policy."""
        try:
            self.policies.replace(text.decode(errors="replace"), f"uid {ctx.uid}")
        except PolicyError as e:
            raise OSError(errno.EINVAL, str(e)) from e
