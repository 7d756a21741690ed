"""A mount that outlives its daemon (SPEC 13): what is kept for the next one, and what that one begins with."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import trio

from pinfs.bridge.mount import MountError
from pinfs.bridge.negotiate import Init, Negotiated
from pinfs.config.cluster import ClusterError, ClusterOptions
from pinfs.config.options import Config
from pinfs.fs.inode import ROOT_ID, Inode
from pinfs.fs.recorder import Recorder
from pinfs.fs.restore import Records, Restoration
from pinfs.fs.streamrestore import StreamRestoration
from pinfs.journal import records
from pinfs.journal.records import Kind, TextId
from pinfs.journal.slots import JournalError, Slots, new_journal_file
from pinfs.serve.assembly import FileSystem
from pinfs.serve.descriptorstore import DescriptorStore

log = logging.getLogger("pinfs.daemon")

CONNECTION: Final = "fuse"
SOURCE: Final = "source"
JOURNAL: Final = "journal"
"""Names of descriptors in the store."""
FORGOTTEN_S: Final = 1.0
"""How long a FORGET that the kernel has queued may take until it is read."""


@dataclass(frozen=True)
class Identity:
    """Of which mount a journal is, and what its kernel and the daemon have agreed on."""

    source: str
    mountpoint: str
    device: int
    """st_dev of the mount."""
    kernel_minor: int
    offered: int
    flags: int
    passthrough_unavailable_because: str
    cluster: Mapping[str, Any] | None = None
    """`ClusterOptions.state`: what it began with holds for as long as it is mounted. None: it is in no cluster."""

    @property
    def negotiated(self) -> Negotiated:
        return Negotiated(self.kernel_minor, Init(self.offered), Init(self.flags))

    def config_of(self, config: Config) -> Config:
        """`config` as it holds for this mount. MountError: it is in a cluster, and the options of that are damaged."""
        try:
            cluster = None if self.cluster is None else ClusterOptions.restored(self.cluster)
        except (ClusterError, TypeError, ImportError) as e:
            raise MountError(f"the options of the cluster cannot be taken over: {e}") from e
        if cluster != config.cluster:
            log.warning("the options of the cluster have changed: that holds for the next mount only")
        return config.with_cluster(cluster)

    def to_json(self) -> bytes:
        """Without what a mount does not have: so an older version, which does not know of it, takes over as well."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None}).encode()

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Identity":
        """JournalError: what it says of the mount is more than this version knows, or less. Both must be heeded."""
        names = {field.name for field in fields(cls)}
        if unknown := told.keys() - names:
            raise JournalError(f"this version does not know what a mount has to do with: {', '.join(sorted(unknown))}")
        return cls(**told)

    def warn_of_other_places(self, source: str, mountpoint: str) -> None:
        """Where the daemon was told to serve something else. Nothing may ask the mount, its mount point included."""
        above, name = os.path.split(os.path.abspath(mountpoint))
        asked = os.path.realpath(source), os.path.join(os.path.realpath(above), name)
        served = self.source, self.mountpoint
        if asked != served:
            log.warning("%s on %s goes on until it is unmounted: %s on %s has to wait", *served, *asked)


@dataclass(frozen=True)
class Left:
    """What the daemon before has left. `kept`: all its descriptors; they stay the store's."""

    kept: Mapping[str, int]
    slots: Slots
    found: Records
    identity: Identity
    cluster: dict[str, Any] | None = None
    """The place of this host in its cluster; None: it has not joined."""

    @property
    def connection(self) -> int:
        return self.kept[CONNECTION]

    @property
    def source_fd(self) -> int:
        return self.kept[SOURCE]


