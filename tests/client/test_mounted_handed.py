"""A backend that is handed a file of the mount by its descriptor (SCM_RIGHTS), as those of vhost-user are, pins by it.

It runs as another user, who may not open the file, and cannot see the mount where it has a sandbox of its own.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from client import handed
from support import acts
from support.actor import Actor, eventually
from support.mounts import MNT_DETACH, Mount, umount

import pinfs

SIZE = 1 << 20
USER = 1000

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def ram(shared_dir: Path) -> Path:
    path = shared_dir / "ram"
    path.write_bytes(b"x" * SIZE)
    path.chmod(0o600)
    return path


@pytest.fixture
def front(shared_mount: Mount) -> Actor:
    """The process that opens the file: the monitor of a guest."""
    return shared_mount.actor()


@pytest.fixture
def breaker(shared_mount: Mount) -> Actor:
    return shared_mount.actor()


def handed_to(front: Actor, backend: Actor, ram: Path) -> int:
    """Front opens the file and hands it over; the descriptor in the backend."""
    name = f"pinfs-test-{backend.pid}"
    backend(handed.listen, name)
    front(handed.hand_over, front(os.open, str(ram), os.O_RDWR), name)
    return backend(handed.take)


SANDBOXES = ("none", "mount not visible", "no /proc")


def sandboxed(shared_mount: Mount, base: Path, sandbox: str) -> Actor:
    backend = shared_mount.actor(prefix=() if sandbox == "none" else ("unshare", "--mount"))
    backend(handed.breaks)  # imports what it needs
    if sandbox != "none":
        backend(umount, shared_mount.path, MNT_DETACH)
    if sandbox == "no /proc":
        backend(os.chroot, str(base))
    backend(acts.become, USER, USER, ())
    return backend


@pytest.fixture(params=SANDBOXES)
def backend(request: pytest.FixtureRequest, shared_mount: Mount, base: Path) -> Actor:
    return sandboxed(shared_mount, base, request.param)


def test_the_pin_stands_while_the_backend_has_the_descriptor(
    front: Actor, backend: Actor, breaker: Actor, ram: Path
) -> None:
    """It outlives the process that opened the file, as the backend goes on writing there."""
    fd = handed_to(front, backend, ram)
    pin = backend(handed.pin, fd, owner="handle")
    assert [(info.id, info.owner, info.uid) for info in pinfs.pins(ram)] == [(pin, "handle", USER)]
    assert breaker.errno(os.truncate, str(ram), 0) == errno.EBUSY
    front.kill()
    assert breaker.errno(os.truncate, str(ram), 0) == errno.EBUSY
    backend(os.close, fd)
    eventually(lambda: pinfs.pins(ram) == [])
    assert breaker.errno(os.truncate, str(ram), 0) is None


def test_a_broken_lease_is_told_to_the_backend(front: Actor, backend: Actor, breaker: Actor, ram: Path) -> None:
    backend(handed.lease, handed_to(front, backend, ram), SIZE)
    breaker(os.truncate, str(ram), 4096)
    assert backend(handed.breaks) == [4096]
    assert pinfs.pins(ram) == []


def test_the_pin_of_a_killed_backend_goes_with_it_if_it_had_the_last_copy(
    front: Actor, backend: Actor, breaker: Actor, ram: Path
) -> None:
    fd = handed_to(front, backend, ram)
    backend(handed.pin, fd, owner="handle")
    backend.kill()
    assert breaker.errno(os.truncate, str(ram), 0) == errno.EBUSY  # the description is the front's as well
    front.kill()
    eventually(lambda: pinfs.pins(ram) == [])
    assert breaker.errno(os.truncate, str(ram), 0) is None


@pytest.mark.parametrize("sandbox", SANDBOXES[:2])
def test_a_pin_that_can_be_had_is_never_left_out(
    shared_mount: Mount, base: Path, front: Actor, breaker: Actor, ram: Path, sandbox: str
) -> None:
    """The file is asked by its descriptor: without permission to read it, no attribute of it tells that this is pinfs,
    and `missing_ok` would go on without a pin."""
    backend = sandboxed(shared_mount, base, sandbox)
    backend(handed.pin, handed_to(front, backend, ram), missing_ok=True)
    assert breaker.errno(os.truncate, str(ram), 0) == errno.EBUSY
    backend(handed.release)


def test_a_mapping_alone_keeps_no_pin(shared_mount: Mount, front: Actor, breaker: Actor, ram: Path) -> None:
    """With passthrough it is one of the file below, and the last descriptor takes the pin with it (kernel-facts.md)."""
    assert shared_mount.status()["passthrough"]
    backend = shared_mount.actor(uid=USER)
    fd = handed_to(front, backend, ram)
    front.kill()
    backend(acts.map_fd, fd, SIZE)
    backend(handed.pin, fd, owner="handle")
    backend(os.close, fd)
    eventually(lambda: pinfs.pins(ram) == [])
    assert breaker.errno(os.truncate, str(ram), 0) is None
