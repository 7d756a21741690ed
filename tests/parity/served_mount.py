"""`pinfs mount` for which every source may never answer: served_mount.py SOURCE MOUNTPOINT [-o OPTIONS]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pinfs.cli.main import main
from pinfs.fs import backing


def all_may(fd: int) -> bool:
    return True


if __name__ == "__main__":
    vars(backing).update(calls_may_stall=all_may, cuts_may_wait=all_may)
    sys.argv[1:1] = ["mount"]
    main()
