"""The verbs against a real mount: what an administrator types, and what comes back."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from support.actor import SYSTEM_PYTHON, eventually
from support.mounts import REPO, Mount, Trace, force_umount, is_mounted

SHARED_MOUNT_OPTIONS = ("allow_other", "break_timeout=20")
LIMIT_S = 60.0
"""How long a verb may take before it counts as hung. Never part of what a test asserts."""

PROGRAM = "from pinfs.cli.main import main; main()"
PINFS = (sys.executable, "-c", PROGRAM)
PATHS = {"PYTHONPATH": f"{REPO}:{Path(click.__file__).parents[1]}"}
"""Other users may be unable to run this interpreter; the system's finds the pure Python packages by this."""


def pinfs(*arguments: object, uid: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    words = [SYSTEM_PYTHON if uid else sys.executable, "-c", PROGRAM, *map(str, arguments)]
    how: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if uid else {}
    return subprocess.run(
        words, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=os.environ | PATHS, cwd="/", **how
    )


class Running:
    """A verb under way."""

    def __init__(self, *arguments: object) -> None:
        words = [str(word) for word in (*PINFS, *arguments)]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | PATHS, cwd="/"
        )
        assert self.process.stdout
        self.out = self.process.stdout

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Its exit status and what it said on stderr; first sends signal `number`, if there is one."""
        if number is not None:
            self.process.send_signal(number)
        _out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, err


def pins(mount: Mount, file: Path) -> list[dict[str, Any]]:
    answer = json.loads(pinfs("ls", file).stdout)
    assert answer["v"] == 1
    return list(answer["pins"])


@pytest.fixture
def mnt(shared_mount: Mount) -> Mount:
    return shared_mount


@pytest.fixture
def file(shared_dir: Path) -> Path:
    path = shared_dir / "data.bin"
    path.write_bytes(bytes(8192))
    path.chmod(0o666)
    return path


@pytest.fixture
def trace(mnt: Mount) -> Iterator[Trace]:
    with mnt.trace() as trace:
        yield trace


def holding(trace: Trace, *arguments: object) -> tuple[Running, dict[str, Any]]:
    """`pinfs pin ...`, and the event of its pin."""
    running = Running("pin", *arguments)
    return running, trace.until("pinned", pid=running.process.pid)


def cut(file: Path, size: int = 0) -> int | None:
    try:
        os.truncate(file, size)
    except OSError as error:
        return error.errno
    return None


# --- pin


def test_a_deny_pin_while_a_command_runs(mnt: Mount, file: Path) -> None:
    """The command itself tries to cut the file; afterwards it can be cut."""
    program = "import errno, os, sys\ntry: os.truncate(sys.argv[1], 0)\nexcept OSError as e: sys.exit(e.errno)"
    result = pinfs("pin", f"{file}:0:4096", "--note", "for a test", "--", sys.executable, "-c", program, file)
    assert (result.returncode, result.stderr) == (errno.EBUSY, "")
    assert pins(mnt, file) == []
    assert cut(file) is None


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -9 $$"], 137),
        (["/nowhere/x"], 127),
        (["/etc"], 126),
    ],
)
def test_the_status_of_the_command_is_passed_on(file: Path, command: Sequence[str], status: int) -> None:
    assert pinfs("pin", file, "--", *command).returncode == status


def test_signals_are_passed_on(file: Path, trace: Trace) -> None:
    script = "trap 'exit 33' USR1; echo up; while :; do sleep 0.05; done"
    running, _pinned = holding(trace, file, "--", "sh", "-c", script)
    assert running.out.readline() == "up\n"
    assert running.end(signal.SIGUSR1)[0] == 33


def test_the_pin_is_listed_with_its_holder(mnt: Mount, file: Path, trace: Trace) -> None:
    running, pinned = holding(trace, file, "--mode", "lease", "--note", "hello", "--", "sleep", "1000")
    (pin,) = pins(mnt, file)
    assert (pin["pid"], pin["note"], pin["mode"], pin["length"]) == (running.process.pid, "hello", "lease", 0)
    assert pin["id"] == pinned["pin"]
    (line,) = pinfs("ls", "--table", "-n", "-o", "ID,PATH", file).stdout.splitlines()
    assert line.split() == [str(pin["id"]), str(file)]
    assert running.end(signal.SIGTERM)[0] == 128 + signal.SIGTERM
    assert pins(mnt, file) == []


def test_a_lease_without_a_command_is_released_when_wanted(mnt: Mount, file: Path, trace: Trace) -> None:
    running, _pinned = holding(trace, file, "--mode", "lease")
    assert running.out.readline().startswith("pin ")
    assert cut(file) is None
    status, said = running.end()
    assert status == 0
    assert "wanted for truncate" in said


def test_a_deny_pin_without_a_command_until_interrupted(file: Path, trace: Trace) -> None:
    running, _pinned = holding(trace, file)
    assert running.out.readline().startswith("pin ")  # from here on it minds the signal
    assert cut(file) == errno.EBUSY
    assert running.end(signal.SIGINT)[0] == 0
    assert cut(file) is None


def test_on_break_term_ends_the_command(mnt: Mount, file: Path, trace: Trace) -> None:
    running, _pinned = holding(trace, file, "--mode", "lease", "--on-break", "term", "--", "sleep", "1000")
    assert cut(file) is None
    status, said = running.end()
    assert status == 128 + signal.SIGTERM
    assert "sent SIGTERM to the command" in said


def test_on_break_wait_keeps_the_bytes_until_the_command_ends(mnt: Mount, file: Path, trace: Trace) -> None:
    """The command reads the whole file after the break has begun: every byte is still there."""
    script = 'read line; wc -c < "$1"'
    words = [str(word) for word in (*PINFS, "pin", "--mode", "lease", file, "--", "sh", "-c", script, "sh", file)]
    pipe = subprocess.PIPE
    holder = subprocess.Popen(words, text=True, env=os.environ | PATHS, stdin=pipe, stdout=pipe, stderr=pipe)
    trace.until("pinned", pid=holder.pid)
    breaker = mnt.actor()
    waiting = breaker.start(os.truncate, file, 0)
    trace.until("break")
    out, said = holder.communicate("go\n", timeout=LIMIT_S)
    assert out.strip() == "8192"
    assert "kept until the end" in said
    waiting.result()
    assert file.stat().st_size == 0


def test_no_fork_makes_the_command_the_holder(mnt: Mount, file: Path, trace: Trace) -> None:
    running, pinned = holding(trace, "--no-fork", file, "--", "sleep", "1000")
    eventually(lambda: pins(mnt, file)[0]["comm"] == "sleep")
    assert pinned["pid"] == running.process.pid
    assert cut(file) == errno.EBUSY
    running.end(signal.SIGKILL)
    eventually(lambda: cut(file) is None)


def test_pid_pins_for_another_process_until_it_ends_or_is_released(mnt: Mount, file: Path) -> None:
    holder = mnt.actor()
    first = pinfs("pin", "--pid", holder.process.pid, f"{file}:0:100").stdout.strip()
    pinfs("pin", "--pid", holder.process.pid, f"{file}:100:100")
    assert {pin["pid"] for pin in pins(mnt, file)} == {holder.process.pid}
    assert pinfs("release", "-m", mnt.path, first).returncode == 0
    assert [pin["start"] for pin in pins(mnt, file)] == [100]
    holder.kill()
    eventually(lambda: pins(mnt, file) == [])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["{file}:8192:1"], 1), (["--pid", "4194303", "{file}"], 1), (["{dir}"], 1), (["{file}.no"], 12)],
)
def test_pins_that_cannot_be_had(file: Path, arguments: list[str], code: int) -> None:
    words = [word.format(file=file, dir=file.parent) for word in arguments]
    result = pinfs("pin", *words, *([] if "--pid" in words else ["--", "true"]))
    assert result.returncode == code
    assert result.stderr.count("\n") == 1, "one clear line"


@pytest.mark.parametrize("words", [["--pid", "{pid}"], ["--mode", "lease"]])
def test_a_pin_as_json(mnt: Mount, file: Path, words: list[str]) -> None:
    """The first line says it; without --pid a signal ends it then."""
    running = Running("pin", "--json", *(word.format(pid=mnt.actor().pid) for word in words), file)
    shown = json.loads(running.out.readline())
    (listed,) = pins(mnt, file)
    assert shown["v"] == 1
    assert {key: value for key, value in listed.items() if key in shown} == shown
    if "--pid" not in words:
        running.process.terminate()
    assert running.end() == (0, "")


def test_all_json_carries_its_version(mnt: Mount, file: Path, trace: Trace) -> None:
    running, _pinned = holding(trace, file)
    for words in (
        ["ls", mnt.path], ["ls", file], ["status", mnt.path], ["policy", "show", mnt.path],
        ["policy", "explain", file], ["doctor"],
    ):  # fmt: skip
        shown = json.loads(pinfs(*words, "--json").stdout)
        parts = [part for key in ("pins", "mounts") for part in shown.get(key, [])]
        assert {part["v"] for part in (shown, *parts)} == {1}, words
    running.end(signal.SIGINT)


def test_a_directory_is_no_file_to_pin(file: Path) -> None:
    for words in ([file.parent], ["--pid", os.getpid(), file.parent], ["--no-fork", file.parent, "true"]):
        result = pinfs("pin", *words)
        assert result.stderr == f"pinfs: {file.parent}: only regular files can be pinned\n"


# --- release, revoke, permissions


def test_others_see_the_range_but_not_the_holder_and_may_not_touch_it(mnt: Mount, file: Path, trace: Trace) -> None:
    running, pinned = holding(trace, file, "--note", "secret")
    shown = pinfs("ls", file, uid=1234)
    (pin,) = json.loads(shown.stdout)["pins"]
    assert (pin["id"], pin["mode"]) == (pinned["pin"], "deny")
    assert "secret" not in shown.stdout
    assert "pid" not in pin
    for verb in ("release", "revoke"):
        assert pinfs(verb, "-m", file, pinned["pin"], uid=1234).returncode == 5
    assert pinfs("revoke", "-m", file, pinned["pin"]).returncode == 0
    status, said = running.end()
    assert (status, "revoked by root" in said) == (0, True)


def test_no_such_pin(mnt: Mount) -> None:
    for verb in ("release", "revoke"):
        result = pinfs(verb, "-m", mnt.path, 999_999_999)
        assert (result.returncode, "no pin 999999999" in result.stderr) == (9, True)


# --- watch, status, policy, debug


def has_open(pid: int, name: str) -> bool:
    """Whether a process or a child of it has a file of that name open; it opens and closes others while we look."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (str(pid), *children):
        with suppress(FileNotFoundError):
            for fd in os.listdir(f"/proc/{one}/fd"):
                with suppress(FileNotFoundError):
                    if name in os.readlink(f"/proc/{one}/fd/{fd}"):
                        return True
    return False


