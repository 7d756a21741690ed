"""The rows of several processes: they begin together, each in a directory of its own, and they end in every case."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from bench.fakes import Interrupting, Silent, children, measured
from click.testing import CliRunner
from support.mounts import Mount

from pinfs.bench.pins import ANSWER, pinned
from pinfs.bench.places import open_places, room
from pinfs.bench.processes import GROUP, WORKS, counts, crews, rows, team
from pinfs.bench.remote import Remote
from pinfs.bench.report import per_second
from pinfs.bench.run import Plan, run
from pinfs.cli.bench import bench
from pinfs.cli.exitcodes import ExitCode

FOUR = "open + close, 4 processes"
PATIENCE_MS = 60_000


@contextmanager
def working(directories: tuple[str, str], processes: int) -> Iterator["subprocess.Popen[str]"]:
    """A benchmark that has started that many processes, and would go on for long."""
    verb = [sys.executable, "-c", "from pinfs.cli.main import main; main()", "bench", *directories]
    command = [*verb, "--only", FOUR, "--rounds", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while len(children(process.pid)) < processes:
                assert process.poll() is None
            yield process
        finally:
            process.kill()


@contextmanager
def watched(pids: list[int]) -> Iterator[list[int]]:
    """A descriptor of each process, which is readable when the process has ended."""
    with ExitStack() as stack:
        pidfds = [os.pidfd_open(pid) for pid in pids]
        for pidfd in pidfds:
            stack.callback(os.close, pidfd)
        yield pidfds


def has_ended(pidfd: int, patience_ms: int = 0) -> bool:
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(patience_ms))


@pytest.mark.parametrize(("processors", "expected"), [(1, [1, 4]), (2, [1, 2, 4]), (4, [1, 4]), (64, [1, 4, 64])])
def test_one_four_and_as_many_as_there_are_processors(processors: int, expected: list[int]) -> None:
    assert counts(processors) == expected
    assert len(crews(processors)) == len(expected) * len(WORKS)


def test_names_of_the_rows() -> None:
    names = [row.name for row in crews(2)]
    assert names[:3] == ["mixed metadata, 1 process", "mixed metadata, 2 processes", "mixed metadata, 4 processes"]
    assert names[-1] == "pwrite + pread 4 KiB, 4 processes"


def test_the_time_is_that_of_all_together(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first begin to the last end, by the operations of all: 10 us for 2 of 4 operations each."""
    with open_places(two[:1]) as places, room(places[0]) as where, team(where, 4, 2, "mixed") as workers:
        spans = iter([[7_000, 13_000], [5_000, 15_000]])
        monkeypatch.setattr(Remote, "answer", lambda self: next(spans))
        assert workers.batch() == 10 / 8


def test_operations_a_second() -> None:
    assert per_second(measured({"a": [4.0]}, FOUR, GROUP), "a") == 250_000
    assert per_second(measured({}, FOUR, GROUP), "a") is None
    assert per_second(measured({"a": [4.0]}, "open + close", "metadata"), "a") is None


@pytest.mark.parametrize("work", [work for _, work, _ in WORKS])
def test_processes_stay_for_all_batches_and_have_directories_of_their_own(two: tuple[str, str], work: str) -> None:
    with open_places(two[:1]) as places, room(places[0]) as where:
        with team(where, 3, 4, work) as workers:
            before = children()
            assert len(before) == 4
            assert sorted(os.listdir(where.path)) == ["0", "1", "2", "3"]
            for _ in range(5):
                assert workers.batch() > 0
            assert children() == before
        assert children() == []


def test_what_a_process_cannot_prepare_is_an_error_of_the_benchmark(two: tuple[str, str]) -> None:
    with open_places(two[:1]) as places, room(places[0]) as where:
        Path(where.path, "1").mkdir()  # the second process finds its directory taken
        with pytest.raises(FileExistsError), team(where, 3, 2, "open_close"):
            pass
        assert children() == []


def test_what_a_process_cannot_do_is_an_error_of_the_benchmark(two: tuple[str, str]) -> None:
    with open_places(two[:1]) as places, room(places[0]) as where:
        with team(where, 3, 2, "open_close") as workers:
            Path(where.path, "1", "file").unlink()
            with pytest.raises(FileNotFoundError):
                workers.batch()
        assert children() == []


