"""The README is true: its Python example is run as it stands there, its commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support.actor import eventually
from support.mounts import REPO, Mount

README = (REPO / "README.md").read_text()
SERVE = """
def serve(mapping):
    print("serving", flush=True)
    while not mapping.closed:
        time.sleep(0.01)
"""


def test_the_python_example(mount: Mount) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    path = mount.path / "big.bin"
    path.write_bytes(b"x" * 4096)
    program = "import time\n" + SERVE + example.replace("/mnt/models/big.bin", str(path))
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert holder.stdout
    assert holder.stdout.readline() == "serving\n"
    eventually(lambda: [pin["mode"] for pin in mount.pins()] == ["lease"])
    mount.actor()(os.truncate, str(path), 0)
    assert holder.wait() == 0
    holder.stdout.close()


def test_the_make_targets_exist() -> None:
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile


def test_the_paths_exist() -> None:
    named = [name for name in re.findall(r"`([\w/]+(?:\.\w+|/))", README) if not name.startswith("/")]
    assert len(named) >= 4
    assert [name for name in named if not Path(REPO, name).exists()] == []
