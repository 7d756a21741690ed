"""`pinfs bench`: results of the shape that docs/benchmark.md promises, and nothing stays behind. No times."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.fakes import Interrupting, Silent, children, measured
from click.testing import CliRunner
from support.mounts import Mount

from pinfs.bench import cluster
from pinfs.bench.crowd import Crowds
from pinfs.bench.material import Material
from pinfs.bench.pins import pinned
from pinfs.bench.places import Room, mount_of, open_places, room
from pinfs.bench.processes import crews
from pinfs.bench.report import as_json, to_fewest, to_unsealed
from pinfs.bench.rows import Batch, Rows, Skip
from pinfs.bench.run import Plan, all_rows, chosen, measure, run
from pinfs.bench.seals import rule
from pinfs.cli.bench import bench
from pinfs.cli.exitcodes import ExitCode


def test_all_rows_on_plain_directories(two: tuple[str, str]) -> None:
    result = CliRunner().invoke(bench, [*two, "--quick"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["v"] == 1
    assert [one["path"] for one in found["directories"]] == list(two)
    possible = [row.name for row in all_rows((1, 200), Crowds(print), Material()) if row.group != cluster.GROUP]
    assert [row["name"] for row in found["rows"]] == possible
    for row in found["rows"]:
        assert row["unit"] == "us"
        assert not row["notes"], row
        assert all(0 < row["best"][path] <= row["median"][path] for path in two), row
        assert row["ratio"][two[0]] == 1
        assert row["ratio"][two[1]] > 0
        assert row["first_to"][two[1]] > 0
    assert all(os.listdir(path) == [] for path in two)
    assert children() == []


INTERRUPTED = ["read 4 KiB, random", "unlink", "lease break: truncate's entry to its return"]


@pytest.mark.parametrize("row", [*INTERRUPTED, *(row.name for row in crews(1))])
def test_nothing_stays_after_an_interrupt(two: tuple[str, str], row: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Plan(two, only=[row], rounds=1, quick=True), Interrupting(row))
    assert all(os.listdir(path) == [] for path in two)
    assert children() == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_after_a_signal(two: tuple[str, str], ending: signal.Signals) -> None:
    command = [sys.executable, "-c", "from pinfs.cli.main import main; main()", "bench", *two, "--only", "unlink"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not os.listdir(two[1]):
            assert process.poll() is None
        process.send_signal(ending)
        _, errors = process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in errors
    assert all(os.listdir(path) == [] for path in two)


def test_a_directory_that_cannot_do_a_row_has_no_result_and_a_note(two: tuple[str, str]) -> None:
    rows = Rows()

    @rows.row("data", "not there", 1)
    def _(room: Room, calls: int) -> Iterator[Batch]:
        if room.place.path == two[1]:
            raise Skip("not here")
        yield lambda: 2.0

    with open_places(two) as places:
        found = measure(rows[0], places, Plan(two, rounds=2), Silent())
    assert found.samples == {two[0]: [2.0, 2.0]}
    assert found.notes == {two[1]: "not here"}
    assert found.ratio(two[0], two[1]) is None


def test_an_error_in_the_middle_of_the_rounds_takes_the_result_away(two: tuple[str, str]) -> None:
    rows = Rows()

    @rows.row("data", "breaks", 1)
    def _(room: Room, calls: int) -> Iterator[Batch]:
        turns = iter([1.0, 1.0])
        yield lambda: next(turns, None) or os.stat(f"{room.path}/missing").st_size

    with open_places(two) as places:
        found = measure(rows[0], places, Plan(two, rounds=3), Silent())
    assert found.samples == {}
    assert found.notes == dict.fromkeys(two, "No such file or directory")


def test_the_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    one = measured({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 4.0]})
    assert one.ratio("a", "b") == 2.0
    assert one.median("a") == 4.0
    assert one.best("a") == 2.0


def test_a_crowd_is_compared_with_the_smallest_of_the_same_kind() -> None:
    few = measured({"a": [2.0]}, "pin + release, 1 other pins", "crowd")
    other = measured({"a": [100.0]}, "ftruncate beside a pin, 1 other pins", "crowd")
    many = measured({"a": [3.0]}, "pin + release, 1000 other pins", "crowd")
    assert [to_fewest(one, [few, other, many], "a") for one in (few, other, many)] == [None, None, 1.5]


def test_a_sealed_row_is_compared_with_the_same_one_without_the_seal() -> None:
    sealed = measured({"a": [3.0, 9.0]}, "pin + release, sealed", "seal")
    unsealed = measured({"a": [8.0, 2.0]}, "pin + release, no seal", "seal")
    other = measured({"a": [1.0]}, "chmod, no seal", "seal")
    assert [to_unsealed(one, [other, unsealed, sealed], "a") for one in (other, unsealed, sealed)] == [None, None, 1.5]
    assert to_unsealed(sealed, [sealed, other], "a") is None


def test_only_takes_groups_words_and_globs() -> None:
    rows = all_rows((1,), Crowds(print), Material())
    assert {row.group for row in chosen(rows, ["data", "break"])} == {"data", "break"}
    assert {row.group for row in chosen(rows, ["metadata"])} == {"metadata"}
    assert {row.group for row in chosen(rows, ["mixed metadata"])} == {"processes"}
    assert [row.name for row in chosen(rows, ["rename"])] == ["rename"]
    assert {row.name for row in chosen(rows, ["read ? ?iB*"])} > {"read 1 MiB"}
    assert chosen(rows, []) == rows
    assert CliRunner().invoke(bench, ["--list", "--only", "rename"]).output.split() == ["metadata", "rename"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Name a directory"),
        ([".", "./"], "is there twice"),
        (["/does/not/exist"], "does not exist"),
        ([".", "--pins", "many"], "numbers"),
        ([".", "--rounds", "0"], "not in the range"),
        ([".", "--only", "no such row"], "no row like"),
        ([".", "--only", "cluster"], "group cluster needs two mounts of one source in one cluster"),
    ],
)
def test_wrong_usage(arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # any directory that this user may write to
    result = CliRunner().invoke(bench, arguments)
    assert result.exit_code == 2
    assert reason in result.output


def test_a_read_only_directory_is_an_error_of_one_line() -> None:
    result = CliRunner().invoke(bench, ["/proc"])
    assert result.exit_code != 0
    assert "/proc" in result.output
    assert "Traceback" not in result.output


def test_labels_tell_directories_apart(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one/same", "two/same", "other")]
    for path in paths:
        Path(path).mkdir(parents=True)
    with open_places(paths) as places:
        assert [place.label for place in places] == [*paths[:2], "other"]


def test_the_mount_of_a_path_is_the_innermost_one() -> None:
    assert mount_of("/proc/self").point == "/proc"
    assert mount_of("/proc/self").fstype == "proc"
    assert mount_of("/").point == "/"


@pytest.mark.parametrize(("how", "sealed"), [("auto", 1), ("off", 0)])
def test_a_rule_says_whether_files_are_sealed(mount: Mount, how: str, sealed: int) -> None:
    with open_places([str(mount.path)]) as places, room(places[0]) as where:
        with rule(where, how), pinned(where):
            assert mount.status()["sealed_files"] == sealed
        assert "[[rule]]" not in (mount.path / ".pinfs/policy").read_text()


def test_a_policy_that_is_changed_meanwhile_stays(mount: Mount) -> None:
    with open_places([str(mount.path)]) as places, room(places[0]) as where, rule(where, "off"):
        mount.policy("break_timeout = 7")
    assert "break_timeout = 7.0" in (mount.path / ".pinfs/policy").read_text()


@pytest.mark.mount("passthrough=off", prefix=("setpriv", "--bounding-set=-linux_immutable"))
def test_without_seals_the_rows_say_so(mount: Mount) -> None:
    outcome = run(Plan([str(mount.path)], only=["seal"], rounds=1, quick=True), Silent())
    assert all("no seals: " in one.notes[str(mount.path)] for one in outcome.measured)


def test_on_a_mount(shared_mount: Mount) -> None:
    """The backing is found, every row has a result in both, and there are no pins left."""
    mount = str(shared_mount.path)
    outcome = run(Plan([mount], rounds=1, counts=(1, 150), quick=True), Silent())
    found = as_json(outcome)
    first, backing = outcome.places
    assert (first.pinfs, first.role, backing.role) == (True, "mount", "backing")
    assert found["base"] == backing.path
    for one in outcome.measured:
        assert not one.notes, one
        assert one.ratio(first.path, backing.path)
    assert [(crowd.path, crowd.pins) for crowd in outcome.crowds] == [(mount, 150)]
    assert Path(mount, ".pinfs/pins").read_text() == ""
    assert "[[rule]]" not in Path(mount, ".pinfs/policy").read_text()
    assert os.listdir(mount) == []
