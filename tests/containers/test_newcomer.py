"""What the README promises to somebody with a fresh Debian, make and git. Takes half an hour: pytest -m newcomer -s."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mounts import REPO

from containers.podman import CERTIFICATES, Container, Podman

pytestmark = pytest.mark.newcomer
STEP_LIMIT_S = 3600.0


@pytest.fixture(params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest, podman: Podman, tmp_path: Path) -> Iterator[Container]:
    """A fresh root with make and git, and a clone of what is committed here."""
    clone = tmp_path / "pinfs"
    subprocess.run(["git", "clone", "--quiet", REPO, clone], check=True)
    options = ["--privileged", "--network=host", "--shm-size=4g", "-v", f"{clone}:/root/pinfs"]
    certificates = [word for option in CERTIFICATES for word in ("-v", option)]
    box = podman.start(
        podman.debian(request.param), "infinity",
        options=[*options, *certificates, "--workdir=/root/pinfs", "--entrypoint=sleep"],
    )  # fmt: skip
    box.exec("sh", "-c", "apt-get -qq update && apt-get -qq install -y --no-install-recommends make git >/dev/null")
    yield box


def test_as_the_readme_says(podman: Podman, machine: Container) -> None:
    """The output goes to the terminal (-s), because who waits half an hour wants to see something."""
    for target in ("demo", "test"):
        words = [*podman.command, "exec", machine.name, "make", target]
        status = subprocess.run(words, stdin=subprocess.DEVNULL, check=False, timeout=STEP_LIMIT_S).returncode
        assert status == 0, f"make {target}"
