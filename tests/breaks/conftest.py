"""What the tests of this directory share: a mount with a policy that waits long, a pinned file on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mounts import Mount

from breaks.acts import ORIGINAL

PATIENT = "break_timeout = 100\n"


@pytest.fixture
def patient(shared_mount: Mount) -> Iterator[Mount]:
    """The module's mount with deadlines that no test reaches, whatever the test before has made of the policy."""
    shared_mount.policy(PATIENT)
    yield shared_mount


@pytest.fixture
def file(patient: Mount, shared_dir: Path) -> Path:
    """A file of three pages."""
    path = shared_dir / "f"
    path.write_bytes(ORIGINAL)
    return path
