"""The same on a mount, as the machine sees it: descriptors and memory of the daemon, and its own gauges.

PINFS_SOAK_ROUNDS (default 1,000) says how many rounds, PINFS_SEED in which order. Memory tells little of a thousand
rounds, and much of ten thousand.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import NewMount
from support.actor import eventually
from support.mounts import Mount
from support.seeds import chance

from soak import acts

ROUNDS = int(os.environ.get("PINFS_SOAK_ROUNDS", "1000"))
WARMING_UP = 500
LIMIT_S = 60 + ROUNDS / 5
FEW = ("prlimit", "--nofile=512")
"""Descriptors of the daemon: its caches are full after a short while."""

POLICY = """
break_timeout = 100
[[rule]]
path = "not_answered*"
break_timeout = 0.005
"""
GAUGES = ("pinfs_pins", "pinfs_pinned_bytes", "pinfs_waiting", "pinfs_holders")
CACHES = ("pinfs_inodes", "pinfs_open_files", "pinfs_descriptors")
WITH_THE_BRIDGE = {"pins_of_handles", "closed_under_a_break", "interrupted"}
"""pyfuse3 has no handler for ioctl and interrupt (docs/promises.md)."""

SLACK = 8
"""By how much what the kernel and the daemon remember differs between two moments."""

MEMORY_SLACK = 3 << 20
MEMORY_PER_ROUND = 100
"""Bytes: any object that stays after each round is larger."""


def resident(mount: Mount) -> int:
    """The daemon's own memory in bytes (proc_pid_statm(5))."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{mount.pid}/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def at_rest(mount: Mount) -> dict[str, float]:
    """What the daemon has when nobody uses it: it may take a moment to notice."""
    eventually(lambda: not any(mount.metrics()[name] for name in GAUGES))
    metrics = mount.metrics()
    counts = {name: metrics[name] for name in CACHES}
    return {**counts, "descriptors": len(os.listdir(f"/proc/{mount.pid}/fd")), "memory": resident(mount)}


@pytest.mark.parametrize("bridge", ["on", "off"])
def test_nothing_is_left_of_many_rounds(new_mount: NewMount, bridge: str) -> None:
    mount = new_mount(f"bridge={bridge}", "log_level=warning", prefix=FEW)
    mount.watch(LIMIT_S)
    mount.policy(POLICY)
    kinds = [kind for kind in acts.ROUNDS if bridge == "on" or kind not in WITH_THE_BRIDGE]
    order = chance(f"soak {bridge}").choices(kinds, k=WARMING_UP + ROUNDS)
    user = mount.actor()
    user.start(acts.soak, str(mount.path), order[:WARMING_UP]).result(LIMIT_S)
    before = at_rest(mount)
    user.start(acts.soak, str(mount.path), order[WARMING_UP:]).result(LIMIT_S)
    after = at_rest(mount)
    grown = {name: after[name] - before[name] for name in before}
    print(ROUNDS, "rounds:", grown)
    assert grown.pop("memory") <= MEMORY_SLACK + ROUNDS * MEMORY_PER_ROUND
    assert {name: count for name, count in grown.items() if count > SLACK} == {}
