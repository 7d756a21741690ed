"""The daemon in one container, its mount shared with others: they propagate through a directory of the host.

What a pid namespace of its own means: the daemon sees the processes of its own namespace and of those below, no others.
"""

from __future__ import annotations

import errno
import json
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support import acts
from support.actor import eventually
from support.mounts import is_mounted

from containers.podman import CAN_MOUNT, BoxedActor, Container, Podman
from pinfs.client import ioctl

pytestmark = pytest.mark.containers
Boxed = Callable[..., BoxedActor]
TO_END = 2**64 - 1


def start(podman: Podman, image: str, share: Path, *options: str, survive: str = "auto") -> Container:
    """A container that serves share/source on share/mnt, for everybody who shares the directory."""
    for name in ("source", "mnt"):
        with suppress(FileExistsError):
            os.mkdir(share / name)
    words = ["mount", "/share/source", "/share/mnt", "-o", f"break_timeout=20,replace_stale,survive={survive}"]
    box = podman.start(image, *words, options=[*CAN_MOUNT, "-v", f"{share}:/share:rshared", *options])
    eventually(lambda: is_served(share / "mnt"))
    return box


def is_served(path: Path) -> bool:
    try:
        os.stat(path / ".pinfs/status")
    except OSError:
        return False
    return True


@contextmanager
def daemon(podman: Podman, image: str, share: Path, *options: str) -> Iterator[Container]:
    box = start(podman, image, share, *options)
    yield box
    box.kill("TERM")
    assert box.wait() == 0, box.log()
    assert not is_mounted(share / "mnt"), "the end of the daemon reaches the host"


@pytest.fixture
def box(podman: Podman, image: str, share: Path) -> Iterator[Container]:
    with daemon(podman, image, share) as box:
        (share / "mnt/file").write_bytes(bytes(8192))
        yield box


@pytest.fixture
def app(boxed: Boxed, share: Path) -> Callable[..., BoxedActor]:
    """A container that sees the mount."""

    def start(*options: str) -> BoxedActor:
        return boxed("-v", f"{share}:/share:rslave", *options)

    return start


def test_a_mount_that_survives_its_daemon(
    podman: Podman, image: str, share: Path, app: Callable[..., BoxedActor]
) -> None:
    """The keeper is the first process of the container."""
    box = start(podman, image, share, survive="on")
    file = share / "mnt/file"
    file.write_bytes(bytes(8192))
    mounted = os.stat(share / "mnt").st_dev
    holder, breaker = app(), app()
    fd = holder(os.open, "/share/mnt/file", os.O_RDWR)
    holder(ioctl.pin, fd, ioctl.PinRequest(0, 8192, ioctl.LEASE))
    cut = breaker.start(os.truncate, "/share/mnt/file", 0)
    eventually(lambda: status(share)["waiting"] == 1)
    pid = status(share)["pid"]
    box.exec("sh", "-c", f"kill -9 {pid}")
    assert status(share)["pid"] not in (1, pid)
    assert (status(share)["waiting"], os.stat(share / "mnt").st_dev) == (1, mounted)
    holder(os.close, fd)
    assert cut.error() is None
    box.kill("TERM")
    assert box.wait() == 0, box.log()
    assert not is_mounted(share / "mnt")


def status(share: Path) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads((share / "mnt/.pinfs/status").read_text())
    return shown


def test_another_pid_namespace_pins_by_handle(box: Container, app: Boxed) -> None:
    """The daemon cannot see such a process: no process pin, no event channel; ioctls and poll do all of it."""
    holder, breaker = app(), app()
    assert holder.errno(os.setxattr, "/share/mnt/file", "user.pinfs.pin.p", b"0:4096") == errno.EPERM
    assert holder.errno(os.open, "/share/mnt/.pinfs/events", os.O_RDWR) == errno.EPERM
    fd = holder(os.open, "/share/mnt/file", os.O_RDWR)
    pin = holder(ioctl.pin, fd, ioctl.PinRequest(0, 4096, ioctl.DENY))
    assert breaker.errno(os.truncate, "/share/mnt/file", 100) == errno.EBUSY
    holder(ioctl.unpin, fd, pin)
    assert breaker.errno(os.truncate, "/share/mnt/file", 100) is None


