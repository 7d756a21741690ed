"""What the README promises to somebody with a fresh Debian, make and git. Takes half an hour: pytest -m newcomer -s."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from support.mounts import REPO

from containers.podman import CERTIFICATES, Container, Podman

pytestmark = pytest.mark.newcomer
STEP_LIMIT_S = 3600.0


@pytest.fixture(params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest, podman: Podman, tmp_path: Path) -> Container:
    """A fresh root with make and git, and a clone of what is committed here.

    What a container lacks is made up for: /dev/shm can execute, /var/tmp is a disk, processes are plenty. The clone
    is not in root's home, where the tests' other users could not read it.
    """
    clone, disk = tmp_path / "pinfs", tmp_path / "disk"
    subprocess.run(["git", "clone", "--quiet", REPO, clone], check=True)
    disk.mkdir()
    disk.chmod(0o1777)
    volumes = [*CERTIFICATES, f"{clone}:/srv/pinfs", f"{disk}:/var/tmp"]
    options = ["--privileged", "--pids-limit=-1", "--network=host", "--workdir=/srv/pinfs", "--entrypoint=sleep"]
    options += ["--tmpfs=/dev/shm:rw,exec,nosuid,nodev,size=4g,mode=1777"]
    options += [f"--volume={volume}" for volume in volumes]
    box = podman.start(podman.debian(request.param), "infinity", options=options)
    box.exec("sh", "-c", "apt-get -qq update && apt-get -qq install -y --no-install-recommends make git >/dev/null")
    return box


def test_as_the_readme_says(podman: Podman, machine: Container) -> None:
    """The output goes to the terminal (-s), because who waits half an hour wants to see something."""
    for target in ("demo", "test"):
        words = [*podman.command, "exec", machine.name, "make", target]
        began = time.monotonic()
        status = subprocess.run(words, stdin=subprocess.DEVNULL, check=False, timeout=STEP_LIMIT_S).returncode
        print(f"\nmake {target}: status {status} after {time.monotonic() - began:.0f} s", flush=True)
        assert status == 0, f"make {target}"
