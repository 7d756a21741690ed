"""The daemon's beginning and end: what it refuses to mount, its way to the background, and that it always ends well."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bridge.helpers import abort
from support import mounts
from support.mounts import REPO, Mount

from pinfs.linux import syscalls

MOUNT_FAILED, STALE = 6, 7


def pinfs_mount(source: Path, point: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "mount.py"), str(source), str(point), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)


def refused(source: Path, point: Path, *more: str, code: int = MOUNT_FAILED) -> str:
    """What it says when it does not mount: one line, and nothing is mounted."""
    result = pinfs_mount(source, point, *more)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert not mounts.is_mounted(point)
    return result.stderr


# What is refused


def test_a_source_that_is_not_there(base: Path) -> None:
    assert "No such file or directory" in refused(base / "missing", base)


def test_a_source_that_is_a_file(base: Path) -> None:
    (base / "file").touch()
    (base / "mnt").mkdir()
    assert "Not a directory" in refused(base / "file", base / "mnt")


def test_a_mount_point_that_is_not_there(base: Path) -> None:
    (base / "source").mkdir()
    assert "No such file or directory" in refused(base / "source", base / "missing")


def test_a_mount_point_that_is_a_file(base: Path) -> None:
    (base / "source").mkdir()
    (base / "file").touch()
    assert "not a directory" in refused(base / "source", base / "file")


@pytest.mark.parametrize("point", ["source", "source/inner", "source/inner/most"])
def test_a_mount_point_inside_the_source(base: Path, point: str) -> None:
    (base / "source/inner/most").mkdir(parents=True)
    assert "inside the source" in refused(base / "source", base / point)


def test_a_mount_point_that_leads_into_the_source_by_a_symlink(base: Path) -> None:
    (base / "source/inner").mkdir(parents=True)
    (base / "link").symlink_to("source/inner")
    assert "inside the source" in refused(base / "source", base / "link")


def test_a_source_inside_the_mount_point(base: Path) -> None:
    (base / "point/inner/source").mkdir(parents=True)
    assert "inside the mount point" in refused(base / "point/inner/source", base / "point")


def test_a_source_that_another_pinfs_serves(mount: Mount, base: Path) -> None:
    assert "another pinfs already serves" in refused(mount.source, base)
    assert "another pinfs already serves" in refused(mount.source, base, "--daemon")


def test_passthrough_cannot_be_insisted_on_without_the_bridge(base: Path) -> None:
    for name in ("source", "mnt"):
        (base / name).mkdir()
    for more in ((), ("--daemon",)):
        said = refused(base / "source", base / "mnt", "-o", "bridge=off,passthrough=on", *more)
        assert "passthrough=on needs the bridge" in said


@pytest.mark.parametrize("more", [(), ("--daemon",), ("-o", "bridge=on")])
def test_a_kernel_that_is_too_old_for_the_bridge_is_told(base: Path, more: tuple[str, ...]) -> None:
    """No option is lost in silence: the mount is refused, and what serves it instead is named."""
    for name in ("source", "mnt"):
        (base / name).mkdir()
    program = "import pinfs.bridge.negotiate as n; n.OLDEST_MINOR = 999; from pinfs.cli.main import main; main()"
    command = [sys.executable, "-c", program, "mount", str(base / "source"), str(base / "mnt"), *more]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=REPO)
    assert result.returncode == MOUNT_FAILED, result.stderr
    assert "the bridge needs 7.999" in result.stderr
    assert "-o bridge=off" in result.stderr
    assert not mounts.is_mounted(base / "mnt")


def test_pyfuse3_that_cannot_be_had_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("source", "mnt", "broken"):
        (base / name).mkdir()
    (base / "broken/pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(base / "broken"))
    said = refused(base / "source", base / "mnt", "-o", "bridge=off")
    assert "pyfuse3 cannot serve the mount (bridge=off): libfuse3.so.3: cannot open" in said
    assert not list((base / "source").iterdir())


def test_a_source_is_free_again_after_the_end(mount: Mount) -> None:
    mount.remount()
    assert mount.status()["source"] == str(mount.source)


def test_passthrough_that_is_insisted_on_but_not_there(mount: Mount, base: Path) -> None:
    """On top of another pinfs with passthrough the stack is too deep: FILESYSTEM_MAX_STACK_DEPTH."""
    (mount.path / "inner").mkdir()
    (base / "upper").mkdir()
    assert mount.status()["passthrough"]
    with Mount(base / "upper", source=mount.path / "inner") as upper:
        (upper.path / "file").write_text("through two")
        top = base / "top"
        top.mkdir()
        assert "passthrough=on, but" in refused(upper.path, top, "-o", "passthrough=on")
    assert (mount.source / "inner/file").read_text() == "through two"


# Stale mounts


def test_a_stale_mount_is_recognised_and_replaced_when_asked(mount: Mount, base: Path) -> None:
    mount.process.kill()
    mount.process.wait()
    other = base / "other"
    other.mkdir()
    result = pinfs_mount(other, mount.path)
    assert result.returncode == STALE
    assert f"pinfs umount {mount.path}" in result.stderr
    assert "replace_stale" in result.stderr
    result = pinfs_mount(other, mount.path, "--daemon", "-o", "replace_stale", "--log-file", str(base / "log"))
    assert result.returncode == 0, result.stderr
    (mount.path / "file").write_text("alive")
    assert (other / "file").read_text() == "alive"
    umount_and_wait(mount.path)
    mount.reap()


def umount_and_wait(path: Path) -> None:
    """Unmount and wait for the daemon's end: only then is the source free."""
    pidfd = os.pidfd_open(json.loads((path / ".pinfs/status").read_text())["pid"])
    mounts.umount(path)
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)


