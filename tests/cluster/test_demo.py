"""`make demo-hosts`: what it shows is so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.mounts import REPO

from demo import etcd

LIMIT_S = 100.0
"""It takes fourteen seconds, on a machine that has nothing else to do."""


def test_a_cache_of_another_user_is_not_run(root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bookworm/usr/bin").mkdir(parents=True)
    os.chown(tmp_path, 12345, -1)
    monkeypatch.setattr(etcd, "CACHE", tmp_path)
    with pytest.raises(etcd.FetchError, match="belongs to another user"):
        etcd.unpacked("bookworm", "etcd-server", "bookworm")


def test_all_is_as_it_should_be(fuse: None, program: Path) -> None:
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "demo.hosts"]
    done = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All as it should be." in done.stdout
    assert "NOT SO" not in done.stdout
