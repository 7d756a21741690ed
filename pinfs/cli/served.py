"""The findings of `pinfs doctor` about the mounts of this machine."""

from collections.abc import Iterator

from pinfs.cli.findings import Finding, ok, warn
from pinfs.cli.mounts import mounts
from pinfs.observe.asking import NoAnswerError
from pinfs.observe.daemons import keepers, keeps_nothing
from pinfs.observe.mounts import Mount


def check_mounts() -> Iterator[Finding]:
    """One finding for each mount, and for each keeper that has none."""
    yield from map(_mount, mounts())
    for pid in keepers():
        if keeps_nothing(pid):
            yield warn(
                "keeper",
                f"pid {pid} keeps a mount that is not there: detached and still in use, or in another mount namespace",
                f"kill {pid}, if nothing is to use that mount any more",
            )


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
