"""etcd itself, from Debian's packages: 3.4 of Debian 12 and 3.5 of Debian 13, fetched once and unpacked into a cache.

Nothing is installed, as the package would start a service. apt checks the signatures. Takes a few seconds, and 10 MB
for the index of each Debian.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

MIRROR = os.environ.get("PINFS_ETCD_MIRROR", "http://deb.debian.org/debian")
CACHE = Path(os.environ.get("PINFS_ETCD_CACHE", "/var/tmp/pinfs-etcd"))
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = {"3.4": "bookworm", "3.5": "trixie"}


def etcd(version: str) -> Path:
    """The program. Skips the test where it cannot be fetched."""
    return _unpacked(SUITES[version], "etcd-server", SUITES[version]) / "usr/bin/etcd"


def etcdctl(version: str) -> Path:
    """The operator's tool: as `etcd`."""
    return _unpacked(SUITES[version], "etcd-client", f"{SUITES[version]}-client") / "usr/bin/etcdctl"


def _unpacked(suite: str, package: str, name: str) -> Path:
    """The directory in the cache."""
    unpacked = CACHE / name
    if not (unpacked / "usr").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            _fetch(suite, package, Path(work))
            shutil.rmtree(unpacked, ignore_errors=True)
            Path(work, "unpacked").rename(unpacked)
    return unpacked


def _fetch(suite: str, package: str, work: Path) -> None:
    for directory in ("lists/partial", "archives/partial"):
        (work / directory).mkdir(parents=True)
    (work / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {suite} main\n")
    options = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    for command in (
        [*apt, "update"],
        [*apt, "download", f"{package}/{suite}"],
        ["sh", "-c", f"dpkg-deb --extract {package}_*.deb unpacked"],
    ):
        done = subprocess.run(command, check=False, cwd=work, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{package} of {suite} cannot be fetched from {MIRROR}: {done.stderr.strip()}")
