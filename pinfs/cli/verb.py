"""The base of all verbs: help that ends in examples; errors of one line with an exit code."""

import errno
import os
from typing import Any, NoReturn

import click

from pinfs.cli.exitcodes import ExitCode, of_errno
from pinfs.observe.wording import printable


class Failure(click.ClickException):
    """Ends a verb with one line on stderr and a documented exit code."""

    exit_code: int  # type: ignore[misc]  # click declares one for the class; here each failure has its own

    def __init__(self, message: str, exit_code: int = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        """Print the line, escaped: names of files and answers of daemons may contain control characters."""
        click.echo(f"pinfs: {printable(self.message)}", file=file, err=file is None)


def fail(message: str, exit_code: ExitCode = ExitCode.FAILURE) -> NoReturn:
    """End the verb with one line on stderr and a documented exit code."""
    raise Failure(message, exit_code)


def failure_of(error: OSError) -> Failure:
    """The failure that reports a failed system call: the file's name and the text of strerror(3)."""
    reason = error.strerror or str(error)
    names = [os.fsdecode(name) for name in (error.filename,) if isinstance(name, str | bytes)]
    return Failure(": ".join([*names, reason]), of_errno(error.errno))


class _WithExamples:
    """Help ends in examples: `examples` is a text of shell lines and comments."""

    examples: str

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.examples:
            return
        with formatter.section("Examples"):
            for line in self.examples.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}".rstrip() + "\n")


class Verb(_WithExamples, click.Command):
    """A command whose failures, also those of system calls, are one line and an exit code."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples.strip("\n")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:  # `pinfs ls | head`: click ends quietly
                raise
            raise failure_of(error) from error


class VerbGroup(_WithExamples, click.Group):
    """A verb with verbs below it (`pinfs policy show`)."""

    command_class = Verb

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples.strip("\n")
