"""dpkg upgrades the packages under a running unit pinfs@models, where systemd of Debian 13 is the first process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers.podman import CAN_MOUNT, Container, Podman
from support.actor import eventually
from support.mounts import REPO
from support.packages import BEFORE

import pinfs

pytestmark = [pytest.mark.packages, pytest.mark.usefixtures("fuse", "root")]
UNIT = "pinfs@models"
OLD_CGROUPS = "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
"""As a word of the kernel's command line: systemd 257 starts on cgroup v1, too."""


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    podman = Podman()
    yield podman
    podman.clear()


@pytest.fixture
def machine(podman: Podman, packages: Path) -> Iterator[Container]:
    """A machine that has booted, with the packages of the version before, and the unit serving."""
    file = REPO / "tests/packaging/Machine.Containerfile"
    image = podman.build("machine", file, file.parent, "--build-arg", f"BASE={podman.debian('trixie')}")
    options = [*CAN_MOUNT, "--cap-add", "SYS_PTRACE", "--systemd=always", "-v", f"{packages}:/packages:ro"]
    box = podman.start(image, OLD_CGROUPS, options=options)
    eventually(lambda: box.exec("systemctl", "is-system-running", "--wait", check=False) == "running\n")
    install(box, "before")
    settings = "SOURCE=/srv/models\nMOUNTPOINT=/mnt/models\nOPTIONS=break_timeout=60\n"
    box.exec("sh", "-c", 'printf "$0" >/etc/pinfs/models.conf', settings)
    box.exec("systemctl", "start", UNIT)
    yield box
    podman.clear()


def install(machine: Container, which: str) -> str:
    """What dpkg says. It asks nobody, and keeps configuration."""
    return machine.exec("sh", "-c", f"DEBIAN_FRONTEND=noninteractive dpkg --install /packages/{which}/*.deb")


def shown(machine: Container, name: str, unit: str = UNIT) -> str:
    """A property of a unit."""
    return machine.exec("systemctl", "show", f"--property={name}", "--value", unit).strip()


def status(machine: Container) -> dict[str, Any]:
    """`.pinfs/status`."""
    found: dict[str, Any] = json.loads(machine.exec("cat", "/mnt/models/.pinfs/status"))
    return found


def pins(machine: Container) -> list[tuple[int, str, int]]:
    """Of each pin, what must stay the same: id, name, the holder's process."""
    listed = machine.exec("cat", "/mnt/models/.pinfs/pins").splitlines()
    return [(pin["id"], pin["name"], pin["pid"]) for pin in map(json.loads, listed)]


def device(machine: Container) -> str:
    """The number of the mount's connection: another mount has another one."""
    return machine.exec("stat", "--format=%d", "/mnt/models")


def hold(machine: Container) -> None:
    """A lease whose holder does not answer, and a truncate that waits for it."""
    pin = ["pinfs", "pin", "--mode", "lease", "--on-break", "ignore", "--name", "held", "/mnt/models/file"]
    machine.exec("systemd-run", "--unit=holder", *pin, "--", "sleep", "infinity")
    eventually(lambda: status(machine)["pins"] == 1)
    machine.exec("systemd-run", "--unit=breaker", "truncate", "-s", "0", "/mnt/models/file")
    eventually(lambda: status(machine)["waiting"] == 1)


def until_served_anew(machine: Container, takeovers: int) -> None:
    """Until the daemon after so many take-overs serves, and systemd knows that it is ready."""
    eventually(lambda: status(machine)["takeovers"] > takeovers and shown(machine, "ActiveState") == "active")


def test_a_unit_goes_over_to_the_new_version(machine: Container) -> None:
    """The mount, the pin, its holder and a waiting truncate stay; the unit never fails; its next stop unmounts."""
    assert status(machine)["version"] == BEFORE
    hold(machine)
    first, mounted, held = shown(machine, "MainPID"), device(machine), pins(machine)
    said = install(machine, "now")
    assert f"/mnt/models: pinfs {BEFORE} (pid {first}) has handed over to pinfs {pinfs.__version__} " in said
    now = status(machine)
    assert (now["version"], now["pins"], now["waiting"]) == (pinfs.__version__, 1, 1)
    assert (now["survives"]["keeper"], now["last_takeover"]["why"]) == ("systemd", "handed over")
    assert now["last_takeover"]["not_restored"] == []
    assert (device(machine), pins(machine)) == (mounted, held)
    assert shown(machine, "MainPID") == str(now["pid"]) != first
    assert (shown(machine, "ActiveState"), shown(machine, "Result")) == ("active", "success")
    assert (shown(machine, "ActiveState", "holder"), shown(machine, "ActiveState", "breaker")) == ("active", "active")
    machine.exec("systemctl", "stop", "holder")
    eventually(lambda: shown(machine, "ActiveState", "breaker") == "inactive")
    assert shown(machine, "Result", "breaker") == "success"
    assert machine.exec("stat", "--format=%s", "/srv/models/file") == "0\n"
    machine.exec("systemctl", "stop", UNIT)
    assert "fuse.pinfs" not in machine.exec("cat", "/proc/mounts")


def test_the_unit_on_debian_13_survives_its_daemon(machine: Container) -> None:
    """kill -9, and `systemctl restart`: systemd 257 itself sets FDSTORE, which the unit sets for older ones."""
    hold(machine)
    mounted, held = device(machine), pins(machine)
    for why, words in (("died", ["kill", "--signal=KILL", UNIT]), ("handed over", ["restart", UNIT])):
        takeovers = status(machine)["takeovers"]
        machine.exec("systemctl", *words)
        until_served_anew(machine, takeovers)
        now = status(machine)
        assert (now["last_takeover"]["why"], now["last_takeover"]["not_restored"]) == (why, [])
        assert (device(machine), pins(machine), now["waiting"]) == (mounted, held, 1)
        assert shown(machine, "ActiveState") == "active"
    machine.exec("systemctl", "stop", UNIT)
    eventually(lambda: shown(machine, "ActiveState", "breaker") == "failed")
    assert "fuse.pinfs" not in machine.exec("cat", "/proc/mounts")
    assert (shown(machine, "NFileDescriptorStore"), shown(machine, "Result")) == ("0", "success")
    assert machine.exec("cat", "/srv/models/file") == "weights\n"


def test_an_upgrade_back_and_a_removal(machine: Container) -> None:
    """The version before takes over as well; a removal is refused while the pin stands, and the unit goes on."""
    hold(machine)
    mounted, held = device(machine), pins(machine)
    install(machine, "now")
    install(machine, "before")
    assert status(machine)["version"] == BEFORE
    assert (device(machine), pins(machine), status(machine)["takeovers"]) == (mounted, held, 2)
    with pytest.raises(AssertionError, match=r"pins held|busy"):
        machine.exec("dpkg", "--remove", "pinfs")
    assert (pins(machine), shown(machine, "ActiveState")) == (held, "active")
    machine.exec("systemctl", "stop", "holder", "breaker")
    machine.exec("dpkg", "--remove", "pinfs")
    assert "fuse.pinfs" not in machine.exec("cat", "/proc/mounts")
    eventually(lambda: shown(machine, "ActiveState") == "inactive")
