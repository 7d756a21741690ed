"""`pinfs policy`: what happens on a conflict, shown, changed, checked and explained."""

import errno
import os
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.mounts import locate, the_mount
from pinfs.cli.output import listing_options, print_json, print_table
from pinfs.cli.verb import VerbGroup, fail
from pinfs.config.policies import policy_from_toml
from pinfs.core.policy import PolicyError, PolicySet, policy_from_mapping, policy_to_toml
from pinfs.observe.asking import ask
from pinfs.observe.mounts import Mount

_mount_option = click.option(
    "-m", "--mount", "where", metavar="PATH", help="The mount (or a file on it), where there are several."
)


@click.group(
    cls=VerbGroup,
    short_help="Show, change, check or explain the policy.",
    examples="""
# the policy in force, and the rule that decides about a file
pinfs policy show
pinfs policy explain /mnt/models/big.bin

# change one value, or all
pinfs policy set break_timeout=10 on_timeout=revoke
pinfs policy show > policy.toml; $EDITOR policy.toml
pinfs policy check policy.toml && pinfs policy set policy.toml
""",
)
def policy() -> None:
    """Show or change what happens when a removal meets a pin: refused, or a break, its deadline, and what follows."""


@policy.command(
    short_help="Print the policy in force.",
    examples="""
pinfs policy show /mnt/models
pinfs policy show --json | jq .break_timeout
""",
)
@click.argument("where", metavar="[MOUNT]", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of TOML.")
def show(where: str | None, as_json: bool) -> None:
    """Print the policy of MOUNT, as TOML that `pinfs policy set` takes back."""
    text = _text_of(the_mount(where))
    if as_json:
        print_json({"v": 1, **tomllib.loads(text)})
    else:
        click.echo(text, nl=False)


@policy.command(
    "set",
    short_help="Put a policy in force (root).",
    examples="""
pinfs policy set break_timeout=10 on_timeout=revoke
pinfs policy set --mount /mnt/models policy.toml
generate-policy | pinfs policy set -
""",
)
@click.argument("what", metavar="FILE|KEY=VALUE...", nargs=-1, required=True)
@_mount_option
def set_(what: tuple[str, ...], where: str | None) -> None:
    """Put the policy of FILE in force, or change single KEYs of the one that is. Root only.

    The policy is checked first, and refused whole if any key or value is invalid: then the old one stays in force.
    Breaks that are under way keep their deadlines. The change is lost when the mount ends.
    """
    mount = the_mount(where)
    changes = [word for word in what if "=" in word]
    if len(what) > 1 and len(changes) != len(what):
        raise click.UsageError("either one FILE, or KEY=VALUE, as many as you like")
    _put(mount, policy_to_toml(_changed(mount, changes)) if changes else _checked(what[0]))


@policy.command(
    short_help="Check a policy file.",
    examples="""
pinfs policy check /etc/pinfs/models.toml
""",
)
@click.argument("file")
def check(file: str) -> None:
    """Check the policy in FILE (-: standard input); print the line and key of an error."""
    _checked(file, is_file=True)
    click.echo(f"{file}: good")


@policy.command(
    short_help="Show which rule decides about a file.",
    examples="""
pinfs policy explain /mnt/models/big.bin
pinfs policy explain --policy new.toml /mnt/models/big.bin
""",
)
@click.argument("file")
@click.option("--policy", "candidate", metavar="FILE", help="Explain by this policy instead of the one in force.")
@listing_options
def explain(file: str, candidate: str | None, as_json: bool) -> None:
    """Show the values that hold for FILE on a mount, and the rule they come from: the last one that matches."""
    mount, real = locate(file)
    path = os.path.relpath(real, mount.point)
    text = _checked(candidate, is_file=True) if candidate else _text_of(mount)
    policies = _parsed(text, candidate or mount.point, is_file=True)
    values, index, glob = policies.explain(path)
    overrides = policies.rules[index].overrides if index is not None else {}
    number = None if index is None else index + 1
    answer = {name: getattr(values, name) for name in type(values).__dataclass_fields__}
    if as_json:
        rule = None if number is None else {"number": number, "path": glob}
        print_json({"v": 1, "path": path, "rule": rule, "policy": answer, "from_rule": sorted(overrides)})
        return
    by_rule = f"rule {number}, path = {glob!r}"
    rows = [(key, str(value), by_rule if key in overrides else "") for key, value in answer.items()]
    print_table(("KEY", "VALUE", "FROM"), rows)
    click.echo(f"decided by {by_rule}" if number else "no rule matches: the mount's own values")


def _text_of(mount: Mount) -> str:
    return mount.read("policy")


def _checked(file: str, *, is_file: bool = False) -> str:
    """The text of a valid policy; fails with exit code 11 where it is invalid. `is_file`: it is one that a mount begins
    with, and may have a table [cluster]."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except UnicodeDecodeError as error:
        fail(f"{file}: not UTF-8: {error.reason}", ExitCode.BAD_POLICY)
    _parsed(text, file, is_file=is_file)
    return text


def _parsed(text: str, name: str, *, is_file: bool = False) -> PolicySet:
    try:
        return policy_from_toml(text, is_file=is_file)
    except PolicyError as error:
        fail(f"{name}: {error}", ExitCode.BAD_POLICY)


def _changed(mount: Mount, changes: list[str]) -> PolicySet:
    values: dict[str, Any] = tomllib.loads(_text_of(mount))
    for change in changes:
        key, _, value = change.partition("=")
        values[key] = _value(value)
    try:
        return policy_from_mapping(values)
    except PolicyError as error:
        fail(str(error), ExitCode.BAD_POLICY)


def _value(text: str) -> int | float | str:
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text


def _put(mount: Mount, text: str) -> None:
    try:
        ask(mount, lambda: _write(mount, text))
    except PermissionError:
        fail(f"{mount.point}: only root may change the policy", ExitCode.NOT_PERMITTED)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fail(f"{mount.point}: refused: {mount.read('policy.error').strip()}", ExitCode.BAD_POLICY)


def _write(mount: Mount, text: str) -> None:
    fd = os.open(mount.control("policy"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)  # an error at close(2) would be reported too late
    finally:
        os.close(fd)