def test_watch_shows_a_break_from_pin_to_release(mnt: Mount, file: Path) -> None:
    watching = Running("watch", "--json", "--count", 4, mnt.path)
    eventually(lambda: has_open(watching.process.pid, "trace"))
    with mnt.trace() as trace:
        running, pinned = holding(trace, file, "--mode", "lease")
        assert cut(file) is None
        running.end()
    events = [json.loads(line) for line in watching.out]
    assert watching.end()[0] == 0
    assert [(event["event"], event["pin"]) for event in events[:3]] == [
        ("pinned", pinned["pin"]), ("break", pinned["pin"]), ("released", pinned["pin"])]  # fmt: skip


def test_watch_of_everything_is_for_root(mnt: Mount) -> None:
    assert pinfs("watch", "--all", mnt.path, uid=1234).returncode == 5


def test_status_and_its_counters(mnt: Mount, file: Path, trace: Trace) -> None:
    running, _pinned = holding(trace, file)
    cut(file)
    (one,) = json.loads(pinfs("status", mnt.path).stdout)["mounts"]
    assert (one["source"], one["mountpoint"], one["pins"]) == (str(mnt.source), str(mnt.path), 1)
    assert one["counters"]["pinfs_refusals_total"] >= 1
    assert "refusals" in pinfs("status", "--table", mnt.path).stdout
    running.end(signal.SIGTERM)