# The background


def test_the_parent_returns_when_the_mount_is_usable(base: Path) -> None:
    for name in ("source", "mnt"):
        (base / name).mkdir()
    result = pinfs_mount(base / "source", base / "mnt", "--daemon", "--log-file", str(base / "log"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    (base / "mnt/file").write_text("at once")
    assert (base / "source/file").read_text() == "at once"
    pid = json.loads((base / "mnt/.pinfs/status").read_text())["pid"]
    assert os.getsid(pid) == pid, "a session of its own"
    umount_and_wait(base / "mnt")


def test_relative_paths_in_the_background(base: Path) -> None:
    for name in ("source", "mnt"):
        (base / name).mkdir()
    command = [sys.executable, str(REPO / "mount.py"), "source", "mnt", "--daemon", "--log-file", str(base / "log")]
    subprocess.run(command, cwd=base, check=True, timeout=30)
    (base / "mnt/file").touch()
    umount_and_wait(base / "mnt")


# Its life


def test_what_it_says_of_itself(mount: Mount) -> None:
    status = mount.status()
    assert status["bridge"] is status["passthrough"] is True
    assert status["page_pins"] == "yes"  # the source is on tmpfs
    assert status["bridge_unavailable_because"] is status["passthrough_unavailable_because"] is None
    assert {"PASSTHROUGH", "ATOMIC_O_TRUNC"} <= set(status["negotiated"])
    assert (status["pid"], status["mountpoint"]) == (mount.pid, str(mount.path))
    rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    row = next(row for row in rows if row[1] == str(mount.path))
    assert row[0] == str(mount.source)
    assert row[2] == "fuse.pinfs"
    assert {"rw", "nosuid", "nodev", "default_permissions"} <= set(row[3].split(","))


@pytest.mark.mount("passthrough=off")
def test_passthrough_switched_off(mount: Mount) -> None:
    assert mount.status()["passthrough"] is False
    assert "passthrough=off" in mount.status()["passthrough_unavailable_because"]
    assert mount.status()["page_pins"] == "reading"  # the pages are FUSE's


def libraries(pid: int) -> set[str]:
    """The names of the files that a process has mapped."""
    return {Path(line.split()[-1]).name for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}


def test_the_bridge_needs_no_pyfuse3(mount: Mount) -> None:
    """The bridge answers every opcode itself, the rare ones too (mknod, access, fsync of a directory)."""
    os.mkfifo(mount.path / "fifo")
    os.mknod(mount.path / "node", 0o644)
    assert os.access(mount.path / "node", os.R_OK)
    directory = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)
    assert sorted(os.listdir(mount.source)) == ["fifo", "node"]
    assert not [name for name in libraries(mount.pid) if "fuse" in name]


@pytest.mark.mount("bridge=off")
def test_plain_pyfuse3(mount: Mount) -> None:
    assert any(name.startswith("libfuse3") for name in libraries(mount.pid))
    assert (mount.status()["bridge"], mount.status()["passthrough"]) == (False, False)
    (mount.path / "file").write_bytes(b"x" * 100)
    os.setxattr(mount.path / "file", "user.pinfs.pin.a", b"0:50")
    with pytest.raises(OSError, match="busy"):
        os.truncate(mount.path / "file", 10)
    os.removexattr(mount.path / "file", "user.pinfs.pin.a")
    os.truncate(mount.path / "file", 10)
    with pytest.raises(OSError, match="not supported"):
        punch(mount.path / "file")


def punch(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        syscalls.fallocate(fd, syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE, 0, 4096)
    finally:
        os.close(fd)


@pytest.mark.parametrize("option", ["passthrough=on", "passthrough=off"])
@pytest.mark.parametrize("command", ["echo x >> {}", ": > {}", "truncate -s 1 {}"])
def test_an_ordinary_users_write_takes_the_set_id_bits(base: Path, option: str, command: str) -> None:
    """As on the backing itself, also where the kernel writes past the daemon."""
    with Mount(base, [option]) as mount:
        for file in (mount.path / "through", base / "behind"):
            file.write_bytes(b"program")
            file.chmod(0o6777)
            with open(file, "rb"):  # another process has it open, by passthrough
                subprocess.run(["sh", "-c", command.format(file)], user=12345, group=12345, extra_groups=[], check=True)
        assert oct((mount.source / "through").stat().st_mode) == oct((base / "behind").stat().st_mode)
        assert (mount.path / "through").read_bytes() == (base / "behind").read_bytes()


@pytest.mark.mount("ro")
def test_read_only(mount: Mount) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (mount.path / "file").touch()


def test_usr1_writes_state_and_stacks_to_the_log(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGUSR1)
    mount.stop()
    log = mount.log()
    assert "Guard.run" in log
    assert f"pid: {mount.pid}" in log


def test_a_report_at_the_limit_of_descriptors_ends_nothing(mount: Mount) -> None:
    """The report counts descriptors, which takes one (EMFILE)."""
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (3, resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)[1]))
    mount.process.send_signal(signal.SIGUSR1)
    while "descriptors: None" not in mount.log():
        assert mount.process.poll() is None
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    (mount.path / "file").write_text("alive")
    assert (mount.source / "file").read_text() == "alive"


