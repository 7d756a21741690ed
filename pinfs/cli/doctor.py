"""`pinfs doctor`: checks whether this machine, and a directory, support what pinfs promises."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.findings import Finding, Level, has_failures
from pinfs.cli.output import listing_options, print_json, print_table
from pinfs.cli.verb import Verb, fail

if TYPE_CHECKING:
    from pinfs.config.cluster import ClusterOptions

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@click.command(
    cls=Verb,
    short_help="Check this machine, or a directory, and say how to fix it.",
    examples="""
# this machine
pinfs doctor

# this machine, and a directory to mount
pinfs doctor /srv/models

# this machine, a shared directory, and the etcd that its hosts will use
pinfs doctor /srv/models -o cluster=https://etcd1:2379+https://etcd2:2379,cluster_ca=/etc/pinfs/ca.pem
pinfs doctor /srv/models --policy /etc/pinfs/models.toml

# fixes of all failures, for a script
pinfs doctor --json | jq -r '.findings[] | select(.level == "fail") | .fix'
""",
)
@click.argument("directory", required=False)
@click.option("-o", "options", multiple=True, metavar="OPTION[=VALUE][,...]", help="Options of the mount: cluster=...")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path), metavar="FILE",
              help="The policy of the mount, which may have a table [cluster].")  # fmt: skip
@listing_options
@click.pass_context
def doctor(
    ctx: click.Context, directory: str | None, options: tuple[str, ...], policy_file: Path | None, as_json: bool
) -> None:
    """Check this machine, and DIRECTORY as a source, and say how to fix what is wrong.

    Looks at the kernel, /dev/fuse, fusermount3, libfuse, pyfuse3, whether pinfs is compiled, passthrough, survival of
    the daemon, capabilities, eventfds, descriptor limits, the pid namespace, the mounts that are there and what serves
    them, and seals that a killed daemon has left; of
    DIRECTORY at the file system, DAX, copy on write, extents that its files share with others, seals, and file handles
    for NFS servers. Every file below DIRECTORY is asked for its extents: this takes a while for millions of them.
    With options of a cluster: its etcd, and whether DIRECTORY can be shared. Nothing is changed.

    "warn": pinfs works, but a feature or speed is lost. "fail": pinfs cannot mount, or a pin could not keep its
    promise. Exit code 8 if anything failed.
    """
    findings = list(_examine(directory, _cluster(options, policy_file)))
    if as_json:
        print_json({"v": 1, "findings": [finding.as_json() for finding in findings]})
    else:
        _print(findings)
    ctx.exit(ExitCode.DOCTOR_FOUND_FAILURES if has_failures(findings) else ExitCode.OK)


def _cluster(options: tuple[str, ...], policy_file: Path | None) -> "ClusterOptions | None":
    if not options and policy_file is None:
        return None
    from pinfs.config.options import OptionError, load
    from pinfs.core.policy import PolicyError

    try:
        return load(options, policy_file).cluster
    except (OptionError, PolicyError) as error:
        fail(str(error), ExitCode.BAD_POLICY)


def _examine(directory: str | None, cluster: "ClusterOptions | None") -> Iterator[Finding]:
    from pinfs.cli.backing import check_backing, filesystem_type
    from pinfs.cli.export import check_export
    from pinfs.cli.machine import check_machine
    from pinfs.cli.mounts import require_answer
    from pinfs.cli.seals import check_seal, check_seals
    from pinfs.cli.served import check_mounts

    if directory is not None:
        require_answer(directory)
    yield from check_machine()
    yield from check_mounts()
    yield from check_seals()
    if directory is not None:
        with _progress() as progress:
            yield from check_backing(directory, progress)
        yield check_seal(directory)
        yield check_export(directory)
    if cluster is not None:
        from pinfs.cli.hosts import check_cluster, check_shared  # needs h11, which not all installations have

        yield from check_cluster(cluster)
        if directory is not None:
            yield from check_shared(directory, filesystem_type(directory))


@contextmanager
def _progress() -> Iterator[Any]:
    """A running count of files on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _files: None
        return
    from rich.console import Console

    with Console(stderr=True).status("looking at extents") as status:
        yield lambda files: status.update(f"looking at extents: {files} files") if files % 100 == 0 else None


def _print(findings: list[Finding]) -> None:
    rows, styles = [], []
    for finding in findings:
        rows.append((finding.level.value, finding.check, finding.text))
        styles.append(_STYLES[finding.level] if finding.level is not Level.OK else "")
        if finding.fix:
            rows.append(("", "", f"to fix: {finding.fix}"))
            styles.append("dim")
    print_table((), rows, styles=styles)