def test_the_command_line_says_so(podman: Podman, image: str, box: Container, share: Path) -> None:
    words = ["sh", "-c", "pinfs pin /share/mnt/file -- true; echo status $?"]
    said = podman.run(image, *words, options=["-v", f"{share}:/share:rslave"])
    assert "status 5" in said
    assert "pid namespace" in said


def test_a_lease_across_pid_namespaces(box: Container, app: Boxed) -> None:
    """POLLPRI tells, an ioctl answers; the daemon knows neither of the two processes."""
    holder, breaker = app(), app()
    fd = holder(os.open, "/share/mnt/file", os.O_RDWR)
    pin = holder(ioctl.pin, fd, ioctl.PinRequest(0, 4096, ioctl.LEASE))
    cut = breaker.start(os.truncate, "/share/mnt/file", 0)
    assert holder(acts.poll, fd, select.POLLPRI) & select.POLLPRI
    answer = holder(ioctl.query, fd, pin)
    assert (answer.state, answer.break_from, answer.break_to) == (ioctl.BREAKING, 0, TO_END)
    holder(ioctl.unpin, fd, pin)
    assert cut.error() is None


def test_the_end_of_an_unseen_container_ends_its_pins(box: Container, app: Boxed, share: Path) -> None:
    holder = app()
    fd = holder(os.open, "/share/mnt/file", os.O_RDWR)
    holder(ioctl.pin, fd, ioctl.PinRequest(0, 4096, ioctl.DENY))
    assert app().errno(os.truncate, "/share/mnt/file", 0) == errno.EBUSY
    holder.box.kill("KILL")
    eventually(lambda: not (share / "mnt/.pinfs/pins").read_text())


def test_in_the_daemons_pid_namespace_processes_can_be_seen(box: Container, app: Boxed) -> None:
    """--pid container:DAEMON (the pod's shared namespace): process pins, events."""
    holder, breaker = app("--pid", f"container:{box.name}"), app()
    channel = holder(os.open, "/share/mnt/.pinfs/events", os.O_RDWR)
    holder.pin("/share/mnt/file", "p", "0:4096,mode=lease,signal=none")
    cut = breaker.start(os.truncate, "/share/mnt/file", 0)
    assert b'"break"' in holder(acts.read_event_lines, channel)
    holder.release("/share/mnt/file", "p")
    assert cut.error() is None


def test_with_the_hosts_pid_namespace_the_daemon_sees_all(podman: Podman, image: str, app: Boxed, share: Path) -> None:
    """--pid host for the daemon alone: containers with namespaces of their own hold process pins."""
    with daemon(podman, image, share, "--pid", "host"):
        (share / "mnt/file").write_bytes(bytes(8192))
        holder = app()
        holder.pin("/share/mnt/file", "p", "0:4096")
        assert app().errno(os.truncate, "/share/mnt/file", 0) == errno.EBUSY
        holder.box.kill("KILL")
        eventually(lambda: not (share / "mnt/.pinfs/pins").read_text())


def test_a_daemon_that_was_killed_is_replaced(podman: Podman, image: str, app: Boxed, share: Path) -> None:
    """Its mount stays behind on the host, dead; -o replace_stale of the next one takes it away, for everybody."""
    first = start(podman, image, share)
    (share / "mnt/file").write_bytes(b"here")
    reader = app()
    first.kill("KILL")
    first.wait()
    assert reader.errno(acts.read_file, "/share/mnt/file") == errno.ENOTCONN
    with daemon(podman, image, share):
        assert reader(acts.read_file, "/share/mnt/file") == b"here"
