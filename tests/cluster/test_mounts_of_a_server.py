"""Two mounts, as of two hosts, of a directory that another program serves, and that may answer late (SPEC 14)."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mounted.test_stalled_source import Source
from support.actor import Actor, eventually
from support.mounts import Mount, new_base, remove_tree

from cluster.nodes import Node
from cluster.test_mounts import PIN, assert_not_cut, cluster, pinned

NOT_NOW = (errno.EAGAIN, errno.EOPNOTSUPP)
"""What setxattr(2) says of EAGAIN (docs/interfaces.md)."""
SIZE = 8192
_numbers = itertools.count()


@pytest.fixture
def server(fuse: None) -> Iterator[Source]:
    base = new_base()
    source = Source(base)
    try:
        yield source
    finally:
        source.reap()
        remove_tree(base)


@pytest.fixture
def hosts(server: Source, node: Node) -> Iterator[tuple[Mount, Mount]]:
    options = (f"cluster={node.endpoint}", f"cluster_name=served-{os.getpid()}-{next(_numbers)}")
    with ExitStack() as stack:
        mounts: list[Mount] = []
        for name in "ab":
            base = new_base()
            stack.callback(shutil.rmtree, base)
            more = (f"cluster_host={name}", "cluster_pin_timeout=0.5", "passthrough=off")
            mount = stack.enter_context(Mount(base, (*options, *more), source=server.path))
            mounts.append(mount)
        eventually(lambda: all(cluster(mount)["state"] == "joined" for mount in mounts))
        yield mounts[0], mounts[1]


def new_file(server: Source, name: str) -> Path:
    path = server.files / name
    path.write_bytes(b"x" * SIZE)
    return path


def held(server: Source) -> list[str]:
    directory = server.files / ".pinfs-cluster" / "held"
    return os.listdir(directory) if directory.exists() else []


def test_what_one_host_has_pinned_no_host_takes_away(server: Source, hosts: tuple[Mount, Mount]) -> None:
    a, b = hosts
    new_file(server, "f")
    new_file(server, "new")
    holder, breaker = a.actor(), b.actor()
    path = pinned(holder, a)
    there = str(b.path / "f")
    fd = breaker(os.open, there, os.O_RDWR)
    assert_not_cut(breaker, there, fd)
    assert breaker.errno(os.open, there, os.O_RDWR | os.O_TRUNC | os.O_CREAT) == errno.EBUSY
    assert breaker.errno(os.truncate, there, 4096) is None
    breaker(os.link, there, str(b.path / "g"))
    breaker(os.unlink, there)
    assert holder.errno(os.stat, path) == errno.ENOENT
    assert len(held(server)) == 1
    breaker(os.rename, str(b.path / "new"), str(b.path / "g"))
    assert len(held(server)) == 1
    assert {os.stat(server.files / ".pinfs-cluster" / "held" / name).st_size for name in held(server)} == {4096}


@pytest.mark.parametrize("operation", ["unlink", "rename", "setattr"])
def test_a_call_that_hangs_holds_pins_back_though_its_breaker_was_killed(
    server: Source, hosts: tuple[Mount, Mount], operation: str
) -> None:
    a, b = hosts
    name = f"slow-{operation}"
    file = new_file(server, name)
    new_file(server, "other")
    holder, breaker = a.actor(), b.actor()
    path, there = str(a.path / name), str(b.path / name)
    if operation == "rename":  # it is the old name by which it stalls
        file.rename(server.files / "victim")
        new_file(server, name)
        path = str(a.path / "victim")
    begin(breaker, b, operation, there)
    eventually(server.stalls)
    breaker.kill()  # it has ended then: its daemon has answered, and left the call to itself
    assert holder.errno(os.setxattr, path, f"{PIN}x", b"0:4096") in NOT_NOW
    server.answer()
    eventually(lambda: is_done(server, operation))
    eventually(lambda: not cluster(b)["removals"])
    if operation == "setattr":
        b.expect_log("cannot be interrupted in the kernel")


@pytest.mark.parametrize("operation", ["unlink", "rename"])
def test_no_file_gets_its_first_pin_while_a_name_goes(
    server: Source, hosts: tuple[Mount, Mount], operation: str
) -> None:
    """Another host may put it under that name after the last look at what is there, and then it would go."""
    a, b = hosts
    new_file(server, f"slow-{operation}")
    new_file(server, "victim")
    new_file(server, "new")
    holder, breaker = a.actor(), b.actor()
    path = str(a.path / "new")
    holder(os.stat, path)
    begin(breaker, b, operation, str(b.path / f"slow-{operation}"))
    eventually(server.stalls)
    assert holder.errno(os.setxattr, path, f"{PIN}x", b"0:4096") in NOT_NOW
    server.answer()
    eventually(lambda: not cluster(b)["removals"])
    holder(os.setxattr, path, f"{PIN}x", b"0:4096")


def begin(breaker: Actor, mount: Mount, operation: str, path: str) -> None:
    if operation == "unlink":
        breaker.start(os.unlink, path)
    elif operation == "rename":
        breaker.start(os.rename, path, str(mount.path / "victim"))
    else:
        breaker.start(os.truncate, path, 0)


def is_done(server: Source, operation: str) -> bool:
    path = server.files / f"slow-{operation}"
    return path.stat().st_size == 0 if operation == "setattr" else not path.exists()