def left_in(store: DescriptorStore) -> Left | None:
    """What is to be taken over; None: this is the first daemon. MountError: it cannot be taken over."""
    kept = store.inherited()
    if not kept.keys() >= {CONNECTION, SOURCE, JOURNAL}:
        return None
    try:
        slots = Slots(kept[JOURNAL])
        if slots.words[records.BROKEN]:
            raise JournalError("records are missing, for which there was no room")
        found = slots.load(without=Kind.PIN)
        identity = Identity.from_json(_json(slots, found, TextId.IDENTITY))
        cluster = _json(slots, found, TextId.CLUSTER) if TextId.CLUSTER in found[Kind.TEXT] else None
    except (JournalError, KeyError, TypeError, ValueError) as e:
        raise MountError(f"the mount cannot be taken over: {e}") from e
    return Left(kept, slots, found, identity, cluster)


def _json(slots: Slots, found: Records, text: TextId) -> dict[str, Any]:
    slot = found[Kind.TEXT][text]
    value: dict[str, Any] = json.loads(slots.text(slots.words[(slot << 4) + 2]))
    return value


class TakeOver:
    """Fills the tables of a file system with what the daemon before knew; `recorder` writes from then on.

    `restored`: what was found, and what the answers to resent requests need.
    """

    def __init__(self, fs: FileSystem, recorder: Recorder, left: Left) -> None:
        fs.record(recorder)
        assert fs.streams is not None
        self._fs = fs
        self._left = left
        self._state = Restoration(fs.parts, recorder, left.found, left.kept)
        self.restored = self._state.restored
        self._readers = StreamRestoration(fs.stream_parts, fs.streams, left.found, self.restored, left.kept)

    def begin(self, resume_seal: Callable[[], None]) -> None:
        """Before the first request. Some of very many pins are left for `finish`."""
        state, readers, fs = self._state, self._readers, self._fs
        if self._left.slots.words[records.POLL_REFUSED] == 1:
            fs.operations.polling.answered = False
        fs.restore_texts(readers.texts(), self.restored.lose)
        state.inodes()
        resume_seal()
        state.handles()
        state.eventfds()
        readers.handles()  # before the pins: readers are told of those that have ended
        fs.operations.polling.waiting.update(self.restored.polled)  # before the first request, which may be io_uring's
        self.restored.polled.clear()
        readers.book()
        state.pins()
        state.unreferenced()
        state.requests()
        fs.verbs.released_before = self.restored.executed()
        self.pending = state.pending
        if not self.pending.files:
            self._settle()

    async def finish(self, kernel_knows: Callable[[int], bool]) -> None:
        """The rest of very many pins, and of inodes that the kernel has forgotten."""
        if self.pending.files:
            await self.pending.run()
            self._settle()
            log.info("all pins are restored: %d", len(self._fs.guard.book.table))
        await self._forget_lost(kernel_knows)

    async def _forget_lost(self, kernel_knows: Callable[[int], bool]) -> None:
        """A FORGET that the daemon before had read and not acted on never comes again: without it a removed inode would
        stay in the table until the mount ends. One that is still to be read has been when this asks a second time."""
        inodes = self._fs.inodes
        lost = [(inode, inode.lookups) for inode in inodes if _is_over(inode) and not kernel_knows(inode.nodeid)]
        await trio.sleep(FORGOTTEN_S)
        for inode, lookups in lost:
            is_same = inodes.known(inode.nodeid) is inode and inode.lookups == lookups and _is_over(inode)
            if is_same and not kernel_knows(inode.nodeid):
                inodes.forget(inode.nodeid, lookups)

    def _settle(self) -> None:
        self._readers.settle()
        self._state.drop_unused_breaks()
        self._state.drop_unused_eventfds()
        self._fs.backing.seal.resumed()


def _is_over(inode: Inode) -> bool:
    """Whether nothing but the kernel's lookup count keeps it."""
    return inode.name is None and inode.lookups > 0 and inode.file is None and inode.nodeid != ROOT_ID


def new_journal() -> tuple[int, Slots]:
    """An empty journal: its descriptor, and its slots. OSError, JournalFullError."""
    fd = new_journal_file()
    try:
        slots = Slots(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, slots
