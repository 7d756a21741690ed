"""What setup.py does beyond a build: nothing, in the processes that compile."""

from __future__ import annotations

import runpy

import pytest
from support.mounts import REPO


def test_processes_that_compile_build_nothing_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where multiprocessing does not fork (CPython 3.14), each of them imports setup.py under this name."""
    monkeypatch.setattr("sys.argv", ["setup.py", "no-such-command"])
    assert runpy.run_path(str(REPO / "setup.py"), run_name="__mp_main__")["COMPILED"]
