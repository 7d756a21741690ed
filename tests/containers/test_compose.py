"""containers/compose.yaml, as podman-compose reads it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.actor import eventually
from support.mounts import REPO, is_mounted

from containers.podman import LIMIT_S, Podman

pytestmark = pytest.mark.containers


class Compose:
    """podman-compose on our compose file, with the share and the images of the test."""

    def __init__(self, podman: Podman, image: str, share: Path) -> None:
        settings = {"PINFS_SHARE": str(share), "PINFS_IMAGE": image, "PINFS_NAME": podman.name()}
        self._environment = os.environ | podman.settings | settings
        self._words = [
            sys.executable,
            "-m",
            "podman_compose",
            "-p",
            podman.session,
            "-f",
            str(REPO / "containers/compose.yaml"),
        ]

    def __call__(self, *words: str) -> None:
        result = subprocess.run(
            [*self._words, *words], env=self._environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert not result.returncode, result.stdout + result.stderr


@pytest.fixture
def compose(podman: Podman, image: str, share: Path) -> Iterator[Compose]:
    for name in ("source", "mnt"):
        (share / name).mkdir()
    compose = Compose(podman, image, share)
    compose("up", "--detach", "--no-build")
    yield compose
    compose("down", "--timeout", "10")
    assert not is_mounted(share / "mnt")


def test_an_application_beside_the_daemon(compose: Compose, share: Path) -> None:
    """Its process holds a pin; a truncate on the host is refused."""
    pins = share / "mnt/.pinfs/pins"
    eventually(lambda: pins.exists() and bool(pins.read_text()))
    pin = json.loads(pins.read_text())
    assert (pin["owner"], pin["note"]) == ("process", "the application")
    with pytest.raises(OSError) as refused:
        os.truncate(share / "mnt/app.lock", 0)
    assert refused.value.errno == errno.EBUSY
