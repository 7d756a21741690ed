"""File systems of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import mounts


class Disks:
    """File systems in images below `base`, on loop devices."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._closing = ExitStack()

    def mount(self, kind: str, image: Path, *options: str, size: int = 2**28) -> Path:
        """A new file system of `size` bytes, of which its image takes only what is used."""
        if not shutil.which(f"mkfs.{kind}"):
            pytest.skip(f"mkfs.{kind} is not installed")
        with image.open("xb") as file:
            file.truncate(size)
        subprocess.run([f"mkfs.{kind}", "-q", *options, image], check=True, capture_output=True)
        path = self.base / kind
        path.mkdir()
        self._closing.callback(path.rmdir)
        if subprocess.run(["mount", "-t", kind, "-o", "loop", image, path], check=False).returncode:
            pytest.skip(f"this kernel, or this container, cannot mount {kind} from an image")
        self._closing.callback(mounts.umount, path, mounts.MNT_DETACH)
        return path

    def close(self) -> None:
        self._closing.close()
