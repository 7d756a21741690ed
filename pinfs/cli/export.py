"""The finding of `pinfs doctor` about NFS servers (docs/nfs.md)."""

import os

from pinfs.cli.findings import Finding, ok, warn
from pinfs.fs.exports import unavailable_because
from pinfs.linux.filehandles import by_number


def check_export(directory: str) -> Finding:
    """Whether a mount of this source can be exported (`-o nfs_export=on`)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if why := unavailable_because(fd):
            return warn("nfs export", f"the mount cannot be exported by an NFS server: {why}",
                        "mount as root, on ext4, xfs, btrfs or tmpfs")  # fmt: skip
        if by_number(fd) is None:
            return ok("nfs export", "possible with -o nfs_export=on; clients' handles end with the daemon")
    finally:
        os.close(fd)
    return ok("nfs export", "possible with -o nfs_export=on")
