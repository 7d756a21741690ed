"""`pinfs umount`: lists holders of pins, waits for them, or ends the mount regardless."""

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from pinfs.bridge.mount import unmount, users
from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.ls import DEFAULT, print_pins
from pinfs.cli.verb import Verb, fail
from pinfs.linux.syscalls import MNT_DETACH, MNT_FORCE, umount2
from pinfs.observe.mounts import Mount, mounts

_RETRY_S = 0.1
_ANSWER_S = 3.0  # how long --force waits for the status of a daemon that may hang
_END_S = 10.0  # how long the daemon may take for its last steps

T = TypeVar("T")


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
    ENOTCONN. A stale mount, whose daemon is dead, is removed.
    """
    mount = _mounted_on(mountpoint)
    if force:
        _force(mount)
    else:
        _gently(mount, time.monotonic() + wait_s)


def _mounted_on(path: str) -> Mount:
    real = os.path.realpath(path)
    there = [mount for mount in mounts() if mount.point == real]
    if not there:
        fail(f"{path}: no pinfs is mounted there", ExitCode.NOT_PINFS)
    return there[0]


def _gently(mount: Mount, end: float) -> None:
    daemon = None
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
    if daemon is not None:
        _ended(daemon)


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
        print_pins(pins, DEFAULT)
        fail(f"{mount.point}: pins held: {len(pins)} (try --wait SECONDS, or --force)", ExitCode.BUSY)
    programs = ", ".join(users(mount.point)) or "processes that cannot be seen from here"
    fail(f"{mount.point}: in use by {programs}", ExitCode.BUSY)


def _force(mount: Mount) -> None:
    """SIGTERM lets the daemon answer waiting breakers; a mount that is left afterwards is torn down."""
    status = _within(_ANSWER_S, mount.status)
    daemon = daemon_of(status) if status else None
    if daemon is not None:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
        _ended(daemon)
    if mount in mounts():
        _tear_down(mount)


def _tear_down(mount: Mount) -> None:
    """Root aborts the connection (MNT_FORCE, umount2(2)), so that no caller waits for the daemon any longer."""
    if os.geteuid() != 0:
        unmount(mount.point, lazy=True)
        return
    umount2(mount.point, MNT_FORCE | MNT_DETACH)


def _within(limit_s: float, ask: Callable[[], T]) -> T | None:
    """The result of `ask`; None if it fails or takes longer than `limit_s`: a stopped daemon never answers."""
    answers: list[T] = []

    def run() -> None:
        with suppress(OSError):
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    return answers[0] if answers else None


def daemon_of(status: dict[str, Any]) -> int | None:
    """A pidfd of the daemon; None where its number means another process in this pid namespace."""
    try:
        descriptors = Path(f"/proc/{status['pid']}/fd")
        if not any(str(link.readlink()) == "/dev/fuse" for link in descriptors.iterdir()):
            return None
        return os.pidfd_open(status["pid"])
    except (OSError, KeyError):
        return None


def _ended(pidfd: int) -> None:
    """Wait for the daemon's end, so that the source is free for the next mount afterwards."""
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    waiter.poll(_END_S * 1000)
