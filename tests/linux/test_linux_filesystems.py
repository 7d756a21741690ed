"""What the kind of a file system says of it."""

from pathlib import Path

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


@pytest.mark.parametrize(
    ("fstype", "options", "parameter", "keeps"),
    [
        ("nfs4", "rw,vers=4.2,rsize=1048576", "Y\n", True),
        ("nfs4", "rw,vers=4.1", "Y\n", True),
        ("nfs4", "rw,vers=4.2", "N\n", False),
        ("nfs4", "rw,vers=4.2", None, False),
        ("nfs4", "rw,vers=4.0", "Y\n", False),
        ("nfs", "rw,vers=3", "Y\n", False),
        ("ext4", "rw", "Y\n", False),
    ],
)
def test_names_of_delegated_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str, options: str, parameter: str | None, keeps: bool
) -> None:
    file = tmp_path / "directory_delegations"
    if parameter is not None:
        file.write_text(parameter)
    monkeypatch.setattr(filesystems, "DIRECTORY_DELEGATIONS", str(file))
    entry = MountEntry(0, "/", "/nfs", fstype, "server:/", options)
    monkeypatch.setattr(filesystems, "mount_of", lambda fd: entry)
    assert filesystems.keeps_delegated_names(-1) is keeps
