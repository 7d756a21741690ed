"""`pinfs release`: release a pin as its owner."""

import errno

import click

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.mounts import the_mount
from pinfs.cli.verb import Verb, fail
from pinfs.observe.mounts import Mount


@click.command(
    cls=Verb,
    short_help="Release pins of your own.",
    examples="""
# a pin that was registered for another process
pinfs pin --pid 4711 /mnt/models/big.bin
pinfs ls /mnt/models/big.bin
pinfs release 7
""",
)
@click.argument("ids", metavar="ID...", type=click.IntRange(min=1), nargs=-1, required=True)
@click.option("-m", "--mount", "where", metavar="PATH", help="The mount (or a file on it), where there are several.")
def release(ids: tuple[int, ...], where: str | None) -> None:
    """Release the pins with these IDs (see pinfs ls). Only their owner's user and root may do so.

    Breakers that wait for the range go on. The holding process is not notified, and it relies on the bytes: release
    only ranges that no program or device uses any more.
    """
    mount = the_mount(where)
    for number in ids:
        command_on(mount, "release", number)


def command_on(mount: Mount, verb: str, number: int) -> None:
    """Send `VERB ID` to the event channel; fails with the exit code for what the daemon answers."""
    try:
        mount.command(f"{verb} {number}")
    except OSError as error:
        if error.errno == errno.ENOENT:
            fail(f"{mount.point}: there is no pin {number}", ExitCode.NO_SUCH_PIN)
        if error.errno in (errno.EPERM, errno.EACCES):
            fail(f"{mount.point}: pin {number} is not yours to {verb}", ExitCode.NOT_PERMITTED)
        raise