def test_a_process_that_has_ended_is_an_error_of_the_benchmark(two: tuple[str, str]) -> None:
    with open_places(two[:1]) as places, room(places[0]) as where, team(where, 3, 2, "mixed") as workers:
        victim = children()[1]
        with watched([victim]) as (pidfd,):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert has_ended(pidfd, PATIENCE_MS)
        with pytest.raises(ChildProcessError):
            workers.batch()


def test_processes_run_where_the_benchmark_runs(two: tuple[str, str]) -> None:
    with open_places(two[:1]) as places, room(places[0]) as where:
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {max(allowed)})
            with team(where, 3, 2, "mixed"):
                assert [os.sched_getaffinity(pid) for pid in children()] == [{max(allowed)}] * 2
        finally:
            os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_process_stays_after_a_signal(two: tuple[str, str], ending: signal.Signals) -> None:
    with working(two, 8) as process, watched(children(process.pid)) as workers:
        process.send_signal(ending)
        _, errors = process.communicate()
        assert process.returncode == ExitCode.INTERRUPTED
        assert "Traceback" not in errors
        assert all(map(has_ended, workers))
    assert all(os.listdir(path) == [] for path in two)


def test_processes_end_with_a_benchmark_that_is_killed(two: tuple[str, str]) -> None:
    with working(two, 8) as process, watched(children(process.pid)) as workers:
        process.kill()
        assert all(has_ended(worker, PATIENCE_MS) for worker in workers)
        _, errors = process.communicate()
        assert "Traceback" not in errors


def test_on_a_mount_and_another_directory(shared_mount: Mount, tmp_path: Path) -> None:
    before = children()
    mount, other = str(shared_mount.path), str(tmp_path)
    result = CliRunner().invoke(bench, [mount, other, "--quick", "--only", GROUP])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    paths = [one["path"] for one in found["directories"]]
    assert [one["role"] for one in found["directories"]] == ["mount", "backing", "other"]
    assert [row["name"] for row in found["rows"]] == [row.name for row in rows]
    for row in found["rows"]:
        assert not row["notes"], row
        assert all(row["per_second"][path] > 0 for path in paths), row
        assert row["verdict"]["to"] == other
        assert row["verdict"]["ratio"] == row["first_to"][other]
        assert row["verdict"]["word"] in ("ahead", "even", "behind")
    assert children() == before
    assert (os.listdir(mount), os.listdir(other)) == ([], [])
    assert Path(mount, ".pinfs/pins").read_text() == ""


def test_the_table_says_what_they_get_done(two: tuple[str, str]) -> None:
    result = CliRunner().invoke(bench, [*two, "--quick", "--table", "--only", FOUR])
    assert result.exit_code == 0, result.output
    *_, rates, verdicts = result.stdout.splitlines()
    assert rates.startswith(f"{FOUR}: first ")
    assert rates.endswith(" a second")
    assert verdicts.startswith("first against the fastest of the others: ahead in ")


@pytest.mark.parametrize("row", [row.name for row in crews(1)])
def test_nothing_stays_on_a_mount_after_an_interrupt(shared_mount: Mount, row: str) -> None:
    before = children()
    with pytest.raises(KeyboardInterrupt):
        run(Plan([str(shared_mount.path)], only=[row], rounds=1, quick=True), Interrupting(row))
    assert children() == before
    assert os.listdir(shared_mount.path) == []


def test_the_length_of_a_pins_answer(shared_mount: Mount) -> None:
    """What stands in for it elsewhere differs by no more than the digits of its numbers."""
    with open_places([str(shared_mount.path)]) as places, room(places[0]) as where, pinned(where) as (fd, name):
        assert abs(len(os.getxattr(fd, name)) - ANSWER) < 40


def test_elsewhere_an_attribute_of_that_length_is_read(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    read, getxattr = set(), os.getxattr

    def reading(fd: int, name: str) -> bytes:
        value = getxattr(fd, name)
        read.add(len(value))
        return value

    monkeypatch.setattr(os, "getxattr", reading)
    run(Plan(two, only=["getxattr of the pin"], rounds=1, quick=True), Silent())
    assert read == {ANSWER}
