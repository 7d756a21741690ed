"""A run does not depend on its starter, and a failed test blames itself only (support/start.py, conftest.py)."""

from __future__ import annotations

import locale
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from support import start

LIMIT_S = 120
LEAKY = """
import os, subprocess, sys

def test_that_fails_with_an_open_file():
    file = open(os.devnull)
    assert file is None

def test_after_it():
    pass

class Cycle:
    pass

def test_that_forgets_a_process_in_a_cycle():
    cycle = Cycle()
    cycle.process = subprocess.Popen(["sleep", "0.1"])
    cycle.cycle = cycle

def test_after_that():
    [object() for _ in range(100_000)]

def test_that_fails_with_a_process():
    process = subprocess.Popen(["sleep", "0.1"])
    assert process is None

def test_the_last():
    os.close(os.open(os.devnull, os.O_RDONLY))
"""
STATUS = ("SigBlk", "SigIgn", "Umask")
OF_THE_C_LIBRARY = 1 << 31 | 1 << 32
"""Signals 32 and 33: no program can set what they do, so a run keeps what it was started with."""


def status(text: str) -> dict[str, str]:
    """Lines of /proc/PID/status."""
    return dict(line.split(":\t", 1) for line in text.splitlines() if line.startswith(STATUS))


def test_signals_and_umask_of_the_process() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    own = status(Path("/proc/self/status").read_text())
    assert int(own["SigBlk"], 16) == 0
    assert int(own["SigIgn"], 16) & ~OF_THE_C_LIBRARY == sum(1 << (number - 1) for number in start.IGNORED_BY_PYTHON)
    assert own["Umask"] == f"{start.UMASK:04o}"


def test_children_inherit_known_values() -> None:
    seen = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    child = status(seen)
    assert (int(child["SigBlk"], 16), child["Umask"]) == (0, "0022")
    assert int(child["SigIgn"], 16) & ~OF_THE_C_LIBRARY == 0
    assert os.readlink("/proc/self/fd/0") == os.devnull


def test_limits() -> None:
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == min(start.LIMITS[resource.RLIMIT_NOFILE][0], hard)


def test_environment() -> None:
    foreign = [name for name in os.environ if not start.is_kept(name) and name not in start.KNOWN]
    assert foreign == []
    assert {name: os.environ[name] for name in start.KNOWN} == start.KNOWN
    assert Path(os.environ["HOME"]).is_dir()
    assert {"/usr/sbin", "/usr/bin"} <= {*os.environ["PATH"].split(":")}


def test_interpreter_and_directories() -> None:
    assert sys.getfilesystemencoding() == locale.getpreferredencoding(False).lower() == "utf-8"
    assert not sys.flags.optimize
    assert Path.cwd() == start.REPO
    assert tempfile.gettempdir() == start.TEMPORARY


def test_a_run_with_a_hostile_start() -> None:
    """The tests above pass there."""
    arguments = ["-p", "no:cacheprovider", "-k", "not hostile and not blames", __file__]
    code, text = outcomes([start.REPO / ".ci/hostile", sys.executable, "-m", "pytest", *arguments])
    assert code == 0, text


def test_a_failed_test_blames_itself_only(tmp_path: Path) -> None:
    program, report = tmp_path / "test_leaky.py", tmp_path / "report.xml"
    program.write_text(LEAKY)
    arguments = ["-c", start.REPO / "pyproject.toml", "--rootdir", tmp_path, "-p", "conftest", "-p", "no:cacheprovider"]
    code, text = outcomes([sys.executable, "-m", "pytest", *arguments, f"--junitxml={report}", program])
    assert code == 1, text
    cases = ElementTree.parse(report).getroot().iter("testcase")
    blamed = {case.get("name") for case in cases if {"failure", "error"} & {child.tag for child in case}}
    assert blamed == {
        "test_that_fails_with_an_open_file",
        "test_that_forgets_a_process_in_a_cycle",
        "test_that_fails_with_a_process",
    }, text


def outcomes(command: list[Any]) -> tuple[int, str]:
    """Exit status and output of pytest."""
    environment = os.environ | {"PYTHONPATH": str(start.REPO / "tests")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr
