"""The installation that this process runs from, as a command for other processes."""

import sys
from pathlib import Path


def program() -> tuple[str, ...]:
    """The words that run `pinfs` of this tree with this Python, from any directory, installed or not."""
    return sys.executable, str(Path(__file__).with_name("__main__.py").resolve())
