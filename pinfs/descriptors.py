"""How the daemon divides the descriptors that it may have (RLIMIT_NOFILE)."""

from typing import Final, NamedTuple

MAX_WAYS: Final = 4096
MAX_IDLE_FILES: Final = 128
MAX_PROCESSES: Final = 256
MAX_SPARE: Final = 256


class Budget(NamedTuple):
    """How many each part may keep. What is remembered only to be faster gets a share; files and holders get the rest."""

    ways: int
    """O_PATH descriptors of inodes that have a name to be found by again."""
    idle_files: int
    """Backing files that are open for nobody."""
    processes: int
    """Processes that hold nothing, twice: those seen lately, and those that held something."""
    first_spare: int
    """Descriptor numbers for open files (EMFILE) and holders (EDQUOT) end here: the others are for what needs one for a
    moment, so that the mount can be looked at, listed and cleaned up whatever its users have and hold."""


def budget(limit: int) -> Budget:
    """The budget of a daemon that may have `limit` descriptors."""
    eighth = limit // 8
    return Budget(
        ways=max(16, min(MAX_WAYS, limit // 4 - 64)),
        idle_files=min(MAX_IDLE_FILES, eighth),
        processes=min(MAX_PROCESSES, eighth),
        first_spare=limit - min(MAX_SPARE, eighth),
    )
