"""Putting the rooms together: everything of one mount but the kernel's side and the clockwork of its tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pinfs.config.options import Config
from pinfs.config.policies import PolicyBox
from pinfs.enforce.guard import Guard
from pinfs.enforce.holders import Holders
from pinfs.fs.backing import Backing, BackingRegistry
from pinfs.fs.control import Control
from pinfs.fs.controlfiles import Sources
from pinfs.fs.events import EventHub
from pinfs.fs.exports import Exports
from pinfs.fs.handles import HandleTable
from pinfs.fs.inodes import InodeTable
from pinfs.fs.operations import Operations
from pinfs.fs.pins import PinVerbs
from pinfs.fs.remote import RemoteOperations
from pinfs.fs.seal import Seal
from pinfs.fs.types import Timeouts
from pinfs.runtime.descriptors import budget
from pinfs.runtime.stats import Stats
from pinfs.serve.metrics import Families, Family, Gauges, families, render


@dataclass(slots=True)
class FileSystem:
    """The parts of one mount that the daemon, the metrics and tests need."""

    operations: Operations
    guard: Guard
    holders: Holders
    hub: EventHub
    stats: Stats
    inodes: InodeTable
    backing: Backing
    metrics: Families

    def close(self) -> None:
        """Lift all seals, and let go of all descriptors."""
        self.backing.seal.close()
        if not len(
            self.guard.cuts
        ):  # else closing could wait for a call that no signal ends; the process's end does it
            self.inodes.close()
        self.holders.close()
        if self.operations.exports is not None:
            self.operations.exports.close()


def assemble(
    source_fd: int,
    config: Config,
    policies: PolicyBox,
    passthrough: BackingRegistry,
    status: Callable[[], dict[str, Any]],
    max_descriptors: int,
) -> FileSystem:
    """Build a file system over the directory `source_fd` (taken over) that keeps to `max_descriptors`."""
    stats = Stats()
    share = budget(max_descriptors)
    holders = Holders(remembered=share.processes, first_spare=share.holders)
    hub = EventHub(stats)
    guard = Guard(holders, policies, hub, stats)
    book = guard.book
    inodes = InodeTable(source_fd, share.inode_descriptors, book.files.__contains__)
    inodes.first_spare = share.files
    seal = Seal(inodes, book, policies)
    inodes.sealed = seal.files
    hub.path_of = inodes.path_of
    hub.breaking_of = book.breaks.of_process
    holders.on_forgotten = hub.forget
    backing = Backing(inodes, passthrough, share, seal)
    stalls = backing.threads is not None
    backing.evictions.any_may_wait = lambda: stalls or guard.cuts.left_alone > 0
    guard.cuts.around = lambda nodeid: seal.cutting(inodes.known(nodeid))
    verbs = PinVerbs(guard, holders, inodes, backing, HandleTable())
    guard.on_handle_event = verbs.on_handle_event
    hub.on_subscribers = book.set_subscribed
    hub.on_subscribers(False)
    book.on_end = verbs.on_end

    def unpinned(nodeid: int) -> None:
        if nodeid in seal.files:
            seal.unpinned(nodeid)  # it stays in the table until its seal is lifted
        else:
            inodes.drop_id_if_unreferenced(nodeid)

    book.files.on_empty = unpinned

    def metrics() -> list[Family]:
        gauges = Gauges.of(guard, inodes, backing, holders, passthrough=not passthrough.unavailable_because)
        return list(families(stats, book, gauges))

    control = Control(
        Sources(hub, stats, holders, verbs, policies, lambda: render(metrics()), status, guard.cuts.shown).files()
    )
    timeouts = Timeouts(config.mount.entry_timeout, config.mount.attr_timeout)
    make = Operations if backing.threads is None else RemoteOperations
    operations = make(inodes, backing, guard, verbs, control, timeouts)
    if config.mount.nfs_export:
        operations.exports = Exports(inodes, control, operations.submounts)
    return FileSystem(operations, guard, holders, hub, stats, inodes, backing, metrics)
