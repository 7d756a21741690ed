"""Seals on real mounts: the kernel refuses what takes pinned bytes away, wherever it comes from (SPEC 12)."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import NewMount
from mounted.world import run
from support import acts
from support.actor import Actor, eventually
from support.mounts import Mount, force_umount

from pinfs.client import ioctl
from pinfs.linux.inodeflags import APPEND, get_flags

pytestmark = pytest.mark.usefixtures("root")

NOBODY = 65534
SIZE = 1 << 16
PUNCH, ZERO, COLLAPSE = 0x02 | 0x01, 0x10, 0x08


@pytest.fixture(params=["tmpfs", "disk"])
def mount(request: pytest.FixtureRequest, new_mount: NewMount) -> Mount:
    return new_mount(backing=request.param)


@pytest.fixture
def holder(mount: Mount) -> Actor:
    return mount.actor()


@pytest.fixture
def pinned(mount: Mount, holder: Actor) -> Path:
    """A file of A's that every user may write, its first half pinned."""
    path = mount.path / "f"
    path.write_bytes(b"A" * SIZE)
    path.chmod(0o666)
    holder.pin(path, "p", f"0:{SIZE // 2}")
    return path


def flagged(mount: Mount) -> list[str]:
    """The files of the source that carry the append-only flag."""
    return [path.name for path in mount.source.rglob("*") if path.is_file() and _flags(path) & APPEND]


def _flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return get_flags(fd)
    finally:
        os.close(fd)


def errno_of(call: Callable[[], object]) -> str | None:
    try:
        call()
    except OSError as failure:
        return errno.errorcode[failure.errno or 0]
    return None


def ok(*command: str | os.PathLike[str]) -> str:
    """Runs a command that must succeed; what it prints."""
    result = run(*command)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def pinfs(*words: object) -> subprocess.CompletedProcess[str]:
    """Runs a verb to its end."""
    return run(sys.executable, "-m", "pinfs.cli.main", *map(str, words))


def test_madv_remove_through_a_mapping_of_the_mount(mount: Mount, pinned: Path) -> None:
    """With passthrough no request is sent: only the kernel can refuse it."""
    assert mount.status()["passthrough"]
    nobody = mount.actor(uid=NOBODY)
    assert nobody.errno(acts.remove_pages, os.fspath(pinned), 0, 4096) == errno.EPERM
    assert (mount.source / "f").read_bytes() == b"A" * SIZE


def _behind(source: Path, before: int) -> dict[str, Callable[[], object]]:
    file = source / "f"
    (source / "other").write_bytes(b"o")
    return {
        "truncate": lambda: os.truncate(file, 0),
        "ftruncate, handle from before": lambda: os.ftruncate(before, 100),
        "punch, handle from before": lambda: acts.fallocate(before, PUNCH, 0, 4096),
        "zero, handle from before": lambda: acts.fallocate(before, ZERO, 0, 4096),
        "collapse, handle from before": lambda: acts.fallocate(before, COLLAPSE, 0, 4096),
        "O_TRUNC": lambda: os.open(file, os.O_WRONLY | os.O_TRUNC),
        "unlink": lambda: os.unlink(file),
        "rename over": lambda: os.rename(source / "other", file),
    }


def test_changes_behind_the_mount(mount: Mount, holder: Actor) -> None:
    path = mount.path / "f"
    path.write_bytes(b"A" * SIZE)
    before = os.open(mount.source / "f", os.O_RDWR)
    holder.pin(path, "p", "0:0")
    try:
        done = {name: errno_of(act) for name, act in _behind(mount.source, before).items()}
        assert done == dict.fromkeys(done, "EPERM")
        os.pwrite(before, b"B", 0)
    finally:
        os.close(before)
    assert path.read_bytes() == b"B" + b"A" * (SIZE - 1)


