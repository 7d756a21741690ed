"""`pinfs` of the tree that this file lies in, whether it is installed or not: the keeper starts daemons so."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])


def _prefer_this_tree() -> None:
    """Python has put this directory first, whose modules are no modules of the top."""
    sys.path[:] = [ROOT, *(path for path in sys.path[1:] if path != ROOT)]


if __name__ == "__main__":
    _prefer_this_tree()
    from pinfs.cli.main import main

    main()
