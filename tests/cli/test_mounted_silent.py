"""The command line while the daemon does not answer: each verb ends and says so; `umount --force` ends the mount."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli.test_mounted_cli import LIMIT_S, PATHS, PINFS, Running, has_open, pinfs
from support.actor import eventually
from support.mounts import REPO, Mount, force_umount, is_mounted

NO_ANSWER = 13


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """Its daemon is stopped meanwhile."""
    mount.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        mount.process.send_signal(signal.SIGCONT)


def verbs(point: Path) -> dict[int, list[list[str]]]:
    """Calls that ask the mount, by the exit code that they end with when it does not answer."""
    file, directory, where = str(point / "d" / "f"), str(point / "d"), str(point)
    return {
        NO_ANSWER: [
            ["ls", where], ["ls", directory], ["ls", "--table", file],
            ["status", where], ["status", "--table", where], ["status", "--watch", "--json", "-i", "1", where],
            ["watch", where], ["watch", file], ["top", "--once", where], ["top", "--json", file],
            ["ls", "--watch", "1", where],
            ["doctor", where], ["unseal", where],
            ["revoke", "-m", where, "1"], ["release", "-m", file, "1"],
            ["policy", "show", where], ["policy", "set", "-m", where, "own=deny"], ["policy", "explain", file],
            ["umount", where], ["umount", "--wait", "5", where],
            ["pin", file, "--", "true"], ["pin", "--pid", "1", file], ["pin", "--no-fork", file, "true"],
            ["bench", "--quick", "--only", "stat", where],
        ],
        6: [["mount", "/usr", where], ["mount", "/usr", where, "--daemon"]],
        0: [["debug", "-o", "/dev/null", where], ["completion", "bash"]],
    }  # fmt: skip


def check_verbs(point: Path, pid: int, state: str) -> None:
    """Run all at the same time: each waits for the daemon as long as a verb does."""
    calls = [(code, words) for code, several in verbs(point).items() for words in several]
    running = [(code, words, Running(*words)) for code, words in calls if words[:2] != ["status", "--watch"]]
    for code, words, one in running:
        out, err = one.process.communicate(timeout=LIMIT_S)
        assert one.process.returncode == code, (words, out, err)
        if code != 0:
            assert re.search(rf"the daemon does not answer \(pid {pid}, state {state}: ", out + err), (words, out, err)
            assert "Traceback" not in err, words


def check_listings_of_all(point: Path, pid: int) -> None:
    """There may be other mounts; this one is among them, and does not keep the others from being listed."""
    for words in (["ls"], ["status"], ["doctor"]):
        result = pinfs(*words)
        assert str(point) in result.stdout + result.stderr
        assert f"the daemon does not answer (pid {pid}, " in result.stdout + result.stderr


def test_no_verb_hangs_on_a_stopped_daemon(mount: Mount) -> None:
    (mount.path / "d").mkdir()
    (mount.path / "d" / "f").write_bytes(b"x")
    with stopped(mount):
        check_verbs(mount.path, mount.pid, "T")
        check_listings_of_all(mount.path, mount.pid)
    assert pinfs("status", mount.path).returncode == 0


def test_what_stopped_it_and_what_helps(mount: Mount) -> None:
    with stopped(mount):
        result = pinfs("status", mount.path)
        said = json.loads(result.stdout)["mounts"][0]["error"]
        assert f"kill -CONT {mount.pid}, or pinfs umount --force {mount.path}" in said
        findings = json.loads(pinfs("doctor", "--json").stdout)["findings"]
        (finding,) = [finding for finding in findings if finding["check"] == str(mount.path)]
        assert (finding["level"], "does not answer" in finding["text"], "--force" in finding["fix"]) == (
            "warn", True, True)  # fmt: skip


def test_completion_asks_no_mount(mount: Mount) -> None:
    words = f"pinfs ls {mount.path}/"
    environment = os.environ | PATHS | {"_PINFS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "2"}
    with stopped(mount):
        subprocess.run(PINFS, env=environment, check=True, timeout=LIMIT_S, capture_output=True)


def test_status_again_and_again(mount: Mount) -> None:
    """The daemon is stopped and goes on while `status --watch` looks."""
    watching = Running("status", "--watch", "--json", "-i", "0.1", mount.path)
    codes: Iterator[int] = (json.loads(line)["mounts"][0]["exit_code"] for line in watching.out)
    assert next(codes) == 0
    with stopped(mount):
        assert NO_ANSWER in codes
    assert 0 in codes
    assert watching.end(signal.SIGINT)[0] == 130


def test_watch_ends_by_ctrl_c_when_the_daemon_has_stopped(mount: Mount) -> None:
    """Its read has been taken by the daemon, and no signal ends such a read."""
    watching = Running("watch", "--json", mount.path)
    eventually(lambda: has_open(watching.process.pid, "trace"))
    with stopped(mount):
        assert watching.end(signal.SIGINT)[0] == 130


@pytest.mark.mount("poll=off")
def test_pin_that_holds_without_poll_ends_by_ctrl_c_when_the_daemon_has_stopped(mount: Mount) -> None:
    """There a read waits for events at the daemon, and no signal ends it: a child makes it."""
    check_end_of_pin(mount)


def test_pin_that_holds_ends_by_ctrl_c_when_the_daemon_has_stopped(mount: Mount) -> None:
    check_end_of_pin(mount)


def check_end_of_pin(mount: Mount) -> None:
    (mount.path / "f").write_bytes(b"x")
    holding = Running("pin", "--json", mount.path / "f")
    next(holding.out)
    with stopped(mount):
        began = time.monotonic()
        code, err = holding.end(signal.SIGINT)
        assert time.monotonic() - began < LIMIT_S / 2
        assert code == NO_ANSWER
        assert f"the daemon does not answer (pid {mount.pid}, state T: stopped); the pin ends with this process" in err
    eventually(lambda: mount.pins() == [])


def test_pin_ends_with_its_command_when_the_daemon_has_stopped(mount: Mount) -> None:
    (mount.path / "f").write_bytes(b"x")
    holding = Running("pin", mount.path / "f", "--", "sh", "-c", "echo begun; exec sleep 60")
    assert next(holding.out) == "begun\n"
    with stopped(mount):
        code, err = holding.end(signal.SIGTERM)
        assert (code, "the daemon does not answer" in err) == (128 + signal.SIGTERM, True)
    eventually(lambda: mount.pins() == [])


def test_umount_force_lets_a_stopped_daemon_end(mount: Mount) -> None:
    (mount.path / "f").write_bytes(b"x")
    holder, breaker = mount.actor(), mount.actor()
    holder.pin(mount.path / "f", "n", "0:1,mode=lease,signal=none")
    with mount.trace() as trace:
        waiting = breaker.start(os.truncate, str(mount.path / "f"), 0)
        trace.until("break")
    mount.process.send_signal(signal.SIGSTOP)
    result = pinfs("umount", "--force", mount.path)
    assert (result.returncode, result.stderr, is_mounted(mount.path)) == (0, "", False)
    assert waiting.error() is not None
    assert mount.process.wait(LIMIT_S) == 0


# --- a daemon that hangs


@pytest.fixture
def mute(base: Path, root: None) -> Iterator[tuple[Path, int]]:
    """The mount point and the pid of a daemon that takes requests and answers none (mute.py)."""
    point = base / "mnt"
    point.mkdir()
    words = [sys.executable, str(REPO / "tests/cli/mute.py"), str(base), str(point)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"mounted\n"
            yield point, process.pid
        finally:
            process.kill()
            if is_mounted(point):
                force_umount(point)


@contextmanager
def unmounted_at_the_end(point: Path) -> Iterator[None]:
    """So that what waits for the mount ends, also where the test fails."""
    try:
        yield
    finally:
        if is_mounted(point):
            force_umount(point)


def test_no_verb_hangs_on_a_daemon_that_hangs(mute: tuple[Path, int]) -> None:
    """Calls that wait for it have been taken, and cannot be killed; what the verbs left behind ends with the mount."""
    point, pid = mute
    with subprocess.Popen(["stat", "-f", str(point)], stderr=subprocess.PIPE) as waiting, unmounted_at_the_end(point):
        check_verbs(point, pid, "[SR]")  # it runs while it takes a request
        result = pinfs("umount", "--force", point / ".")
        assert (result.returncode, is_mounted(point)) == (0, False)
        assert f"its daemon has not ended (pid {pid}, state S: " in result.stderr
        assert waiting.wait(LIMIT_S) == 1
