"""The daemon is killed at random under load, and no caller notices but by the time that a call takes (SPEC 13)."""

from __future__ import annotations

import math
import os
import sys

import pytest

from .loads import LOADS
from .storm import Storm
from .surviving import USER, Surviving, surviving

KILLS = int(os.environ.get("PINFS_KILLS", "8"))
LONGEST_S = 1.2
LONG_S = float(os.environ.get("PINFS_SURVIVAL_SECONDS", "600"))
ONE_A_SECOND_S = 2.0
"""Between two kills passes half of that on average."""
MOUNTS = [
    ("tmpfs", (), 0),
    ("tmpfs", ("passthrough=off",), 0),
    ("ext4", (), 0),
    ("ext4", ("passthrough=off",), 0),
    ("tmpfs", (), USER),
    ("ext4", (), USER),
]
KEEPERS = 3
"""A daemon starts at most five of them in a minute."""


def nothing_is_noticed(
    mount: Surviving, kinds: list[str], kills: int, longest_s: float, within_s: float = math.inf
) -> None:
    storm = Storm(mount, kinds)
    try:
        storm.kill(kills, longest_s, within_s)
        storm.end()
        print(storm.told())
        storm.check()
    finally:
        storm.reap()


@pytest.mark.parametrize(("backing", "options", "user"), MOUNTS)
def test_nothing_is_noticed(root: None, fuse: None, backing: str, options: tuple[str, ...], user: int) -> None:
    with surviving(backing, options, user) as mount:
        nothing_is_noticed(mount, list(LOADS), KILLS, LONGEST_S)


def test_nothing_is_noticed_where_keepers_are_killed_as_well(root: None, fuse: None) -> None:
    with surviving("tmpfs", ()) as mount:
        storm = Storm(mount)
        try:
            for _ in range(KEEPERS):
                storm.kill(2, LONGEST_S)
                mount.kill_keeper()
                storm.kill(1, LONGEST_S)
            storm.end()
            print(storm.told())
            storm.check()
        finally:
            storm.reap()


@pytest.mark.long
@pytest.mark.parametrize("options", [(), ("spare",)], ids=["alone", "spare"])
@pytest.mark.parametrize("backing", ["tmpfs", "ext4"])
def test_ten_minutes_with_a_kill_each_second(root: None, fuse: None, backing: str, options: tuple[str, ...]) -> None:
    with surviving(backing, options) as mount:
        nothing_is_noticed(mount, ["names", "data", *LOADS], sys.maxsize, ONE_A_SECOND_S, LONG_S)
