"""Hundreds of breakers wait, and nobody else on the mount notices (SPEC 3.10), with the bridge and without."""

from __future__ import annotations

import errno
import math
import os
import time
from pathlib import Path

import pytest
from conftest import NewMount
from support import acts as common
from support.actor import Actor, Pending
from support.mounts import Mount

from breaks import acts
from breaks.acts import ORIGINAL, PAGE
from breaks.seeing import Channel, waiting

WAY = pytest.mark.parametrize("bridge", ["on", "off"])
LEASE = f"{PAGE}:{PAGE},mode=lease,signal=none"
ALONE = {"truncate": 400, "unlink_last": 49, "rename_over": 50}
"""How many breakers wait for a file each; one more has all it can get of a single file."""


def _crowd(mount: Mount, holder: Actor) -> tuple[Pending[list[int | None]], list[Path]]:
    """Five hundred breakers that wait. Returns their answers and the files."""
    places = []
    for operation, count in ALONE.items():
        for number in range(count):
            place = f"{operation}-{number}"
            acts.lay_out(operation, f"{mount.source}/{place}")
            places.append((operation, f"{mount.path}/{place}"))
    acts.lay_out("open_trunc", f"{mount.source}/one")
    places.append(("open_trunc", f"{mount.path}/one"))
    files = [Path(place) / "f" for _, place in places]
    holder(acts.pin_all, [(str(file), "process", "lease") for file in files])
    breaking = mount.actor().start(acts.perform, places, len(places))
    waiting(mount, len(places))
    return breaking, files


def _everything(path: Path) -> None:
    """What programs do all day."""
    new = path / "new"
    new.write_bytes(ORIGINAL)
    os.setxattr(new, "user.pinfs.pin.p", b"0:1")
    os.truncate(new, PAGE)
    assert new.read_bytes() == ORIGINAL[:PAGE]
    os.getxattr(new, "user.pinfs.release.p")
    os.truncate(new, 0)
    os.rename(new, path / "old")
    os.listdir(path)
    os.stat(path)
    os.unlink(path / "old")


def _best_of_each(rounds: int, *places: Path) -> list[float]:
    """Seconds for everything in each place, in turns: what else the machine does meets them all."""
    best = [math.inf] * len(places)
    for _ in range(rounds):
        for number, place in enumerate(places):
            began = time.perf_counter()
            _everything(place)
            best[number] = min(best[number], time.perf_counter() - began)
    return best


@WAY
def test_everybody_else_is_served(new_mount: NewMount, bridge: str) -> None:
    """Deadlines are far away: whoever had to wait for one would be reported as hung."""
    mount = new_mount(f"bridge={bridge}", "break_timeout=600", "unlink=break", "log_level=warning")
    holder = mount.actor()
    calm = new_mount(f"bridge={bridge}", "log_level=warning")
    (mount.path / "apart").mkdir()
    breaking, files = _crowd(mount, holder)
    assert len(mount.actor()(os.listdir, mount.path)) == len(files) + 1
    assert {path.stat().st_size for path in files} == {len(ORIGINAL)}
    alone, crowded = _best_of_each(40, calm.path, mount.path / "apart")
    print("with", len(files), "waiting:", crowded / alone, "times as long")
    assert crowded < 3 * alone
    channel = Channel(mount, holder)
    pins = {pin["path"]: pin["id"] for pin in mount.pins()}
    for number, file in enumerate(files):
        if number % 2:
            holder.release(file, "p")
        else:
            assert channel.tell(f"release {pins[str(file.relative_to(mount.path))]}") is None
    assert breaking.result() == [None] * len(files)


@WAY
def test_one_too_many_is_refused_at_once(new_mount: NewMount, bridge: str) -> None:
    mount = new_mount(f"bridge={bridge}", "break_timeout=600", "max_waiting=2", "log_level=warning")
    holder = mount.actor()
    files = [mount.path / f"f{number}" for number in range(4)]
    for file in files:
        file.write_bytes(ORIGINAL)
        holder.pin(file, "p", LEASE)
    cuts = []
    for number, file in enumerate(files[:2], 1):
        cuts.append(mount.actor().start(os.truncate, str(file), 0))
        waiting(mount, number)
    breaker = mount.actor()
    assert breaker.errno(os.truncate, str(files[2]), 0) == errno.EBUSY
    assert [pin["state"] for pin in mount.pins()] == ["breaking"] * 2 + ["held"] * 2  # nobody was asked in vain
    metrics = mount.metrics()
    assert metrics['pinfs_limit_reached_total{limit="max_waiting"}'] == 1
    assert metrics['pinfs_refusals_total{op="truncate",why="max_waiting"}'] == 1
    nonblocking = breaker(os.open, str(files[2]), os.O_RDWR | os.O_NONBLOCK)
    assert breaker.errno(os.ftruncate, nonblocking, 0) == errno.EAGAIN  # it does not wait
    holder.release(files[0], "p")
    assert cuts[0].error() is None
    third = breaker.start(os.truncate, str(files[3]), 0)
    waiting(mount, 2)
    for file in files[1:]:
        holder.release(file, "p")
    assert [cut.error() for cut in (cuts[1], third)] == [None, None]


@WAY
def test_more_may_wait_when_the_policy_says_so(new_mount: NewMount, bridge: str) -> None:
    """At run time, and far beyond what was in force when the mount began."""
    mount = new_mount(f"bridge={bridge}", "max_waiting=1", "log_level=warning")
    mount.policy("break_timeout = 600\nmax_waiting = 300")
    files = [mount.path / f"d{number}" / "f" for number in range(200)]
    for file in files:
        acts.lay_out("truncate", str(mount.source / file.parent.name))
    holder = mount.actor()
    holder(acts.pin_all, [(str(file), "process", "lease") for file in files])
    breaking = mount.actor().start(acts.perform, [("truncate", str(file.parent)) for file in files], len(files))
    waiting(mount, len(files))
    mount.actor()(common.write_file, str(mount.path / "new"), b"")
    for file in files:
        holder.release(file, "p")
    assert breaking.result() == [None] * len(files)
