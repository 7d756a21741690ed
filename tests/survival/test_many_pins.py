"""Very many pins outlive the daemon, and callers on other files do not wait for them (SPEC 13)."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from support import acts
from support.actor import Actor, Actors, Pending, eventually

from pinfs.fs.restore import AT_ONCE

from .surviving import LIMIT_S, Surviving, surviving

FEW, MILLION = 2 * AT_ONCE, int(os.environ.get("PINFS_LONG_PINS", "1000000"))
ON_A_FILE = 100
BLOCK = 4096
LONG_S = 600.0


class Crowd:
    """`pins` of one holder: half of them on the file `big`, the others ON_A_FILE each on files of their own."""

    def __init__(self, mount: Surviving, holder: Actor, pins: int) -> None:
        self.pins = pins
        self.big, self.small, self.free = (mount.path / name for name in ("big", "0", "free"))
        self.free.write_bytes(b"x" * BLOCK)
        self._pin(holder, self.big, pins // 2)
        for number in range(pins // 2 // ON_A_FILE):
            self._pin(holder, mount.path / str(number), ON_A_FILE)

    def _pin(self, holder: Actor, file: Path, pins: int) -> None:
        with file.open("wb") as opened:
            opened.truncate(pins * BLOCK)
        holder.start(acts.pin_blocks, str(file), pins).result(LONG_S)

    def check(self, mount: Surviving) -> None:
        status = mount.status()
        assert status["pins"] == self.pins // 2 + self.pins // 2 // ON_A_FILE * ON_A_FILE
        assert status["last_takeover"]["not_restored"] == []


def times_of(calls: Mapping[str, Pending[None]], since: float) -> dict[str, float]:
    """When each call was answered, in seconds."""
    times: dict[str, float] = {}
    waiter = select.poll()
    names = {call.fileno(): name for name, call in calls.items()}
    for fd in names:
        waiter.register(fd, select.POLLIN)
    while len(times) < len(calls):
        happened = waiter.poll(LONG_S * 1000)
        assert happened, f"{set(calls) - set(times)} hang"
        for fd, _ in happened:
            waiter.unregister(fd)
            times[names[fd]] = time.monotonic() - since
    return times


def killed(mount: Surviving, crowd: Crowd, actors: Actors) -> dict[str, float]:
    """How long callers wait for the next daemon, by what they ask for; in the end all pins are there."""
    others = {name: actors.actor() for name in ("another file", "a file with pins", "the file with most pins")}
    paths = dict(zip(others, (crowd.free, crowd.small, crowd.big), strict=True))
    killed = mount.kill()
    since = time.monotonic()
    calls = {name: actor.start(os.truncate, str(paths[name]), 0) for name, actor in others.items()}
    times = times_of(calls, since)
    assert calls["another file"].error() is None
    assert [calls[name].error() for name in list(calls)[1:]] == [errno.EBUSY, errno.EBUSY]
    eventually(lambda: mount.daemon not in (0, killed), LIMIT_S)
    mount.run("cat", str(mount.path / ".pinfs/status"), limit_s=LONG_S)  # answered when all pins are there
    times["all restored"] = time.monotonic() - since
    return times


@pytest.mark.parametrize("options", [(), ("spare",)], ids=["alone", "spare"])
@pytest.mark.parametrize("pins", [FEW, pytest.param(MILLION, marks=pytest.mark.long)], ids=["few", "million"])
def test_pins_of_all_files_come_back(
    root: None, fuse: None, actors: Actors, pins: int, options: tuple[str, ...]
) -> None:
    with surviving("tmpfs", options) as mount:
        holder = actors.actor()
        began = time.monotonic()
        crowd = Crowd(mount, holder, pins)
        print(f"\n{pins} pins are registered within {time.monotonic() - began:.1f} s")
        for _ in range(2):
            times = killed(mount, crowd, actors)
            times["from its end to the take-over"] = mount.status()["last_takeover"]["pause_ms"] / 1000
            print(", ".join(f"{name}: {seconds:.2f} s" for name, seconds in times.items()))
            crowd.check(mount)
        holder.kill()
        eventually(lambda: mount.status()["pins"] == 0, LONG_S)
