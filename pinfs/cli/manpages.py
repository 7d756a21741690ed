"""`pinfs man`: man pages from the same source as --help."""

import inspect
import os
import time
from collections.abc import Iterator
from pathlib import Path

import click

import pinfs
from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.verb import Verb


@click.command(cls=Verb, hidden=True, examples="pinfs man /usr/local/share/man/man1")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.pass_context
def man(ctx: click.Context, directory: Path) -> None:
    """Write a man page for each verb into DIRECTORY, which is created if it does not exist."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in pages(click.Context(ctx.find_root().command, info_name="pinfs")):
        (directory / f"{name}.1").write_text(page)


def pages(ctx: click.Context) -> Iterator[tuple[str, str]]:
    """(name, troff text) of the command of `ctx` and of all its subcommands."""
    yield ctx.command_path.replace(" ", "-"), page(ctx)
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            command = ctx.command.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield from pages(click.Context(command, info_name=name, parent=ctx))


def page(ctx: click.Context) -> str:
    """One man page (man(7)); reproducible with SOURCE_DATE_EPOCH."""
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    name = ctx.command_path.replace(" ", "-")
    lines = [f'.TH "{name.upper()}" "1" "{date}" "pinfs {pinfs.__version__}" "pinfs manual"', ".nh"]
    lines += [".SH NAME", f"{_escaped(name)} \\- {_escaped(ctx.command.get_short_help_str(120).rstrip('.'))}"]
    usage = " ".join(ctx.command.collect_usage_pieces(ctx))
    lines += [".SH SYNOPSIS", f"\\fB{_escaped(ctx.command_path)}\\fR {_escaped(usage)}"]
    lines += [".SH DESCRIPTION", *_paragraphs(ctx.command.help or ""), *_options(ctx), *_verbs(ctx)]
    return "\n".join([*lines, *_examples(ctx.command), *_exit_status(), *_see_also(ctx)]) + "\n"


def _escaped(text: str) -> str:
    """Text with troff's special characters escaped: backslashes, hyphens, leading dots and quotes."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in text.splitlines())


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):  # click's mark for "leave the lines as they are"
            yield from (".PP", ".nf", _escaped(paragraph.removeprefix("\b\n")), ".fi")
        else:
            yield from (".PP", _escaped(paragraph))


def _options(ctx: click.Context) -> Iterator[str]:
    yield ".SH OPTIONS"
    for parameter in ctx.command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record and record[1]:  # arguments without help are in the synopsis
            yield from (".TP", f"\\fB{_escaped(record[0])}\\fR", _escaped(record[1]))


def _verbs(ctx: click.Context) -> Iterator[str]:
    if not isinstance(ctx.command, click.Group):
        return
    yield ".SH VERBS"
    for name in ctx.command.list_commands(ctx):
        command = ctx.command.get_command(ctx, name)
        if command is not None and not command.hidden:
            yield from (".TP", f"\\fB{_escaped(name)}\\fR", _escaped(command.get_short_help_str(120)))


def _examples(command: click.Command) -> Iterator[str]:
    examples = getattr(command, "examples", "")
    if examples:
        yield from (".SH EXAMPLES", ".nf", _escaped(examples), ".fi")


def _exit_status() -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for code in ExitCode:
        yield from (".TP", f"\\fB{code.value}\\fR", _escaped(code.name.lower().replace("_", " ")))


def _see_also(ctx: click.Context) -> Iterator[str]:
    if ctx.parent is not None:
        yield from (".SH SEE ALSO", f"\\fB{_escaped(ctx.parent.command_path.replace(' ', '-'))}\\fR(1)")
