"""docs/comparison.md has what docs/compare.py finds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.disks import Disks
from support.mounts import REPO

SLOW = "fcntl(2) lease, F_RDLCK"
"""Its breakers wait for the kernel's lease-break-time, 45 seconds."""
LIMIT_S = 300.0


def table(text: str) -> dict[str, str]:
    """The rows of the first table, by the means."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    found: dict[str, str] = {}
    for line in lines[1:]:
        if line.startswith("| |"):
            break
        found[line.split(" | ")[0].removeprefix("| ")] = line
    return found


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_table(root: None, fuse: None, disks: Disks, slow: bool) -> None:
    expected = table((REPO / "docs/comparison.md").read_text())
    assert len(expected) == 9
    chosen = [means for means in expected if (means == SLOW) == slow]
    directory = disks.mount("ext4", disks.base / "image")
    done = subprocess.run(
        [sys.executable, REPO / "docs/compare.py", directory, *chosen],
        check=False, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert table(done.stdout) == {means: expected[means] for means in chosen}, done.stderr
