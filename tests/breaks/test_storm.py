"""A hundred holders and breakers at once over random ranges: no pinned byte goes, and each breaker gets its answer."""

from __future__ import annotations

import os

import pytest
from support import acts as common
from support.actor import eventually
from support.mounts import Mount
from support.seeds import SEED

from breaks import storm

SECONDS = float(os.environ.get("PINFS_STRESS_SECONDS", "7"))
EACH = 50


@pytest.mark.mount("break_timeout=0.02", "log_level=warning")
def test_storm(mount: Mount) -> None:
    """PINFS_STRESS_SECONDS says how long, PINFS_SEED which."""
    mount.watch(SECONDS + 200)
    paths = [str(mount.path / name) for name in "abcd"]
    for path in paths:
        common.write_file(path, bytes(storm.SIZE))
    holding = mount.actor().start(storm.crowd, EACH, storm.hold, paths, str(mount.path), SECONDS, SEED)
    breaking = mount.actor().start(storm.crowd, EACH, storm.cut, paths, SECONDS, SEED)
    answers = breaking.result(SECONDS + 100)
    held = holding.result(SECONDS + 100)
    print(dict(held), dict(answers))
    assert answers.pop("asked for") == answers.total()
    assert set(answers) <= {"done", "EBUSY", "EAGAIN", "EINTR", "killed"}
    assert {"done", "EBUSY", "EAGAIN", "EINTR", "killed"} <= set(answers)
    assert {"asked by event", "asked by signal"} <= set(held)
    assert {"deny process", "deny handle", "lease process", "lease handle"} <= set(held)
    eventually(lambda: mount.pins() == [])
    metrics = mount.metrics()
    gauges = ("pinfs_pins", "pinfs_pinned_bytes", "pinfs_waiting", "pinfs_holders")
    assert [metrics[name] for name in gauges] == [0] * len(gauges)
    assert metrics["pinfs_breaks_started_total"] > metrics["pinfs_breaks_answered_total"] > 0
    assert metrics['pinfs_breaks_timed_out_total{on_timeout="deny"}'] > 0
    assert _still_in_order(mount, paths)


def _still_in_order(mount: Mount, paths: list[str]) -> bool:
    """Nothing is reserved any more: cool-downs end, and whatever is free can be pinned and cut."""
    holder = mount.actor()
    value = b"0:0"
    for path in paths:
        os.truncate(path, storm.SIZE)
    for path in paths:
        while holder.errno(os.setxattr, path, "user.pinfs.pin.p", value) is not None:
            pass  # the mount's own limit ends this, should it not end by itself
        holder.release(path, "p")
        os.truncate(path, 0)
    return not mount.pins()