def test_policy_at_run_time(mount: Mount) -> None:
    text = pinfs("policy", "show", mount.path).stdout
    assert pinfs("policy", "set", "-m", mount.path, "errno=ETXTBSY").returncode == 0
    (mount.path / "f").write_bytes(b"x")
    holder = mount.actor()
    holder.pin(mount.path / "f", "n", "0:1")
    assert cut(mount.path / "f") == errno.ETXTBSY
    old = mount.base / "old.toml"
    old.write_text(text)
    assert pinfs("policy", "set", "-m", mount.path, old).returncode == 0
    assert pinfs("policy", "show", mount.path).stdout == text
    assert cut(mount.path / "f") == errno.EBUSY
    assert pinfs("policy", "set", "-m", mount.path, "own=allow", uid=1234).returncode == 5


def test_policy_explain_names_the_rule(mount: Mount) -> None:
    rules = mount.base / "rules.toml"
    rules.write_text('[[rule]]\npath = "*.log"\nconflict = "break"\n')
    assert pinfs("policy", "set", "-m", mount.path, rules).returncode == 0
    answer = json.loads(pinfs("policy", "explain", mount.path / "a.log").stdout)
    assert (answer["rule"]["path"], answer["policy"]["conflict"]) == ("*.log", "break")


@pytest.mark.mount("break_timeout=600")
def test_top_and_ls_say_what_a_removal_waits_for(mount: Mount) -> None:
    file = mount.path / "f"
    file.write_bytes(bytes(4096))
    holder, breaker = mount.actor(), mount.actor()
    holder.pin(file, "held", "0:0,mode=lease,signal=none")
    cut = breaker.start(os.truncate, str(file), 0)
    eventually(lambda: json.loads((mount.path / ".pinfs/status").read_text())["waiting"] == 1)
    (one,) = json.loads(pinfs("top", "--once", "--every", "0.1", mount.path).stdout)["breaks"]
    assert (one["op"], one["pid"], [by["pid"] for by in one["holders"]]) == ("truncate", breaker.pid, [holder.pid])
    assert 0 < one["remaining_s"] <= 600
    (same,) = json.loads(pinfs("ls", "--process", holder.pid, mount.path).stdout)["breakers"]
    assert same["waits_for"] == one["waits_for"]
    assert json.loads(pinfs("ls", "--process", breaker.pid, mount.path).stdout)["breakers"] == []
    (foreign,) = json.loads(pinfs("top", "--once", "--every", "0.1", mount.path, uid=1234).stdout)["breaks"]
    assert not {"pid", "uid", "comm"} & foreign.keys()
    holder.release(file, "held")
    cut.result()


