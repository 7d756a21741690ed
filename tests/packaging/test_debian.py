"""The Debian packages: built in a fresh Debian 13, installed, upgraded under a mount, removed and purged in another."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from support.mounts import REPO
from support.packages import BEFORE, in_debian

import pinfs

pytestmark = [pytest.mark.packages, pytest.mark.usefixtures("fuse", "root")]
TESTS = REPO / "tests/packaging"
LEFT_OUT: dict[str, str] = runpy.run_path(str(TESTS / "run_blocks.py"))["LEFT_OUT"]


def test_what_is_built(packages: Path) -> None:
    names = sorted(path.name.partition("_")[0] for path in (packages / "now").glob("*.deb"))
    assert names == ["pinfs", "python3-pinfs"]
    tags = re.findall(r"^[EW]: .*", (packages / "log").read_text(), re.MULTILINE)
    print(*tags, sep="\n")
    assert [tag for tag in tags if tag.startswith("E")] == []


def test_the_life_of_the_packages(packages: Path) -> None:
    """tests/packaging/debian_life.sh has the steps."""
    versions = ("env", f"BEFORE={BEFORE}", f"NOW={pinfs.__version__}")
    said = in_debian(*versions, "sh", "/tests/debian_life.sh", binds={packages: "/packages", TESTS: "/tests"})
    print(said)
    assert said.endswith("== nothing is left\n")


def test_the_pages_command_by_command(packages: Path) -> None:
    """In a root with nothing but these packages, each command line of the user's pages does what the page says."""
    pages = " ".join(
        f"/repo/{page.relative_to(REPO)}" for page in [REPO / "README.md", *sorted(REPO.glob("docs/*.md"))]
    )
    command = f"""
        apt-get -qq update
        apt-get -qq -y --no-install-recommends install /packages/now/*.deb procps attr >/dev/null 2>&1
        python3 /tests/run_blocks.py {pages}
    """
    said = in_debian("sh", "-c", command, binds={packages: "/packages", TESTS: "/tests", REPO: "/repo"})
    print(said)
    assert len(re.findall(r"^\S+: ok: ", said, re.MULTILINE)) >= 25
    reasons = re.findall(r"left out: .*\n    (.*)", said)
    assert {*LEFT_OUT.values()} - {*reasons} == set(), "reasons that no line needs any more"
