"""The pinfs mounts of this machine, and what their control directories say."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

from pinfs.interface.names import CONTROL, FSTYPE
from pinfs.linux import mountinfo

COUNTED: Final = {
    "pinfs_pinned_bytes": "pinned bytes",
    "pinfs_breaks_started_total": "breaks started",
    "pinfs_breaks_answered_total": "breaks answered",
    "pinfs_breaks_timed_out_total": "breaks timed out",
    "pinfs_refusals_total": "refusals",
    "pinfs_requests_total": "requests",
}
"""Counters that listings show, and their labels there."""

_READ: Final = 1 << 20  # bytes; more than `.pinfs/pins` gives at once


class Mount(NamedTuple):
    """One pinfs mount: its mount point and its source."""

    point: str
    source: str

    def control(self, name: str) -> Path:
        """The path of `.pinfs/NAME`."""
        return Path(self.point, CONTROL, name)

    def read(self, name: str) -> str:
        """The text of `.pinfs/NAME`."""
        with self.control(name).open("rb", buffering=0) as file:  # each read is a request, and long ones are fewer
            data = b"".join(iter(lambda: file.read(_READ), b""))
        return data.decode(errors="surrogateescape")

    def pins(self) -> list[dict[str, Any]]:
        """All pins of the mount, each with the key `mount` besides those of docs/interfaces.md.

        Raises OSError ENOTCONN or ECONNABORTED where the mount is stale, as all methods here do.
        """
        pins: list[dict[str, Any]] = json.loads(f"[{','.join(self.read('pins').splitlines())}]")
        for pin in pins:
            pin["mount"] = self.point
        return pins

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself: `.pinfs/status`."""
        status: dict[str, Any] = json.loads(self.read("status"))
        return status

    def counters(self, names: Collection[str] = COUNTED) -> dict[str, float]:
        """Counters of `.pinfs/metrics`, each summed over its labels."""
        from prometheus_client.parser import text_string_to_metric_families

        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(self.read("metrics")):
            for sample in family.samples:
                if sample.name in names:
                    sums[sample.name] = sums.get(sample.name, 0) + sample.value
        return sums

    def has_gone(self) -> bool:
        """Whether this is no mount any more. A listing of all mounts passes over one that ends meanwhile."""
        return self not in mounts()

    def command(self, line: str) -> None:
        """Write one command to the event channel (`release 7`). Raises OSError as docs/interfaces.md says (Events)."""
        fd = os.open(self.control("events"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)


def mounts() -> list[Mount]:
    """All pinfs mounts that this process can see, stale ones too; no bind mounts of a part, which show no .pinfs."""
    on_top = {entry.point: entry for entry in mountinfo.mounts()}  # the last one on a mount point
    return [
        Mount(entry.point, entry.source) for entry in on_top.values() if entry.fstype == FSTYPE and entry.root == "/"
    ]
