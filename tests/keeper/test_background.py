"""`pinfs mount --daemon` with its keeper: how they begin, end, and are found, and how one daemon follows another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.actor import eventually
from support.mounts import is_mounted

from keeper.background import KEPT, LIMIT_S, Background, cmdline, wait_end
from pinfs.observe.daemons import daemon_pid
from pinfs.observe.mounts import Mount


def test_a_keeper_beside_the_daemon(background: Background) -> None:
    assert background.mount().returncode == 0
    status = background.status()
    keeper = background.keeper
    assert status["survives"]["keeper"] == "pinfs"
    assert status["survives"]["keeper_pid"] == keeper
    assert status["survives"]["descriptors"] == KEPT
    assert keeper is not None
    assert daemon_pid(Mount(str(background.point), str(background.source))) == status["pid"]
    assert len({os.getsid(keeper), os.getsid(status["pid"]), os.getsid(0)}) == 3
    assert background.umount().returncode == 0
    assert not is_mounted(background.point)
    wait_end(keeper, status["pid"])
    assert "pinfs.keeper" not in background.log.read_text()


@pytest.mark.parametrize("option", ["survive=off", "bridge=off"])
def test_without_a_keeper(background: Background, option: str) -> None:
    assert background.mount("-o", option).returncode == 0
    survives = background.status()["survives"]
    assert survives["keeper"] is None
    assert option in survives["unavailable_because"]
    assert background.keeper is None
    background.umount()


def test_options_that_contradict(background: Background) -> None:
    result = background.mount("-o", "survive=on,bridge=off")
    assert result.returncode == 6
    assert "survive=on needs the bridge" in result.stderr
    assert not is_mounted(background.point)


def test_a_mount_that_fails_leaves_no_keeper(background: Background) -> None:
    result = background.mount("-o", "passthrough=on,bridge=on,seal=off", "-o", "metrics_port=1")
    assert background.pinfs("mount", background.source, background.source, "--daemon").returncode == 6
    if result.returncode == 0:  # port 1 is free
        background.umount()
    eventually(lambda: not background.keepers())


def test_a_killed_keeper_is_replaced(background: Background) -> None:
    background.mount()
    pid, first = background.pid, background.keeper
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(
        lambda: background.keeper not in (None, first) and background.status()["survives"]["descriptors"] == KEPT
    )
    assert background.pid == pid
    second = background.keeper
    assert second is not None
    os.kill(second, signal.SIGTERM)
    wait_end(pid, second)
    assert not is_mounted(background.point)


def test_a_signal_to_the_keeper_unmounts(background: Background) -> None:
    background.mount()
    pid, keeper = background.pid, background.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGTERM)
    wait_end(pid, keeper)
    assert not is_mounted(background.point)
    assert "unmounting" in background.log.read_text()


def test_a_plain_umount_ends_both(background: Background) -> None:
    background.mount("-o", "spare")
    pid, keeper = background.pid, background.keeper
    subprocess.run(["umount", background.point], check=True)
    wait_end(pid, keeper)
    eventually(lambda: not background.processes())


def test_a_spare_waits_ready(background: Background) -> None:
    background.mount("-o", "spare")
    pid, keeper = background.pid, background.keeper
    eventually(lambda: len(background.processes()) == 3)
    (spare,) = [one for one in background.processes() if one not in (pid, keeper)]
    words = cmdline(spare).split(b"\0")
    assert b"--kept" in words
    assert background.umount().returncode == 0
    wait_end(spare)


def test_force_ends_a_mount_whose_daemon_is_stopped(background: Background) -> None:
    background.mount()
    pid, keeper = background.pid, background.keeper
    os.kill(pid, signal.SIGSTOP)
    assert background.umount("--force").returncode == 0
    wait_end(pid, keeper)
    assert not is_mounted(background.point)


def test_giving_up_takes_the_mount_away(background: Background) -> None:
    background.mount("-o", "max_deaths=1")
    pid, keeper = background.pid, background.keeper
    os.kill(pid, signal.SIGKILL)
    wait_end(keeper)
    assert not is_mounted(background.point)
    assert "the mount is given up" in background.log.read_text()
    assert background.mount("-o", "survive=off").returncode == 0, "the source is free"
    background.umount()


def test_an_umount_in_the_gap(background: Background) -> None:
    """The keeper is stopped, so that no daemon can take over meanwhile."""
    background.mount()
    pid, keeper = background.pid, background.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_end(pid)
    assert background.umount("--force").returncode == 0
    wait_end(keeper)
    assert not is_mounted(background.point)


def test_a_watchdog(background: Background) -> None:
    background.mount("-o", "watchdog=1,max_deaths=1")
    pid, keeper = background.pid, background.keeper
    os.kill(pid, signal.SIGSTOP)
    wait_end(pid, keeper)
    assert "does not beat for 1 s: it is killed" in background.log.read_text()


def test_doctor_finds_a_keeper_without_a_mount(background: Background) -> None:
    background.mount()
    keeper = background.keeper
    with (background.point / "f").open("w"):
        subprocess.run(["umount", "--lazy", background.point], check=True)
        found = json.loads(background.pinfs("doctor", "--json").stdout)["findings"]
        assert any(one["check"] == "keeper" and f"pid {keeper} " in one["text"] for one in found)
    wait_end(keeper)


@pytest.fixture
def foreground(background: Background) -> Iterator[subprocess.Popen[bytes]]:
    """A mount in the foreground, with a keeper."""
    words = ["mount", str(background.source), str(background.point), "-o", "survive=on"]
    words += ["--log-file", str(background.log)]
    process = subprocess.Popen([sys.executable, "-m", "pinfs.cli.main", *words])
    eventually(lambda: background.keeper == process.pid)
    yield process
    process.kill()
    process.wait(LIMIT_S)


def test_in_the_foreground_the_keeper_stands_in_for_the_daemon(
    background: Background, foreground: subprocess.Popen[bytes]
) -> None:
    assert background.pid != foreground.pid
    foreground.send_signal(signal.SIGINT)
    assert foreground.wait(LIMIT_S) == 0
    assert not is_mounted(background.point)


def test_an_unmount_ends_a_keeper_in_the_foreground(
    background: Background, foreground: subprocess.Popen[bytes]
) -> None:
    assert background.umount().returncode == 0
    assert foreground.wait(LIMIT_S) == 0


def test_a_foreground_mount_that_fails(background: Background) -> None:
    result = background.pinfs("mount", background.source, background.source, "-o", "survive=on")
    assert result.returncode == 6
    assert result.stderr.count("\n") == 1


def test_a_service_manager_without_a_store(background: Background) -> None:
    environ = {**os.environ, "NOTIFY_SOCKET": "/nowhere/at/all"}
    result = background.pinfs("mount", background.source, background.point, "-o", "survive=on", env=environ)
    assert result.returncode == 6
    assert "FileDescriptorStoreMax" in result.stderr


# Upgrades


def test_an_upgrade_to_a_program_that_cannot_begin(background: Background) -> None:
    background.mount()
    pid = background.pid
    (background.point / ".pinfs/upgrade").write_text(json.dumps({"program": ["/bin/false"]}))
    eventually(lambda: background.status()["survives"]["upgrade_refused"])
    assert "has ended with status 1 before it took over" in background.status()["survives"]["upgrade_refused"]
    assert background.pid == pid
    assert "the next daemon cannot take over, so this one goes on" in background.log.read_text()
    assert background.umount().returncode == 0


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"program": []}', '{"program": "sh"}', '{"program": ["sh"]}', '{"program": ["/x", 1]}',
     '{"program": ["/x", ""]}', '{"program": ["/x\\u0000"]}', json.dumps({"program": ["/x"] * 9}),
     json.dumps({"program": ["/" + "x" * 5000]}), "\udc80"],
)  # fmt: skip
def test_malformed_requests(background: Background, text: str) -> None:
    background.mount()
    path = background.point / ".pinfs/upgrade"
    data = text.encode(errors="surrogateescape")
    if data:
        with pytest.raises(OSError, match="Invalid argument"):
            path.write_bytes(data)
    assert path.stat().st_mode & 0o777 == 0o200
    background.umount()


def test_who_may_ask_for_an_upgrade(background: Background, root: None) -> None:
    background.mount()
    path = background.point / ".pinfs/upgrade"
    with pytest.raises(PermissionError):
        path.read_text()
    script = "import sys; open(sys.argv[1], 'wb')"
    for prefix in (["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"], ["unshare", "--mount"]):
        done = subprocess.run(
            [*prefix, sys.executable, "-c", script, path], capture_output=True, text=True, check=False
        )
        assert "PermissionError" in done.stderr, prefix
    background.umount()


def test_an_upgrade_needs_a_mount_that_survives(background: Background) -> None:
    background.mount("-o", "survive=off")
    result = background.pinfs("upgrade", background.point)
    assert result.returncode == 1
    assert "nothing can take over this mount: switched off (survive=off)" in result.stderr
    with pytest.raises(OSError, match="not supported"):
        (background.point / ".pinfs/upgrade").write_text("{}")
    background.umount()
