"""What the kind of a file system says of it."""

import pytest

from pinfs.linux import filesystems
from pinfs.linux.mountinfo import MountEntry


@pytest.mark.parametrize(
    ("kind", "can_be_dax", "options", "allowed"),
    [
        (filesystems.TMPFS_MAGIC, False, "rw", "yes"),
        (filesystems.HUGETLBFS_MAGIC, False, "rw", "yes"),
        (filesystems.EXT_MAGIC, False, "rw", "reading"),
        (filesystems.BTRFS_MAGIC, False, "rw", "reading"),
        (filesystems.EXT_MAGIC, True, "rw,dax=always", "no"),
        (filesystems.XFS_MAGIC, True, "rw,dax=never", "reading"),
        (filesystems.XFS_MAGIC, True, "rw,dax=inode", "unknown"),
        (filesystems.EXT_MAGIC, True, "rw", "unknown"),
        (0x6969, False, "rw", "unknown"),
    ],
)
def test_what_the_kernel_lets_devices_hold(
    monkeypatch: pytest.MonkeyPatch, kind: int, can_be_dax: bool, options: str, allowed: str
) -> None:
    """tests/vm has the answers of the kernel."""
    entry = MountEntry(0, "/", "/", "?", "?", options)
    monkeypatch.setattr(filesystems, "file_system_magic", lambda _fd: kind)
    monkeypatch.setattr(filesystems, "_device_can_be_dax", lambda _device: can_be_dax)
    monkeypatch.setattr(filesystems, "mount_of", lambda _fd: entry)
    assert filesystems.page_pins(0) == allowed
