"""doctor and debug: what they find, and what they keep to themselves."""

import errno
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from cli.fakemount import STATUS, FakeMount
from support.mounts import BACKINGS

import pinfs
from pinfs.cli import backing, export, machine, served
from pinfs.cli.findings import Finding, Level
from pinfs.pure import is_compiled


def found(directory: Path, check: str) -> Finding:
    (finding,) = [finding for finding in backing.check_backing(str(directory)) if finding.check == check]
    return finding


def test_this_machine_can_run_pinfs(run) -> None:
    result = run("doctor")
    findings = json.loads(result.stdout)["findings"]
    assert result.exit_code == 0
    assert {"kernel", "/dev/fuse", "libfuse", "pyfuse3", "passthrough", "descriptors"} <= {f["check"] for f in findings}
    assert all(finding["fix"] for finding in findings if finding["level"] != "ok")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, "poll=on: answers poll(2)"),
        ({"poll": True, "poll_mode": "auto"}, "until io_uring"),
        ({"poll": False, "poll_mode": "auto"}, "fast through io_uring"),
    ],
)
def test_what_a_mount_is_good_for(run, fake: FakeMount, status: dict[str, object], words: str) -> None:
    fake.write("status", json.dumps(status))
    (finding,) = [one for one in json.loads(run("doctor").stdout)["findings"] if one["check"] == str(fake.point)]
    assert finding["level"] == "ok"
    assert words in finding["text"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"version": "0.1.7"}, f"is served by pinfs 0.1.7, and this is {pinfs.__version__}"),
        ({"compiled": False}, "is served by an interpreted pinfs"),
        ({"survives": {"keeper": "pinfs", "upgrade_refused": "it is too old"}}, "was refused: it is too old"),
    ],
)
def test_a_mount_that_another_pinfs_serves(
    run, fake: FakeMount, monkeypatch: pytest.MonkeyPatch, status: dict[str, object], words: str
) -> None:
    monkeypatch.setattr(served, "is_compiled", lambda: True)
    fake.write("status", json.dumps(status))
    (finding,) = [one for one in json.loads(run("doctor").stdout)["findings"] if words in one["text"]]
    assert (finding["level"], finding["check"]) == ("warn", str(fake.point))
    assert f"pinfs upgrade {fake.point}" in finding["fix"]


def test_a_mount_that_this_pinfs_serves(run, fake: FakeMount) -> None:
    fake.write("status", json.dumps({"version": pinfs.__version__, "compiled": is_compiled()}))
    (finding,) = [one for one in json.loads(run("doctor").stdout)["findings"] if one["check"] == str(fake.point)]
    assert finding["level"] == "ok"


@pytest.mark.parametrize(("number", "level"), [(errno.ENOTTY, "warn"), (errno.EPERM, "ok"), (errno.EOPNOTSUPP, "ok")])
def test_survival_takes_a_kernel_that_sends_again(monkeypatch: pytest.MonkeyPatch, number: int, level: str) -> None:
    monkeypatch.setattr(machine, "_backing_open_errno", lambda: number)
    assert machine._survival().level.value == level


def test_a_mount_that_does_not_answer_is_found(run, fake: FakeMount) -> None:
    (fake.point / ".pinfs/status").unlink()
    (finding,) = [one for one in json.loads(run("doctor").stdout)["findings"] if one["check"] == str(fake.point)]
    assert (finding["level"], finding["fix"]) == ("warn", f"pinfs umount {fake.point}")


def test_failures_have_an_exit_code_and_a_cure(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    result = run("doctor", "--table")
    assert result.exit_code == 8
    assert "to fix: run Linux" in result.stdout


@pytest.mark.parametrize(
    ("number", "level", "words"), [("ENOTTY", "warn", "6.9"), ("EOPNOTSUPP", "warn", "CONFIG"), ("EPERM", "ok", "")]
)
def test_passthrough_is_probed(monkeypatch: pytest.MonkeyPatch, number: str, level: str, words: str) -> None:
    monkeypatch.setattr(machine, "_backing_open_errno", lambda: getattr(__import__("errno"), number))
    monkeypatch.setattr(machine, "effective_capabilities", lambda: {"sys_admin"})
    finding = machine._passthrough()
    assert finding.level == level
    assert words in finding.fix


def test_a_user_needs_a_name_to_mount(root: None) -> None:
    """As `podman run --user` gives one, and `setpriv --reuid` does not."""
    words = ["setpriv", "--reuid=123456", "--clear-groups", "--inh-caps=+dac_read_search"]
    words += ["--ambient-caps=+dac_read_search", sys.executable, "-m", "pinfs.cli.main", "doctor", "--json"]
    said = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout
    (finding,) = [finding for finding in json.loads(said)["findings"] if finding["check"] == "fusermount3"]
    assert (finding["level"], finding["text"][-15:]) == ("fail", "for user 123456")


def test_a_user_needs_mtab_to_unmount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "MTAB", tmp_path / "mtab")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert "refuses to unmount" in machine._fusermount().text
    (tmp_path / "mtab").symlink_to("/proc/self/mounts")
    assert machine._fusermount().level is Level.OK
    (tmp_path / "mtab").unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert machine._fusermount().level is Level.OK


@pytest.mark.parametrize(("proc_of_its_own", "level"), [([], "fail"), (["--mount-proc"], "ok")])
def test_the_proc_of_another_namespace(root: None, proc_of_its_own: list[str], level: str) -> None:
    """Where /proc shows other numbers than the daemon is told, it would take one process for another."""
    words = ["unshare", "--pid", "--fork", *proc_of_its_own, sys.executable, "-m", "pinfs.cli.main", "doctor", "--json"]
    said = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout
    (finding,) = [finding for finding in json.loads(said)["findings"] if finding["check"] == "/proc"]
    assert finding["level"] == level


