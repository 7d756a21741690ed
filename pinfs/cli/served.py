"""The findings of `pinfs doctor` about the mounts of this machine."""

from collections.abc import Iterator

from pinfs.cli.findings import Finding, ok, warn
from pinfs.cli.mounts import mounts
from pinfs.observe.asking import NoAnswerError
from pinfs.observe.mounts import Mount


def check_mounts() -> Iterator[Finding]:
    """One finding for each mount."""
    return map(_mount, mounts())


def _mount(mount: Mount) -> Finding:
    try:
        polled = mount.status().get("poll", True)
    except NoAnswerError as error:
        return warn(mount.point, error.why, error.fix)
    except OSError as error:
        return warn(mount.point, f"is stale: {error.strerror}", f"pinfs umount {mount.point}")
    if polled:
        return ok(mount.point, "answers poll(2); files on it are slow through io_uring (poll=off: the other way round)")
    return ok(mount.point, "poll=off: files are fast through io_uring; poll(2) reports neither POLLPRI nor events")
