"""A directory that looks like a mount: `.pinfs` with plain files, and its line for a table of mounts."""

import json
import os
from pathlib import Path
from typing import Any

PIN = {
    "v": 1, "id": 7, "name": "weights", "owner": "process", "start": 0, "length": 4096, "mode": "lease",
    "state": "held", "deadline": None, "remaining_s": None, "signal": "IO", "dirty": False, "inode": 12,
    "path": "models/w.bin", "pid": 4711, "uid": 1000, "comm": "trainer", "since": 1764000000.0, "note": "my note",
}  # fmt: skip

STATUS = {"v": 1, "version": "0.1.0", "source": "/src", "mountpoint": "?", "pid": 1, "uptime_s": 61.0,
          "passthrough": True, "bridge": True, "pins": 1, "waiting": 0, "descriptors": 9}  # fmt: skip


class FakeMount:
    """`.pinfs` is a plain directory here: what is written to its files stays there to be looked at."""

    def __init__(self, point: Path) -> None:
        self.point = point
        (point / ".pinfs").mkdir(parents=True)
        (point / "models").mkdir()
        (point / "models/w.bin").write_bytes(bytes(8192))
        self.write("status", json.dumps(STATUS))
        self.write("events", "")
        self.write("policy", 'conflict = "pin"\nbreak_timeout = 45.0\n')
        self.write("policy.error", "")
        self.write("metrics", '# TYPE pinfs_refusals counter\npinfs_refusals_total{op="truncate"} 2\n')
        self.pins()

    def write(self, name: str, text: str) -> None:
        (self.point / ".pinfs" / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.point / ".pinfs" / name).read_text()

    def pins(self, *changes: dict[str, Any]) -> None:
        """The table of pins: PIN once for each of `changes`."""
        self.write("pins", "".join(json.dumps(PIN | change) + "\n" for change in changes))

    @property
    def file(self) -> Path:
        return self.point / "models/w.bin"

    def row(self, fstype: str = "fuse.pinfs", root: str = "/") -> str:
        """Its line in /proc/self/mountinfo."""
        point = str(self.point).replace(" ", "\\040")
        device = self.point.stat().st_dev
        return f"40 30 {os.major(device)}:{os.minor(device)} {root} {point} rw shared:9 - {fstype} /src rw\n"
