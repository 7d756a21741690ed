"""Finds the mount that a verb works on."""

import errno
import os

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.verb import fail
from pinfs.observe.mounts import Mount, mounts


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
