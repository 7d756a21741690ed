"""`pinfs mount`: serve a directory as a pinfs."""

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pinfs.cli import logs
from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.installation import program
from pinfs.cli.mounts import error_of, mount_on
from pinfs.cli.verb import Verb, fail
from pinfs.observe.asking import NoAnswerError
from pinfs.observe.wording import printable

if TYPE_CHECKING:
    from pinfs.config.options import Config
    from pinfs.serve.kept import Kept

log = logging.getLogger("pinfs.config")


@click.command(
    cls=Verb,
    short_help="Mount a directory.",
    examples="""
# in the foreground, until Ctrl-C
pinfs mount /srv/models /mnt/models

# in the background: returns when the file system is usable, or prints why it is not
pinfs mount /srv/models /mnt/models --daemon

# leases are broken after ten seconds
pinfs mount /srv/models /mnt/models -o break_timeout=10,on_timeout=revoke

# a policy from a file, read again on SIGHUP
pinfs mount /srv/models /mnt/models --policy /etc/pinfs/models.toml -d

# with other hosts that share the directory, through etcd
pinfs mount /srv/models /mnt/models -d -o cluster=https://etcd1:2379+https://etcd2:2379,cluster_ca=/etc/pinfs/ca.pem

# by mount(8), and as a line of /etc/fstab
mount -t fuse.pinfs /srv/models /mnt/models -o break_timeout=10
/srv/models  /mnt/models  fuse.pinfs  nofail,break_timeout=10  0 0
""",
)
@click.argument("source")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True, metavar="OPTION[=VALUE][,...]",
              help="Mount options and keys of the policy; in any place, and as often as you like.")  # fmt: skip
@click.option("--policy", "policy_file", type=click.Path(path_type=Path), metavar="FILE", help="The policy (TOML).")
@click.option("-d", "--daemon", "background", is_flag=True, help="Go to the background once the mount is usable.")
@click.option("--log", "target", type=click.Choice([target.value for target in logs.Target]),
              help="Where to log; default: stderr, in the background journal or syslog.")  # fmt: skip
@click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Log to FILE.")
@click.option("--json-log", is_flag=True, help="Log one JSON object a record.")
@click.option("-v", "--verbose", is_flag=True, help="Log more (log_level=debug).")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only (log_level=warning).")
@click.option("--kept", is_flag=True, hidden=True, help="Started by a keeper: take over a mount when it is time.")
@click.option("--fake", is_flag=True, hidden=True, help="Check everything but do not mount, as mount -f.")
def mount(source: str, mountpoint: str, fake: bool, **how: Any) -> None:
    """Mount the directory SOURCE on MOUNTPOINT, and serve it until it is unmounted.

    SIGTERM and SIGINT unmount, after waiting breakers have been answered. SIGHUP reads the policy again, SIGUSR1 writes
    stacks and state to the log. Options for other programs (nofail, _netdev, x-systemd.*...) are accepted.

    Only one pinfs can serve a SOURCE at a time, or several with -o cluster=..., on one host or many. All programs
    should then use the mounts: changes that are made directly in SOURCE ignore pins.
    """
    config = _config(how)
    if fake:
        return
    if not how["kept"] and not _is_passed_a_mount():
        _check_free(mountpoint)
    target = _target(how)
    logs.setup(target, how["log_file"], config.mount.log_level, as_json=how["json_log"])
    for warning in () if how["kept"] else config.warnings():
        log.warning("%s", warning)
    _serve(config, source, mountpoint, _kept(config, source, mountpoint, target, how), how)


def _is_passed_a_mount() -> bool:
    """Whether a service manager has passed the connection of the daemon before (sd_listen_fds_with_names(3)): then the
    mount waits for this process."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and "fuse" in names


def _check_free(mountpoint: str) -> None:
    """A word where MOUNTPOINT is a pinfs already: a mount over it hides that one from programs that start later, while
    others go on with it. Fails where that one does not answer: mounting would ask it. A stale mount is for the daemon
    to refuse or to replace."""
    there = mount_on(mountpoint)
    if there is None:
        return
    what = f"{mountpoint} already is a pinfs mount, of {there.source}"
    try:
        error = error_of(there)
    except NoAnswerError as silence:
        end = f"end it with `pinfs umount --force {there.point}`, or take another mount point"
        fail(f"{what}, and {silence.why}: {end}", ExitCode.MOUNT_FAILED)
    if error is None or error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
        click.echo(f"pinfs: warning: {printable(what)}: it will be covered until the new one is unmounted", err=True)


def _config(how: dict[str, Any]) -> "Config":
    from pinfs.config.options import OptionError, load, warnings_of
    from pinfs.core.policy import PolicyError

    levels = {"log_level=debug": how["verbose"], "log_level=warning": how["quiet"]}
    try:
        options = [*how["options"], *(level for level, wanted in levels.items() if wanted)]
        takes_over = how["kept"] or _is_passed_a_mount()
        config = load(options, how["policy_file"], takes_over=takes_over)
    except (OptionError, PolicyError) as error:
        fail(str(error), ExitCode.BAD_POLICY)
    for warning in warnings_of(how["options"]):
        click.echo(f"pinfs: warning: {printable(warning)}", err=True)
    return config


def _target(how: dict[str, Any]) -> logs.Target:
    default = logs.background_target() if how["background"] else logs.Target.STDERR
    return logs.Target(how["target"]) if how["target"] else default


def _kept(config: "Config", source: str, mountpoint: str, target: logs.Target, how: dict[str, Any]) -> "Kept":
    """What a keeper has to know: how it logs, and the command that serves this mount once more, from any directory."""
    from pinfs.serve.kept import Kept

    options = [word for text in how["options"] for word in ("-o", text)]
    paths = {"--policy": config.policy_file, "--log-file": how["log_file"]}
    options += [word for name, path in paths.items() if path for word in (name, os.path.abspath(path))]
    options += [name for name in ("--json-log", "--verbose", "--quiet") if how[name.strip("-").replace("-", "_")]]
    places = (os.path.abspath(source), os.path.abspath(mountpoint))
    to_syslog = target in (logs.Target.JOURNAL, logs.Target.SYSLOG)
    return Kept(
        program=program(),
        words=("mount", "--kept", "--log", target.value, *options, "--", *places),
        mountpoint=os.path.abspath(mountpoint),
        log=os.path.abspath(how["log_file"]) if how["log_file"] else "syslog" if to_syslog else "stderr",
        log_level=config.mount.log_level,
        log_json=how["json_log"],
        max_deaths=config.mount.max_deaths,
        spare=config.mount.spare,
    )


def _serve(config: "Config", source: str, mountpoint: str, kept: "Kept", how: dict[str, Any]) -> None:
    from pinfs.bridge.mount import MountError, StaleMountError
    from pinfs.serve import background as serving

    serve = serving.run_in_background if how["background"] else serving.run
    if how["kept"]:
        serve = serving.run_in_turn
    try:
        serve(config, source, mountpoint, kept)
    except StaleMountError as error:
        fail(str(error), ExitCode.STALE_MOUNT)
    except MountError as error:
        fail(str(error), ExitCode.MOUNT_FAILED)
