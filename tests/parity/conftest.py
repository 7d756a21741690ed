"""Fixtures of the corner tests; see places.py."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import mounts

from parity.places import NewPlace, Place, make_place

HERE = Path(__file__).parent


OPT_IN = {
    "long": "load that takes minutes; runs with -m long only",
    "suites": "public suites that were built beside the project; run with -m suites only",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, what in OPT_IN.items():
        config.addinivalue_line("markers", f"{name}: {what}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unasked = [name for name in OPT_IN if name not in config.getoption("markexpr")]
    unwanted = [item for item in items if HERE in item.path.parents and any(map(item.get_closest_marker, unasked))]
    config.hook.pytest_deselected(items=unwanted)
    items[:] = [item for item in items if item not in unwanted]


@pytest.fixture
def new_place(fuse: None) -> Iterator[NewPlace]:
    """A place on a mount of its own: `new_place("disk")`, `new_place("tmpfs", source=path)`."""
    with ExitStack() as stack:

        def new(backing: str = "tmpfs", source: Path | None = None) -> Place:
            place = make_place(stack, backing, source)
            stack.callback(place.closing.close)
            return place

        yield new


@pytest.fixture(scope="module")
def _module_places(fuse: None) -> Iterator[dict[str, Place]]:
    with ExitStack() as stack:
        yield {backing: make_place(stack, backing) for backing in mounts.BACKINGS}


def _fresh(whole: Place, name: str) -> Iterator[Place]:
    place = Place(whole.path / name, whole.source / name, whole.mount)
    place.path.mkdir()
    place.path.chmod(0o777)
    with place.closing:
        yield place
    if whole.mount:
        whole.mount.check_log()


@pytest.fixture
def place(_module_places: dict[str, Place], request: pytest.FixtureRequest) -> Iterator[Place]:
    """A fresh directory on a mount of tmpfs, which the tests of a module share."""
    yield from _fresh(_module_places["tmpfs"], f"{abs(hash(request.node.nodeid)):x}")


@pytest.fixture
def disk_place(_module_places: dict[str, Place], request: pytest.FixtureRequest) -> Iterator[Place]:
    """The same on a disk's file system."""
    yield from _fresh(_module_places["disk"], f"{abs(hash(request.node.nodeid)):x}")


@pytest.fixture(params=["tmpfs", "disk"])
def any_place(_module_places: dict[str, Place], request: pytest.FixtureRequest) -> Iterator[Place]:
    """On both, one after the other."""
    yield from _fresh(_module_places[request.param], f"{abs(hash(request.node.nodeid)):x}")
