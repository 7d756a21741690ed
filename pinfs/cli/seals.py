"""The findings of `pinfs doctor` about seals (SPEC 12)."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pinfs.bridge.passthrough import stack_depth
from pinfs.bridge.sealprobe import seal_unavailable_because
from pinfs.cli.findings import Finding, ok, warn
from pinfs.cli.mounts import require_answer
from pinfs.fs.seallist import all_lists, is_sealed, read_list, source_of


def check_seals() -> Iterator[Finding]:
    """One finding for each source whose daemon was killed while files were sealed."""
    for path in all_lists():
        source = source_of(path)
        if source is not None:
            yield from _left_behind(source, path)


def _left_behind(source: str, path: Path) -> Iterator[Finding]:
    try:
        require_answer(source)
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it has gone, or lies on a mount whose daemon does not answer
        return
    try:
        if not _is_served(fd) and (count := sum(is_sealed(fd, file) for file in read_list(path))):
            text = (
                f"{count} files in {source} are still sealed by a daemon that was killed: they cannot be cut or removed"
            )
            yield warn("seal", text, f"pinfs unseal {source}")
    except OSError as error:
        yield warn(
            "seal", f"the list of {source} cannot be checked: {error.strerror}", f"as root: pinfs unseal {source}"
        )
    finally:
        os.close(fd)


def _is_served(source_fd: int) -> bool:
    try:
        fcntl.flock(source_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # daemons of a cluster share the lock
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return False


def check_seal(directory: str) -> Finding:
    """Whether files of this source can be sealed, tried with a nameless file."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        why = seal_unavailable_because(fd, passthrough=os.geteuid() == 0, stack_depth=stack_depth(fd))
    finally:
        os.close(fd)
    if why:
        return warn("seal", f"pins do not hold behind the mount, nor without the daemon: {why}",
                    "mount as root, on tmpfs (Linux 6.6), ext4, xfs or btrfs")  # fmt: skip
    return ok("seal", "the kernel itself keeps pinned bytes, also from changes behind the mount")
