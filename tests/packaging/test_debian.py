"""The Debian packages: built in a fresh Debian 13, installed, upgraded under a mount, removed and purged in another."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from support.mounts import REPO

import pinfs

pytestmark = [pytest.mark.packages, pytest.mark.usefixtures("fuse", "root")]
BEFORE = "0.1.99"
LIMIT_S = 1200.0
LEFT_OUT = runpy.run_path(str(REPO / "tests/packaging/run_blocks.py"))["LEFT_OUT"]


def run(*words: object, **how: object) -> str:
    """What a command prints; fails the test with it."""
    done = subprocess.run(
        [str(word) for word in words], check=False, text=True, timeout=LIMIT_S,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{words[0]} ended with {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`now` has the packages of this checkout, `before` the same with an earlier number, `log` what the build said."""
    path = tmp_path_factory.mktemp("packages")
    run(sys.executable, "-P", "-m", "build", "--no-isolation", "--sdist", "--outdir", path, REPO)
    (path / "log").write_text(run(REPO / "scripts/debian-package", next(path.glob("*.tar.gz")), path / "now"))
    for package in (path / "now").glob("*.deb"):
        _renumber(package, path / "before")
    (path / "try").write_bytes((REPO / "packaging/try").read_bytes())
    (path / "try").chmod(0o755)
    return path


def _renumber(package: Path, into: Path) -> None:
    """The package with the version BEFORE, which its modules have as well."""
    into.mkdir(exist_ok=True)
    unpacked = into / package.stem
    run("dpkg-deb", "--raw-extract", package, unpacked)
    control = unpacked / "DEBIAN/control"
    version = re.search(r"^Version: (.*)$", control.read_text(), re.MULTILINE)
    assert version
    control.write_text(control.read_text().replace(version[1], f"{BEFORE}-1"))
    for source in unpacked.glob("usr/lib/python3/dist-packages/pinfs/__init__.py"):
        source.write_text(source.read_text().replace(f'"{pinfs.__version__}"', f'"{BEFORE}"'))
        sums = unpacked / "DEBIAN/md5sums"
        new = run("md5sum", source).split()[0]
        sums.write_text(re.sub(r"^\w+(?=  .*pinfs/__init__\.py$)", new, sums.read_text(), flags=re.MULTILINE))
    run("dpkg-deb", "--root-owner-group", "--build", unpacked, into)
    run("rm", "-r", unpacked)


def test_what_is_built(packages: Path) -> None:
    names = sorted(path.name.partition("_")[0] for path in (packages / "now").glob("*.deb"))
    assert names == ["pinfs", "python3-pinfs"]
    tags = re.findall(r"^[EW]: .*", (packages / "log").read_text(), re.MULTILINE)
    print(*tags, sep="\n")
    assert [tag for tag in tags if tag.startswith("E")] == []


def test_the_life_of_the_packages(packages: Path) -> None:
    """tests/packaging/debian_life.sh has the steps."""
    said = run(
        REPO / "scripts/in-debian", "-b", f"{packages}:/packages", "-b", f"{REPO / 'tests/packaging'}:/tests", "trixie",
        "env", f"BEFORE={BEFORE}", f"NOW={pinfs.__version__}", "sh", "/tests/debian_life.sh",
    )  # fmt: skip
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
    binds = [f"{packages}:/packages", f"{REPO}:/repo", f"{REPO / 'tests/packaging'}:/tests"]
    said = run(
        REPO / "scripts/in-debian", *(word for bind in binds for word in ("-b", bind)), "trixie", "sh", "-c", command
    )
    print(said)
    assert len(re.findall(r"^\S+: ok: ", said, re.MULTILINE)) >= 25
    reasons = re.findall(r"left out: .*\n    (.*)", said)
    assert set(LEFT_OUT.values()) <= {*reasons}, "a reason that no line needs any more"
