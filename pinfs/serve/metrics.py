"""`.pinfs/metrics`: the counters and gauges of one mount in Prometheus' text format (docs/interfaces.md)."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from pinfs.core.book import PinBook
from pinfs.enforce.eventfds import EventFds
from pinfs.enforce.guard import Guard
from pinfs.enforce.holders import Holders
from pinfs.fs.backing import Backing
from pinfs.fs.inodes import InodeTable
from pinfs.runtime.descriptors import in_use
from pinfs.runtime.stats import Histogram, Stats
from pinfs.serve.history import Life

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Families = Callable[[], list[Family]]


@dataclass(slots=True, frozen=True)
class Gauges:
    """What can be counted at any time."""

    pins: int
    pinned_bytes: int
    holders: int
    waiting: int
    open_files: int
    inodes: int
    descriptors: float
    passthrough: int
    sealed_files: int
    removals_in_kernel: int
    removals_uninterruptible: int
    evictions: int
    eventfds: int

    @classmethod
    def of(
        cls,
        guard: Guard,
        inodes: InodeTable,
        backing: Backing,
        holders: Holders,
        eventfds: EventFds,
        *,
        passthrough: bool,
    ) -> "Gauges":
        book = guard.book
        return cls(
            len(book.table),
            book.table.pinned_bytes,
            len(holders),
            book.waiting,
            backing.open_files,
            len(inodes),
            math.nan if (used := in_use()) is None else used,
            int(passthrough),
            backing.seal.count,
            len(guard.cuts),
            guard.cuts.left_alone,
            len(backing.evictions),
            len(eventfds),
        )


_GAUGES = {
    "pins": "Pins that stand now",
    "pinned_bytes": "Bytes that are pinned now, as counted at registration",
    "holders": "Processes that hold pins or event channels",
    "waiting": "Breakers that wait now",
    "open_files": "Backing files that are open",
    "inodes": "Inodes that the kernel or a pin refers to",
    "descriptors": "Descriptors of the daemon",
    "removals_in_kernel": "Calls on the backing that remove bytes, under way in threads",
    "removals_uninterruptible": "Those of them that no signal ends; their breakers are answered",
    "evictions": "Last closes of files without a name that wait in the kernel",
    "passthrough": "1 where the kernel reads and writes backing files by itself",
    "eventfds": "Eventfds of holders that the daemon writes to",
    "sealed_files": "Files that the kernel keeps from being cut (append-only flag)",
}


def families(stats: Stats, book: PinBook, gauges: Gauges, life: Life) -> Iterator[Family]:
    """All that is measured, as it is now."""
    for name, text in _GAUGES.items():
        yield GaugeMetricFamily(f"pinfs_{name}", text, value=getattr(gauges, name))
    yield _total("pins_registered", "Pins registered", book.table.registered)
    yield _total("breaks_started", "Breaks that holders were told of", stats.breaks_started)
    yield _total("breaks_answered", "Breaks that holders answered", stats.breaks_answered)
    yield _total("events_lost", "Events that a slow reader did not get", stats.events_lost)
    yield _by("pins_released", "Pins that ended", ("by",), {(k,): n for k, n in book.ended.items()})
    yield _by(
        "breaks_timed_out",
        "Breaks that met their deadline",
        ("on_timeout",),
        {(k,): n for k, n in stats.breaks_timed_out.items()},
    )
    yield _by("refusals", "Removals refused", ("op", "why"), stats.refusals)
    yield _by("limit_reached", "Limits met", ("limit",), {(k,): n for k, n in stats.limit_reached.items()})
    yield _by("requests", "Requests by path: fast, or parked", ("path",), {(k,): n for k, n in stats.requests.items()})
    yield _histogram("break_seconds", "From the notice of a break to its answer", stats.break_seconds)
    for name, text, value in life.survival().gauges():
        yield GaugeMetricFamily(f"pinfs_{name}", text, value=value)
    yield _total("takeovers", "Daemons that have taken over from the one before", life.history.takeovers)
    yield _histogram(
        "takeover_seconds", "From the end of a daemon to the first answer of the next", life.history.pauses
    )


def _total(name: str, text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(f"pinfs_{name}", text, value=value)


def _by(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"pinfs_{name}", text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    bounds = [*map(str, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
    return HistogramMetricFamily(f"pinfs_{name}", text, buckets=buckets, sum_value=histogram.total)


class _Once(Collector):
    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


def render(families: list[Family]) -> bytes:
    """The text of `.pinfs/metrics`."""
    registry = CollectorRegistry()
    registry.register(_Once(families))
    return generate_latest(registry)
