"""The keeper, with stand-ins for daemons: real processes, descriptors and signals, and no mount."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper.conftest import Bench, Daemon
from pinfs.keeper import log as keeper_log
from pinfs.keeper.system import _top_device

MB = 1_000_000


def taken(daemon: Daemon) -> dict[str, str]:
    """Waits for its turn; what it was given, by name."""
    said = daemon.receive_until("TAKE")
    assert said["LEFT"] == "0"
    contents: dict[str, str] = said["contents"]
    return contents


def test_the_next_daemon_gets_what_the_killed_one_had(bench: Bench) -> None:
    first = bench.serving()
    first.keep("n17", bench.file("unlinked"))
    first.keep("gone", bench.file("gone"))
    first.say("FDSTOREREMOVE=1\nFDNAME=gone")
    first.keep("source", bench.file("in its place"))
    first.kill()
    second = bench.next()
    said = second.receive_until("TAKE")
    assert said["contents"] == {"fuse": str(bench.directory / "fuse"), "n17": "content of unlinked",
                                "source": "content of in its place"}  # fmt: skip
    assert said["WHY"] == f"the daemon (pid {first.pid}) was killed by signal 9 (Killed)"
    assert int(said["DIED_NS"]) > 0
    assert f"WARNING: {said['WHY']}; the next one takes over" in bench.said()


def test_one_after_the_other(bench: Bench) -> None:
    daemon = bench.serving()
    daemon.say("PINFS_DEATHS=0")
    for status in range(7):
        daemon.exit(status)
        daemon = bench.next()
        assert set(taken(daemon)) == {"fuse", "source"}
        daemon.say("READY=1")


def test_a_clean_end(bench: Bench) -> None:
    first = bench.serving()
    first.say("STOPPING=1", "PINFS_ENDED=1")
    first.exit(0)
    assert bench.end() == 0
    bench.none_comes()
    assert bench.said() == ""


def test_a_daemon_that_dies_while_it_unmounts_has_no_successor(bench: Bench) -> None:
    first = bench.serving()
    first.say("STOPPING=1")
    first.kill()
    assert bench.end() == 128 + signal.SIGKILL
    bench.none_comes()


def test_a_first_daemon_that_cannot_begin_ends_the_keeper_with_its_status(bench: Bench) -> None:
    first = bench.start()
    first.say(bench.argv())
    first.exit(6)
    assert bench.end() == 6
    bench.none_comes()


def test_giving_up(bench: Bench) -> None:
    """Five daemons within a minute: the connection is closed, and the log says so."""
    daemon = bench.serving()
    for _ in range(4):
        daemon.kill()
        daemon = bench.next()
        taken(daemon)
        assert bench.is_held()
    daemon.kill()
    assert bench.end() == 1
    assert not bench.is_held()
    assert "5 daemons have died within 60 s: the mount is given up, and its callers get ENOTCONN" in bench.said()


def test_a_program_that_is_broken_is_given_up(bench: Bench) -> None:
    first = bench.serving(settings="PINFS_DEATHS=3", manner="die-at-once")
    first.kill()
    assert bench.end() == 1
    assert len(re.findall("has ended with status 3 before it took over", bench.said())) == 2


def test_a_program_that_is_not_there(bench: Bench) -> None:
    first = bench.serving(settings="PINFS_DEATHS=2")
    first.say("PINFS_ARGV=" + b"/nowhere\0mount".hex())
    first.kill()
    assert bench.end() == 1
    assert "has ended with status 127 before it took over" in bench.said()


def test_more_descriptors_than_one_message_takes(bench: Bench) -> None:
    first = bench.serving()
    names = {f"n{number}" for number in range(600)}
    for name in names:
        first.keep(name, bench.directory / "source")
    first.kill()
    second, got, left = bench.next(), set(), -1
    while left:
        said = second.receive_until("TAKE")
        assert len(said["FDNAMES"].split(":")) == said["count"]
        got |= set(said["FDNAMES"].split(":"))
        assert left in (-1, int(said["LEFT"]) + 1)
        left = int(said["LEFT"])
    assert got == {"fuse", "source", *names}


# A spare


def test_a_spare_waits_until_the_daemon_is_dead(bench: Bench) -> None:
    first = bench.serving(settings="PINFS_SPARE=1")
    spare = bench.next()
    assert "KEEPER" in spare.receive()
    first.kill()
    assert "fuse" in taken(spare)
    spare.say("READY=1", bench.argv())
    another = bench.next()
    assert another.receive()["KEEPER"]
    spare.say("PINFS_ENDED=1")
    another.ended()
    spare.exit(0)
    assert bench.end() == 0


def test_a_spare_that_dies_is_replaced(bench: Bench) -> None:
    first = bench.serving(settings="PINFS_SPARE=1")
    bench.next().kill()
    spare = bench.next()
    assert not first.has_ended()
    first.kill()
    assert "fuse" in taken(spare)


# Handing over


def test_a_daemon_leaves_when_the_next_one_is_ready_to_take_over(bench: Bench) -> None:
    first = bench.serving()
    first.say("PINFS_HANDOVER=1")
    second = bench.next()
    assert first.receive() == {"LEAVE": "1", "count": 0}
    first.keep("journal", bench.file("journal"))
    first.exit(14)
    said = second.receive_until("TAKE")
    assert said["WHY"] == "handed over"
    assert said["contents"]["journal"] == "content of journal"
    assert bench.said() == "", "no death, no warning"


def test_planned_ends_are_no_deaths(bench: Bench) -> None:
    daemon = bench.serving(settings="PINFS_DEATHS=1")
    for _ in range(3):
        daemon.say("PINFS_HANDOVER=1")
        daemon.receive_until("LEAVE")
        daemon.exit(0)
        daemon = bench.next()
        taken(daemon)
        daemon.say("READY=1")


def test_another_program_takes_over(bench: Bench) -> None:
    first = bench.serving(settings="PINFS_SPARE=1")
    spare = bench.next()
    first.say(f"PINFS_HANDOVER=1\n{bench.argv('new')}")
    spare.ended()
    second = bench.next()
    assert Path(f"/proc/{second.pid}/cmdline").read_bytes().endswith(b"\0new\0")
    first.receive_until("LEAVE")
    first.exit(0)
    assert "fuse" in taken(second)


def test_a_program_that_cannot_begin_takes_over_nothing(bench: Bench) -> None:
    first = bench.serving()
    first.say(f"PINFS_HANDOVER=1\n{bench.argv('die-at-once')}")
    assert "has ended with status 3 before it took over" in first.receive()["REFUSED"]
    first.kill()
    assert "fuse" in taken(bench.next()), "the program before"


def test_a_program_that_fails_to_take_over_is_followed_by_the_one_before(bench: Bench) -> None:
    first = bench.serving()
    first.say(f"PINFS_HANDOVER=1\n{bench.argv('die')}")
    second = bench.next()
    first.receive_until("LEAVE")
    first.exit(0)
    second.ended()
    third = bench.next()
    said = third.receive_until("TAKE")
    assert "has ended with status 9" in said["REFUSED"]
    assert "fuse" in said["contents"]


# Hanging daemons


def test_a_daemon_that_does_not_beat_is_killed(bench: Bench) -> None:
    first = bench.serving(settings="WATCHDOG_USEC=100000")
    first.ended()
    said = bench.next().receive_until("TAKE")
    assert "killed by signal 9" in said["WHY"]
    assert said["HUNG"] == "1"
    assert "does not beat for 0.1 s: it is killed" in bench.said()


def test_a_stopped_daemon_is_killed(bench: Bench) -> None:
    first = bench.serving(settings="WATCHDOG_USEC=1000000")
    first.kill(signal.SIGSTOP)
    first.ended()
    assert "fuse" in taken(bench.next())


def test_a_daemon_under_a_debugger_is_left_alone(bench: Bench) -> None:
    first = bench.serving()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(0x4206, first.pid, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PTRACE_SEIZE
    first.say("WATCHDOG_USEC=10000\nREADY=1")
    barrier(first, bench)
    assert not first.has_ended(0.3)
    first.say("WATCHDOG_USEC=0\nREADY=1")


def barrier(daemon: Daemon, bench: Bench) -> None:
    """Waits until the keeper has done all that came before: it closes what comes with BARRIER=1."""
    path = bench.directory / "barrier-fuse"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    daemon.say("BARRIER=1", path=path)
    os.set_blocking(reading, True)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b""
    path.unlink()


def test_a_barrier(bench: Bench) -> None:
    first = bench.serving()
    barrier(first, bench)


# Signals and unmounts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_keeper_ends_the_mount(bench: Bench, number: int) -> None:
    first = bench.serving()
    barrier(first, bench)
    bench.keeper.send_signal(number)
    first.ended()
    assert bench.end() == 128 + number
    bench.none_comes()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_are_passed_on(bench: Bench, number: int) -> None:
    first = bench.serving()
    barrier(first, bench)
    bench.keeper.send_signal(number)
    first.ended()
    assert f"was killed by signal {number}" in bench.next().receive_until("TAKE")["WHY"]


def test_a_signal_in_the_gap_ends_the_mount(bench: Bench) -> None:
    first = bench.serving(manner="slow")
    first.kill()
    first.ended()
    bench.keeper.send_signal(signal.SIGTERM)
    assert bench.end() in (0, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
    assert not bench.is_held()


def test_an_unmount_in_the_gap(bench: Bench) -> None:
    first = bench.serving()
    bench.hang_up()
    first.kill()
    assert bench.end() == 0
    bench.none_comes()
    assert bench.said() == ""


def test_a_daemon_that_has_kept_no_connection(bench: Bench) -> None:
    first = bench.start()
    first.say("READY=1\n" + bench.argv())
    first.kill()
    assert bench.end() == 1
    assert "has left no connection" in bench.said()


# The process


def memory_bytes(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def test_its_memory(bench: Bench) -> None:
    """The first keeper of all may have to compile its program."""
    first = bench.serving()
    barrier(first, bench)
    assert memory_bytes(bench.keeper.pid) < 12 * MB


def test_its_session_its_name_and_its_descriptors(bench: Bench, tmp_path: Path) -> None:
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    command = (str(inherited),)
    assert command
    first = bench.serving("session=1", "mount=/mnt/models")
    barrier(first, bench)
    process = Path(f"/proc/{bench.keeper.pid}")
    os.close(inherited)
    assert os.getsid(bench.keeper.pid) == bench.keeper.pid
    assert (process / "comm").read_text() == "pinfs-keeper\n"
    assert (process / "cmdline").read_bytes().endswith(b"\0mount=/mnt/models\0")
    assert os.readlink(process / "cwd") == "/"
    links = [os.readlink(link) for link in (process / "fd").iterdir()]
    assert str(tmp_path) not in links
    assert len(links) <= 3 + 2 + 2 + 2, links  # standard ones; socket, pidfd; wakeup pipe; fuse, source


def test_it_starts_daemons_in_sessions_of_their_own(bench: Bench) -> None:
    bench.serving().kill()
    second = bench.next()
    assert (second.ppid, second.sid) == (bench.keeper.pid, second.pid)


def test_the_store_has_a_limit(bench: Bench) -> None:
    first = bench.start(prefix=("prlimit", "--nofile=70:70"))
    assert bench.hello["FDSTORE"] == "6"
    first.say("READY=1\n" + bench.argv())
    first.keep("fuse", bench.directory / "fuse")
    for number in range(10):
        first.keep(f"n{number}", bench.file("f"))
    first.keep("n" * 256, bench.file("f"))
    first.kill()
    assert set(taken(bench.next())) == {"fuse", "n0", "n1", "n2", "n3", "n4"}


@pytest.mark.parametrize(
    "message",
    ["", "=", "FDSTORE=1", "FDSTORE=1\nFDNAME=a", "FDSTOREREMOVE=1\nFDNAME=unknown", "PINFS_ARGV=xyz", "PINFS_ARGV=",
     "PINFS_MOUNT=", "PINFS_MOUNT=1:zz", "WATCHDOG_USEC=-1", "PINFS_DEATHS=many", "\n\n", "x" * 60000],
)  # fmt: skip
def test_malformed_messages_mean_nothing(bench: Bench, message: str) -> None:
    first = bench.serving()
    if message:
        first.say(message)
    first.kill()
    assert set(taken(bench.next())) == {"fuse", "source"}


# Its words


@pytest.fixture
def syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "devlog"))
        monkeypatch.setattr(keeper_log, "SYSLOG", ("/nowhere/at/all", str(tmp_path / "devlog")))
        yield listening


def test_log_lines(tmp_path: Path, syslog: socket.socket, capfd: pytest.CaptureFixture[str]) -> None:
    hostile = 'a "name"\\ with\nnewline \x1b[31m é'
    keeper_log.Log(str(tmp_path / "log"), "info", as_json=True)("warning", hostile)
    line = json.loads((tmp_path / "log").read_text())
    assert (line["level"], line["logger"]) == ("warning", "pinfs.keeper")
    assert line["message"] == 'a "name"\\ with<a>newline <1b>[31m <e9>'
    keeper_log.Log("syslog", "info", as_json=False)("error", "bad")
    assert syslog.recv(1000).endswith(b"pinfs.keeper ERROR: bad")
    plain = keeper_log.Log("stderr", "warning", as_json=False)
    plain("info", "not this")
    plain("warning", "this")
    assert re.fullmatch(r"[-\d]+ [:\d]+,\d{3} pinfs.keeper WARNING: this\n", capfd.readouterr().err)
    keeper_log.Log("/nowhere/at/all", "info", as_json=False)("error", "has nowhere to go")


def test_the_mount_that_is_on_top_of_a_mount_point(tmp_path: Path, root: None) -> None:
    point = tmp_path / "a b\\c#"
    point.mkdir()
    assert _top_device(os.fsencode(point)) == -1
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    try:
        assert _top_device(os.fsencode(point)) == point.stat().st_dev
    finally:
        subprocess.run(["umount", point], check=True)
