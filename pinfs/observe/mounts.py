"""The pinfs mounts of this machine, and what their control directories say: for the command line and the page."""

import json
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from pinfs.client.mounts import CONTROL, FSTYPE, MOUNTINFO, parse_entry, unescape

COUNTED: Final = {
    "pinfs_pinned_bytes": "pinned bytes",
    "pinfs_breaks_started_total": "breaks started",
    "pinfs_breaks_answered_total": "breaks answered",
    "pinfs_breaks_timed_out_total": "breaks timed out",
    "pinfs_refusals_total": "refusals",
    "pinfs_requests_total": "requests",
}
"""What people ask for, and what they call it."""


class Mount(NamedTuple):
    """One pinfs mount: where, and of what."""

    point: str
    source: str

    def control(self, name: str) -> Path:
        """The path of `.pinfs/NAME`."""
        return Path(self.point, CONTROL, name)

    def pins(self) -> list[dict[str, Any]]:
        """All pins of the mount, each with the key `mount` besides those of docs/interfaces.md. OSError when stale."""
        lines = self.control("pins").read_text(errors="surrogateescape").splitlines()
        return [json.loads(line) | {"mount": self.point} for line in lines]

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself. OSError when stale."""
        status: dict[str, Any] = json.loads(self.control("status").read_text())
        return status

    def counters(self) -> dict[str, float]:
        """Those counters of `.pinfs/metrics` that people ask for, summed over their labels. OSError when stale."""
        from prometheus_client.parser import text_string_to_metric_families

        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(self.control("metrics").read_text()):
            for sample in family.samples:
                if sample.name in COUNTED:
                    sums[sample.name] = sums.get(sample.name, 0) + sample.value
        return sums

    def has_gone(self) -> bool:
        """Whether it is no mount any more. Who looks at all mounts passes over one that ends meanwhile."""
        return self not in mounts()

    def command(self, line: str) -> None:
        """One command of the event channel (`release 7`). OSError as in docs/interfaces.md, Events."""
        fd = os.open(self.control("events"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)


def mounts() -> list[Mount]:
    """All pinfs mounts that this process can see, stale ones too; no bind mounts of a part, which show no .pinfs."""
    found: dict[str, Mount | None] = {}
    for line in Path(MOUNTINFO).read_bytes().splitlines():
        entry = parse_entry(line)
        source = unescape(line.split(b" - ", 1)[1].split()[1])
        is_ours = entry.fstype == FSTYPE and entry.root == "/"
        found[entry.point] = Mount(entry.point, source) if is_ours else None  # the last one is on top
    return [mount for mount in found.values() if mount is not None]
