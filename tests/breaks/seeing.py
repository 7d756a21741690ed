"""Small ways to look at what a mount says, for these tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from support import acts
from support.actor import Actor, eventually
from support.mounts import Mount, Trace


def drained(trace: Trace) -> list[dict[str, Any]]:
    """All events that have come so far, without waiting for more."""
    while True:
        try:
            lines = os.read(trace.fd, 1 << 20)
        except BlockingIOError:
            return trace.seen
        trace.seen.extend(json.loads(line) for line in lines.splitlines())


def waiting(mount: Mount, breakers: int = 1) -> None:
    """Returns when that many breakers wait."""
    eventually(lambda: mount.metrics()["pinfs_waiting"] == breakers)


def pin_of(mount: Mount, path: Path) -> dict[str, Any]:
    """The only pin of a file."""
    (pin,) = (pin for pin in mount.pins() if pin["inode"] == path.stat().st_ino)
    return pin


class Channel:
    """The event channel of an actor."""

    def __init__(self, mount: Mount, actor: Actor) -> None:
        self._actor = actor
        self.fd: int = actor(os.open, str(mount.control("events")), os.O_RDWR)

    def next(self, limit_s: float = 20.0) -> list[dict[str, Any]]:
        """The events that have come; OSError(EAGAIN) when none comes in time."""
        return [json.loads(line) for line in self._actor(acts.read_event_lines, self.fd, limit_s).splitlines()]

    def tell(self, *commands: str) -> int | None:
        """Writes commands. Returns the errno."""
        return self._actor.errno(os.write, self.fd, "".join(f"{command}\n" for command in commands).encode())

    def close(self) -> None:
        self._actor(os.close, self.fd)
