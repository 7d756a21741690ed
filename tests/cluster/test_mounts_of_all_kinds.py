"""Mounts of a cluster without the bridge, of a user, read-only, without passthrough (SPEC 14)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cluster.conftest import NewHost
from cluster.test_mounts import PIN, cluster, new_file, pinned


@pytest.mark.parametrize("kind", ["bridge=off", "passthrough=off"])
def test_kinds_of_mounts_honour_the_pins_of_others_and_have_their_own(
    source: Path, new_host: NewHost, kind: str
) -> None:
    new_file(source)
    new_file(source, "g")
    a, b = new_host("a"), new_host("b", kind)
    pinned(a.actor(), a)
    pinned(b.actor(), b, name="g")
    breaker, other = b.actor(), a.actor()
    there = str(b.path / "f")
    assert breaker.errno(os.truncate, there, 100) == errno.EBUSY
    assert breaker.errno(os.open, there, os.O_RDWR | os.O_TRUNC) == errno.EBUSY
    assert breaker.errno(os.truncate, there, 4096) is None
    assert other.errno(os.truncate, str(a.path / "g"), 100) == errno.EBUSY
    breaker(os.unlink, there)
    assert len(os.listdir(source / ".pinfs-cluster" / "held")) == 1


def test_a_read_only_mount_belongs_to_the_cluster(source: Path, new_host: NewHost) -> None:
    new_file(source)
    a, b = new_host("a"), new_host("b", "ro")
    holder = a.actor()
    path = pinned(holder, a)
    assert b.actor().errno(os.setxattr, str(b.path / "f"), f"{PIN}x", b"0:4") == errno.EROFS
    assert len(cluster(a)["members"]) == 2
    holder(os.removexattr, path, f"{PIN}x")


def test_users_cannot_say_which_hosts_are_dead(source: Path, new_host: NewHost) -> None:
    a = new_host("a")
    user = a.actor(uid=1000)
    events = user(os.open, str(a.control("events")), os.O_RDWR)
    assert user.errno(os.write, events, b"forget a\n") == errno.EPERM
    assert "password" not in str(cluster(a))
