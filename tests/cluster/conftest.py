"""etcd for tests: a node that a module shares, and clusters of a test's own.

Those of one node and etcd 3.4 run with all tests; three nodes and etcd 3.5 when asked for: pytest -m etcd
tests/cluster. They are no unit tests, because etcd is fetched from a Debian mirror at first: hence the fixture `root`.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.actor import eventually
from support.mounts import Mount, new_base, remove_tree

from cluster import binaries, nodes
from cluster.nodes import Node
from pinfs.cluster.etcd import Etcd

HERE = Path(__file__).parent
VERSIONS = [pytest.param("3.4", id="3.4"), pytest.param("3.5", id="3.5", marks=pytest.mark.etcd)]

StartNodes = Callable[..., list[Node]]
NewHost = Callable[..., Mount]
_numbers = itertools.count()
_clusters = itertools.count()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that take longer do not run by themselves."""
    if "etcd" in config.getoption("markexpr"):
        return
    unwanted = [item for item in items if HERE in item.path.parents and item.get_closest_marker("etcd")]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]


@pytest.fixture(scope="module", params=VERSIONS)
def program(root: None, request: pytest.FixtureRequest) -> Path:
    """etcd."""
    return binaries.etcd(request.param)


@pytest.fixture
def etcdctl(program: Path) -> Path:
    """Of the same version."""
    version = next(version for version in binaries.SUITES if program == binaries.etcd(version))
    return binaries.etcdctl(version)


@pytest.fixture
def start_nodes(program: Path) -> Iterator[StartNodes]:
    """Starts a cluster of the test's own: see nodes.running."""
    with ExitStack() as stack:
        yield lambda *args, **how: stack.enter_context(nodes.running(program, *args, **how))


@pytest.fixture(scope="module")
def node(program: Path) -> Iterator[Node]:
    """One node that the tests of a module share, each below its own `prefix`."""
    with nodes.running(program) as [node]:
        yield node


@pytest.fixture
def prefix() -> bytes:
    return b"/test/%d/" % next(_numbers)


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Etcd]:
    async with Etcd([node.endpoint]) as client:
        yield client


@pytest.fixture
def source() -> Iterator[Path]:
    base = new_base()
    (base / "source").mkdir(mode=0o777)
    yield base / "source"
    remove_tree(base)


@pytest.fixture
def options(node: Node) -> tuple[str, ...]:
    """Of a cluster of the test's own."""
    return (f"cluster={node.endpoint}", f"cluster_name=test-{os.getpid()}-{next(_clusters)}")


@pytest.fixture
def new_host(fuse: None, source: Path, options: tuple[str, ...]) -> Iterator[NewHost]:
    """Mounts the source as the daemon of another host, which has joined."""
    with ExitStack() as stack:

        def make(name: str, *more: str, joined: bool = True) -> Mount:
            base = new_base()
            stack.callback(shutil.rmtree, base)
            mount = stack.enter_context(Mount(base, (*options, f"cluster_host={name}", *more), source=source))
            if joined:
                eventually(lambda: mount.status()["cluster"]["state"] == "joined")
            return mount

        yield make


@pytest.fixture
def a(new_host: NewHost) -> Mount:
    return new_host("a")


@pytest.fixture
def b(new_host: NewHost, a: Mount) -> Mount:
    return new_host("b")
