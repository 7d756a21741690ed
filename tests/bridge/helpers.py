"""What tests of mounts share."""

import subprocess
from pathlib import Path


def abort(path: Path, scratch: Path) -> None:
    """What /sys/fs/fuse/connections/N/abort is for, on a fusectl of our own."""
    rows = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    number = next(row[2].split(":")[1] for row in rows if row[4] == str(path))
    subprocess.run(["mount", "-t", "fusectl", "none", str(scratch)], check=True)
    try:
        (scratch / number / "abort").write_text("1")
    finally:
        subprocess.run(["umount", str(scratch)], check=True)
