"""`.pinfs/metrics` of a host: what it says of the others, and that docs/interfaces.md has all names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, cast

from prometheus_client.core import CounterMetricFamily
from support.actor import eventually
from support.mounts import REPO, Mount

from pinfs.enforce.hosts import OtherHosts
from pinfs.serve.clustermetrics import ClusterCounts

PIN = "user.pinfs.pin."


class FakeHosts:
    """What ClusterCounts reads, of a host that has not joined."""

    def __init__(self) -> None:
        self.host = self
        self.left_behind, self.asked = 2, 7
        self.refused = {"deny": 3}
        self.counters = {"calls": 5, "unanswered": 1}
        self.fence_in_s: float | None = None

    def status(self) -> dict[str, Any]:
        members = [{"host": host} for host in ("a", "b", "b")]
        state = "joining" if self.fence_in_s is None else "joined"
        plain = {"marks": 4, "pins": 0, "removals": 1, "fence_in_s": self.fence_in_s}
        return {"state": state, "members": members, "counters": dict(self.counters), **plain}


def samples(counts: ClusterCounts) -> dict[str, float]:
    """By name and label."""
    return {
        sample.name + "".join(f".{value}" for value in sample.labels.values()): sample.value
        for family in counts.families()
        for sample in family.samples
    }


def test_what_is_counted() -> None:
    hosts = FakeHosts()
    found = samples(ClusterCounts(cast("OtherHosts", hosts)))
    assert (found["pinfs_cluster_joined"], found["pinfs_cluster_fence_seconds"]) == (0, 0)
    assert (found["pinfs_cluster_hosts"], found["pinfs_cluster_breakers_left"]) == (2, 2)
    assert (found["pinfs_cluster_calls_total"], found["pinfs_cluster_calls_failed_total.unanswered"]) == (5, 1)
    assert (found["pinfs_cluster_removals_asked_total"], found["pinfs_cluster_removals_refused_total.deny"]) == (7, 3)
    hosts.fence_in_s = 9.5
    assert samples(ClusterCounts(cast("OtherHosts", hosts)))["pinfs_cluster_fence_seconds"] == 9.5


def test_the_next_daemon_goes_on_counting() -> None:
    before, hosts = FakeHosts(), FakeHosts()
    counts = ClusterCounts(cast("OtherHosts", hosts))
    counts.restore(ClusterCounts(cast("OtherHosts", before)).state())
    found = samples(counts)
    assert (found["pinfs_cluster_calls_total"], found["pinfs_cluster_removals_refused_total.deny"]) == (10, 6)
    assert found["pinfs_cluster_marks"] == 4


def documented() -> set[str]:
    section = (REPO / "docs/interfaces.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`(pinfs_\w+)[`{]", section))


def names(families: Iterator[Any]) -> set[str]:
    return {f"{one.name}_total" if isinstance(one, CounterMetricFamily) else one.name for one in families}


def test_the_names_are_documented(mount: Mount) -> None:
    """Those of a mount without cluster, and those that a cluster adds."""
    text = (mount.path / ".pinfs/metrics").read_text()
    alone = {name for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE) if not name.endswith("_created")}
    assert not [name for name in alone if name.startswith("pinfs_cluster")]
    assert names(ClusterCounts(cast("OtherHosts", FakeHosts())).families()) | alone == documented()


def test_metrics_of_two_hosts(a: Mount, b: Mount) -> None:
    (a.path / "f").write_bytes(bytes(8192))
    a.actor()(os.setxattr, str(a.path / "f"), f"{PIN}x", b"0:4096")
    assert b.actor().errno(os.truncate, str(b.path / "f"), 0)
    here, there = a.metrics(), b.metrics()
    assert (here["pinfs_cluster_joined"], there["pinfs_cluster_hosts"]) == (1, 2)
    assert (here["pinfs_cluster_pins"], here["pinfs_cluster_pins_registered_total"]) == (1, 1)
    assert here["pinfs_cluster_marks"] == 1
    assert there["pinfs_cluster_removals_asked_total"] == 1
    assert there['pinfs_cluster_removals_refused_total{why="deny"}'] == 1
    assert 0 < here["pinfs_cluster_fence_seconds"] <= 10
    eventually(lambda: b.metrics()["pinfs_cluster_removals"] == 0)
