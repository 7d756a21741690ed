"""`pinfs revoke`: take a pin away from its holder, as root."""

import click

from pinfs.cli.mounts import the_mount
from pinfs.cli.release import command_on
from pinfs.cli.verb import Verb


@click.command(
    cls=Verb,
    short_help="Take pins away from their holders (root).",
    examples="""
# find the pins of a file, and take one away
pinfs ls /mnt/models/big.bin
pinfs revoke 7

# where there are several mounts
pinfs revoke --mount /mnt/models 7 8
""",
)
@click.argument("ids", metavar="ID...", type=click.IntRange(min=1), nargs=-1, required=True)
@click.option("-m", "--mount", "where", metavar="PATH", help="The mount (or a file on it), where there are several.")
def revoke(ids: tuple[int, ...], where: str | None) -> None:
    """Revoke the pins with these IDs (see pinfs ls). Root only.

    The holder gets the event "revoked", but cannot refuse. A device that writes into the range continues to write: a
    DMA engine cannot be fenced. Stop the holder first where possible.
    """
    mount = the_mount(where)
    for number in ids:
        command_on(mount, "revoke", number)
