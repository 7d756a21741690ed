"""How the daemon divides the descriptors that it may have (RLIMIT_NOFILE)."""

import os
from typing import Final, NamedTuple

MAX_INODE_DESCRIPTORS: Final = 4096
MAX_IDLE_FILES: Final = 128
MAX_PROCESSES: Final = 256
MAX_SPARE: Final = 256


class Budget(NamedTuple):
    """How many each part may keep. What is only remembered to be faster gets a share, files and holders the rest."""

    inode_descriptors: int
    """O_PATH descriptors of inodes that have a name to be found by again."""
    idle_files: int
    """Backing files that no handle uses."""
    processes: int
    """Processes that hold nothing, twice: those seen lately, and those that held something."""
    files: int
    """The descriptor number where those for open files end (EMFILE), and those of eventfds (EDQUOT)."""
    holders: int
    """The same for holders (EDQUOT), so that one can still pin when others have too many files open. What is left is
    for what needs one for a moment: whatever its users do, the mount can be looked at, listed and cleaned up."""


def budget(limit: int) -> Budget:
    """The budget of a daemon that may have `limit` descriptors."""
    eighth = limit // 8
    spare = min(MAX_SPARE, eighth)
    return Budget(
        inode_descriptors=max(16, min(MAX_INODE_DESCRIPTORS, limit // 4 - 64)),
        idle_files=min(MAX_IDLE_FILES, eighth),
        processes=min(MAX_PROCESSES, eighth),
        files=limit - spare,
        holders=limit - spare // 2,
    )


def in_use() -> int | None:
    """How many descriptors this process has; None: no more than all of them, since none is left to look with."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return None
