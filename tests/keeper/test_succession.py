"""Mounts in the background whose daemon is killed, or replaced by another program: one daemon follows another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.actor import eventually
from support.mounts import REPO, is_mounted

from keeper.background import LIMIT_S, Background, kill, program_of, wait_end
from keeper.conftest import end
from keeper.users import Users
from pinfs.observe.daemons import daemon_pid
from pinfs.observe.mounts import Mount

NOBODY = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package, as another installation: an interpreted one, so that a test can change it."""
    shutil.copytree(REPO / "pinfs", tmp_path / "pinfs", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return tmp_path


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


# Deaths


def test_a_killed_daemon_is_followed_by_another(background: Background, users: Users) -> None:
    keeper = background.keeper
    before = [kill(background), kill(background)][1]
    users.notice_nothing(background)
    status = background.status()
    last = status["last_takeover"]
    assert status["takeovers"] == 2
    assert (last["why"], last["pid"], last["not_restored"]) == ("died", status["pid"], [])
    assert last["how"] == f"the daemon (pid {before}) was killed by signal 9 (Killed)"
    assert 0 < last["pause_ms"] < LIMIT_S * 1000
    assert background.keeper == keeper
    assert daemon_pid(Mount(str(background.point), str(background.source))) == status["pid"]
    assert f"taken over, as {last['how']}" in background.log.read_text()
    users.release()


def test_a_daemon_that_fails_is_followed_by_another(background: Background, users: Users) -> None:
    kill(background, signal.SIGABRT)
    users.notice_nothing(background)
    users.release()


def test_a_daemon_that_hangs_is_followed_by_another(background: Background) -> None:
    background.mount("-o", "watchdog=1")
    pid = background.pid
    os.kill(pid, signal.SIGSTOP)
    wait_end(pid)
    eventually(lambda: background.pid != pid)
    assert background.status()["last_takeover"]["why"] == "hung"
    assert background.umount().returncode == 0


def test_a_spare_takes_over(background: Background) -> None:
    background.mount("-o", "spare")
    eventually(lambda: len(background.processes()) == 3)
    kill(background)
    eventually(lambda: len(background.processes()) == 3)
    kill(background)
    assert background.status()["takeovers"] == 2
    assert background.umount().returncode == 0
    eventually(lambda: not background.processes())


def test_sigusr2_hands_over(background: Background, users: Users) -> None:
    kill(background, signal.SIGUSR2)
    users.notice_nothing(background)
    assert background.status()["last_takeover"]["why"] == "handed over"
    users.release()


# Both


@pytest.mark.parametrize("is_loading", [False, True], ids=["at once", "while the next one loads"])
def test_daemon_and_keeper_are_killed(background: Background, is_loading: bool) -> None:
    background.mount()
    pid, keeper = background.pid, background.keeper
    assert keeper is not None
    if not is_loading:
        os.kill(keeper, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_end(pid)
    if is_loading:
        eventually(lambda: len(background.processes()) == 2)
    os.kill(keeper, signal.SIGKILL)
    wait_end(keeper)
    eventually(lambda: not background.processes())
    result = background.pinfs("status", background.point)
    assert result.returncode == 7, result.stderr
    assert "replace_stale" in background.mount().stderr
    assert background.mount("-o", "replace_stale").returncode == 0
    assert background.status()["takeovers"] == 0
    assert background.umount().returncode == 0


def test_the_stale_mount_that_they_leave_is_unmounted(background: Background) -> None:
    background.mount()
    pid, keeper = background.pid, background.keeper
    assert keeper is not None
    os.kill(keeper, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    wait_end(pid, keeper)
    assert background.umount().returncode == 0
    assert not is_mounted(background.point)
    assert background.mount().returncode == 0, "the source is free"
    assert background.umount().returncode == 0


# Upgrades


def test_an_upgrade_and_back(background: Background, users: Users, tree: Path) -> None:
    append(tree / "pinfs/__init__.py", '\n__version__ = "99.9"\n')
    keeper, pid = background.keeper, background.pid
    done = background.upgrade(program_of(tree))
    assert done.returncode == 0, done.stderr
    assert f"(pid {pid}) has handed over to pinfs 99.9 (pid {background.pid})" in done.stdout
    users.notice_nothing(background)
    assert background.status()["version"] == "99.9"
    assert background.status()["last_takeover"]["why"] == "handed over"
    kill(background)
    assert background.status()["version"] == "99.9"
    done = background.upgrade()
    assert done.returncode == 0, done.stderr
    assert background.status()["version"] != "99.9"
    assert (background.status()["takeovers"], background.keeper) == (3, keeper)
    users.notice_nothing(background)
    users.release()


def test_an_upgrade_to_a_program_that_cannot_be_loaded(background: Background, users: Users, tree: Path) -> None:
    append(tree / "pinfs/serve/daemon.py", "\nimport nowhere_to_be_found\n")
    pid = background.pid
    result = background.upgrade(program_of(tree))
    assert result.returncode == 1
    assert "before it took over: ModuleNotFoundError: No module named 'nowhere_to_be_found'" in result.stderr
    assert f"; pid {pid} (pinfs" in result.stderr
    users.notice_nothing(background)
    kill(background)
    users.notice_nothing(background)
    users.release()


def test_an_upgrade_to_a_program_that_is_not_there(background: Background) -> None:
    background.mount()
    (background.point / ".pinfs/upgrade").write_text(json.dumps({"program": ["/nowhere/pinfs"]}))
    eventually(lambda: background.status()["survives"]["upgrade_refused"])
    assert background.status()["survives"]["upgrade_refused"].endswith(": No such file or directory")
    assert background.umount().returncode == 0


def test_an_upgrade_to_a_program_that_reads_other_journals(background: Background, users: Users, tree: Path) -> None:
    slots = tree / "pinfs/journal/slots.py"
    slots.write_text(slots.read_text().replace("VERSION: Final = 1", "VERSION: Final = 2"))
    pid = background.pid
    result = background.upgrade(program_of(tree))
    assert result.returncode == 1
    assert "has version 1, and this one reads version 2" in result.stderr
    assert background.pid == pid
    (background.point / ".pinfs/upgrade").write_text(json.dumps({"program": program_of(tree)}))
    eventually(lambda: background.pid != pid, LIMIT_S)
    refused = background.status()["survives"]["upgrade_refused"]
    assert "the journal has version 1, and this pinfs reads version 2" in refused
    users.notice_nothing(background)
    users.release()


def test_an_upgrade_to_a_program_that_fails_while_it_takes_over(
    background: Background, users: Users, tree: Path
) -> None:
    """It never has the mount to itself: neither unmounts it, and the program before takes over."""
    takeover = tree / "pinfs/serve/takeover.py"
    takeover.write_text(
        takeover.read_text().replace("        state.inodes()\n", "        state.inodes()\n        1 / 0\n")
    )
    pid = background.pid
    (background.point / ".pinfs/upgrade").write_text(json.dumps({"program": program_of(tree)}))
    eventually(lambda: background.pid != pid, LIMIT_S)
    assert "ZeroDivisionError" in background.status()["survives"]["upgrade_refused"]
    users.notice_nothing(background)
    users.release()


# A user's mount


@pytest.fixture
def mine(base: Path, root: None) -> Iterator[Background]:
    """Of an ordinary user, by fusermount3."""
    background = Background(base, ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"))
    for path in (base, background.source, background.point):
        os.chown(path, NOBODY, NOBODY)
    yield background
    end(background)


def test_a_mount_of_a_user(mine: Background) -> None:
    done = mine.mount()
    assert done.returncode == 0, done.stderr
    assert mine.status()["survives"]["keeper"] == "pinfs"
    file = mine.point / "file"
    script = "echo weights >$0; exec 3<$0; rm $0; echo; read _; cat <&3"
    reader = subprocess.Popen(
        [*mine.prefix, "sh", "-c", script, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        kill(mine)
        done = mine.upgrade()
        assert done.returncode == 0, done.stderr
        assert mine.status()["takeovers"] == 2
        assert reader.communicate("\n", LIMIT_S)[0] == "weights\n"
    pid, keeper = mine.pid, mine.keeper
    done = mine.umount()
    assert done.returncode == 0, done.stderr
    wait_end(pid, keeper)
    assert not is_mounted(mine.point)


def test_a_mount_of_a_user_is_given_up(mine: Background) -> None:
    mine.mount("-o", "max_deaths=1")
    pid, keeper = mine.pid, mine.keeper
    os.kill(pid, signal.SIGKILL)
    wait_end(keeper)
    assert not is_mounted(mine.point)
