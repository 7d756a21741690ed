"""`pinfs cluster`: the hosts that honour each other's pins."""

import errno
from typing import Any, NoReturn

import click

from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.mounts import the_mount
from pinfs.cli.output import listing_options, print_json, print_table
from pinfs.cli.verb import VerbGroup, fail
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import cluster_place, cluster_troubles

Cluster = dict[str, Any]

WHAT_IF_IT_LIVES = (
    "{host} must be dead, and nothing that it had begun may still reach the storage: switch it off first. "
    "Its pins end now. If it lives, bytes that its programs have pinned can be cut under them, until its daemon "
    "notices within its pin_ttl and tells its holders. Without this its pins end by themselves after pin_ttl, and "
    "what it had begun to cut counts as over after member_ttl"
)


@click.group(
    cls=VerbGroup,
    short_help="Show the hosts of a cluster, or forget a dead one.",
    examples="""
# try it on one machine: two mounts of one directory, and an etcd
pinfs mount /srv/models /mnt/a -d -o cluster=127.0.0.1:2379,cluster_host=a
pinfs mount /srv/models /mnt/b -d -o cluster=127.0.0.1:2379,cluster_host=b

# the hosts, and what is wrong
pinfs cluster status /mnt/a

# host b has lost its power, and nobody wants to wait until its pins end
pinfs cluster forget --yes b /mnt/a
""",
)
def cluster() -> None:
    """Mounts with -o cluster=ENDPOINTS, of one directory on several hosts, honour each other's pins through etcd.

    What it takes, what each option does and what happens when a host or etcd fails is in docs/hosts.md; pinfs doctor
    -o cluster=ENDPOINTS checks an etcd before anything is mounted.
    """


@cluster.command(
    short_help="Show the hosts of a cluster.",
    examples="""
pinfs cluster status /mnt/models

# hosts that have been silent for more than ten seconds
pinfs cluster status --json | jq -r '.cluster.members[] | select(.silent_s > 10) | .host'

# wait in a script until the mount may be used
until pinfs cluster status >/dev/null; do sleep 1; done
""",
)
@click.argument("where", metavar="[MOUNT]", required=False)
@listing_options
@click.pass_context
def status(ctx: click.Context, where: str | None, as_json: bool) -> None:
    """Show what MOUNT knows of its cluster: its hosts, how long each has been silent, marked files, pins.

    A host beats every few seconds. Others take its pins for gone when it has been SILENT for its pin_ttl; at its fence,
    before that, it has told its own holders. LIFE tells a host from the same one before it was cut off.

    Exit code 15 where the mount is in no cluster, 16 while it has not joined: pins and removals get EIO then.
    """
    mount = the_mount(where)
    found = _cluster_of(mount)
    if as_json:
        print_json({"v": 1, "mountpoint": mount.point, "cluster": found})
    else:
        _print(found)
    ctx.exit(ExitCode.OK if found["state"] == "joined" else ExitCode.CUT_OFF)


@cluster.command(
    short_help="End the pins of a host that is dead (root).",
    examples="""
# after b was switched off
pinfs cluster forget --yes b
""",
)
@click.argument("host")
@click.argument("where", metavar="[MOUNT]", required=False)
@click.option("--yes", is_flag=True, help="The host is dead, and its storage path cut off: do it.")
def forget(host: str, where: str | None, yes: bool) -> None:
    """End the pins and the removals of HOST now, without waiting until its times to live are over. Root only.

    HOST must be dead, and nothing that it had begun may still reach the storage: switch it off, or cut it off from the
    storage. If it lives, bytes that its programs have pinned can be cut under them before they are told.
    """
    mount = the_mount(where)
    found = _cluster_of(mount)
    if host == found["host"]:
        fail(f"{host} is this host: unmount {mount.point} instead", ExitCode.USAGE)
    if host not in _hosts(found):
        _no_such_host(host, mount)
    if not yes:
        fail(f"{WHAT_IF_IT_LIVES.format(host=host)}. To do it: --yes", ExitCode.USAGE)
    try:
        mount.command(f"forget {host}")
    except OSError as error:
        if error.errno == errno.ESRCH:
            _no_such_host(host, mount)
        if error.errno in (errno.EPERM, errno.EACCES):
            fail(f"{mount.point}: only root may forget a host", ExitCode.NOT_PERMITTED)
        raise


def _hosts(found: Cluster) -> list[str]:
    return sorted({member["host"] for member in found["members"]} - {found["host"]})


def _no_such_host(host: str, mount: Mount) -> NoReturn:
    fail(f"{mount.point}: the cluster has no other host {host}", ExitCode.NO_SUCH_HOST)


def _cluster_of(mount: Mount) -> Cluster:
    found: Cluster | None = mount.status().get("cluster")
    if found is None:
        fail(f"{mount.point}: in no cluster (mount with -o cluster=ENDPOINTS)", ExitCode.NO_CLUSTER)
    return found


def _print(found: Cluster) -> None:
    missing = {*found.get("not_seen", ())}
    rows, styles = [], []
    for member in sorted(found["members"], key=lambda one: (not one["own"], one["host"], one["incarnation"])):
        is_own = member["own"]
        note = "this host" if is_own else "its files are not seen here" if member["host"] in missing else ""
        rows.append((member["host"], member["incarnation"], f"{member['silent_s']:.1f}s", note))
        styles.append("bold" if is_own else "yellow" if note else "")
    print_table(("HOST", "LIFE", "SILENT", ""), rows, right=[2], styles=styles)
    click.echo()
    click.echo(cluster_place(found))
    fence = found.get("fence_in_s")
    click.echo(f"fence: {'-' if fence is None else f'in {fence:.1f}s unless etcd answers'}")
    click.echo(f"marked files {found['marks']}, pins of this host {found['pins']}, removals {found['removals']}")
    click.echo(f"etcd: {', '.join(found['endpoints'])}")
    for trouble in cluster_troubles(found):
        click.echo(f"warning: {trouble}", err=True)
