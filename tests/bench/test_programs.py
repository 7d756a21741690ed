"""The rows of whole programs: what they do, that they read nothing of the user's, and that nothing stays of them."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.fakes import Interrupting, Silent, children
from click.testing import CliRunner
from support.mounts import Mount

from pinfs.bench import material as material_module
from pinfs.bench.commands import program, run_together
from pinfs.bench.commands import run as run_program
from pinfs.bench.material import Material, environment, tree
from pinfs.bench.places import Room, open_places, room
from pinfs.bench.programs import GROUP, ROWS
from pinfs.bench.rows import Batch, Skip
from pinfs.bench.run import Plan, run
from pinfs.cli.bench import bench
from pinfs.cli.exitcodes import ExitCode

NAMES = [name for name, _, _ in ROWS]
FILES = 45
"""Two directories and a part of a third."""
COMMAND = [sys.executable, "-c", "from pinfs.cli.main import main; main()", "bench"]


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where archives and repositories are made."""
    path = tmp_path / "outside"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return path


@pytest.fixture
def material() -> Iterator[Material]:
    with Material() as material:
        yield material


def contents(directory: Path) -> dict[str, bytes]:
    """All files below it, but for git's own."""
    files = [path for path in directory.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


class Seen:
    """A directory in which a program runs for real; what it leaves is looked at before the batch removes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trees: dict[str, dict[str, bytes]] = {}
        self._remove = shutil.rmtree
        monkeypatch.setattr(shutil, "rmtree", self._look)

    def _look(self, path: str, ignore_errors: bool = False) -> None:
        if not os.path.basename(path).startswith("pinfs-bench."):
            self.trees[os.path.basename(path)] = contents(Path(path))
        self._remove(path, ignore_errors=ignore_errors)


def batch_of(name: str, material: Material, where: Room, files: int = FILES) -> Iterator[Batch]:
    (prepare,) = [prepare for row, _, prepare in ROWS if row == name]
    return prepare(material, where, files)


# What the programs do


@pytest.mark.parametrize(("name", "trees"), [("untar", ["0"]), ("untar, 4 processes", ["0", "1", "2", "3"]),
                                             ("git clone", ["clone"])])  # fmt: skip
def test_all_files_are_there(
    two: tuple[str, str], material: Material, name: str, trees: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    with open_places(two[:1]) as places, room(places[0]) as where:
        batches = batch_of(name, material, where)
        batch = next(batches)
        assert batch() > 0
        assert batch() > 0
        assert sorted(seen.trees) == trees
        assert all(found == dict(tree(FILES)) for found in seen.trees.values())
        assert os.listdir(where.path) == []


def test_many_files_are_in_directories_of_a_thousand(
    two: tuple[str, str], material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    with open_places(two[:1]) as places, room(places[0]) as where:
        next(batch_of("create many files", material, where, 2001))()
        assert {name: len(found) for name, found in seen.trees.items()} == {"000000": 1000, "001000": 1000, "002000": 1}
        assert os.listdir(where.path) == []


def test_rm_leaves_nothing(two: tuple[str, str], material: Material) -> None:
    with open_places(two[:1]) as places, room(places[0]) as where:
        next(batch_of("rm -r", material, where))()
        assert os.listdir(where.path) == []


def test_git_status_reads_no_file(two: tuple[str, str], material: Material) -> None:
    """The index is younger than the files, so that a look at their times is enough; a changed one would be shown."""
    with open_places(two[:1]) as places, room(places[0]) as where:
        batches = batch_of("git status", material, where)
        batch = next(batches)
        clone = Path(where.path, "clone")
        victim = clone / next(iter(dict(tree(FILES))))
        before = victim.stat()
        victim.write_bytes(b"x" * before.st_size)
        os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
        looked = [program("git"), "-c", "core.trustctime=false", "-C", str(clone), "status", "--porcelain"]
        assert subprocess.check_output(looked, env=dict(material.environment)) == b""
        assert batch() > 0


def test_a_new_clone_for_each_first_time(two: tuple[str, str], material: Material) -> None:
    with open_places(two[:1]) as places, room(places[0]) as where:
        batches = batch_of("git status, first time", material, where)
        batch = next(batches)
        assert batch() > 0
        assert batch() > 0
        assert os.listdir(where.path) == []


# What they work on


def test_the_same_files_each_time() -> None:
    assert list(tree(FILES)) == list(tree(FILES))
    assert list(tree(FILES + 1))[:FILES] == list(tree(FILES))
    names = dict(tree(2000))
    assert len(names) == 2000
    assert max(map(len, names.values())) <= material_module.MAX_BYTES


def test_archive_and_repository_are_made_once_and_removed(outside: Path) -> None:
    with Material() as material:
        archive, repository = material.archive(FILES), material.repository(program("git"), FILES)
        made = os.stat(archive).st_ino, os.stat(repository).st_ino
        assert (material.archive(FILES), material.repository(program("git"), FILES)) == (archive, repository)
        assert (os.stat(archive).st_ino, os.stat(repository).st_ino) == made
        assert Path(archive).is_relative_to(outside)
        with tarfile.open(archive) as opened:
            assert [member.name for member in opened if member.isfile()] == list(dict(tree(FILES)))
        assert len(list(Path(repository, "objects/pack").glob("*.pack"))) == 1
    assert os.listdir(outside) == []


def test_nothing_is_made_before_it_is_needed(two: tuple[str, str], outside: Path) -> None:
    with Material():
        assert os.listdir(outside) == []


def test_in_memory_unless_a_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR")
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(material_module, "MEMORY", str(memory))
    with Material() as material:
        assert Path(material.home).parent == memory
    assert os.listdir(memory) == []


def test_git_hears_nothing_from_the_user(
    two: tuple[str, str], material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration, hooks, an author and a work tree of the user, all of which would make git fail or differ."""
    hooks, trace = tmp_path / "hooks", tmp_path / "trace"
    hooks.mkdir()
    for hook in ("post-checkout", "post-index-change"):
        (hooks / hook).write_text(f"#!/bin/sh\necho {hook} >>{trace}\nexit 1\n")
        (hooks / hook).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f"[core]\nhooksPath = {hooks}\nautocrlf = true\n[user]\nname = User\n")
    for name, value in {"HOME": home, "GIT_DIR": tmp_path, "GIT_AUTHOR_NAME": "User", "GIT_TRACE": trace}.items():
        monkeypatch.setenv(name, str(value))
    repository = material.repository(program("git"), FILES)
    with open_places(two[:1]) as places, room(places[0]) as where:
        next(batch_of("git clone", material, where))()
    assert not trace.exists()
    shown = [program("git"), "-C", repository, "log", "--format=%an <%ae> %at %cn %ct %H", "main"]
    commits = subprocess.check_output(shown, env=environment(str(home)), text=True).split("\n")
    date = material_module.DATE_S
    assert commits[0].startswith(f"pinfs bench <bench@invalid> {date} pinfs bench {date} ")
    with Material() as again:
        other = again.repository(program("git"), FILES)
        shown[2] = other
        assert subprocess.check_output(shown, env=environment(str(home)), text=True).split("\n") == commits


