"""Versions before this one: their daemons hand over to this one's on a running mount, and back (SPEC 13).

The older versions are commits of this repository. A clone without its history cannot test them, and says so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper.background import Background, kill, program_of, wait_end
from keeper.conftest import end
from keeper.users import Users
from support.mounts import REPO, force_umount

OLDER = {
    "0.1": "4d9d8ad43dfe",  # the first that survives its daemon
    "without clusters": "2d17c3fd9fd3",
}


@pytest.fixture(scope="session", params=OLDER)
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed copy of an older version, interpreted."""
    tree = tmp_path_factory.mktemp("older")
    command = ["git", "-c", "safe.directory=*", "-C", str(REPO), "archive", OLDER[request.param], "pinfs"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no clone with all of its history")
    subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
    return tree


@pytest.fixture
def background(base: Path) -> Iterator[Background]:
    background = Background(base)
    yield background
    end(background)


@pytest.fixture
def users() -> Iterator[list[Users]]:
    """Filled by the test, when there is a mount."""
    users: list[Users] = []
    yield users
    for each in users:
        each.dismiss()


def upgraded(background: Background, tree: Path) -> None:
    pid = background.pid
    done = background.upgrade(program_of(tree))
    assert done.returncode == 0, done.stderr
    assert background.pid != pid
    is_of_tree(background, tree)


def is_of_tree(background: Background, tree: Path) -> None:
    """The daemon runs the program of this tree."""
    command = Path(f"/proc/{background.pid}/cmdline").read_bytes()
    assert os.fsencode(tree) in command, command


@pytest.mark.parametrize("begins_with", ["the older one", "this one"])
def test_one_takes_over_from_the_other_and_back(
    background: Background, older: Path, users: list[Users], begins_with: str, root: None, fuse: None
) -> None:
    """Beside a waiting truncate. The keeper is the one of the version that it begins with."""
    order = [older, REPO] if begins_with == "the older one" else [REPO, older]
    words = ("mount", background.source, background.point, "--daemon", "--log-file", background.log)
    done = background.pinfs(*words, program=program_of(order[0]))
    assert done.returncode == 0, done.stderr
    try:
        users.append(Users(background))
        for tree in (*order[1:], *order):
            upgraded(background, tree)
            users[0].notice_nothing(background)
            kill(background)
            is_of_tree(background, tree)
            users[0].notice_nothing(background)
        assert background.status()["last_takeover"]["not_restored"] == []
        users[0].release()
        pid, keeper = background.pid, background.keeper
        assert background.umount().returncode == 0
        wait_end(pid, keeper)
    finally:
        force_umount(background.point)
