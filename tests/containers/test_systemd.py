"""Units of systemd, in a container where it is the first process: the sample unit, and fstab's mount units.

Nothing is played here: systemd starts, watches, restarts and stops the daemon, and journald keeps its log.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.actor import eventually
from support.mounts import REPO

from containers.podman import CAN_MOUNT, Container, Podman

pytestmark = pytest.mark.containers
UNIT = "pinfs@models"
AUTOFS = Path("/dev/autofs")
DROP_IN = f"/run/systemd/system/{UNIT}.service.d"


@pytest.fixture(scope="session")
def systemd_image(podman: Podman, debian: str, image: str) -> str:
    file = REPO / "tests/containers/Systemd.Containerfile"
    bases = ["--build-arg", f"BASE={debian}", "--build-arg", f"PINFS={image}"]
    return podman.build("systemd", file, REPO / "packaging", *bases)


@pytest.fixture
def machine(podman: Podman, systemd_image: str) -> Container:
    """A machine that has booted, with a configuration for the sample unit."""
    autofs = ["--device", AUTOFS] if AUTOFS.exists() else []
    box = podman.start(systemd_image, options=[*CAN_MOUNT, *autofs, "--systemd=always"])
    wait_for_boot(box)
    write(box, "/etc/pinfs/models.conf", "SOURCE=/srv/models", "MOUNTPOINT=/mnt/models", "OPTIONS=break_timeout=60")
    return box


def wait_for_boot(box: Container) -> None:
    eventually(lambda: box.exec("systemctl", "is-system-running", "--wait", check=False) == "running\n")


def write(machine: Container, path: str, *lines: str) -> None:
    """Appends to a file, which may not be there yet."""
    machine.exec("sh", "-c", 'mkdir -p "${0%/*}" && printf "%s\\n" "$@" >>"$0"', path, *lines)


def shown(machine: Container, name: str, unit: str = UNIT) -> str:
    """A property of a unit."""
    return machine.exec("systemctl", "show", f"--property={name}", "--value", unit).strip()


def journal(machine: Container, *options: str, unit: str = UNIT) -> str:
    machine.exec("journalctl", "--sync")
    return machine.exec("journalctl", "--unit", unit, "--output=cat", *options)


def is_served(machine: Container) -> bool:
    return machine.exec("cat", "/mnt/models/file", check=False) == "weights\n"


def nothing_is_mounted(machine: Container) -> bool:
    return "fuse.pinfs" not in machine.exec("cat", "/proc/mounts")


def test_the_sample_unit(machine: Container) -> None:
    """Started when it is usable, its state shown, SIGHUP, restarted after a crash over its dead mount, stopped."""
    machine.exec("systemctl", "start", UNIT)
    assert is_served(machine)
    assert 'Status: "/srv/models on /mnt/models: pins 0, waiting 0"' in machine.exec("systemctl", "status", UNIT)
    assert "break_timeout = 60" in machine.exec("cat", "/mnt/models/.pinfs/policy")
    machine.exec("systemctl", "reload", UNIT)
    eventually(lambda: "policy from SIGHUP" in journal(machine))
    first = shown(machine, "MainPID")
    machine.exec("systemctl", "kill", "--signal=KILL", UNIT)
    eventually(lambda: is_served(machine))
    assert shown(machine, "MainPID") not in ("0", first)
    assert shown(machine, "NRestarts") == "1"
    machine.exec("systemctl", "stop", UNIT)
    assert not is_served(machine)
    assert nothing_is_mounted(machine)
    assert "replacing the stale mount" in journal(machine)
    assert not journal(machine, "--identifier=pinfs", "--priority=warning"), "the unit leaves the daemon what it needs"


def test_a_stop_answers_who_waits(machine: Container) -> None:
    """A truncate waits for a lease; `systemctl stop` answers it with EBUSY, long before the deadline."""
    write(machine, f"{DROP_IN}/often.conf", "[Service]", "WatchdogSec=2")  # and so a fresh status each second
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", UNIT)
    pin = ["pinfs", "pin", "--mode=lease", "--on-break=ignore", "/mnt/models/file"]
    machine.exec("systemd-run", "--unit=holder", *pin, "--", "sleep", "infinity")
    eventually(lambda: shown(machine, "StatusText").endswith(": pins 1, waiting 0"))
    machine.exec("systemd-run", "--unit=breaker", "truncate", "-s", "0", "/mnt/models/file")
    eventually(lambda: shown(machine, "StatusText").endswith(": pins 1, waiting 1"))
    assert shown(machine, "ActiveState", "breaker") == "active"
    machine.exec("systemctl", "stop", UNIT)
    eventually(lambda: shown(machine, "ActiveState", "breaker") == "failed")
    assert "Device or resource busy" in journal(machine, unit="breaker")
    assert shown(machine, "Result") == "success"
    assert nothing_is_mounted(machine)
    assert machine.exec("cat", "/srv/models/file") == "weights\n"


def test_the_watchdog(machine: Container) -> None:
    """It hears the daemon's beat; when the beat ends, the daemon is ended, and a new one serves."""
    write(machine, f"{DROP_IN}/soon.conf", "[Service]", "WatchdogSec=3")
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", UNIT)
    first, beat = shown(machine, "MainPID"), shown(machine, "WatchdogTimestampMonotonic")
    eventually(lambda: int(shown(machine, "WatchdogTimestampMonotonic")) > int(beat) + 6_000_000)
    assert (shown(machine, "MainPID"), shown(machine, "NRestarts")) == (first, "0")
    machine.exec("systemctl", "kill", "--signal=STOP", UNIT)
    eventually(lambda: shown(machine, "NRestarts") == "1" and is_served(machine))
    assert "Watchdog timeout" in journal(machine)


