"""The Debian packages of this checkout, and the same with an earlier number: tests install and upgrade them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pinfs
from support.mounts import REPO

BEFORE = "0.1.99"
LIMIT_S = 1200.0


def run(*words: object) -> str:
    """What a command prints; fails the test with it."""
    done = subprocess.run(
        [str(word) for word in words], check=False, text=True, timeout=LIMIT_S,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{words[0]} ended with {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


def in_debian(*words: object, binds: dict[Path, str], packages: str = "") -> str:
    """What a command prints in a fresh Debian 13 (scripts/in-debian)."""
    options = [word for path, place in binds.items() for word in ("-b", f"{path}:{place}")]
    return run(REPO / "scripts/in-debian", "-p", packages, *options, "trixie", *words)


def build(path: Path) -> None:
    """`now` has the packages of this checkout, `before` the same with an earlier number, `log` what the build said."""
    run(sys.executable, "-P", "-m", "build", "--no-isolation", "--sdist", "--outdir", path, REPO)
    (path / "log").write_text(run(REPO / "scripts/debian-package", next(path.glob("*.tar.gz")), path / "now"))
    for package in (path / "now").glob("*.deb"):
        _renumber(package, path / "before")
    (path / "try").write_bytes((REPO / "packaging/try").read_bytes())
    (path / "try").chmod(0o755)


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
