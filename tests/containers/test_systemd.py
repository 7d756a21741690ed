"""Units of systemd, in a container where it is the first process: the sample unit, and fstab's mount units."""

from __future__ import annotations

import pytest
from support.actor import eventually
from support.mounts import REPO

from containers.podman import CAN_MOUNT, Container, Podman

pytestmark = pytest.mark.containers
CONFIGURATION = r"SOURCE=/srv/models\nMOUNTPOINT=/mnt/models\nOPTIONS=break_timeout=7\n"


@pytest.fixture(scope="session")
def systemd_image(podman: Podman, debian: str, image: str) -> str:
    file = REPO / "tests/containers/Systemd.Containerfile"
    bases = ["--build-arg", f"BASE={debian}", "--build-arg", f"PINFS={image}"]
    return podman.build("systemd", file, REPO / "packaging", *bases)


@pytest.fixture
def machine(podman: Podman, systemd_image: str) -> Container:
    """A machine that has booted."""
    box = podman.start(systemd_image, options=[*CAN_MOUNT, "--systemd=always"])
    eventually(lambda: "running" in box.exec("systemctl", "is-system-running", "--wait", check=False))
    return box


def main_process(machine: Container) -> str:
    return machine.exec("systemctl", "show", "--property=MainPID", "--value", "pinfs@models").strip()


def is_served(machine: Container) -> bool:
    return "weights" in machine.exec("cat", "/mnt/models/file", check=False)


def test_the_sample_unit(machine: Container) -> None:
    """Started when it is usable, its state shown, SIGHUP, restarted after a crash over its dead mount, stopped."""
    machine.exec("sh", "-c", f"printf '{CONFIGURATION}' >/etc/pinfs/models.conf")
    machine.exec("systemctl", "start", "pinfs@models")
    assert is_served(machine)
    assert 'Status: "/srv/models on /mnt/models' in machine.exec("systemctl", "status", "pinfs@models")
    assert "break_timeout = 7" in machine.exec("cat", "/mnt/models/.pinfs/policy")
    machine.exec("systemctl", "reload", "pinfs@models")
    first = main_process(machine)
    machine.exec("systemctl", "kill", "--signal=KILL", "pinfs@models")
    eventually(lambda: is_served(machine))
    assert main_process(machine) not in ("0", first)
    log = machine.exec("journalctl", "--unit", "pinfs@models", "--output=cat")
    assert "policy from SIGHUP" in log
    assert "replacing the stale mount" in log
    assert " WARNING: " not in log, "the unit leaves the daemon all that it needs"
    machine.exec("systemctl", "stop", "pinfs@models")
    assert not is_served(machine)
    assert "fuse.pinfs" not in machine.exec("cat", "/proc/mounts")


def test_what_hinders_the_unit_is_in_the_journal(machine: Container) -> None:
    machine.exec("sh", "-c", r"printf 'SOURCE=/srv/missing\nMOUNTPOINT=/mnt/models\n' >/etc/pinfs/models.conf")
    assert "failed" in machine.exec("systemctl", "start", "pinfs@models", check=False)
    log = machine.exec("journalctl", "--unit", "pinfs@models", "--output=cat")
    assert "/srv/missing cannot be served: No such file or directory" in log


@pytest.mark.parametrize("kind", ["fuse.pinfs", "pinfs"])
def test_a_mount_unit_from_fstab(machine: Container, kind: str) -> None:
    line = f"/srv/models /mnt/models {kind} rw,nofail,_netdev,x-systemd.mount-timeout=20,break_timeout=7 0 0"
    machine.exec("sh", "-c", f"echo '{line}' >>/etc/fstab")
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", "mnt-models.mount")
    assert is_served(machine)
    assert "break_timeout = 7" in machine.exec("cat", "/mnt/models/.pinfs/policy")
    machine.exec("systemctl", "stop", "mnt-models.mount")
    assert not is_served(machine)
