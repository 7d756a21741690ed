"""Hosts of a cluster whose daemons run as an ordinary user (SPEC 14)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mounted.usermount import UserMount, mounted
from mounted.world import USER
from support import acts
from support.actor import Actor, Actors, eventually
from support.mounts import new_base, remove_tree

from cluster.test_mounts import PIN

NewUsersHost = Callable[[str], UserMount]


def status(mount: UserMount, actor: Actor) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(actor(acts.read_file, str(mount.path / ".pinfs/status")))["cluster"]
    return shown


@pytest.fixture
def new_users_host(fuse: None, source: Path, options: tuple[str, ...], actors: Actors) -> Iterator[NewUsersHost]:
    """As `new_host`."""
    with ExitStack() as stack:

        def make(name: str) -> UserMount:
            base = new_base()
            stack.callback(remove_tree, base)
            mount = stack.enter_context(mounted(base, (*options, f"cluster_host={name}"), source))
            actor = actors.actor(uid=USER)
            eventually(lambda: status(mount, actor)["state"] == "joined")
            return mount

        yield make


class Two(NamedTuple):
    """A holder on host `a`, a breaker on host `b`, and the file by its path on each."""

    a: UserMount
    b: UserMount
    holder: Actor
    breaker: Actor
    file: str
    there: str


@pytest.fixture
def two(new_users_host: NewUsersHost, actors: Actors) -> Two:
    a, b = new_users_host("a"), new_users_host("b")
    two = Two(a, b, actors.actor(uid=USER), actors.actor(uid=USER), str(a.path / "f"), str(b.path / "f"))
    two.holder(acts.write_file, two.file, b"x" * 8192)
    return two


def test_pins_of_a_user_hold_on_the_other_host(two: Two) -> None:
    a, _, holder, breaker, file, there = two
    holder.pin(file, "x", "0:4096")
    assert breaker.errno(os.truncate, there, 100) == errno.EBUSY
    assert breaker.errno(os.open, there, os.O_RDWR | os.O_TRUNC) == errno.EBUSY
    breaker(os.truncate, there, 4096)
    breaker(os.unlink, there)
    assert len(os.listdir(a.source / ".pinfs-cluster/held")) == 1
    assert len(holder(acts.read_file, str(a.path / ".pinfs/pins")).splitlines()) == 1


def test_a_lease_of_a_user_is_broken_from_the_other_host(two: Two) -> None:
    a, b, holder, breaker, file, there = two
    holder.pin(file, "x", "0:4096,mode=lease,signal=none")
    cut = breaker.start(os.truncate, there, 0)
    eventually(lambda: b'"breaking"' in holder(acts.read_file, str(a.path / ".pinfs/pins")))
    assert status(b, holder)["removals"] == 1
    holder(os.removexattr, file, f"{PIN}x")
    cut.result()
    assert os.stat(a.source / "f").st_size == 0
