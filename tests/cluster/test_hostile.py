"""Hosts that die, are cut off and stall, while programs on all of them pin and cut (docs/hosts.md): hostile.py.

PINFS_CLUSTER_SECONDS is how long the one with three hosts and three nodes takes, in seconds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import seeds
from support.actor import eventually
from support.mounts import new_base, remove_tree

from cluster import binaries, network, nodes
from cluster.hostile import OPTIONS, Host, Hostile, schedule

SECONDS = float(os.environ.get("PINFS_CLUSTER_SECONDS", "60"))
CALM_S = 30.0
"""Removals whose breakers have gone stand for a while."""
SWEEPS_S = 240.0
"""Until a mark has gone, and two sweeps have seen a name."""


@pytest.fixture
def base(fuse: None) -> Iterator[Path]:
    base = new_base()
    (base / "source").mkdir(mode=0o777)
    yield base
    remove_tree(base)


def run(base: Path, version: str, counts: tuple[int, int], seconds: float) -> Hostile:
    """With as many hosts and nodes. All has ended when it returns."""
    host_count, node_count = counts
    purpose = f"hostile {host_count} {node_count}"
    with ExitStack() as stack:
        machines = stack.enter_context(network.machines(host_count + node_count))
        running = stack.enter_context(nodes.running_on(binaries.etcd(version), machines[host_count:]))
        endpoints = "+".join(str(node.endpoint) for node in running)
        hosts = [
            Host(base, name, number, machine, (f"cluster={endpoints}", *OPTIONS))
            for number, (name, machine) in enumerate(zip("abc"[:host_count], machines, strict=False))
        ]
        hostile = Hostile(base, f"{seeds.SEED}", hosts, running)
        stack.callback(hostile.close)
        hostile.run(schedule(seeds.chance(purpose), seconds, host_count, node_count))
        broken = hostile.violations()
        print(json.dumps(hostile.summary(), indent=1))
        assert not broken, told(hostile, broken)
        hostile.end()
        broken = hostile.violations() + hostile.deaths()
        assert not broken, told(hostile, broken)
        check_end(hostile, seconds >= 60)
    return hostile


def told(hostile: Hostile, broken: list[dict[str, Any]]) -> str:
    """For the message of a failure. The logs of the programs are kept."""
    kept = Path("/var/tmp/pinfs-hostile")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(hostile.base / "log", kept)
    for host in hostile.hosts:
        (kept / f"daemon-{host.name}").write_text(host.log())
    return "\n".join([*(json.dumps(line) for line in broken[:20]), f"see {kept}"])


def check_end(hostile: Hostile, is_patient: bool) -> None:
    """Nothing is left of the pins and removals."""
    for host in hostile.hosts:
        try:
            eventually(partial(_is_calm, host), CALM_S)
        except AssertionError:
            assert host.mount is not None
            left = {"host": host.name, "pins": host.mount.pins(), "cluster": host.status()["cluster"]}
            raise AssertionError(told(hostile, [left])) from None
        assert not host.status()["cluster"]["not_seen"]
    eventually(lambda: not any(map(hostile.keys, "prv")), 30)
    eventually(lambda: hostile.keys("m") == len(hostile.hosts), 30)
    if is_patient:
        eventually(lambda: not hostile.held(), SWEEPS_S)
    for host in hostile.hosts:
        host.leave()
        assert "Traceback" not in host.log(), host.log()
    assert hostile.keys("m") == 0


def _is_calm(host: Host) -> bool:
    """Neither pins nor removals, here and among the hosts."""
    assert host.mount is not None
    cluster = host.status()["cluster"]
    return not (host.mount.pins() or cluster["pins"] or cluster["removals"] or cluster["waiting"])


def test_a_hostile_half_minute(base: Path, root: None) -> None:
    run(base, "3.4", (3, 1), 30)


@pytest.mark.etcd
def test_three_hosts_and_three_nodes(base: Path, root: None) -> None:
    run(base, "3.5", (3, 3), SECONDS)
