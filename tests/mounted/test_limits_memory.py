"""What the daemon pays for what the kernel knows."""

from __future__ import annotations

import os
from pathlib import Path

from mounted.world import descriptors_of, resident_bytes
from support.mounts import Mount

FILES = int(os.environ.get("PINFS_TEST_FILES", "20000"))
"""100,000 for the whole of it. The bounds are for each file, so that fewer show it as well."""
BYTES_A_FILE = 1500
"""100,000 of them may cost less than 200 MB, with the daemon's own 50."""
NAMES_A_DIRECTORY = 1000


def test_a_walk_costs_little_memory_and_no_descriptors(mount: Mount) -> None:
    for number in range(FILES // NAMES_A_DIRECTORY):
        fill(mount.source / f"directory-{number}")
    os.listdir(mount.path)
    memory, descriptors = resident_bytes(mount.pid), descriptors_of(mount.pid)
    seen = sum(len(files) for _, files in walk(mount.path))
    assert seen == FILES
    assert mount.metrics()["pinfs_inodes"] > FILES
    assert resident_bytes(mount.pid) - memory < FILES * BYTES_A_FILE
    assert descriptors_of(mount.pid) - descriptors <= FILES // NAMES_A_DIRECTORY + 10  # of directories, at the most


def fill(directory: Path) -> None:
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    for number in range(NAMES_A_DIRECTORY):
        os.close(os.open(f"file-{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def walk(top: Path) -> list[tuple[str, list[os.stat_result]]]:
    """All directories, with the attributes of all their files."""
    return [(root, [os.lstat(os.path.join(root, name)) for name in files]) for root, _, files in os.walk(top) if files]
