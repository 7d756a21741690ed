"""Finds the mount that a verb works on. A verb asks a mount through these: none of them waits for a silent daemon."""

import errno
import os
from collections.abc import Sequence

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.verb import fail
from pinfs.observe import mounts as observed
from pinfs.observe.asking import BoundedMount, NoAnswerError, ask, reached
from pinfs.observe.mounts import Mount


def mounts() -> list[BoundedMount]:
    """All pinfs mounts that this process can see, as `pinfs.observe.mounts.mounts`."""
    return [BoundedMount(*mount) for mount in observed.mounts()]


def mount_on(path: str) -> BoundedMount | None:
    """The mount whose mount point `path` is."""
    mount, left = _way_to(path)
    return None if left else mount


def locate(path: str) -> tuple[BoundedMount, str]:
    """The pinfs mount that `path` lies on, and its real path. Fails with exit code 3 where it lies on none."""
    mount, left = _way_to(path)
    if mount is not None and not left:
        return mount, mount.point
    real = ask(mount, lambda: os.path.realpath(path)) if mount else os.path.realpath(path)
    above = [one for one in mounts() if os.path.commonpath([one.point, real]) == one.point]
    if not above:
        if not os.path.lexists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        fail(f"{path}: not on a pinfs mount", ExitCode.NOT_PINFS)
    return max(above, key=lambda one: len(one.point)), real


def mount_of(path: str) -> BoundedMount:
    """The pinfs mount that `path` lies on. Fails with exit code 3 where it lies on none."""
    return locate(path)[0]


def _way_to(path: str) -> tuple[BoundedMount | None, Sequence[str]]:
    """The first mount on the way to `path`, and the parts of the path that are left there."""
    found = {mount.point: mount for mount in mounts()}
    way = reached(path, found)
    return (found[way[0]], way[1]) if way else (None, ())


def require_answer(path: str) -> None:
    """Raises NoAnswerError where `path` leads to a mount whose daemon does not answer; all else is for the caller to
    meet. For verbs that must make their calls themselves."""
    mount, _left = _way_to(path)
    if mount is not None:
        error_of(mount)


def error_of(mount: Mount) -> OSError | None:
    """The error that a call on the mount ends with; None: it answers. Raises NoAnswerError."""
    try:
        ask(mount, lambda: os.statvfs(mount.point).f_bsize)  # the kernel remembers attributes, but not this
    except NoAnswerError:
        raise
    except OSError as error:
        return error
    return None


def the_mount(path: str | None) -> BoundedMount:
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
