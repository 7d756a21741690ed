"""A crowd of breakers behind a holder that never answers (SPEC 3.8)."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest
from support.mounts import Mount

CROWD = 40


@pytest.mark.mount("break_timeout=3", "retry_after=30")
def test_a_crowd_behind_a_silent_holder_is_over_with_the_first_deadline(mount: Mount) -> None:
    """The kernel queues truncates of one file on the inode's lock, so that the daemon sees them one after the other."""
    path = mount.path / "f"
    path.write_bytes(b"x" * 100)
    mount.actor()(os.setxattr, str(path), "user.pinfs.pin.p", b"0:0,mode=lease,signal=none")
    outcomes: list[int | None] = []

    def cut() -> None:
        try:
            os.truncate(path, 0)
        except OSError as e:
            outcomes.append(e.errno)

    crowd = [threading.Thread(target=cut) for _ in range(CROWD)]
    since = time.monotonic()
    for breaker in crowd:
        breaker.start()
    for breaker in crowd:
        breaker.join()
    print(f"{CROWD} truncates: {time.monotonic() - since:.2f} s, with a deadline of 3 s")
    assert outcomes == [errno.EBUSY] * CROWD
    metrics = mount.metrics()
    refused = {why: metrics[f'pinfs_refusals_total{{op="truncate",why="{why}"}}'] for why in ("timeout", "unanswered")}
    assert refused == {"timeout": 1, "unanswered": CROWD - 1}
    assert metrics["pinfs_breaks_started_total"] == 1
    assert path.stat().st_size == 100
