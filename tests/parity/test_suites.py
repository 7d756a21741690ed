"""Public test suites on a mount: pytest -m suites tests/parity

They are built beside the project. PINFS_SUITES is a directory with what there is of them: `pjdfstest` (its tree),
`test_syscalls` (libfuse's program), `fsx` and `fsstress` (of xfstests). What passes on a plain directory must pass on
the mount, and the daemon has nothing to warn of.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import mounts

pytestmark = pytest.mark.suites
SUITES = Path(os.environ.get("PINFS_SUITES", "/nonexistent"))
LIMIT_S = 3600.0
PARTS = [
    "chflags", "chmod", "chown", "ftruncate", "granular", "link", "mkdir", "mkfifo", "mknod", "open", "posix_fallocate",
    "rename", "rmdir", "symlink", "truncate", "unlink", "utimensat",
]  # fmt: skip
"""Of pjdfstest."""


@dataclass
class Both:
    """A plain directory and one on a mount, of the same file system."""

    plain: Path
    mounted: Path
    kind: str


@pytest.fixture(params=["tmpfs", "disk"])
def both(new_mount: Callable[..., mounts.Mount], request: pytest.FixtureRequest) -> Iterator[Both]:
    mount = new_mount("dev", "suid", backing=request.param)
    mount.watch(LIMIT_S)
    plain, mounted = mount.base / "plain", mount.path / "tests"
    plain.mkdir()
    mounted.mkdir()
    kind = subprocess.run(["stat", "-fc", "%T", plain], capture_output=True, text=True, check=True).stdout.strip()
    yield Both(plain, mounted, {"ext2/ext3": "EXT4"}.get(kind, kind.upper()))
    mount.check_log()


def suite(name: str) -> Path:
    """Where it lies, or the test is skipped."""
    path = SUITES / name
    if not path.exists():
        pytest.skip(f"no {path} (PINFS_SUITES)")
    return path


def run(where: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=where, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def passed(script: Path, where: Path, kind: str) -> set[str]:
    """The numbers of the tests in a script that are ok."""
    output = run(where, "sh", script, PJDFS=kind).stdout
    return set(re.findall(r"^ok (\d+)", output, re.MULTILINE))


@pytest.mark.parametrize("part", PARTS)
def test_pjdfstest(both: Both, part: str) -> None:
    scripts = sorted((suite("pjdfstest") / "tests" / part).glob("*.t"))
    natively = {script.name: passed(script, both.plain, both.kind) for script in scripts}
    lost = {script.name: natively[script.name] - passed(script, both.mounted, both.kind) for script in scripts}
    assert any(natively.values())
    assert not any(lost.values()), lost


def test_libfuse_test_syscalls(both: Both) -> None:
    program = suite("test_syscalls")
    assert run(both.plain, program, both.plain).returncode == 0
    done = run(both.mounted, program, both.mounted)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["", "-Z -r 4096 -w 4096", "-W -R", "-A"], ids=["plain", "direct", "no mmap", "aio"])
def test_fsx(both: Both, how: str) -> None:
    command: list[str | Path] = [suite("fsx"), "-q", "-N", "20000", "-S", "1", *how.split(), "file"]
    assert run(both.plain, *command).returncode == 0
    done = run(both.mounted, *command)
    assert done.returncode == 0, done.stdout


def test_fsstress(both: Both) -> None:
    done = run(both.mounted, suite("fsstress"), "-d", both.mounted, "-n", "2000", "-p", "4", "-s", "1")
    assert done.returncode == 0, done.stdout + done.stderr
