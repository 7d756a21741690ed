"""`pinfs debug`: everything a bug report needs, and no contents or names of users' files."""

import io
import json
import os
import platform
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click

import pinfs
from pinfs.cli.findings import Finding
from pinfs.cli.mounts import mount_of, mounts
from pinfs.cli.verb import Verb
from pinfs.linux import mountinfo
from pinfs.observe.asking import BoundedMount, NoAnswerError
from pinfs.observe.mounts import Mount

_PACKAGES = ("pyfuse3", "trio", "click", "rich", "prometheus-client")
_LOG_TAIL = 200  # lines
_KERNEL_LINES = re.compile(r"fuse|pinfs|hung task|blocked for more than", re.IGNORECASE)
_PRIVATE = ("note", "name", "path", "comm")

Part = tuple[str, Callable[[], str]]


@click.command(
    cls=Verb,
    short_help="Collect what a bug report needs.",
    examples="""
# pinfs-debug-DATE.tar.gz in the current directory
pinfs debug

# look at it before you send it
pinfs debug --output bug.tar.gz /mnt/models && tar -xOzf bug.tar.gz | less
""",
)
@click.argument("where", metavar="[MOUNT]", required=False)
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Where to write the bundle.")
def debug(where: str | None, output: str | None) -> None:
    """Write a bundle (tar.gz) about this machine and MOUNT, or all pinfs mounts, for a bug report.

    It holds the doctor's findings, versions, status, pins, policy, metrics, and lines about FUSE from the kernel's log
    where that may be read. It holds no contents of files; pins and removals that wait are shown without notes, names of
    pins, programs and files. The policy does contain the globs of its rules, and status the mount point and the source.
    """
    stem = time.strftime("pinfs-debug-%Y%m%d-%H%M%S")
    path = Path(output or f"{stem}.tar.gz")
    parts = [*_machine_parts(), *_mount_parts([mount_of(where)] if where else mounts())]
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        with tarfile.open(fileobj=file, mode="w:gz") as bundle:
            for name, make in parts:
                _add(bundle, f"{stem}/{name}", _text(make))
    click.echo(str(path))


def _machine_parts() -> Iterator[Part]:
    yield "versions.json", _versions
    yield "doctor.json", _doctor
    yield "mountinfo", lambda: _lines_with(Path(mountinfo.PATH).read_text(), re.compile("fuse"))
    yield "limits", lambda: Path("/proc/self/limits").read_text()
    yield "kernel.log", _kernel_log


def _mount_parts(found: Sequence[Mount]) -> Iterator[Part]:
    for number, mount in enumerate(_AskedOnce(*mount) for mount in found):
        yield f"mount-{number}/status", lambda mount=mount: _status(mount)  # type: ignore[misc]
        for name in ("policy", "policy.error", "metrics"):
            yield f"mount-{number}/{name}", partial(mount.read, name)
        yield f"mount-{number}/pins", lambda mount=mount: _pins(mount)  # type: ignore[misc]


class _AskedOnce(BoundedMount):
    """A mount that is not asked again once its daemon has not answered."""

    def __init__(self, *_mount: str) -> None:
        self._silence: NoAnswerError | None = None

    def read(self, name: str) -> str:
        if self._silence is not None:
            raise self._silence
        try:
            return super().read(name)
        except NoAnswerError as error:
            self._silence = error
            raise


def _text(make: Callable[[], str]) -> str:
    """The text of a part; a part that cannot be read contains the reason, and the bundle goes on without it."""
    try:
        return make()
    except (OSError, ValueError) as error:
        return f"not available: {error}\n"


def _versions() -> str:
    versions = {"pinfs": pinfs.__version__, "python": platform.python_version(), "kernel": " ".join(os.uname())}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return json.dumps(versions, indent=2) + "\n"


def _doctor() -> str:
    from pinfs.cli.machine import check_machine

    findings: list[Finding] = list(check_machine())
    return json.dumps([finding.as_json() for finding in findings], indent=2) + "\n"


def _kernel_log() -> str:
    """The kernel's ring buffer as it is now; EPERM where dmesg_restrict forbids it."""
    with open("/dev/kmsg", "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as log:
        return _lines_with("".join(_records(log)), _KERNEL_LINES)


def _records(log: io.RawIOBase) -> Iterator[str]:
    """A read() returns one record, None instead of waiting, and EPIPE where records were overwritten meanwhile."""
    while True:
        try:
            record = log.read(8192)
        except BrokenPipeError:
            continue
        if not record:
            return
        yield record.decode(errors="replace")


def _lines_with(text: str, pattern: re.Pattern[str]) -> str:
    lines = [line for line in text.splitlines() if pattern.search(line)]
    return "\n".join(lines[-_LOG_TAIL:]) + "\n"


def _pins(mount: Mount) -> str:
    return "".join(json.dumps(_public(pin)) + "\n" for pin in mount.pins())


def _status(mount: Mount) -> str:
    """Removals that wait name files and programs."""
    status = mount.status()
    for waiting in ("breakers", "in_kernel"):
        status[waiting] = [_public(removal) for removal in status.get(waiting, ())]
        for removal in status[waiting]:
            if "mapped_by" in removal:
                removal["mapped_by"] = [_public(process) for process in removal["mapped_by"]]
    return json.dumps(status) + "\n"


def _public(shown: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in shown.items() if key not in _PRIVATE}


def _add(bundle: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode(errors="surrogateescape")
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o644, int(time.time())
    bundle.addfile(entry, io.BytesIO(data))