def test_data_is_written_mapped_and_opened_as_ever(mount: Mount, pinned: Path) -> None:
    nobody = mount.actor(uid=NOBODY)
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND):
        fd = nobody(os.open, pinned, flags)
        nobody(os.pwrite, fd, b"W", 0)
        nobody(os.close, fd)
    with pinned.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapping:
        mapping[10:13] = b"map"
        file.seek(0, os.SEEK_END)
        file.write(b"grown")
    assert (mount.source / "f").read_bytes()[10:13] == b"map"
    assert flagged(mount) == ["f"]


def _permitted(path: Path) -> dict[str, Callable[[], object]]:
    """Calls on a file whose first half is pinned, which take none of that away."""
    name, other = os.fspath(path), os.fspath(path.with_name("other"))
    return {
        "truncate beside": lambda: os.truncate(name, SIZE - 4096),
        "truncate to more": lambda: os.truncate(name, SIZE * 2),
        "punch beside": lambda: _on(name, lambda fd: acts.fallocate(fd, PUNCH, SIZE // 2, 4096)),
        "prealloc": lambda: _on(name, lambda fd: acts.fallocate(fd, 0, 0, SIZE * 3)),
        "chmod": lambda: os.chmod(name, 0o640),
        "chown": lambda: os.chown(name, 1, 1),
        "utimes": lambda: os.utime(name, (1, 2)),
        "utimes now": lambda: os.utime(name),
        "link": lambda: os.link(name, other),
        "unlink of a link": lambda: os.unlink(other),
        "rename": lambda: os.rename(name, other),
        "rename back": lambda: os.rename(other, name),
        "setxattr": lambda: os.setxattr(name, "user.x", b"1"),
        "removexattr": lambda: os.removexattr(name, "user.x"),
        "ACL": lambda: ok("setfacl", "-m", "u:1:rw", name),
        "no ACL": lambda: ok("setfacl", "-b", name),
        "exchange": lambda: _exchange_twice(name, other),
        "chattr": lambda: ok("chattr", "+d", name),
        "set-id bits": lambda: os.chmod(name, 0o6755),  # the one kind of file that has no seal
        "write that drops them": lambda: _on(name, lambda fd: os.pwrite(fd, b"A", 0)),
        "chmod again": lambda: os.chmod(name, 0o755),
        "file capabilities": lambda: ok("setcap", "cap_net_raw+ep", name),
        "write that drops these": lambda: _on(name, lambda fd: os.pwrite(fd, b"A", 0)),
        "unlink": lambda: os.unlink(name),
    }


def _exchange_twice(name: str, other: str) -> None:
    Path(other).touch()
    acts.exchange(name, other)
    acts.exchange(name, other)


def _on(name: str, act: Callable[[int], object]) -> object:
    fd = os.open(name, os.O_RDWR)
    try:
        return act(fd)
    finally:
        os.close(fd)


def test_what_pins_permit_works_and_leaves_the_seal(mount: Mount, pinned: Path) -> None:
    if not shutil.which("setfacl"):
        pytest.skip("needs setfacl")
    for name, act in _permitted(pinned).items():
        assert (name, errno_of(act)) == (name, None)
        if name != "unlink":
            assert (name, bool(flagged(mount))) == (name, name not in ("set-id bits", "write that drops them"))
    assert mount.status()["sealed_files"] == 1  # the file without a name is still pinned


def test_what_pins_refuse_is_refused_by_them(mount: Mount, pinned: Path) -> None:
    """EBUSY, never the EPERM of the seal."""
    for act in (
        lambda: os.truncate(pinned, 0),
        lambda: os.open(pinned, os.O_RDWR | os.O_TRUNC),
        lambda: _on(os.fspath(pinned), lambda fd: acts.fallocate(fd, PUNCH, 0, 4096)),
    ):
        assert errno_of(act) == "EBUSY"
    mount.policy('unlink = "deny"')
    assert errno_of(lambda: os.unlink(pinned)) == "EBUSY"


def test_lsattr_and_chattr_show_and_set_the_owners_flag(mount: Mount, pinned: Path) -> None:
    def shown() -> bool:
        return "a" in ok("lsattr", pinned).split()[0]

    assert not shown()
    ok("chattr", "+a", pinned)
    assert (shown(), errno_of(lambda: os.truncate(pinned, SIZE - 1))) == (True, "EPERM")
    mount.stop()
    assert flagged(mount) == ["f"]  # it is the owner's
    ok("chattr", "-a", mount.source / "f")


@pytest.mark.parametrize("end", ["release", "death", "revoke", "close"])
def test_no_seal_outlasts_the_last_pin(mount: Mount, holder: Actor, end: str) -> None:
    path = mount.path / "f"
    path.write_bytes(b"A" * SIZE)
    if end == "close":
        fd = holder(os.open, path, os.O_RDWR)
        holder(acts.ioctl, fd, ioctl.PIN, ioctl.PinRequest(0, 1, ioctl.DENY, 0).pack())
    else:
        holder.pin(path, "p", "0:0")
    assert flagged(mount) == ["f"]
    if end == "release":
        holder.release(path, "p")
    elif end == "death":
        holder.kill()
    elif end == "revoke":
        assert pinfs("revoke", "-m", mount.path, mount.pins()[0]["id"]).returncode == 0
    else:
        holder(os.close, fd)
    eventually(lambda: not flagged(mount))
    assert mount.status()["sealed_files"] == 0


def test_a_lease_that_is_broken(mount: Mount, holder: Actor) -> None:
    path = mount.path / "f"
    path.write_bytes(b"A" * SIZE)
    holder.pin(path, "p", "0:0,mode=lease,signal=none")
    with mount.trace() as trace:
        cut = mount.actor().start(os.truncate, path, 0)
        trace.until("break")
        assert errno_of(lambda: os.truncate(mount.source / "f", 0)) == "EPERM"
        holder.release(path, "p")
        cut.result()
    assert path.stat().st_size == 0
    eventually(lambda: not flagged(mount))


@pytest.mark.parametrize("by", ["signal", "umount"])
def test_the_end_of_the_mount_lifts_all(mount: Mount, holder: Actor, by: str) -> None:
    names = [f"f{n}" for n in range(100)]
    for name in names:
        (mount.path / name).write_bytes(b"A")
        holder.pin(mount.path / name, "p", "0:0")
    assert sorted(flagged(mount)) == sorted(names)
    mount.stop(by)
    assert flagged(mount) == []


def test_being_told_to_end_again_and_again_does_not_keep_it_from_lifting_all(mount: Mount, holder: Actor) -> None:
    """A keeper passes on the signal that its daemon has got as well."""
    names = [f"f{n}" for n in range(300)]
    for name in names:
        (mount.path / name).write_bytes(b"A")
        holder.pin(mount.path / name, "p", "0:0")
    while not _has_ended(mount, within_s=0.002):
        mount.process.send_signal(signal.SIGTERM)
    mount.reap()
    assert mount.process.returncode == 0
    assert flagged(mount) == []


def _has_ended(mount: Mount, within_s: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        mount.process.wait(within_s)
    return mount.process.returncode is not None


def _killed(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGKILL)
    mount.process.wait()
    force_umount(mount.path)
    mount.reap()


def test_pins_hold_without_a_daemon_until_the_next_mount(mount: Mount, pinned: Path) -> None:
    _killed(mount)
    file = mount.source / "f"
    assert [errno_of(lambda: os.truncate(file, 0)), errno_of(file.unlink)] == ["EPERM", "EPERM"]
    assert file.read_bytes() == b"A" * SIZE
    mount._start(())
    assert flagged(mount) == []
    assert "lifted the seals of 1 files" in mount.log()
    os.truncate(file, 0)


def test_unseal_finds_what_is_left_behind(mount: Mount, pinned: Path) -> None:
    assert pinfs("unseal", mount.source).returncode == 4  # it is being served
    pinned.rename(pinned.with_name("moved"))
    _killed(mount)
    findings = pinfs("doctor", "--table").stdout
    assert f"1 files in {mount.source} are still sealed" in findings.replace("\n", " ")
    assert pinfs("unseal", "--dry-run", mount.source).stdout.endswith("sealed: 1 files\n")
    assert flagged(mount) == ["moved"]
    assert pinfs("unseal", mount.source).stdout.endswith("unsealed: 1 files\n")
    assert flagged(mount) == []


def test_a_scan_finds_what_the_list_has_lost(mount: Mount, pinned: Path) -> None:
    _killed(mount)
    for path in Path(os.environ["PINFS_STATE_DIRECTORY"]).iterdir():
        path.write_bytes(b"rot")
    assert pinfs("unseal", mount.source).stdout.endswith("unsealed: 0 files\n")
    assert pinfs("unseal", "--scan", mount.source).stdout.endswith("f\nunsealed: 1 files\n")
    assert flagged(mount) == []


def test_no_flag_is_left_after_a_thousand_rounds(mount: Mount, holder: Actor) -> None:
    """Pins, cuts, renames, links and removals of files that come and go."""
    for number in range(1000):
        path = mount.path / f"f{number % 7}"
        path.unlink(missing_ok=True)
        path.write_bytes(b"A" * 8192)
        holder.pin(path, "p", "0:4096")
        os.truncate(path, 4096)
        os.rename(path, mount.path / "moved")
        if number % 3:
            holder.release(mount.path / "moved", "p")
        if number % 2:
            os.link(mount.path / "moved", mount.path / f"l{number % 11}")
            os.unlink(mount.path / f"l{number % 11}")
        os.unlink(mount.path / "moved") if number % 5 else os.replace(mount.path / "moved", path)
    holder.kill()
    eventually(lambda: mount.status()["sealed_files"] == 0)
    assert flagged(mount) == []


def test_a_mount_that_seals_nothing_says_why(new_mount: NewMount) -> None:
    command = ("setpriv", "--bounding-set=-linux_immutable", "--inh-caps=-all")
    mount = new_mount(prefix=command)
    status = mount.status()
    assert (status["seal"], "CAP_LINUX_IMMUTABLE" in status["seal_unavailable_because"]) == (False, True)
    path = mount.path / "f"
    path.write_bytes(b"A")
    mount.actor().pin(path, "p", "0:0")
    assert (flagged(mount), mount.pins()[0]["sealed"]) == ([], False)
    mount.policy('seal = "require"')
    assert mount.actor().errno(os.setxattr, os.fspath(path), "user.pinfs.pin.q", b"0:0") == errno.EOPNOTSUPP


def test_what_is_sealed_is_shown(mount: Mount, pinned: Path) -> None:
    assert mount.pins()[0]["sealed"] is True
    assert mount.metrics()["pinfs_sealed_files"] == 1
    assert pinfs("ls", "--table", "-o", "SEALED", pinned).stdout.split() == ["SEALED", "yes"]


def test_subprocesses_see_nothing_of_it(mount: Mount, pinned: Path) -> None:
    """rm, mv and cp of a pinned file."""
    moved = mount.path / "moved"
    ok("mv", pinned, moved)
    ok("cp", moved, pinned)
    ok("rm", pinned)
    ok("rm", moved)


@pytest.mark.parametrize("option", ["passthrough=off", "bridge=off"])
def test_files_of_other_kinds_of_mounts_are_sealed_too(new_mount: NewMount, option: str) -> None:
    mount = new_mount(option)
    path = mount.path / "f"
    path.write_bytes(b"A" * SIZE)
    holder = mount.actor()
    holder.pin(path, "p", "0:0")
    assert (flagged(mount), errno_of(lambda: os.truncate(mount.source / "f", 0))) == (["f"], "EPERM")
    with path.open("r+b") as file:
        file.write(b"B")
    path.chmod(0o600)
    holder.release(path, "p")
    eventually(lambda: not flagged(mount))
    assert path.read_bytes() == b"B" + b"A" * (SIZE - 1)
