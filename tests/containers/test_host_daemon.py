"""The daemon on the host, applications in containers: `-v MOUNT:/data`."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support import acts
from support.actor import eventually
from support.mounts import Mount

from containers.podman import BoxedActor, Podman
from pinfs.client import ioctl

pytestmark = pytest.mark.containers
SHARED_MOUNT_OPTIONS = ("break_timeout=20",)
Boxed = Callable[..., BoxedActor]


@pytest.fixture
def data(shared_mount: Mount) -> tuple[str, str]:
    """The option of podman that shows the mount in a container."""
    path = shared_mount.path / "file"
    path.write_bytes(bytes(8192))
    path.chmod(0o666)
    return "-v", f"{shared_mount.path}:/data"


def test_a_process_in_a_container_holds_a_pin(shared_mount: Mount, boxed: Boxed, data: tuple[str, str]) -> None:
    """Its pid is the host's; truncates are refused everywhere; the pin ends with the container."""
    holder, breaker = boxed(*data), boxed(*data)
    holder.pin("/data/file", "weights", "0:4096,note=served")
    (pin,) = shared_mount.pins()
    assert (pin["pid"], pin["note"], pin["comm"]) == (holder.box.pid, "served", "python3")
    assert holder.pid == 1, "the container has a pid namespace of its own"
    assert breaker.errno(os.truncate, "/data/file", 0) == errno.EBUSY
    assert shared_mount.actor().errno(os.truncate, shared_mount.path / "file", 0) == errno.EBUSY
    with shared_mount.trace() as trace:
        holder.box.kill("KILL")
        assert trace.until("released", pin=pin["id"])["by"] == "death"
    assert breaker.errno(os.truncate, "/data/file", 0) is None


def test_a_lease_is_broken_between_containers(shared_mount: Mount, boxed: Boxed, data: tuple[str, str]) -> None:
    """Event and signal cross the namespaces; the signal's sender cannot be seen from inside."""
    holder, breaker = boxed(*data), boxed(*data)
    holder(acts.catch, signal.SIGUSR1)
    channel = holder(os.open, "/data/.pinfs/events", os.O_RDWR)
    holder.pin("/data/file", "weights", "0:4096,mode=lease,signal=USR1")
    (pin,) = shared_mount.pins()
    cut = breaker.start(os.truncate, "/data/file", 0)
    caught = holder(acts.next_signal, signal.SIGUSR1)
    assert (caught.code, caught.value, caught.pid) == (acts.SI_QUEUE, pin["id"], 0)
    assert b'"event": "break"' in holder(acts.read_event_lines, channel).replace(b'":"', b'": "')
    holder(os.write, channel, b"release %d\n" % pin["id"])
    assert cut.error() is None


def test_a_number_of_a_process_is_the_callers(shared_mount: Mount, boxed: Boxed, data: tuple[str, str]) -> None:
    """A program in a container that passes its own number means itself; the host's numbers mean nothing to it."""
    holder, stranger = boxed(*data), shared_mount.actor()
    holder.pin("/data/file", "p", f"0:4096,pid={holder(os.getpid)}")
    (pin,) = shared_mount.pins()
    assert pin["comm"] == "python3"
    assert pin["pid"] != holder(os.getpid)
    with pytest.raises(ProcessLookupError):
        holder.pin("/data/file", "q", f"0:4096,pid={stranger.process.pid}")
    holder.box.kill("KILL")
    eventually(lambda: not shared_mount.pins())


def test_a_handle_in_a_container_holds_a_pin(shared_mount: Mount, boxed: Boxed, data: tuple[str, str]) -> None:
    holder = boxed(*data)
    fd = holder(os.open, "/data/file", os.O_RDWR)
    holder(ioctl.pin, fd, ioctl.PinRequest(0, 4096, ioctl.DENY))
    assert [pin["owner"] for pin in shared_mount.pins()] == ["handle"]
    assert shared_mount.actor().errno(os.truncate, shared_mount.path / "file", 0) == errno.EBUSY
    holder.box.kill("KILL")
    eventually(lambda: not shared_mount.pins())


def test_only_a_part_of_the_mount_in_a_container(shared_mount: Mount, boxed: Boxed) -> None:
    """Attributes and ioctls work as ever; .pinfs lies in the root of the mount, which cannot be seen."""
    part = shared_mount.path / "part"
    part.mkdir()
    (part / "file").write_bytes(bytes(4096))
    holder = boxed("-v", f"{part}:/data")
    holder.pin("/data/file", "p", "0:4096")
    assert shared_mount.actor().errno(os.truncate, part / "file", 0) == errno.EBUSY
    assert holder.errno(os.open, "/data/.pinfs/events", os.O_RDWR) == errno.ENOENT
    holder.release("/data/file", "p")


def test_the_command_line_in_a_container(
    shared_mount: Mount, podman: Podman, image: str, data: tuple[str, str]
) -> None:
    """`pinfs pin` holds while its command runs, and `pinfs ls` shows the host's numbers."""
    script = "pinfs pin /data/file:0:100 -- sh -c 'pinfs ls /data; truncate -s 0 /data/file; true'"
    said = podman.run(image, "sh", "-c", script, options=data)
    assert "deny" in said
    assert "Device or resource busy" in said
    assert shared_mount.pins() == []


def test_root_of_a_user_namespace_is_not_root(shared_mount: Mount, boxed: Boxed, data: tuple[str, str]) -> None:
    """A container with its own user ids is that user: it pins what it may write, and may read no trace."""
    mine = shared_mount.path / "mine"
    mine.write_bytes(bytes(4096))
    os.chown(mine, 200000, 200000)
    (shared_mount.path / "roots").write_bytes(bytes(4096))
    holder = boxed(*data, "--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536")
    holder.pin("/data/mine", "p", "0:4096")
    assert [pin["uid"] for pin in shared_mount.pins()] == [200000]
    assert holder.errno(os.setxattr, "/data/roots", "user.pinfs.pin.p", b"0:4096") == errno.EACCES
    assert holder.errno(os.open, "/data/.pinfs/trace", os.O_RDONLY) == errno.EACCES


def test_a_new_daemon_is_seen_through_the_directory_above(share: Path, boxed: Boxed) -> None:
    """With -v ABOVE:ABOVE:rslave containers see a restarted daemon's mount; with -v MOUNT the dead one."""
    with Mount(share) as mount:
        (mount.path / "file").write_bytes(b"here")
        follows, fixed = boxed("-v", f"{share}:/above:rslave"), boxed("-v", f"{mount.path}:/data")
        assert follows(acts.read_file, "/above/mnt/file") == fixed(acts.read_file, "/data/file") == b"here"
        mount.remount()
        assert follows(acts.read_file, "/above/mnt/file") == b"here"
        assert fixed.errno(acts.read_file, "/data/file") == errno.ENOTCONN
