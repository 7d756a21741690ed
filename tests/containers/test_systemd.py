"""Units of systemd, in a container where it is the first process: the sample unit, and fstab's mount units.

Nothing is played here: systemd starts, watches, restarts and stops the daemon, and journald keeps its log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.actor import eventually
from support.mounts import REPO

from containers.podman import CAN_MOUNT, Container, Podman

pytestmark = pytest.mark.containers
UNIT = "pinfs@models"
AUTOFS = Path("/dev/autofs")
CAN_LOOK = ("--cap-add", "SYS_PTRACE")
"""The unit's daemon looks at processes that have more capabilities than it."""
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
    box = podman.start(systemd_image, options=[*CAN_MOUNT, *CAN_LOOK, *autofs, "--systemd=always"])
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


def status(machine: Container) -> dict[str, Any]:
    """`.pinfs/status`."""
    shown: dict[str, Any] = json.loads(machine.exec("cat", "/mnt/models/.pinfs/status"))
    return shown


def device(machine: Container) -> str:
    """The number of the mount's connection: another mount has another one."""
    return machine.exec("stat", "--format=%d", "/mnt/models")


def has_waiter(machine: Container) -> bool:
    now = status(machine)
    return (now["pins"], now["waiting"]) == (1, 1)


def start_users(machine: Container) -> None:
    """A holder of a lease, and a truncate that waits for it."""
    pin = ["pinfs", "pin", "--mode=lease", "--on-break=ignore", "/mnt/models/file"]
    machine.exec("systemd-run", "--unit=holder", *pin, "--", "sleep", "infinity")
    eventually(lambda: status(machine)["pins"] == 1)
    machine.exec("systemd-run", "--unit=breaker", "truncate", "-s", "0", "/mnt/models/file")
    eventually(lambda: has_waiter(machine))


def kill(machine: Container, number: str = "KILL") -> None:
    """End the daemon, and wait until another one serves."""
    first = shown(machine, "MainPID")
    machine.exec("systemctl", "kill", f"--signal={number}", UNIT)
    eventually(lambda: shown(machine, "MainPID") not in ("0", first) and shown(machine, "ActiveState") == "active")


def test_the_sample_unit(machine: Container) -> None:
    """Started when it is usable, its state shown, SIGHUP, stopped."""
    machine.exec("systemctl", "start", UNIT)
    assert is_served(machine)
    assert 'Status: "/srv/models on /mnt/models: pins 0, waiting 0"' in machine.exec("systemctl", "status", UNIT)
    assert "break_timeout = 60" in machine.exec("cat", "/mnt/models/.pinfs/policy")
    survives = status(machine)["survives"]
    assert (survives["keeper"], survives["unavailable_because"], survives["descriptors"]) == ("systemd", None, 3)
    assert shown(machine, "NFileDescriptorStore") == "3"
    machine.exec("systemctl", "reload", UNIT)
    eventually(lambda: "policy from SIGHUP" in journal(machine))
    machine.exec("systemctl", "stop", UNIT)
    assert not is_served(machine)
    assert nothing_is_mounted(machine)
    assert shown(machine, "NFileDescriptorStore") == "0"
    assert shown(machine, "Result") == "success"
    assert not journal(machine, "--identifier=pinfs", "--priority=warning"), "the unit leaves the daemon what it needs"


def test_a_mount_survives_the_daemon_of_its_unit(machine: Container) -> None:
    """`kill -9` and `systemctl restart`: the same mount, the same pin, and the breaker waits on."""
    machine.exec("systemctl", "start", UNIT)
    start_users(machine)
    mounted = device(machine)
    kill(machine)
    assert (device(machine), shown(machine, "NRestarts"), has_waiter(machine)) == (mounted, "1", True)
    last = status(machine)["last_takeover"]
    assert (last["why"], last["not_restored"]) == ("died", [])
    first = shown(machine, "MainPID")
    machine.exec("systemctl", "restart", UNIT)
    assert shown(machine, "MainPID") != first
    assert (device(machine), has_waiter(machine)) == (mounted, True)
    assert status(machine)["last_takeover"]["why"] == "handed over"
    done = machine.exec("pinfs", "upgrade", "/mnt/models")
    assert "has handed over to pinfs" in done
    assert (device(machine), has_waiter(machine)) == (mounted, True)
    assert status(machine)["takeovers"] == 3
    machine.exec("systemctl", "stop", "holder")
    eventually(lambda: shown(machine, "ActiveState", "breaker") == "inactive")
    assert shown(machine, "Result", "breaker") == "success"
    assert machine.exec("stat", "--format=%s", "/srv/models/file") == "0\n"
    machine.exec("systemctl", "stop", UNIT)
    assert nothing_is_mounted(machine)
    assert shown(machine, "NFileDescriptorStore") == "0"
    assert "replacing the stale mount" not in journal(machine)