def test_tmpfs() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        assert "tmpfs" in found(Path(directory), "backing").text
        assert found(Path(directory), "page pins").text == "yes, for reading and writing"


def test_missing_and_wrong_directories(run, tmp_path: Path) -> None:
    assert run("doctor", tmp_path / "nowhere").exit_code == 12
    (tmp_path / "file").write_text("")
    assert run("doctor", tmp_path / "file").exit_code == 12


@pytest.mark.parametrize(
    ("kind", "level"),
    [("fuse.pinfs", "fail"), ("fuse.sshfs", "warn"), ("overlay", "warn"), ("nfs4", "warn"), ("ext4", "ok")],
)
def test_types_of_backing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, level: str) -> None:
    monkeypatch.setattr(backing, "filesystem_type", lambda _path: kind)
    assert found(tmp_path, "backing").level == level


def test_export_is_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "unavailable_because", lambda _fd: "the test says so")
    finding = export.check_export(str(tmp_path))
    assert (finding.level, "the test says so" in finding.text) == (Level.WARN, True)
    monkeypatch.setattr(export, "unavailable_because", lambda _fd: "")
    for by_number, words in ((lambda _fd: None, "end with the daemon"), (lambda _fd: abs, "nfs_export=on")):
        monkeypatch.setattr(export, "by_number", by_number)
        finding = export.check_export(str(tmp_path))
        assert (finding.level, words in finding.text) == (Level.OK, True)


def test_copy_on_write_and_reflinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "filesystem_type", lambda _path: "btrfs")
    assert found(tmp_path, "copy on write").level is Level.FAIL
    monkeypatch.setattr(backing, "_inode_flags", lambda _fd: 0x00800000)
    assert found(tmp_path, "copy on write").level is Level.OK
    monkeypatch.setattr(backing, "filesystem_type", lambda _path: "xfs")
    monkeypatch.setattr(backing, "_can_clone", lambda _directory, _fd: True)
    assert found(tmp_path, "copy on write").level is Level.WARN


def test_shared_extents_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    flags = {str(tmp_path / "a"): 0x2001, str(tmp_path / "b"): 0x1}
    monkeypatch.setattr(backing, "_extent_flags", lambda path: flags[path])
    finding = found(tmp_path, "shared extents")
    assert (finding.level, "1 of 2 files" in finding.text, finding.text.endswith(": a")) == (Level.WARN, True, True)


def test_extents_of_a_real_file_end_with_the_last() -> None:
    with tempfile.TemporaryFile(dir=BACKINGS["disk"]) as file:  # /tmp may be a tmpfs, which tells of no extents
        for block in range(0, 400, 2):  # more extents than one call carries
            file.seek(block * 65536)
            file.write(bytes([1]) * 4096)
        file.flush()
        os.fsync(file.fileno())
        assert backing._all_extent_flags(file.fileno()) & 0x1
        assert len(backing._extents_from(file.fileno(), 0)) > 100


def test_dax_attribute_is_read_by_statx() -> None:
    attributes, mask = backing.statx_attributes("/proc/self/exe")
    assert mask, "the kernel names the attributes that it knows"
    assert not attributes & backing.STATX_ATTR_DAX
    with pytest.raises(FileNotFoundError):
        backing.statx_attributes("/nowhere/at/all")


def test_debug_bundle_keeps_names_and_notes_to_itself(run, fake: FakeMount, tmp_path: Path) -> None:
    fake.pins({"note": "SECRET", "name": "SECRET", "comm": "SECRET", "path": "SECRET/file"})
    fake.file.write_text("SECRET")
    removal = {"op": "truncate", "path": "SECRET", "comm": "SECRET", "mapped_by": [{"pid": 1, "comm": "SECRET"}]}
    fake.write("status", json.dumps(STATUS | {"breakers": [removal], "in_kernel": [removal]}))
    bundle = tmp_path / "bug.tar.gz"
    assert run("debug", "-o", bundle).exit_code == 0
    assert bundle.stat().st_mode & 0o777 == 0o600
    with tarfile.open(bundle) as archive:
        parts = {
            member.name.split("/", 1)[1]: file.read() for member in archive if (file := archive.extractfile(member))
        }
    assert {"versions.json", "doctor.json", "mount-0/pins", "mount-0/policy", "mount-0/metrics"} <= set(parts)
    assert json.loads(parts["mount-0/pins"])["id"] == 7
    assert json.loads(parts["mount-0/status"])["breakers"] == [{"op": "truncate", "mapped_by": [{"pid": 1}]}]
    assert all(b"SECRET" not in part for part in parts.values())


@pytest.mark.parametrize(
    ("programs", "level", "words"),
    [
        ([], Level.WARN, "mount.fuse3 is not installed"),
        (["mount.fuse3"], Level.WARN, "/bin/sh: pinfs: not found"),
        (["mount.fuse3", "pinfs"], Level.OK, "by mount.fuse3"),
        (["mount.fuse.pinfs"], Level.OK, "find pinfs"),
    ],
)
def test_whether_mount8_finds_pinfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: list[str], level: Level, words: str
) -> None:
    for name in programs:
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(machine, "SYSTEM_PATH", str(tmp_path))
    finding = machine._mount8()
    assert (finding.level, words in finding.text) == (level, True)
    assert ("packaging/install" in finding.fix) == (level is Level.WARN)
