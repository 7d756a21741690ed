"""The daemon of a mount, found from outside: nothing here asks the mount, so nothing here waits for it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from pinfs.linux import mountinfo
from pinfs.linux.proc import processes, read_comm
from pinfs.observe.mounts import Mount

_DEVICE: Final = "/dev/fuse"
STATES: Final = {"T": "stopped", "t": "traced", "D": "waits in the kernel", "Z": "ended", "S": "asleep", "R": "runs"}
"""proc_pid_stat(5)."""


KEEPER: Final = "pinfs-keeper"
"""The name of a keeper's process, as ps shows it (pinfs/keeper/keeping.py)."""
_HOLDERS: Final = frozenset({KEEPER, "systemd"})
"""Processes that hold connections and do not serve them."""


def daemon_pid(mount: Mount) -> int | None:
    """The number of the daemon's process; None where it is not visible: it has ended, it belongs to another user, or
    it runs in another pid namespace.

    The kernel uses the number of a connection again when its mount has gone, also while a daemon hangs that served it:
    of several processes that of this source is the one.
    """
    connection = connection_of(mount)
    serving = [pid for pid in processes() if _serves(pid, connection, mount.source) and read_comm(pid) not in _HOLDERS]
    return next((pid for pid in serving if mount.source in dict(_descriptors(pid)).values()), next(iter(serving), None))


def keeper_pid(mount: Mount) -> int | None:
    """The number of the mount's keeper; None: it has none, or none that is visible (as for `daemon_pid`)."""
    connection = connection_of(mount)
    return next((pid for pid in keepers() if _serves(pid, connection, mount.source)), None)


def keepers() -> Iterator[int]:
    """All keepers that are visible here."""
    return (pid for pid in processes() if read_comm(pid) == KEEPER)


def keeps_nothing(pid: int) -> bool:
    """Whether a keeper's mount is not mounted any more. False where that cannot be seen."""
    held = {number for name, link in _descriptors(pid) if link == _DEVICE for number in _connections(pid, name)}
    return bool(held) and not held & {_connection(entry.dev) for entry in mountinfo.mounts()}


def connection_of(mount: Mount) -> int | None:
    """The number of the mount's connection, as in /sys/fs/fuse/connections; None: this mount is no more."""
    there = [entry.dev for entry in mountinfo.mounts() if entry.point == mount.point]
    return _connection(there[-1]) if there else None


def _connection(device: int) -> int:
    return os.major(device) << 20 | os.minor(device)


def _serves(pid: int, connection: int | None, source: str) -> bool:
    """Whether a process has the connection open.

    Older kernels do not tell the connection of an open /dev/fuse (fuse_dev_show_fdinfo): there, a process that has
    the source open as well is taken for the daemon.
    """
    links = dict(_descriptors(pid))
    told = [number for name, link in links.items() if link == _DEVICE for number in _connections(pid, name)]
    if told:
        return connection in told
    return _DEVICE in links.values() and source in links.values()


def _descriptors(pid: int) -> Iterator[tuple[str, str]]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                yield name, os.readlink(f"/proc/{pid}/fd/{name}")


def _connections(pid: int, name: str) -> Iterator[int]:
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines():
            if line.startswith("fuse_connection:"):
                yield int(line.partition(":")[2])
