"""`pinfs upgrade`: has the program of this installation take over a mount that another one serves."""

import errno
import json
import os
import time
from typing import Any, Final

import click

import pinfs
from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.installation import program
from pinfs.cli.mounts import mount_of
from pinfs.cli.verb import Verb, fail
from pinfs.journal.slots import VERSION
from pinfs.observe.asking import BoundedMount, ask

RETRY_S: Final = 0.02
LIMIT_S: Final = 120.0

Status = dict[str, Any]


@click.command(
    cls=Verb,
    short_help="Have this installation serve a mount.",
    examples="""
# a new version beside the old one takes over; open files and pins stay
/opt/pinfs-new/bin/pinfs upgrade /mnt/models

# the same after `pip install --upgrade pinfs`
pinfs upgrade /mnt/models

# under systemd, where the unit says which program serves
systemctl restart pinfs@models
""",
)
@click.argument("mountpoint", metavar="MOUNT")
def upgrade(mountpoint: str) -> None:
    """Have the program of this installation take over MOUNT from the one that serves it.

    The mount stays: open files, pins, leases and waiting breakers go over, and callers see a pause. Where this program
    cannot take over, the old one goes on, and the reason is printed. Under systemd the unit's command is started
    instead. Needs a mount that survives its daemon (-o survive), and root or the user who mounted it.
    """
    mount = mount_of(mountpoint)
    before = mount.status()
    _check(mount, before)
    began = time.monotonic()
    _request(mount)
    now = _waited(mount, before, began + LIMIT_S)
    if reason := (now.get("survives") or {}).get("upgrade_refused"):
        fail(f"{mount.point}: {reason}; pid {now['pid']} (pinfs {now['version']}) serves it", ExitCode.FAILURE)
    took = f"{time.monotonic() - began:.2f} s"
    was, is_now = (f"pinfs {status['version']} (pid {status['pid']})" for status in (before, now))
    click.echo(f"{mount.point}: {was} has handed over to {is_now} in {took}")


def _check(mount: BoundedMount, status: Status) -> None:
    survives = status.get("survives")
    if not survives:
        fail(f"{mount.point}: nothing can take over this mount: it does not survive its daemon (-o survive)")
    if survives["unavailable_because"]:
        fail(f"{mount.point}: nothing can take over this mount: {survives['unavailable_because']}")
    version = survives.get("journal_version")
    if version != VERSION:
        fail(
            f"{mount.point}: pinfs {pinfs.__version__} cannot take over: the journal of pinfs {status['version']} "
            f"has version {version}, and this one reads version {VERSION}"
        )


def _request(mount: BoundedMount) -> None:
    text = json.dumps({"v": 1, "program": program()}).encode()
    try:
        ask(mount, lambda: mount.control("upgrade").open("wb", buffering=0).write(text))
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        fail(
            f"{mount.point}: the daemon is in another container or mount namespace: upgrade from there",
            ExitCode.NOT_PERMITTED,
        )


def _waited(mount: BoundedMount, before: Status, until: float) -> Status:
    """The status once another daemon serves, or the old one says why it goes on."""
    while True:
        now = mount.status()
        if now["pid"] != before["pid"] or (now.get("survives") or {}).get("upgrade_refused"):
            return now
        if time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), mount.point)
        time.sleep(RETRY_S)
