"""etcd itself, from Debian's packages: 3.4 of Debian 12 and 3.5 of Debian 13, fetched once (demo/etcd.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.etcd import FetchError, unpacked

SUITES = {"3.4": "bookworm", "3.5": "trixie"}


def etcd(version: str) -> Path:
    """The program. Skips the test where it cannot be fetched."""
    return _unpacked(SUITES[version], "etcd-server", SUITES[version]) / "usr/bin/etcd"


def etcdctl(version: str) -> Path:
    """The operator's tool: as `etcd`."""
    return _unpacked(SUITES[version], "etcd-client", f"{SUITES[version]}-client") / "usr/bin/etcdctl"


def _unpacked(suite: str, package: str, name: str) -> Path:
    """The directory in the cache."""
    try:
        return unpacked(suite, package, name)
    except FetchError as why:
        pytest.skip(str(why))
