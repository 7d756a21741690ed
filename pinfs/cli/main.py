"""`pinfs`: imports only the verb that is called, so that `pinfs pin` starts without the daemon's libraries."""

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import click

import pinfs
from pinfs.cli import mounthelper
from pinfs.cli.verb import VerbGroup
from pinfs.pure import is_compiled

VERBS = {
    "mount": "pinfs.cli.mount",
    "umount": "pinfs.cli.umount",
    "upgrade": "pinfs.cli.upgrade",
    "pin": "pinfs.cli.pin",
    "ls": "pinfs.cli.ls",
    "watch": "pinfs.cli.watch",
    "top": "pinfs.cli.top",
    "release": "pinfs.cli.release",
    "revoke": "pinfs.cli.revoke",
    "policy": "pinfs.cli.policy",
    "cluster": "pinfs.cli.cluster",
    "status": "pinfs.cli.status",
    "doctor": "pinfs.cli.doctor",
    "unseal": "pinfs.cli.unseal",
    "debug": "pinfs.cli.debug",
    "bench": "pinfs.cli.bench",
    "web": "pinfs.cli.web",
    "completion": "pinfs.cli.completion",
    "man": "pinfs.cli.manpages",
}


class LazyVerbs(VerbGroup):
    """A group that imports a verb when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb, module in VERBS.items() if find_spec(module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = VERBS.get(cmd_name)
        if module is None or find_spec(module) is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command


def _tell_version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        kind = "compiled" if is_compiled() else "interpreted"
        click.echo(f"pinfs, version {pinfs.__version__} ({kind})")
        ctx.exit()


@click.group(
    cls=LazyVerbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples="""
# keep a file from being cut while a program has it mapped
pinfs mount /srv/models /mnt/models --daemon
pinfs pin /mnt/models/big.bin -- ./serve /mnt/models/big.bin

# pins and their holders, and breaks as they happen
pinfs ls
pinfs watch

# what this machine supports
pinfs doctor /srv/models
""",
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_version,
    help="Show the version, and whether pinfs runs compiled, and exit.",
)
def cli() -> None:
    """A file system on which long-term pins of file memory hold.

    A pin is a promise to a program that a byte range of a file keeps its storage. On a pinfs mount, nothing takes those
    bytes away while the pin stands: a truncate is refused ("deny" pins), or notifies the holder and waits ("lease"
    pins).

    Each verb explains itself: pinfs VERB --help. Exit codes are documented in docs/exit-codes.md.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. `argv` excludes the program's name; exits with a code of `pinfs.cli.exitcodes`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = Path(sys.argv[0]).name
    try:
        sys.exit(cli.main(mounthelper.translate(program, arguments, VERBS), prog_name="pinfs"))
    except SystemExit as end:
        if mounthelper.is_called_by_mount8(program, arguments, VERBS):
            sys.exit(mounthelper.status_for_mount8(end.code))
        raise


if __name__ == "__main__":
    main()