# What goes wrong


@pytest.mark.parametrize(("missing", "rows"), [("git", ["git"]), ("tar", ["untar", "rm -r"]), ("rm", ["rm -r"])])
def test_a_missing_program_is_a_note(
    two: tuple[str, str], missing: str, rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for name in {"git", "tar", "rm"} - {missing}:
        (others / name).symlink_to(program(name))
    monkeypatch.setenv("PATH", str(others))
    found = {one.row.name: one for one in run(Plan(two, only=[GROUP], rounds=1, quick=True), Silent()).measured}
    assert list(found) == NAMES
    for name, one in found.items():
        without = any(name.startswith(row) for row in rows)
        assert one.notes == (dict.fromkeys(two, f"{missing} is not installed") if without else {})
        assert bool(one.samples) != without


def test_a_program_that_fails_says_why(material: Material) -> None:
    with pytest.raises(Skip, match=r"^tar: exit status 2: .*/nowhere: Cannot open"):
        run_program([program("tar"), "-x", "-f", "/nowhere"], material.environment)
    with pytest.raises(Skip, match=r"^sh: signal 9: no word of why$"):
        run_program([program("sh"), "-c", "kill -9 $$"], material.environment)


def test_one_that_cannot_start_ends_those_before_it(material: Material) -> None:
    with pytest.raises(FileNotFoundError):
        run_together([["/bin/sleep", "600"], ["/no/such/program"]], material.environment)
    assert children() == []


@pytest.mark.parametrize("row", NAMES)
def test_nothing_stays_after_an_interrupt(two: tuple[str, str], outside: Path, row: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Plan(two, only=[row], rounds=1, quick=True), Interrupting(row))
    assert all(os.listdir(path) == [] for path in (*two, outside))
    assert children() == []


def test_an_interrupt_ends_a_program_and_all_that_it_has_started(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    shell = [program("sh"), "-c", f"sleep 600 & echo $! >{fifo}; wait"]

    def interrupted(self: object, given: bytes | None = None) -> None:
        raise KeyboardInterrupt(int(fifo.read_text()))

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        run_program(shell, material.environment)
    (grandchild,) = caught.value.args
    assert children() == []
    assert ended(grandchild)


def ended(pid: int) -> bool:
    """Whether a process ends; it may have gone already."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        return bool(waiting.poll(60_000))
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_after_a_signal(two: tuple[str, str], outside: Path, ending: signal.Signals) -> None:
    command = [*COMMAND, *two, "--quick", "--only", "untar, 4 processes", "--rounds", "1000000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not children(process.pid):
            assert process.poll() is None
        process.send_signal(ending)
        _, errors = process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in errors
    assert all(os.listdir(path) == [] for path in (*two, outside))


# All of it


def test_on_a_mount_and_another_directory(shared_mount: Mount, tmp_path: Path, outside: Path) -> None:
    mount = str(shared_mount.path)
    other = tmp_path / "other"
    other.mkdir()
    result = CliRunner().invoke(bench, [mount, str(other), "--quick", "--only", GROUP])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    paths = [one["path"] for one in found["directories"]]
    assert [row["name"] for row in found["rows"]] == NAMES
    for row in found["rows"]:
        assert not row["notes"], row
        assert all(row["median"][path] > 0 for path in paths), row
        assert row["verdict"]["to"] == str(other)
    assert all(os.listdir(path) == [] for path in (mount, other, outside))
