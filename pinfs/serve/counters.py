"""Counters that go on counting with the next daemon (SPEC 13): none that a program has read ever goes back."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import trio

from pinfs.core.book import PinBook
from pinfs.enforce.holders import HolderCounters, Holders
from pinfs.fs.streamrecords import StreamRecords
from pinfs.journal.records import TextId
from pinfs.runtime.errors import logged
from pinfs.runtime.stats import Stats
from pinfs.serve.clustermetrics import ClusterCounts

EVERY_S: Final = 1.0
"""What may be missing of the counters of a daemon that was killed, where no program had read them since."""


class KeptCounters:
    """Writes the counters down before they are shown, and once a second."""

    def __init__(self, stats: Stats, holders: Holders, book: PinBook, cluster: ClusterCounts | None) -> None:
        self.streams: StreamRecords | None = None
        """Where to; None: the mount does not outlive the daemon."""
        self._stats = stats
        self._holders = holders
        self._book = book
        self._cluster = cluster

    def state(self) -> dict[str, Any]:
        """All of them, as JSON values."""
        holders = asdict(self._holders.counters)
        cluster = self._cluster.state() if self._cluster else {}
        return {"stats": self._stats.state(), "holders": holders, "ended": dict(self._book.ended), "cluster": cluster}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where another daemon has ended. Raises KeyError, TypeError, ValueError."""
        self._stats.restore(state["stats"])
        self._holders.counters = HolderCounters(**state["holders"])
        self._book.ended.update(state["ended"])
        if self._cluster:
            self._cluster.restore(state.get("cluster", {}))  # a daemon of an earlier version has written none

    def write(self) -> None:
        """Write them down, if they have changed."""
        if self.streams is not None:
            self.streams.text(TextId.STATS, json.dumps(self.state()).encode())

    async def run(self) -> None:
        """Once a second, until cancelled; and end what is over of silent holders."""
        while True:
            await trio.sleep(EVERY_S)
            with logged("writing the counters down"):
                self._book.silent.sweep(trio.current_time())
                self.write()
