"""`pinfs umount`: lists holders of pins, waits for them, or ends the mount regardless."""

import errno
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from pinfs.bridge.mount import unmount, users
from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.mounts import mount_on, mounts
from pinfs.cli.pintable import DEFAULT, in_order, table_of_pins
from pinfs.cli.verb import Verb, fail
from pinfs.linux.proc import read_state
from pinfs.linux.syscalls import MNT_DETACH, MNT_FORCE, UMOUNT_NOFOLLOW, umount2
from pinfs.observe.daemons import STATES, connection_of, daemon_pid, keeper_pid
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import printable

_RETRY_S = 0.1
_END_S = 10.0  # how long the daemon may take for its last steps
_ABORTED_END_S = 1.0  # the same, once its connection is aborted
_CONNECTIONS = Path("/sys/fs/fuse/connections")


@click.command(
    cls=Verb,
    short_help="Unmount, once no pins are held.",
    examples="""
# refused with a list of holders, if there are pins
pinfs umount /mnt/models

# give the holders a minute
pinfs umount --wait 60 /mnt/models

# in spite of pins and open files; also a mount whose daemon hangs
pinfs umount --force /mnt/models
""",
)
@click.argument("mountpoint")
@click.option("-w", "--wait", "wait_s", type=click.FloatRange(0), default=0.0, metavar="SECONDS",
              help="Wait up to SECONDS for pins to be released and files to be closed.")  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="End the mount although there are pins or open files.")
def umount(mountpoint: str, wait_s: float, force: bool) -> None:
    """Unmount the pinfs on MOUNTPOINT, and return when its daemon has ended.

    While there are pins, unmounting is refused with a list of their holders (exit code 4), and while files are open,
    with a list of the processes. With --force waiting breakers are answered, pins are dropped, and open files fail with
    ENOTCONN; this also works while the daemon does not answer. A stale mount, whose daemon is dead, is removed.
    """
    mount = _mounted_on(mountpoint)
    if force:
        _force(mount)
    else:
        _gently(mount, time.monotonic() + wait_s)


def _mounted_on(path: str) -> Mount:
    mount = mount_on(path)
    if mount is None:
        fail(f"{path}: no pinfs is mounted there", ExitCode.NOT_PINFS)
    return mount


def _gently(mount: Mount, end: float) -> None:
    daemon, keeper = None, _pidfd(keeper_pid(mount))
    while True:
        try:
            pins = mount.pins()
            daemon = daemon or daemon_of(mount.status())
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise
            pins = []
        if not pins and _unmounted(mount):
            break
        if time.monotonic() >= end:
            _refuse(mount, pins)
        time.sleep(_RETRY_S)
    for process in (daemon, keeper):
        if process is not None:
            _ended(process)


def _unmounted(mount: Mount) -> bool:
    try:
        unmount(mount.point)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _refuse(mount: Mount, pins: list[dict[str, Any]]) -> None:
    if pins:
        table_of_pins(in_order(pins, []), DEFAULT).print()
        fail(f"{mount.point}: pins held: {len(pins)} (try --wait SECONDS, or --force)", ExitCode.BUSY)
    programs = ", ".join(users(mount.point)) or "processes that cannot be seen from here"
    fail(f"{mount.point}: in use by {programs}", ExitCode.BUSY)


def _force(mount: Mount) -> None:
    """SIGTERM lets the daemon answer waiting breakers; a mount that is left afterwards is torn down.

    SIGCONT, because a stopped daemon cannot act on SIGTERM (systemd.kill(5) does the same). The keeper gets SIGTERM as
    well, so that it starts no other daemon.
    """
    keeper = _pidfd(keeper_pid(mount))
    pid = daemon_pid(mount) or (None if keeper is not None else _pid_by_status(mount))
    daemon = daemon_of({"pid": pid})
    processes = [process for process in (keeper, daemon) if process is not None]
    for process in processes:
        _signal(process, signal.SIGTERM)
        _signal(process, signal.SIGCONT)
    all(_ended(process) for process in processes[::-1])
    if mount in mounts():
        _tear_down(mount)
    if keeper is not None and not _ended(keeper, _ABORTED_END_S):
        _signal(keeper, signal.SIGKILL)
    if daemon is not None and not _ended(daemon, _ABORTED_END_S):
        _warn_of(mount, pid)


def _signal(pidfd: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)


def _pidfd(pid: int | None) -> int | None:
    with suppress(OSError):
        return None if pid is None else os.pidfd_open(pid)
    return None


def _pid_by_status(mount: Mount) -> int | None:
    """For a daemon that cannot be seen from outside."""
    try:
        return int(mount.status()["pid"])
    except (OSError, KeyError, ValueError):
        return None


def _warn_of(mount: Mount, pid: int | None) -> None:
    state, _ticks = read_state(pid) if pid else (None, 0)
    if state is not None:
        said = (
            f"{mount.point} is unmounted, but its daemon has not ended (pid {pid}, state {state}: "
            f"{STATES.get(state, '?')}): no other pinfs can serve {mount.source} until it does (kill -9 {pid})"
        )
        click.echo(f"pinfs: {printable(said)}", err=True)


def _tear_down(mount: Mount) -> None:
    """Abort the connection, so that no caller waits for the daemon any longer, then take the mount away.

    Root does so by MNT_FORCE (umount2(2)); the user that mounted, through sysfs where fusectl is mounted.
    """
    with suppress(OSError):
        (_CONNECTIONS / str(connection_of(mount)) / "abort").write_text("1")
    if os.geteuid() != 0:
        unmount(mount.point, lazy=True)
        return
    umount2(mount.point, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW)


def daemon_of(status: dict[str, Any]) -> int | None:
    """A pidfd of the daemon; None where its number means another process in this pid namespace."""
    try:
        descriptors = Path(f"/proc/{status['pid']}/fd")
        if not any(str(link.readlink()) == "/dev/fuse" for link in descriptors.iterdir()):
            return None
        return os.pidfd_open(status["pid"])
    except (OSError, KeyError):
        return None


def _ended(pidfd: int, limit_s: float = _END_S) -> bool:
    """Wait for the daemon's end, so that the source is free for the next mount afterwards; whether it came."""
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    return bool(waiter.poll(limit_s * 1000))
