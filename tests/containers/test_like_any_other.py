"""mount(8), fstab, df, findmnt, umount: as root in a container with /dev/fuse and SYS_ADMIN."""

from __future__ import annotations

import pytest
from support.mounts import REPO

from containers.podman import CAN_MOUNT, Container, Podman

pytestmark = pytest.mark.containers
OPTIONS = "rw,nofail,_netdev,x-systemd.automount,x-systemd.requires=srv.mount,break_timeout=7"


@pytest.fixture
def box(podman: Podman, image: str) -> Container:
    """A container that does nothing by itself, with a directory to serve and one to mount on."""
    box = podman.start(image, "infinity", options=[*CAN_MOUNT, "--entrypoint", "sleep"])
    box.exec("mkdir", "-p", "/srv/models", "/mnt/models")
    box.exec("sh", "-c", "echo weights >/srv/models/file")
    return box


def check_and_unmount(box: Container) -> None:
    """The file system is there, known by its type and source, with the option in force; umount(8) ends its daemon."""
    assert box.exec("findmnt", "-no", "SOURCE,FSTYPE", "/mnt/models").split() == ["/srv/models", "fuse.pinfs"]
    assert box.exec("df", "--output=source,fstype", "/mnt/models").split()[-2:] == ["/srv/models", "fuse.pinfs"]
    assert "/srv/models /mnt/models fuse.pinfs rw," in box.exec("cat", "/proc/mounts")
    assert box.exec("cat", "/mnt/models/file") == "weights\n"
    assert "break_timeout = 7" in box.exec("cat", "/mnt/models/.pinfs/policy")
    refused = box.exec("pinfs", "pin", "/mnt/models/file", "--", "truncate", "-s", "0", "/mnt/models/file", check=False)
    assert "Device or resource busy" in refused
    box.exec("umount", "/mnt/models")
    assert "fuse.pinfs" not in box.exec("cat", "/proc/mounts")
    assert box.exec("cat", "/srv/models/file") == "weights\n"


@pytest.mark.parametrize("kind", ["fuse.pinfs", "pinfs"])
def test_fstab(box: Container, kind: str) -> None:
    """A line, mount -a, use, umount; then by the mount point alone."""
    box.exec("sh", "-c", f"echo '/srv/models /mnt/models {kind} {OPTIONS} 0 0' >>/etc/fstab")
    for _ in range(2):  # the second sees that it is there
        assert box.exec("mount", "-a") == ""
    check_and_unmount(box)
    assert box.exec("mount", "/mnt/models") == ""
    check_and_unmount(box)


@pytest.mark.parametrize("kind", ["fuse.pinfs", "pinfs"])
def test_mount_with_a_type(box: Container, kind: str) -> None:
    assert box.exec("mount", "-t", kind, "/srv/models", "/mnt/models", "-o", OPTIONS) == ""
    check_and_unmount(box)


def test_a_wrong_option_is_named(box: Container) -> None:
    said = box.exec("sh", "-c", "mount -t pinfs /srv/models /mnt/models -o break_timeot=7; echo status $?")
    assert "break_timeot" in said
    assert "status 1\n" in said


def test_nofail_leaves_the_boot_alone(box: Container) -> None:
    """mount -a goes on with the other lines when a source with nofail is missing."""
    lines = "/srv/missing /mnt/models fuse.pinfs nofail 0 0\ntmpfs /media tmpfs defaults 0 0\n"
    box.exec("sh", "-c", f"printf '{lines}' >>/etc/fstab")
    said = box.exec("sh", "-c", "mount -a; findmnt -no FSTYPE /media")
    assert "tmpfs\n" in said
    assert "pinfs: the source /srv/missing cannot be served: No such file or directory" in said


def test_install(podman: Podman, image: str) -> None:
    """packaging/install puts the helper where mount(8) looks for it, and the unit where systemd does."""
    look = "find /stage ! -type d ! -path '*/share/*' -printf '%P %l\\n' | sort"
    said = podman.run(
        image, "sh", "-c", f"packaging/install /opt/pinfs/bin/pinfs && {look}",
        options=["-v", f"{REPO}/packaging:/packaging:ro", "--workdir", "/", "--env", "DESTDIR=/stage"],
    )  # fmt: skip
    assert said.splitlines() == [
        "lib/systemd/system/pinfs@.service ",
        "usr/bin/pinfs /opt/pinfs/bin/pinfs",
        "usr/sbin/mount.fuse.pinfs ../bin/pinfs",
        "usr/sbin/mount.pinfs ../bin/pinfs",
    ]