def test_a_restart_with_other_settings(machine: Container) -> None:
    """Options of the mount, and its places, change when it is unmounted; a policy that is no policy ends nothing."""
    write(machine, "/etc/pinfs/models.toml", "break_timeout = 7")
    write(machine, "/etc/pinfs/models.conf", "OPTIONS=policy=/etc/pinfs/models.toml")
    machine.exec("systemctl", "start", UNIT)
    write(machine, "/etc/pinfs/models.toml", "break_timeot = 8")
    write(machine, "/etc/pinfs/models.conf", "SOURCE=/srv/others")
    mounted = device(machine)
    machine.exec("systemctl", "restart", UNIT)
    assert (device(machine), is_served(machine)) == (mounted, True)
    assert "break_timeout = 7" in machine.exec("cat", "/mnt/models/.pinfs/policy")
    said = "/srv/models on /mnt/models goes on until it is unmounted: /srv/others on /mnt/models has to wait"
    assert said in journal(machine, "--priority=warning")


@pytest.mark.parametrize("command", [["umount"], ["pinfs", "umount", "--force"]], ids=" ".join)
def test_an_unmount_while_no_daemon_serves(machine: Container, command: list[str]) -> None:
    write(machine, f"{DROP_IN}/slow.conf", "[Service]", "RestartSec=3")
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", UNIT)
    machine.exec("systemctl", "kill", "--signal=KILL", UNIT)
    lazily = ["--lazy"] if command == ["umount"] else []
    machine.exec(*command, *lazily, "/mnt/models")
    assert nothing_is_mounted(machine)
    eventually(lambda: shown(machine, "ActiveState") == "inactive")
    assert (shown(machine, "Result"), shown(machine, "NFileDescriptorStore")) == ("success", "0")
    machine.exec("systemctl", "start", UNIT)
    assert is_served(machine)


def test_a_unit_that_is_given_up_and_started_again(machine: Container) -> None:
    """StartLimitBurst=: systemd lets go of the connection, callers get ENOTCONN, the next start replaces the mount."""
    write(machine, f"{DROP_IN}/limit.conf", "[Unit]", "StartLimitBurst=2", "StartLimitIntervalSec=1h")
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", UNIT)
    kill(machine)
    machine.exec("systemctl", "kill", "--signal=KILL", UNIT)
    eventually(lambda: shown(machine, "ActiveState") == "failed")
    assert shown(machine, "NFileDescriptorStore") == "0"
    assert "Transport endpoint is not connected" in machine.exec("cat", "/mnt/models/file", check=False)
    machine.exec("systemctl", "reset-failed", UNIT)
    machine.exec("systemctl", "start", UNIT)
    assert is_served(machine)
    assert "replacing the stale mount" in journal(machine)
    machine.exec("systemctl", "stop", UNIT)
    assert nothing_is_mounted(machine)


def test_a_stop_answers_who_waits(machine: Container) -> None:
    """A truncate waits for a lease; `systemctl stop` answers it with EBUSY, long before the deadline."""
    write(machine, f"{DROP_IN}/often.conf", "[Service]", "WatchdogSec=2")  # and so a fresh status each second
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", UNIT)
    start_users(machine)
    eventually(lambda: shown(machine, "StatusText").endswith(": pins 1, waiting 1"))
    assert shown(machine, "ActiveState", "breaker") == "active"
    machine.exec("systemctl", "stop", UNIT)
    eventually(lambda: shown(machine, "ActiveState", "breaker") == "failed")
    assert "Device or resource busy" in journal(machine, unit="breaker")
    assert shown(machine, "Result") == "success"
    assert nothing_is_mounted(machine)
    assert machine.exec("cat", "/srv/models/file") == "weights\n"


def test_the_watchdog(machine: Container) -> None:
    """It hears the daemon's beat; when the beat ends, the daemon is ended, and the next one takes over."""
    write(machine, f"{DROP_IN}/soon.conf", "[Service]", "WatchdogSec=3")
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", UNIT)
    first, beat = shown(machine, "MainPID"), shown(machine, "WatchdogTimestampMonotonic")
    eventually(lambda: int(shown(machine, "WatchdogTimestampMonotonic")) > int(beat) + 6_000_000)
    assert (shown(machine, "MainPID"), shown(machine, "NRestarts")) == (first, "0")
    mounted = device(machine)
    machine.exec("systemctl", "kill", "--signal=STOP", UNIT)
    eventually(lambda: shown(machine, "NRestarts") == "1" and is_served(machine))
    assert "Watchdog timeout" in journal(machine)
    assert device(machine) == mounted


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
    mounted, first = device(machine), status(machine)["pid"]
    machine.exec("sh", "-c", f"kill -9 {first}")
    assert status(machine)["pid"] != first
    assert (device(machine), shown(machine, "ActiveState", "mnt-models.mount")) == (mounted, "active")
    machine.exec("systemctl", "stop", "mnt-models.mount")
    assert nothing_is_mounted(machine)
    eventually(lambda: "pinfs" not in machine.exec("sh", "-c", "cat /proc/[0-9]*/comm"))
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
        machine.exec("sh", "-c", f"kill -9 {status(machine)['pid']}")
        assert is_served(machine), "the daemon that takes over does not wait for its own mount point"
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
