"""Putting the rooms together: everything of one mount but the kernel's side and the clockwork of its tasks."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pinfs.config.options import Config
from pinfs.config.policies import PolicyBox
from pinfs.core.owners import Owner
from pinfs.core.removals import Orphan
from pinfs.enforce.eventfds import EventFds
from pinfs.enforce.guard import Guard
from pinfs.enforce.holders import Holders
from pinfs.enforce.hosts import OtherHosts
from pinfs.fs.backing import Backing, BackingRegistry
from pinfs.fs.breakers import Breakers
from pinfs.fs.control import Control
from pinfs.fs.controlfiles import Forgetting, Sources, UpgradeFile
from pinfs.fs.events import EventHub
from pinfs.fs.exports import Exports
from pinfs.fs.handles import HandleTable
from pinfs.fs.inodes import InodeTable
from pinfs.fs.operations import Operations
from pinfs.fs.pins import PinVerbs
from pinfs.fs.polling import Polling, PollMode
from pinfs.fs.recorder import Recorder
from pinfs.fs.remote import RemoteOperations
from pinfs.fs.restore import Parts
from pinfs.fs.seal import Seal
from pinfs.fs.shared import SharedFiles
from pinfs.fs.streamrecords import StreamRecords
from pinfs.fs.streamrestore import StreamParts
from pinfs.fs.types import Timeouts
from pinfs.journal.records import TextId
from pinfs.runtime.descriptors import budget
from pinfs.runtime.stats import Stats
from pinfs.serve.clustermetrics import ClusterCounts
from pinfs.serve.counters import KeptCounters
from pinfs.serve.history import History, Life
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
    verbs: PinVerbs
    control: Control
    policies: PolicyBox
    counters: KeptCounters
    life: Life
    upgrade: UpgradeFile

    forgetting: Forgetting
    hosts: OtherHosts | None
    recorder: Recorder | None = None
    streams: StreamRecords | None = None

    def record(self, recorder: Recorder | None) -> None:
        """From now on write down what the next daemon needs; None: no longer."""
        self.recorder = recorder
        self.inodes.recorder = self.verbs.recorder = self.verbs.handles.recorder = recorder
        self.guard.record = (lambda event: None) if recorder is None else recorder.event
        self.operations.polling.on_refused = (lambda: None) if recorder is None else recorder.poll_refused
        streams = self.streams = None if recorder is None else StreamRecords(recorder)
        self.verbs.eventfds.store = None if recorder is None else recorder.store
        self.verbs.handles.streams = self.hub.records = self.operations.directories.records = streams
        self.counters.streams = streams
        hears = _NoRecords() if streams is None else streams
        book = self.guard.book
        book.silent.on_change = hears.silent
        book.reservations.on_orphan, book.reservations.on_orphan_gone = hears.orphan, hears.orphan_gone
        self.policies.on_change = self._write_policy
        if self.hosts is not None:
            self.hosts.on_state = self._write_cluster

    def _write_policy(self) -> None:
        if self.streams is not None:
            self.streams.text(TextId.POLICY, json.dumps(self.policies.state()).encode())

    def _write_cluster(self, state: dict[str, Any]) -> None:
        if self.streams is not None:
            self.streams.text(TextId.CLUSTER, json.dumps(state).encode())

    def write_texts(self) -> None:
        """Write down the policy, the counters and the history, which change seldom."""
        self._write_policy()
        self.counters.write()
        if self.streams is not None:
            self.streams.text(TextId.HISTORY, self.life.history.to_json())

    @property
    def stream_parts(self) -> StreamParts:
        """What a take-over restores readers of control files into."""
        operations, book = self.operations, self.guard.book
        return StreamParts(
            self.control, operations.directories, operations.handles, self.hub, self.verbs, book, self.holders
        )

    def restore_texts(self, texts: Mapping[TextId, bytes], lose: Callable[[str, object], None]) -> None:
        """The policy, the counters and the history of the daemon before. What cannot be read is told to `lose`."""
        if TextId.HISTORY in texts:
            self.life.history = History.from_json(texts[TextId.HISTORY])
        restores = {TextId.POLICY: self.policies.restore, TextId.STATS: self.counters.restore}
        for id_, restore in restores.items():
            try:
                if id_ in texts:
                    restore(json.loads(texts[id_]))
            except (ValueError, LookupError, TypeError, AttributeError) as e:
                lose(id_.name.lower(), e)

    @property
    def parts(self) -> Parts:
        """What a take-over restores into."""
        operations, eventfds = self.operations, self.verbs.eventfds
        kept = operations.handles, operations.uncached
        return Parts(self.inodes, self.backing, *kept, self.guard, self.holders, eventfds)

    def close(self) -> None:
        """Lift all seals, and let go of all descriptors."""
        self.backing.seal.close()
        if not len(
            self.guard.cuts
        ):  # else closing could wait for a call that no signal ends; the process's end does it
            self.inodes.close()
        self.holders.close()
        self.verbs.eventfds.close()
        if self.operations.exports is not None:
            self.operations.exports.close()


class _NoRecords:
    """Stands for the records of a mount that does not outlive its daemon."""

    def silent(self, owner: Owner, until: float | None) -> None:
        pass

    def orphan(self, orphan: Orphan) -> None:
        pass

    def orphan_gone(self, orphan: Orphan) -> None:
        pass


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
    eventfds = EventFds(stats, share.files)
    hub = EventHub(stats)
    guard = Guard(holders, eventfds, policies, hub, stats)
    book = guard.book
    inodes = InodeTable(source_fd, share.inode_descriptors, book.files)
    inodes.first_spare = share.files
    seal = Seal(inodes, book, policies)
    inodes.sealed = seal.files
    hub.path_of = inodes.path_of
    hub.breaking_of = book.breaks.of_process
    holders.on_forgotten = hub.forget
    backing = Backing(inodes, passthrough, share, seal)
    stalls = backing.threads is not None
    eventfds.discard = backing.evictions.close_in_thread
    backing.evictions.any_may_wait = lambda: stalls or guard.cuts.left_alone > 0
    guard.cuts.around = lambda nodeid: seal.cutting(inodes.known(nodeid))
    verbs = PinVerbs(guard, holders, inodes, backing, HandleTable(), eventfds)
    guard.on_handle_event = verbs.on_handle_event
    hub.on_subscribers = book.set_subscribed
    hub.on_subscribers(False)
    book.on_end = verbs.on_end

    book.files.on_empty = seal.left_by_pins
    hosts = shared = None
    if config.cluster is not None:
        shared = SharedFiles(inodes, backing, source_fd)
        hosts = OtherHosts(guard, policies, shared, config.cluster.pin_timeout)
        guard.hosts = verbs.hosts = hosts

    cluster = ClusterCounts(hosts) if hosts is not None else None
    life, counters = Life(), KeptCounters(stats, holders, book, cluster)

    def metrics() -> list[Family]:
        counters.write()
        told = holders, eventfds
        gauges = Gauges.of(guard, inodes, backing, *told, passthrough=not passthrough.unavailable_because)
        besides = cluster.families() if cluster is not None else ()
        return [*families(stats, book, gauges, life), *besides]

    upgrade = UpgradeFile()
    forgetting = Forgetting()
    more = status, guard.cuts.shown, Breakers(book, verbs.is_admin).shown, upgrade, forgetting
    sources = Sources(hub, stats, holders, verbs, policies, lambda: render(metrics()), *more)
    control = Control(sources.files())
    timeouts = Timeouts(config.mount.entry_timeout, config.mount.attr_timeout, config.cluster is not None)
    make = Operations if backing.threads is None else RemoteOperations
    operations = make(inodes, backing, guard, verbs, control, timeouts)
    if shared is not None and isinstance(operations, RemoteOperations):
        shared.reaching = operations.reaching
    operations.polling = Polling(PollMode(config.mount.poll))
    if config.mount.nfs_export:
        operations.exports = Exports(inodes, control, operations.submounts)
    shown_besides = control, policies, counters, life, upgrade, forgetting
    return FileSystem(operations, guard, holders, hub, stats, inodes, backing, metrics, verbs, *shown_besides, hosts)
