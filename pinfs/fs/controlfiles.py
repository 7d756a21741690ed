"""What stands in `.pinfs`: each file with what it shows, and to whom."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pinfs.config.options import PolicyBox
from pinfs.core.policy import PolicyError, policy_to_toml
from pinfs.enforce.guard import Guard
from pinfs.enforce.holders import Holders
from pinfs.fs.control import (
    MAX_CHANNELS,
    MAX_CHANNELS_PER_USER,
    ChannelHandle,
    ControlFile,
    ControlHandle,
    PolicyFile,
    Stream,
    TextFile,
    check_read_only,
)
from pinfs.fs.describe import describe
from pinfs.fs.events import EventHub, to_line
from pinfs.fs.inodes import Inode, InodeTable
from pinfs.fs.pins import PinVerbs
from pinfs.fs.types import CallerLike
from pinfs.runtime.stats import Stats


class EventsFile:
    """`.pinfs/events`: the events of the opening process's own pins; commands go the other way."""

    mode = 0o666

    def __init__(self, hub: EventHub, stats: Stats, holders: Holders, verbs: PinVerbs) -> None:
        self._hub = hub
        self._stats = stats
        self._holders = holders
        self._verbs = verbs
        self._open: Counter[int] = Counter()  # by uid

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        """EPERM: the daemon cannot see the process (another pid namespace). EMFILE: too many channels are open."""
        process = self._holders.process_of(ctx.pid)
        if process is None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if self._open.total() >= MAX_CHANNELS or (ctx.uid and self._open[ctx.uid] >= MAX_CHANNELS_PER_USER):
            self._stats.limit_reached["event_channels"] += 1
            raise OSError(errno.EMFILE, "too many event channels")
        self._holders.hold(process)
        self._open[ctx.uid] += 1
        handle = ChannelHandle(inode, flags, self._hub.read_limit)
        queue = self._hub.open_channel(process, handle.on_news)

        def close() -> None:
            self._open[ctx.uid] -= 1
            self._hub.close_channel(process, queue)
            self._holders.drop(process)

        handle.connect(queue, close, lambda line: self._verbs.command(line, ctx))
        return handle


class TraceFile:
    """`.pinfs/trace`: the events of all pins, for root."""

    mode = 0o400

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        check_read_only(flags)
        handle = ChannelHandle(inode, flags, self._hub.read_limit)
        queue = self._hub.open_trace(handle.on_news)
        handle.connect(queue, lambda: self._hub.close_trace(queue), None)
        return handle


class PinsFile:
    """`.pinfs/pins`: every pin, one JSON object a line; a million of them are made as they are read."""

    mode = 0o444

    def __init__(self, guard: Guard, inodes: InodeTable, verbs: PinVerbs) -> None:
        self._guard = guard
        self._inodes = inodes
        self._verbs = verbs

    def open(self, inode: Inode, flags: int, ctx: CallerLike) -> ControlHandle:
        check_read_only(flags)
        return Stream(inode, flags, self._lines(list(self._guard.book.by_id), ctx.uid))

    def _lines(self, ids: list[int], uid: int) -> Iterator[bytes]:
        for pin_id in ids:
            pin = self._guard.book.by_id.get(pin_id)
            if pin is not None:
                path = self._inodes.get(pin.inode).path()
                yield to_line(describe(pin, path, reveal=self._verbs.may_see(pin, uid)))


def control_files(
    guard: Guard,
    stats: Stats,
    holders: Holders,
    inodes: InodeTable,
    hub: EventHub,
    verbs: PinVerbs,
    policies: PolicyBox,
    metrics: Callable[[], bytes],
    status: Callable[[], dict[str, Any]],
) -> dict[bytes, ControlFile]:
    """The directory's files by name, in the order in which they are listed."""

    def apply(text: bytes, ctx: CallerLike) -> None:
        try:
            policies.replace(text.decode(errors="replace"), f"uid {ctx.uid}")
        except PolicyError as e:
            raise OSError(errno.EINVAL, str(e)) from e

    return {
        b"pins": PinsFile(guard, inodes, verbs),
        b"events": EventsFile(hub, stats, holders, verbs),
        b"trace": TraceFile(hub),
        b"policy": PolicyFile(lambda: policy_to_toml(policies.current).encode(), apply),
        b"policy.error": TextFile(0o444, lambda ctx: policies.last_error.encode()),
        b"metrics": TextFile(0o444, lambda ctx: metrics()),
        b"status": TextFile(0o444, lambda ctx: to_line({"v": 1, **status()})),
    }