def test_debug_bundle_of_a_live_mount(mnt: Mount, tmp_path: Path) -> None:
    assert pinfs("debug", "-o", tmp_path / "bug.tar.gz", mnt.path).returncode == 0


# --- mount and umount


def test_umount_lists_holders_then_waits_then_ends_the_daemon(mount: Mount) -> None:
    file = mount.path / "f"
    file.write_bytes(b"x")
    with mount.trace() as trace:
        running, _pinned = holding(trace, file)
    refused = pinfs("umount", mount.path)
    assert refused.returncode == 4
    assert str(running.process.pid) in refused.stdout
    waiting = Running("umount", "--wait", LIMIT_S, mount.path)
    running.end(signal.SIGTERM)
    assert waiting.end() == (0, "")
    assert not is_mounted(mount.path)
    assert mount.process.wait(LIMIT_S) == 0


def test_umount_force_answers_waiting_breakers(mount: Mount) -> None:
    file = mount.path / "f"
    file.write_bytes(b"x")
    holder, breaker = mount.actor(), mount.actor()
    holder.pin(file, "n", "0:1,mode=lease,signal=none")
    with mount.trace() as trace:
        waiting = breaker.start(os.truncate, file, 0)
        trace.until("break")
    result = pinfs("umount", "--force", mount.path)
    assert (result.returncode, is_mounted(mount.path)) == (0, False)
    assert waiting.error() is not None


def test_umount_names_processes_with_open_files(mount: Mount) -> None:
    (mount.path / "f").write_bytes(b"x")
    reader = mount.actor()
    fd = reader(os.open, str(mount.path / "f"), os.O_RDONLY)
    result = pinfs("umount", mount.path)
    assert (result.returncode, f"{reader.process.pid} (" in result.stderr) == (4, True)
    reader(os.close, fd)


@pytest.fixture
def point(base: Path) -> Iterator[Path]:
    """Where a test mounts by hand; nothing stays there."""
    path = base / "mnt"
    path.mkdir()
    yield path
    while is_mounted(path):
        force_umount(path)


