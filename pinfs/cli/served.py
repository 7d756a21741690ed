"""The findings of `pinfs doctor` about the mounts of this machine."""

from collections.abc import Iterator
from typing import Any

import pinfs
from pinfs.cli.findings import Finding, ok, warn
from pinfs.cli.mounts import mounts
from pinfs.observe.asking import NoAnswerError
from pinfs.observe.daemons import keepers, keeps_nothing
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import cluster_place, cluster_troubles, life_text, lost_texts, printable
from pinfs.pure import is_compiled


def check_mounts() -> Iterator[Finding]:
    """Findings for each mount, and one for each keeper that has none."""
    for mount in mounts():
        yield from _mount(mount)
    for pid in keepers():
        if keeps_nothing(pid):
            yield warn(
                "keeper",
                f"pid {pid} keeps a mount that is not there: detached and still in use, or in another mount namespace",
                f"kill {pid}, if nothing is to use that mount any more",
            )


def _mount(mount: Mount) -> Iterator[Finding]:
    try:
        status = mount.status()
    except NoAnswerError as error:
        yield warn(mount.point, error.why, error.fix)
        return
    except OSError as error:
        yield warn(mount.point, f"is stale: {error.strerror}", f"pinfs umount {mount.point}")
        return
    yield _polled(mount.point, status)
    yield from _program(mount.point, status)
    if cluster := status.get("cluster"):
        yield from _cluster(mount.point, cluster)
    if text := life_text(status):
        yield _life(mount.point, text, lost_texts(status.get("last_takeover")))


def _polled(point: str, status: dict[str, Any]) -> Finding:
    if not status.get("poll", True):
        return ok(point, "files are fast through io_uring; poll(2) reports neither POLLPRI nor events")
    if status.get("poll_mode") == "auto":
        return ok(point, "answers poll(2) until io_uring is used on it")
    return ok(point, "poll=on: answers poll(2); files on it are slow through io_uring")


def _program(point: str, status: dict[str, Any]) -> Iterator[Finding]:
    """What serves it, where that is not this installation, or could be faster."""
    cure = f"pinfs upgrade {point}"
    if (version := status.get("version", pinfs.__version__)) != pinfs.__version__:
        yield warn(point, f"is served by pinfs {printable(version)}, and this is {pinfs.__version__}", cure)
    elif status.get("compiled") is False and is_compiled():
        yield warn(point, "is served by an interpreted pinfs, and this one is compiled", cure)
    if refused := (status.get("survives") or {}).get("upgrade_refused"):
        yield warn(point, f"the last upgrade was refused: {printable(refused)}", f"mend that, then {cure}")


def _cluster(point: str, cluster: dict[str, Any]) -> Iterator[Finding]:
    troubles = cluster_troubles(cluster)
    for trouble in troubles:
        yield warn(point, f"cluster: {trouble}", "pinfs cluster status, docs/hosts.md")
    if not troubles:
        yield ok(point, f"cluster {cluster_place(cluster)}")


def _life(point: str, text: str, lost: list[str]) -> Finding:
    return warn(point, text, "programs that had these open get errors: start them again") if lost else ok(point, text)