def test_hup_reads_the_policy_again(base: Path) -> None:
    policy = base / "policy.toml"
    policy.write_text("break_timeout = 5\n")
    with Mount(base, [f"policy={policy}"]) as mount, mount.trace():
        policy.write_text("break_timeout = 7\n")
        mount.process.send_signal(signal.SIGHUP)
        while mount.policy()["break_timeout"] != 7:
            assert mount.process.poll() is None
        policy.write_text("nonsense = 1\n")
        mount.expect_log("refused")
        mount.process.send_signal(signal.SIGHUP)
        while "refused" not in mount.log():
            assert mount.process.poll() is None
        assert mount.policy()["break_timeout"] == 7


# Its end


@pytest.mark.parametrize("option", ["bridge=on", "bridge=off"])
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, "umount", "abort"])
def test_every_end_is_a_good_end(base: Path, tmp_path: Path, option: str, by: Any) -> None:
    with Mount(base, [option]) as mount:
        (mount.path / "file").write_text("x")
        match by:
            case "umount":
                mount.stop("umount")
            case "abort":
                abort(mount.path, tmp_path)
                assert mount.process.wait(20) == 0
                assert not mounts.is_mounted(mount.path)
                mount.reap()
            case _:
                mount.process.send_signal(by)
                assert mount.process.wait(20) == 0
                mount.reap()
        mount.check_log()
    assert not mounts.is_mounted(mount.path)


@pytest.mark.parametrize("option", ["bridge=on", "bridge=off"])
def test_breakers_that_wait_are_answered_first(base: Path, option: str) -> None:
    with Mount(base, [option]) as mount:
        file = mount.path / "file"
        file.write_bytes(b"x" * 100)
        os.setxattr(file, "user.pinfs.pin.a", f"0:50,mode=lease,signal=none,pid={os.getppid()}".encode())
        with mount.trace() as trace:
            program = f"import os; os.truncate({str(file)!r}, 0)"
            breakers = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(5)]
            trace.until("break")
        while mount.status()["waiting"] < 1:
            assert mount.process.poll() is None
        mount.process.send_signal(signal.SIGTERM)
        for _, err in [breaker.communicate(timeout=20) for breaker in breakers]:
            # Only the first is sure to wait by now: the others may come while the mount goes, or after that.
            assert any(word in err for word in (b"busy", b"connection abort", b"not connected", b"No such file"))
        assert {breaker.returncode for breaker in breakers} == {1}
        assert mount.process.wait(20) == 0
        mount.reap()


def test_a_busy_mount_is_detached(mount: Mount) -> None:
    (mount.path / "file").write_text("kept by the kernel")
    with open(mount.path / "file") as held:
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(20) == 0
        assert not mounts.is_mounted(mount.path)
        assert f"{os.getpid()} (" in mount.log()
        assert held.read() == "kept by the kernel"
    mount.reap()
