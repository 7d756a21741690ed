"""The pinfs mounts of this machine, and their control directories, as the verbs need them."""

import errno
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.verb import fail
from pinfs.client.mounts import CONTROL, FSTYPE, MOUNTINFO, parse_entry, unescape


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
