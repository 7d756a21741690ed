"""pinfs.h is self-contained in C and C++, agrees with the Python mirror, and its example compiles without a warning."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pinfs.client import ioctl

ROOT = Path(__file__).parents[2]
STRICT = ["-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "pinfs" / "include")]

NUMBERS = r"""
#include "pinfs.h"
#include <stdio.h>
static void show(unsigned long number) { printf("%lu ", number); }
int main(void) { show(PINFS_IOC_PIN); show(PINFS_IOC_UNPIN); show(PINFS_IOC_QUERY); return 0; }
"""


def compiled(compiler: list[str], source: Path, target: Path) -> Path:
    if shutil.which(compiler[0]) is None:
        pytest.fail(f"{compiler[0]} is needed (apt-get install build-essential)")
    subprocess.run([*compiler, *STRICT, "-o", target, source], check=True)
    return target


@pytest.mark.parametrize(
    "compiler", [["gcc", "-std=c11", "-pedantic"], ["g++", "-std=c++11", "-pedantic"]], ids=["c", "c++"]
)
def test_numbers(compiler, tmp_path: Path) -> None:
    source = tmp_path / ("numbers.c" if compiler[0] == "gcc" else "numbers.cc")
    source.write_text(NUMBERS)
    program = compiled(compiler, source, tmp_path / "numbers")
    answer = subprocess.run([program], capture_output=True, check=True, text=True)
    assert [int(word) for word in answer.stdout.split()] == [ioctl.PIN, ioctl.UNPIN, ioctl.QUERY]


@pytest.fixture(scope="module")
def pin_range(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("example") / "pin_range"
    return compiled(["gcc", "-std=c11"], ROOT / "examples" / "pin_range.c", target)


@pytest.mark.parametrize(
    "arguments", [[], ["f", "1", "2", "3"], ["f", "-1"], ["f", "0", "4k"], ["f", "99999999999999999999"]]
)
def test_usage(pin_range: Path, arguments) -> None:
    run = subprocess.run([pin_range, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("usage: pin_range FILE")


def test_not_on_pinfs(pin_range: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    run = subprocess.run([pin_range, tmp_path / "file"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (
        1,
        "pin_range: PINFS_IOC_PIN: not a file of a pinfs mount (with its bridge)\n",
    )
