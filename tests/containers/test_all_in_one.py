"""Everything in one container: the integration tests of a program that pins, on a pinfs that they mount themselves."""

from __future__ import annotations

import re

import pytest
from support.mounts import REPO

import pinfs
from containers.podman import CAN_MOUNT, Podman

pytestmark = pytest.mark.containers
SAMPLE = REPO / "examples/sample-app"


@pytest.fixture(scope="session")
def sample(podman: Podman, testing_image: str) -> str:
    """The sample program's own image."""
    return podman.build("sample", SAMPLE / "Containerfile", SAMPLE, "--build-arg", f"PINFS={testing_image}")


def test_the_sample_program(podman: Podman, sample: str) -> None:
    """Among its tests: a truncate is refused, a lease is broken."""
    said = podman("run", "--rm", *podman.options(podman.name()), *CAN_MOUNT, sample)
    assert re.search(r"^=+ \d+ passed in [\d.:() s]+ =+$", said, re.MULTILINE), said
    for name in ("test_a_truncate_is_refused_during_a_batch", "test_a_lease_is_broken_and_the_new_vectors_are_read"):
        assert re.search(f"::{name} PASSED", said), said


def test_the_fixtures_as_an_ordinary_user(podman: Podman, sample: str) -> None:
    """fusermount3, set-user-id root, mounts for whoever the container runs as."""
    said = podman.run(
        sample,
        "python",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-k",
        "refused or broken",
        options=[*CAN_MOUNT, "--user", "1000"],
    )
    assert " passed" in said
    assert "failed" not in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "/dev/fuse cannot be opened"),
        (["--device", "/dev/fuse"], "Operation not permitted"),
        (["--user", "1000"], "fusermount3"),
    ],
)
def test_what_is_missing_is_said(podman: Podman, sample: str, options: list[str], reason: str) -> None:
    said = podman.run(sample, "python", "-m", "pytest", "-k", "answers and not while", options=options, check=False)
    assert "A scratch pinfs cannot be mounted here" in said
    assert reason in said
    assert "--device /dev/fuse --cap-add SYS_ADMIN" in said
    assert "Traceback" not in said


def test_the_image_as_it_is_published(podman: Podman, debian: str, image: str) -> None:
    """Compiled, it mounts and pins; beyond its Debian it takes what docs/containers.md says."""
    trial = ["-v", f"{REPO / 'packaging/try'}:/try:ro"]
    said = podman.run(image, "/try", "pinfs", pinfs.__version__, "compiled", options=[*CAN_MOUNT, *trial])
    assert said.endswith("mounts, pins and unmounts\n")
    own, base = (int(podman("image", "inspect", "--format", "{{.Size}}", name)) for name in (image, debian))
    said_mb = re.search(r"adds (\d+) MB", (REPO / "docs/containers.md").read_text())
    assert said_mb
    assert (own - base) / 1e6 < int(said_mb[1])
