"""The pinfs mounts of this machine, and their control directories, as the verbs need them."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.verb import fail

FSTYPE = "fuse.pinfs"
MOUNTINFO = Path("/proc/self/mountinfo")


class Mount(NamedTuple):
    """One pinfs mount: where, and of what."""

    point: str
    source: str

    def control(self, name: str) -> Path:
        """The path of `.pinfs/NAME`."""
        return Path(self.point, ".pinfs", name)

    def pins(self) -> list[dict[str, Any]]:
        """All pins of the mount, each with the key `mount` besides those of docs/interfaces.md. OSError when stale."""
        lines = self.control("pins").read_text(errors="surrogateescape").splitlines()
        return [json.loads(line) | {"mount": self.point} for line in lines]

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself. OSError when stale."""
        status: dict[str, Any] = json.loads(self.control("status").read_text())
        return status

    def command(self, line: str) -> None:
        """One command of the event channel (`release 7`). OSError as in docs/interfaces.md, Events."""
        fd = os.open(self.control("events"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)


def mounts() -> list[Mount]:
    """All pinfs mounts that this process can see, also those whose daemon is gone; bind mounts of their parts are not."""
    found: dict[str, Mount | None] = {}
    for line in MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, source = after.split()[:2]
        is_ours = kind == FSTYPE and root == "/"
        found[_unescaped(point)] = (
            Mount(_unescaped(point), _unescaped(source)) if is_ours else None
        )  # the last is on top
    return [mount for mount in found.values() if mount is not None]


def _unescaped(field: str) -> str:
    """mountinfo writes blanks and backslashes as octal bytes (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def mount_of(path: str) -> Mount:
    """The pinfs mount that `path` lies on. Fails with exit code 3 where it lies on none."""
    real = os.path.realpath(path)
    above = [mount for mount in mounts() if os.path.commonpath([mount.point, real]) == mount.point]
    if not above:
        if not os.path.lexists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        fail(f"{path}: not on a pinfs mount", ExitCode.NOT_PINFS)
    return max(above, key=lambda mount: len(mount.point))


def the_mount(path: str | None) -> Mount:
    """The mount of `path`, or the only mount there is."""
    if path is not None:
        return mount_of(path)
    found = mounts()
    if not found:
        fail("there is no pinfs mount on this machine", ExitCode.NOT_PINFS)
    if len(found) > 1:
        points = ", ".join(mount.point for mount in found)
        fail(f"there are several pinfs mounts, say which: {points}", ExitCode.USAGE)
    return found[0]
