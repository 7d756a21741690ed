"""What `.pinfs/metrics` says of the other hosts (SPEC 14), of a mount that has some."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from pinfs.enforce.hosts import OtherHosts

_GAUGES: Final = {
    "joined": "1 while this host belongs to the cluster; else pins and removals get EIO",
    "hosts": "Hosts that are known in the cluster, this one included",
    "marks": "Files of which a removal asks etcd, on all hosts",
    "pins": "Pins of this host that the other hosts honour",
    "removals": "Removals of this host that the other hosts have been asked about, and that are not over",
    "fence_seconds": "Until this host tells its holders that they are cut off unless etcd answers; 0 once it is",
    "breakers_left": "Removals of breakers that gave up, and that stand until their breaks at other hosts are over",
}
_TOTALS: Final = {
    "joins": ("joined", "Times that this host has joined"),
    "fences": ("fenced", "Times that this host was cut off, and told its holders"),
    "pins_registered": ("pins", "Pins that all hosts have agreed to"),
    "pins_refused": ("pins refused", "Pins that were not registered in time, or that a removal or limit forbade"),
    "removals_asked": ("asked", "Removals that the other hosts were asked about"),
    "told": ("told", "Removals of other hosts that pins of this one were in the way of"),
    "calls": ("calls", "Calls to etcd"),
    "watches_lost": ("watches lost", "Times that a watch of etcd could not go on, and all was read anew"),
    "restores": ("restored", "Times that etcd was found to be restored, or another one"),
}
"""The name outside, the name within, the text."""
_FAILURES: Final = ("unanswered", "refused")
_REFUSED: Final = "refused: "
"""Begins the name within of removals that were refused, by why."""


class ClusterCounts:
    """Counters of this daemon, of the ones before it, and what can be counted now. `hosts` may not have a host yet."""

    def __init__(self, hosts: OtherHosts) -> None:
        self._hosts = hosts
        self._before: Counter[str] = Counter()

    def state(self) -> dict[str, int]:
        """All counters, for the next daemon."""
        hosts = self._hosts
        refused = {_REFUSED + why: count for why, count in hosts.refused.items()}
        return dict(self._before + Counter({**self._status()["counters"], "asked": hosts.asked, **refused}))

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where another daemon has ended."""
        self._before.update(state)

    def families(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """All that is known, as it is now."""
        status = self._status()
        gauges = {
            "joined": int(status["state"] == "joined"),
            "hosts": len({member["host"] for member in status["members"]}),
            "fence_seconds": max(0.0, status["fence_in_s"] or 0.0),
            "breakers_left": self._hosts.left_behind,
        }
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"pinfs_cluster_{name}", text, value=gauges.get(name, status.get(name)))
        counts = self.state()
        for name, (within, text) in _TOTALS.items():
            yield CounterMetricFamily(f"pinfs_cluster_{name}", text, value=counts.get(within, 0))
        failed = CounterMetricFamily("pinfs_cluster_calls_failed", "Calls to etcd without result", labels=("why",))
        for why in _FAILURES:
            failed.add_metric((why,), counts.get(why, 0))
        yield failed
        refused = CounterMetricFamily("pinfs_cluster_removals_refused", "Removals refused elsewhere", labels=("why",))
        for within, count in sorted(counts.items()):
            if within.startswith(_REFUSED):
                refused.add_metric((within.removeprefix(_REFUSED),), count)
        yield refused

    def _status(self) -> dict[str, Any]:
        return self._hosts.host.status()
