"""The daemon is killed at random under load, and no caller notices but by the time that a call takes (SPEC 13)."""

from __future__ import annotations

import os

import pytest

from .loads import LOADS
from .storm import Storm
from .surviving import USER, surviving

KILLS = int(os.environ.get("PINFS_KILLS", "8"))
LONGEST_S = 1.2
MOUNTS = [
    ("tmpfs", (), 0),
    ("tmpfs", ("passthrough=off",), 0),
    ("ext4", (), 0),
    ("ext4", ("passthrough=off",), 0),
    ("tmpfs", (), USER),
]


def nothing_is_noticed(backing: str, options: tuple[str, ...], user: int, kills: int, kinds: list[str]) -> None:
    with surviving(backing, options, user) as mount:
        storm = Storm(mount, kinds)
        try:
            storm.kill(kills, LONGEST_S)
            storm.end()
            print(storm.told())
            storm.check()
        finally:
            storm.reap()


@pytest.mark.parametrize(("backing", "options", "user"), MOUNTS)
def test_nothing_is_noticed(root: None, fuse: None, backing: str, options: tuple[str, ...], user: int) -> None:
    nothing_is_noticed(backing, options, user, KILLS, list(LOADS))


@pytest.mark.long
@pytest.mark.parametrize("backing", ["tmpfs", "ext4"])
def test_a_thousand_kills(root: None, fuse: None, backing: str) -> None:
    nothing_is_noticed(backing, (), 0, 500, ["names", "data", *LOADS])