def test_the_journal_knows_warnings_from_the_rest(machine: Container) -> None:
    """A bad policy at a reload: the old one stays, and `journalctl -p warning` says so."""
    write(machine, "/etc/pinfs/models.toml", "break_timeout = 7")
    write(machine, "/etc/pinfs/models.conf", "OPTIONS=policy=/etc/pinfs/models.toml")
    machine.exec("systemctl", "start", UNIT)
    write(machine, "/etc/pinfs/models.toml", "break_timeot = 8")
    machine.exec("systemctl", "reload", UNIT)
    eventually(lambda: "break_timeot" in journal(machine, "--identifier=pinfs", "--priority=warning"))
    assert "is mounted on" not in journal(machine, "--identifier=pinfs", "--priority=warning")
    assert "break_timeout = 7" in machine.exec("cat", "/mnt/models/.pinfs/policy")


def test_what_hinders_the_unit_is_in_the_journal(machine: Container) -> None:
    write(machine, "/etc/pinfs/models.conf", "SOURCE=/srv/missing")
    assert "failed" in machine.exec("systemctl", "start", UNIT, check=False)
    assert "/srv/missing cannot be served: No such file or directory" in journal(machine)


@pytest.mark.parametrize("kind", ["fuse.pinfs", "pinfs"])
def test_a_mount_unit_from_fstab(machine: Container, kind: str) -> None:
    """Its x-systemd options mean something to systemd, and it and mount(8) know of each other's doings."""
    options = "rw,nofail,_netdev,x-systemd.mount-timeout=20,x-systemd.after=systemd-journald.service,break_timeout=7"
    write(machine, "/etc/fstab", f"/srv/models /mnt/models {kind} {options} 0 0")
    machine.exec("systemctl", "daemon-reload")
    assert shown(machine, "TimeoutUSec", "mnt-models.mount") == "20s"
    assert "systemd-journald.service" in shown(machine, "After", "mnt-models.mount")
    machine.exec("systemctl", "start", "mnt-models.mount")
    assert is_served(machine)
    assert "break_timeout = 7" in machine.exec("cat", "/mnt/models/.pinfs/policy")
    machine.exec("systemctl", "stop", "mnt-models.mount")
    assert nothing_is_mounted(machine)
    assert machine.exec("mount", "-a") == ""
    assert is_served(machine)
    eventually(lambda: shown(machine, "ActiveState", "mnt-models.mount") == "active")
    machine.exec("umount", "/mnt/models")
    eventually(lambda: shown(machine, "ActiveState", "mnt-models.mount") == "inactive")
    assert nothing_is_mounted(machine)


@pytest.mark.skipif(not AUTOFS.exists(), reason="this kernel has no autofs")
@pytest.mark.parametrize("kind", ["fuse.pinfs", "pinfs"])
def test_an_automount_point(machine: Container, kind: str) -> None:
    """Mounted by the first who looks, unmounted when nobody has for a while, and mounted again."""
    options = "noauto,x-systemd.automount,x-systemd.idle-timeout=1"
    write(machine, "/etc/fstab", f"/srv/models /mnt/models {kind} {options} 0 0")
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", "mnt-models.automount")
    for _ in range(2):
        assert nothing_is_mounted(machine)
        assert is_served(machine)
        assert shown(machine, "ActiveState", "mnt-models.mount") == "active"
        eventually(lambda: shown(machine, "ActiveState", "mnt-models.mount") == "inactive")


def test_both_are_there_after_a_boot(machine: Container) -> None:
    """An enabled unit, and a line of fstab."""
    machine.exec("systemctl", "enable", UNIT)
    machine.exec("mkdir", "/srv/other", "/mnt/other")
    write(machine, "/srv/other/file", "other")
    write(machine, "/etc/fstab", "/srv/other /mnt/other fuse.pinfs nofail,x-systemd.requires-mounts-for=/srv 0 0")
    machine.restart()
    wait_for_boot(machine)
    assert is_served(machine)
    assert machine.exec("cat", "/mnt/other/file") == "other\n"
    assert shown(machine, "ActiveState", "mnt-other.mount") == "active"
