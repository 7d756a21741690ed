"""What calls take inside the machine, in milliseconds, the median of several. For columns that stand side by side: the
processor is emulated."""

from __future__ import annotations

import errno
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vm.guest_base import PAGE, SIZE, Child

CUTS, FILES = 40, 8


def timed(call: Callable[[], object], refused: int = 0) -> float:
    """Milliseconds. `refused`: the errno that it must fail with."""
    began, failed = time.perf_counter(), 0
    try:
        call()
    except OSError as e:
        failed = e.errno or -1
    took_s = time.perf_counter() - began
    assert failed == refused, failed
    return took_s * 1000


def plainly(directory: str) -> dict[str, float]:
    """Removals of files without pins, which nothing else has open."""
    path = f"{directory}/plain"
    Path(path).write_bytes(b"A" * SIZE)
    fd = os.open(path, os.O_RDWR)
    by_fd = [timed(partial(os.ftruncate, fd, SIZE - n - 1)) for n in range(CUTS)]
    os.close(fd)
    by_path = [timed(partial(os.truncate, path, PAGE - n - 1)) for n in range(CUTS)]
    os.unlink(path)
    names = [f"{directory}/gone{n}" for n in range(FILES)]
    for name in names:
        Path(name).write_bytes(b"A" * SIZE)
    unlinks = [timed(partial(os.unlink, name)) for name in names]
    taken = {"ftruncate": by_fd, "truncate": by_path, "unlink": unlinks}
    return {call: statistics.median(all_ms) for call, all_ms in taken.items()}


def one_host(path: str) -> dict[str, float]:
    return plainly(path) | _pins(path, path, errno.EBUSY)


def across_hosts(holder: str, breaker: str) -> dict[str, float]:
    return plainly(breaker) | _pins(holder, breaker, errno.EBUSY)


def re_exported(holder: str, client: str) -> dict[str, float]:
    return plainly(client) | _pins(holder, client, errno.EIO)


def _pins(holder: str, breaker: str, refused: int) -> dict[str, float]:
    took: dict[str, list[float]] = {"first pin": [], "further pin": [], "refused": [], "release": []}
    for n in range(FILES):
        Path(holder, f"timed{n}").write_bytes(b"A" * SIZE)
        path = f"{holder}/timed{n}"
        took["first pin"].append(timed(partial(os.setxattr, path, "user.pinfs.pin.1", b"0:4096")))
        took["further pin"].append(timed(partial(os.setxattr, path, "user.pinfs.pin.2", b"0:4096")))
        took["refused"].append(_of_another(partial(os.truncate, f"{breaker}/timed{n}", 0), refused))
        for pin in "12":
            took["release"].append(timed(partial(os.removexattr, path, f"user.pinfs.pin.{pin}")))
    return {what: statistics.median(all_ms) for what, all_ms in took.items()}


def _of_another(call: Callable[[], object], refused: int) -> float:
    """What a call of another process takes, and then its second: the first looks the name up."""
    ends = os.pipe()

    def make() -> None:
        timed(call, refused)
        os.write(ends[1], json.dumps(timed(call, refused)).encode())

    ended = Child(make).wait(60)
    assert ended == "done", ended
    took_ms: float = json.loads(os.read(ends[0], 100))
    for end in ends:
        os.close(end)
    return took_ms
