"""`pinfs unseal`: lifts the seals that a daemon has left behind."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from pinfs.bridge.mount import AlreadyServedError, MountError, open_source
from pinfs.cli.exitcodes import ExitCode
from pinfs.cli.mounts import require_answer
from pinfs.cli.verb import Verb, fail
from pinfs.fs.seallist import SealedFile, is_sealed, lift, lists_of, read_list
from pinfs.linux.inodeflags import clear_append
from pinfs.linux.syscalls import STATX_ATTR_APPEND, attributes_of


@click.command(
    cls=Verb,
    short_help="Lift the seals that a killed daemon has left.",
    examples="""
# after kill -9 of the daemon: make the pinned files ordinary ones again
pinfs umount --force /mnt/models
pinfs unseal /srv/models

# the list was lost with the machine: look at every file, first without changing any
pinfs unseal --scan --dry-run /srv/models
pinfs unseal --scan /srv/models
""",
)
@click.argument("source")
@click.option("--scan", is_flag=True, help="Look at every file below SOURCE, not at the list alone. Lifts append-only "
              "flags that chattr(1) has set as well: they look the same.")  # fmt: skip
@click.option("-n", "--dry-run", is_flag=True, help="Print the names of sealed files, and change nothing.")
def unseal(source: str, scan: bool, dry_run: bool) -> None:
    """Lift the seals of the files in SOURCE, a directory that was served by a daemon that was killed.

    A pinned file carries the append-only flag, so that the kernel itself keeps its bytes. It stays when the daemon is
    killed: the holders may still rely on the bytes. The next mount of SOURCE lifts it as well.
    """
    require_answer(source)
    try:
        fd = open_source(source)
    except AlreadyServedError:
        fail(f"{source} is being served: its daemon lifts each seal after the last pin", ExitCode.BUSY)
    except MountError as error:
        fail(str(error))
    try:
        done, failures = _unseal_listed(fd, source, dry_run)
        if scan:
            found, failed = _unseal_found(fd, source, dry_run)
            done, failures = done + found, failures + failed
    finally:
        os.close(fd)
    click.echo(f"{'sealed' if dry_run else 'unsealed'}: {done} files")
    if failures:
        raise failures[0]


def _unseal_listed(fd: int, source: str, dry_run: bool) -> tuple[int, list[OSError]]:
    done, failures = 0, []
    for path in lists_of(fd, source):
        files = list(read_list(path))
        failed = []
        for file in files:
            try:
                if is_sealed(fd, file) if dry_run else lift(fd, file):
                    _show(file)
                    done += 1
            except OSError as error:
                failed.append(error)
        failures += failed
        if not dry_run and not failed:
            path.unlink(missing_ok=True)
    return done, failures


def _show(file: SealedFile) -> None:
    click.echo(os.fsdecode(file.path) or f"(inode {file.ino})")


def _unseal_found(fd: int, source: str, dry_run: bool) -> tuple[int, list[OSError]]:
    done, failures = 0, []
    for path in append_only_files(fd, source):
        try:
            done += dry_run or clear_append(path)
            click.echo(os.path.relpath(path, source))
        except OSError as error:
            failures.append(error)
    return done, failures


def append_only_files(fd: int, source: str) -> Iterator[Path]:
    """The regular files below `source`, on its own file system, that carry the flag."""
    device = os.fstat(fd).st_dev
    for where, below, names, directory_fd in os.fwalk(source):
        if os.fstat(directory_fd).st_dev != device:
            below.clear()
            continue
        for name in names:
            with suppress(OSError):
                if _is_append_only(name, directory_fd):
                    yield Path(where, name)


def _is_append_only(name: str, directory_fd: int) -> bool:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and bool(attributes_of(fd) & STATX_ATTR_APPEND)
    finally:
        os.close(fd)
