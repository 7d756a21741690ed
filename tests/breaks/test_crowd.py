"""Ten thousand holders of one file, each a process of its own, broken by one truncate."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import NewMount
from support.actor import eventually

HOLDERS = int(os.environ.get("PINFS_CROWD", "10000"))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    program = tmp_path_factory.mktemp("crowd") / "crowd"
    source = Path(__file__).with_name("crowd.c")
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program


@contextmanager
def _gathered(*command: str) -> Iterator[subprocess.Popen[str]]:
    """The crowd, in a process group of its own; it ends with its first process."""
    pipe = subprocess.PIPE
    program = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("owner", ["process", "handle"])
def test_ten_thousand_holders(new_mount: NewMount, crowd: Path, owner: str) -> None:
    """All are told once; the truncate returns when the last one has let go, and not before."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < HOLDERS + 1000:
        pytest.skip(f"the daemon may have {hard} descriptors only: one for each holder (PINFS_CROWD=N for fewer)")
    mount = new_mount("break_timeout=600", "log_level=warning")
    path = mount.path / "f"
    path.write_bytes(b"x" * HOLDERS)
    with _gathered(str(crowd), str(path), str(HOLDERS), owner) as program:
        assert program.stdin and program.stdout
        assert program.stdout.readline() == "pinned\n"
        assert mount.metrics()["pinfs_pins"] == HOLDERS
        breaking = mount.actor().start(os.truncate, str(path), 0)
        eventually(lambda: mount.metrics()["pinfs_pins"] == 1, limit_s=60)
        assert not breaking.done()
        assert path.stat().st_size == HOLDERS
        program.stdin.write("the last one\n")
        program.stdin.flush()
        assert breaking.error(60) is None
        assert path.stat().st_size == 0
        metrics = mount.metrics()
        assert metrics["pinfs_breaks_started_total"] == metrics["pinfs_breaks_answered_total"] == HOLDERS
        program.stdin.write("end\n")
        program.stdin.flush()
        assert program.stdout.readline() == f"told {HOLDERS} again 0 wrong 0\n"
    eventually(lambda: mount.metrics()["pinfs_holders"] == 0)