def test_daemon_stale_and_umount(base: Path, point: Path) -> None:
    """`--daemon` returns when the mount is usable; a killed daemon leaves a stale mount, which each verb recognises."""
    source = base / "source"
    source.mkdir()
    (source / "f").write_text("there")
    options = "rw,nofail,_netdev,x-systemd.automount,survive=off"
    assert pinfs("mount", source, point, "--daemon", "-o", options).returncode == 0
    assert (point / "f").read_text() == "there"
    (one,) = json.loads(pinfs("status", point).stdout)["mounts"]
    assert one["mountpoint"] == str(point), "only this test's own daemon may be killed"
    os.kill(one["pid"], signal.SIGKILL)
    eventually(lambda: pinfs("status", point).returncode == 7)
    assert pinfs("ls", point).returncode == 7
    assert "replace_stale" in pinfs("mount", source, point, "-d").stderr
    assert pinfs("umount", point).returncode == 0
    assert not is_mounted(point)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["{base}/nowhere", "{base}/mnt"], 6),
        (["{base}/source", "{base}/nowhere"], 6),
        (["{base}", "{base}/mnt"], 6),
        (["{base}/source", "{base}/mnt", "-o", "brake_timeout=3"], 11),
        (["{base}/source", "{base}/mnt", "-o", "on_timeout=explode"], 11),
        (["{base}/source", "{base}/mnt", "--policy", "{base}/nowhere.toml"], 11),
        (["{base}/source"], 2),
    ],
)
@pytest.mark.parametrize("how", [[], ["--daemon"]])
def test_mounts_that_fail_say_why_in_one_line(
    base: Path, point: Path, words: list[str], code: int, how: list[str]
) -> None:
    (base / "source").mkdir()
    result = pinfs("mount", *[word.format(base=base) for word in words], *how)
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert code == 2 or result.stderr.count("\n") == 1
    assert not is_mounted(point)


def test_a_mount_point_that_is_a_pinfs_already(mount: Mount) -> None:
    """Covering it is allowed, by any name of it, but not without a word; its own source is served already."""
    link, other = mount.base / "link", mount.base / "other"
    link.symlink_to(mount.path)
    other.mkdir()
    for point in (mount.path, link):
        result = pinfs("mount", other, point, "--daemon")
        assert (result.returncode, result.stderr) == (
            0,
            f"pinfs: warning: {point} already is a pinfs mount, of {mount.source}: "
            "it will be covered until the new one is unmounted\n",
        )
        assert pinfs("umount", point).returncode == 0
    result = pinfs("mount", mount.source, mount.path)
    assert result.returncode != 0
    assert "already serves" in result.stderr
    assert len([line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(mount.path) in line]) == 1


def test_options_of_other_file_systems(base: Path, point: Path) -> None:
    """A line of somebody's fstab for sshfs."""
    source = base / "source"
    source.mkdir()
    options = "rw,allow_other,default_permissions,auto_unmount,max_read=65536"
    result = pinfs("mount", source, point, "--daemon", "-o", options)
    assert (result.returncode, is_mounted(point)) == (0, True)
    assert [line.split(":")[:3] for line in result.stderr.splitlines()] == [
        ["pinfs", " warning", " auto_unmount"], ["pinfs", " warning", " max_read"]]  # fmt: skip
    assert pinfs("umount", point).returncode == 0
    result = pinfs("mount", source, point, "--daemon", "-o", "umask=022")
    assert (result.returncode, is_mounted(point)) == (11, False)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("mount.pinfs", ["{source}", "{point}", "-sno", "rw,nofail,break_timeout=3"]),
        ("/sbin/mount.fuse3", ["{source}", "{point}", "-t", "fuse.pinfs", "-o", "rw,nofail,break_timeout=3"]),
    ],
)
def test_as_mount8_calls_it(base: Path, point: Path, program: str, arguments: list[str]) -> None:
    """mount(8) looks for /sbin/mount.pinfs; for the type fuse.pinfs it runs mount.fuse3, which runs `pinfs`."""
    source, programs = base / "source", base / "bin"
    source.mkdir()
    programs.mkdir()
    for name in ("pinfs", "mount.pinfs"):
        script = programs / name
        script.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
        script.chmod(0o755)
    environment = os.environ | PATHS | {"PATH": f"{programs}:{os.environ['PATH']}"}
    words = [program, *(word.format(source=source, point=point) for word in arguments)]
    subprocess.run(words, env=environment, check=True, timeout=LIMIT_S)
    row = subprocess.run(["findmnt", "-no", "SOURCE,FSTYPE", point], capture_output=True, text=True, check=True)
    assert row.stdout.split() == [str(source), "fuse.pinfs"]
    assert json.loads(pinfs("policy", "show", "--json", point).stdout)["break_timeout"] == 3
    assert pinfs("umount", point).returncode == 0
