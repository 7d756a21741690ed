"""What builds pinfs: setup.py, and the Pythons that a release has wheels for."""

from __future__ import annotations

import re
import runpy
import tomllib

import pytest
from support.mounts import REPO


def test_processes_that_compile_build_nothing_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where multiprocessing does not fork (CPython 3.14), each of them imports setup.py under this name."""
    monkeypatch.setattr("sys.argv", ["setup.py", "no-such-command"])
    assert runpy.run_path(str(REPO / "setup.py"), run_name="__mp_main__")["COMPILED"]


def test_a_release_has_a_wheel_for_each_python_that_pinfs_supports() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    supported = re.findall(
        r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE
    )
    assert project["requires-python"] == f">={supported[0]}"
    workflow = (REPO / ".github/workflows/release.yml").read_text()
    assert [f"3.{minor}" for minor in re.findall(r"\bcp3(\d+)-manylinux_\*", workflow)] == supported
