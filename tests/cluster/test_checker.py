"""Searches for histories in which the protocol lets pinned bytes be cut, and makes sure that the search finds them
where they are: in protocols that are nearly right.

PINFS_CLUSTER_SECONDS says how long the search goes on (default 8 s; an hour before the protocol changes).
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from support import seeds

from cluster import wrong
from cluster.world import QUICK, Scenario, ViolationError, World

SECONDS = float(os.environ.get("PINFS_CLUSTER_SECONDS", "8"))
RUN_S = 30.0
"""Of the world's time."""
RUNS = 150
"""In which a wrong protocol has to be caught. The rarest is caught in one run of ten."""

DRAWN = Scenario()
BUSY = replace(DRAWN, files=12, pace_s=0.03)
WRONG = {
    "watch cache": replace(DRAWN, member=wrong.WatchCache).without_faults(),
    "no waiting for the others": replace(DRAWN, member=wrong.Unwaiting, files=30).without_faults(),
    "promises before its own removals are over": replace(BUSY, member=wrong.EarlyPromise),
    "one lease": replace(BUSY, timing=replace(QUICK, member_ttl_s=QUICK.pin_ttl_s), late_cuts=0.2),
    "marks are not counted": replace(BUSY, member=wrong.Uncounted, gaps=0.05),
    "no fence": replace(DRAWN, member=wrong.Unfenced, files=6, faults={"cut off": 1}, faults_every_s=2),
    "trusts the watch about removals": replace(
        DRAWN, member=wrong.TrustsTheWatch, gaps=0.2, late_cuts=0.2, late_cut_s=3, pace_s=0.03, faults={"stall": 1}
    ),
    "trusts the watch about pins": replace(DRAWN, member=wrong.Unconfirmed, gaps=0.1),
    "a take-over forgets cuts under way": replace(
        BUSY, member=wrong.Unsettled, late_cuts=0.2, faults={"restart": 1}, faults_every_s=2
    ),
    "a removal of a file that is not known holds back nothing": replace(
        BUSY, member=wrong.MindsKnownFiles, unseen=0.1, late_cuts=0.1, faults_every_s=0
    ),
    "etcd judges who is alive": replace(DRAWN, timing=replace(QUICK, bundle_ttl_s=QUICK.pin_ttl_s)),
}
BEYOND_HELP = {
    "a daemon stalls longer than its margin": replace(DRAWN, stall_s=3 * QUICK.pin_ttl_s),
    "an operator forgets a host that lives": replace(DRAWN, faults={"forget alive": 1}, faults_every_s=1),
    "etcd is restored at once": replace(DRAWN, down_s=0.1, faults={"snapshot": 1, "restore": 1}, faults_every_s=1),
}


def drawn(chance: random.Random) -> Scenario:
    """A world of any size, more or less hostile."""
    return Scenario(
        timing=replace(QUICK, linger_s=chance.choice([0.2, 2.0])),
        hosts=chance.choice([2, 3, 3, 5]),
        files=chance.choice([1, 3, 12, 30]),
        pace_s=chance.choice([0.03, 0.05, 0.2]),
        faults_every_s=chance.choice([1.0, 3.0, 10.0]),
        loss=chance.choice([0.0, 0.01, 0.05]),
        gaps=chance.choice([0.0, 0.003, 0.05, 0.2]),
        late_cuts=chance.choice([0.05, 0.3]),
        unseen=chance.choice([0.0, 0.0, 0.002, 0.02]),
    )


def check(scenario: Scenario, seed: int, seconds: float = RUN_S) -> Counter[str]:
    """One run; a violation comes with what led to it."""
    world = World(scenario, seed)
    try:
        world.run(seconds)
    except ViolationError as error:
        again = World(scenario, seed, is_traced=True)
        with pytest.raises(ViolationError):
            again.run(seconds)
        raise ViolationError(f"{error}\n{scenario}\n{again.told()}") from None
    return world.counts


def test_no_pinned_byte_is_cut() -> None:
    """And each request is answered. What has happened in the runs is printed (pytest -s)."""
    chance = seeds.chance("cluster")
    until = time.monotonic() + SECONDS
    counts: Counter[str] = Counter()
    runs = 0
    while runs == 0 or time.monotonic() < until:
        runs += 1
        counts += check(drawn(chance), chance.randrange(1 << 32), 2 * RUN_S)
    print(f"\n{runs} runs: {dict(sorted(counts.items()))}")
    assert counts["cuts"] > 100 * runs
    assert counts["pins"] > 10 * runs


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_protocol_is_caught(name: str) -> None:
    chance = seeds.chance(name)
    with pytest.raises(ViolationError, match=r"cuts \w+ .* under pin") as caught:
        for _ in range(RUNS):
            check(WRONG[name], chance.randrange(1 << 32))
    assert "CUT" in str(caught.value)
    assert "PINNED" in str(caught.value)


@pytest.mark.parametrize("name", BEYOND_HELP)
def test_what_no_protocol_cures_is_seen(name: str) -> None:
    """docs/hosts.md says so, and what to do instead."""
    chance = seeds.chance(name)
    with pytest.raises(ViolationError, match="under pin"):
        for _ in range(RUNS):
            check(BEYOND_HELP[name], chance.randrange(1 << 32))


@pytest.mark.parametrize("hosts", [1, 2, 5])
def test_nothing_is_left_in_the_end(hosts: int) -> None:
    chance = seeds.chance(f"end {hosts}")
    world = World(replace(DRAWN, hosts=hosts).without_faults(), chance.randrange(1 << 32))
    world.run(10.0)
    assert world.counts["pins"] > 10
    world.wind_up()
    refused = {reason for reason in world.counts if "refused" in reason}
    assert refused <= {"pin refused: removal", "removal refused: deny", "removal refused: unanswered"}


def test_a_run_is_repeated_by_its_seed() -> None:
    seed = seeds.chance("repeated").randrange(1 << 32)
    one, other = (World(DRAWN, seed, is_traced=True) for _ in range(2))
    one.run(5.0)
    other.run(5.0)
    assert one.trace
    assert one.trace == other.trace
