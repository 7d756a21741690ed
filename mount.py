#!/usr/bin/env python3
"""`pinfs mount` from a checkout: mount.py SOURCE MOUNTPOINT [-o OPTIONS] [--daemon]."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
OWN_PYTHON = HERE / ".venv" / "bin" / "python"


def main() -> None:
    """Run the verb; in the project's own virtual environment where this Python lacks what the daemon needs."""
    if find_spec("trio") is None and os.access(OWN_PYTHON, os.X_OK) and Path(sys.prefix) != HERE / ".venv":
        os.execv(OWN_PYTHON, [str(OWN_PYTHON), __file__, *sys.argv[1:]])
    sys.path.insert(0, str(HERE))
    from pinfs.cli.main import main as pinfs

    sys.argv[1:1] = ["mount"]
    sys.exit(pinfs())


if __name__ == "__main__":
    main()
