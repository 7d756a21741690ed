"""Containers for tests. They run when asked for: pytest -m containers tests/containers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.mounts import REPO

from containers.podman import SUITE, BoxedActor, Podman, shared_directory

ASKED_FOR = ("containers", "newcomer")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without podman and minutes to spare, `pytest` alone is still a whole run."""
    chosen = config.getoption("markexpr")
    unwanted = [item for item in items if HERE in item.path.parents and not _is_asked_for(item, chosen)]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


def _is_asked_for(item: pytest.Item, chosen: str) -> bool:
    return any(mark in chosen for mark in ASKED_FOR if item.get_closest_marker(mark))


@pytest.fixture(scope="session")
def podman(fuse: None) -> Iterator[Podman]:
    missing = [name for name in ("podman", "runc", "debootstrap") if not shutil.which(name)]
    assert not missing, f"apt-get install {' '.join(missing)}"
    assert os.geteuid() == 0, "these tests run containers as root"
    podman = Podman()
    yield podman
    podman.clear()
    podman.prune()


@pytest.fixture(autouse=True)
def _no_containers_left(podman: Podman) -> Iterator[None]:
    yield
    podman.clear()


@pytest.fixture(scope="session")
def debian(podman: Podman) -> str:
    """An image of a bare Debian."""
    return podman.debian(SUITE)


def _stage(podman: Podman, debian: str, stage: str) -> str:
    file = REPO / "containers/Containerfile"
    return podman.build(stage, file, REPO, "--build-arg", f"BASE={debian}", f"--target={stage}")


@pytest.fixture(scope="session")
def image(podman: Podman, debian: str) -> str:
    """containers/Containerfile, as it is in this checkout."""
    _stage(podman, debian, "needs")
    return _stage(podman, debian, "daemon")


@pytest.fixture(scope="session")
def testing_image(podman: Podman, debian: str, image: str) -> str:
    """Its stage `testing`, with pytest and the fixtures of pinfs.testing."""
    return _stage(podman, debian, "testing")


@pytest.fixture
def boxed(podman: Podman, image: str) -> Iterator[Callable[..., BoxedActor]]:
    """`boxed("-v", "/mnt:/data")`: a directed process in a container of its own."""
    with ExitStack() as stack:

        def actor(*options: str) -> BoxedActor:
            actor = podman.actor(image, *options)
            stack.callback(actor.close)
            return actor

        yield actor


@pytest.fixture
def share() -> Iterator[Path]:
    """A directory of the host that passes mounts on between containers."""
    with shared_directory() as path:
        yield path
