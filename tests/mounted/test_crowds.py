"""Many holders and breakers at once, on a real mount."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest
from mounted import crowd
from support import acts
from support.actor import eventually
from support.mounts import Mount

STORM_S = float(os.environ.get("PINFS_STORM_S", "10"))
SIZE = 1 << 20


@pytest.mark.mount("break_timeout=1")
def test_storm(mount: Mount) -> None:
    """A hundred processes over random ranges (PINFS_STORM_S seconds): no pinned byte goes, everyone is answered, and
    nothing of it is left when all have gone."""
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown by a failure
    paths = [str(mount.path / name) for name in "abcd"]
    for path in paths:
        acts.write_file(path, bytes(SIZE))
    holding = mount.actor().start(crowd.crowd, 50, crowd.hold, paths, SIZE, STORM_S, seed)
    breaking = mount.actor().start(crowd.crowd, 50, crowd.cut, paths, SIZE, STORM_S, seed)
    answers, deaths = breaking.result(STORM_S + 60)
    assert not deaths
    assert set(answers) == {"done", "EBUSY"}
    held, deaths = holding.result(STORM_S + 60)
    assert not deaths  # a SIGBUS here: bytes went while they were pinned
    assert held["deny"] and held["lease"] and held["asked"]
    eventually(lambda: mount.pins() == [])
    metrics = mount.metrics()
    assert (metrics["pinfs_pins"], metrics["pinfs_waiting"], metrics["pinfs_holders"]) == (0, 0, 0)
    print(held, answers)


@pytest.mark.parametrize("bridge", ["on", "off"])
def test_waiting_breakers_slow_down_nothing_else(new_mount: Callable[..., Mount], bridge: str) -> None:
    """Three hundred wait, and everything else on the mount is served, the releases that they wait for first of all."""
    mount = new_mount(f"bridge={bridge}", "max_waiting=300")
    paths = [str(mount.path / f"f{number}") for number in range(300)]
    holder, other = mount.actor(), mount.actor()
    for path in paths:
        holder(acts.write_file, path, b"x" * 100)
        holder.pin(path, "p", "0:100,mode=lease,signal=none")
    breaking = mount.actor().start(crowd.crowd, 300, crowd.truncate_each, paths)
    eventually(lambda: mount.metrics()["pinfs_waiting"] == 300)
    other(acts.write_file, str(mount.path / "new"), b"new")
    other.pin(mount.path / "new", "p", "0:3")
    other.release(mount.path / "new", "p")
    assert len(other(os.listdir, mount.path)) == 301
    assert other(os.stat, paths[7]).st_size == 100
    for path in paths:
        holder.release(path, "p")
    assert breaking.result() == (Counter(done=300), [])
    assert {os.stat(path).st_size for path in paths} == {0}


@pytest.mark.mount("max_waiting=3")
def test_one_breaker_too_many_is_refused_at_once(mount: Mount) -> None:
    paths = [str(mount.path / f"f{number}") for number in range(4)]
    holder = mount.actor()
    for path in paths:
        holder(acts.write_file, path, b"x")
        holder.pin(path, "p", "0:1,mode=lease,signal=none")
    breaking = mount.actor().start(crowd.crowd, 3, crowd.truncate_each, paths)
    eventually(lambda: mount.metrics()["pinfs_waiting"] == 3)
    fourth = next(p for p in paths if not any(pin["path"] in p and pin["state"] == "breaking" for pin in mount.pins()))
    assert mount.actor()(crowd.truncate_each, 0, [fourth]) == Counter(EBUSY=1)
    for path in paths:
        holder.release(path, "p")
    assert breaking.result() == (Counter(done=3), [])
