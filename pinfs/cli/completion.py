"""`pinfs completion`: prints scripts that complete verbs and options."""

import click
from click.shell_completion import get_completion_class

from pinfs.cli.verb import Verb


@click.command(
    cls=Verb,
    short_help="Print shell completion.",
    examples="""
# bash: for this user
pinfs completion bash > ~/.local/share/bash-completion/completions/pinfs

# zsh: into a directory of $fpath
pinfs completion zsh > ~/.zfunc/_pinfs

# fish
pinfs completion fish > ~/.config/fish/completions/pinfs.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes pinfs in SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None  # the choice above has only those that click knows
    click.echo(kind(ctx.find_root().command, {}, "pinfs", "_PINFS_COMPLETE").source())
