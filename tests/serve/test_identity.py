"""What a mount began with outlives its daemon: the options of its cluster."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pinfs.bridge.mount import MountError
from pinfs.config.options import load
from pinfs.journal.slots import JournalError
from pinfs.serve.takeover import Identity

PLAIN = Identity("/src", "/mnt", 7, 41, 0, 0, "")
OPTIONS = ["cluster=etcd1+etcd2,cluster_host=a,cluster_pin_ttl=20"]


def again(identity: Identity) -> Identity:
    """By way of the journal."""
    return Identity.from_json(json.loads(identity.to_json()))


def of(options: list[str]) -> Identity:
    cluster = load(options, None).cluster
    assert cluster is not None
    return Identity("/src", "/mnt", 7, 41, 0, 0, "", cluster.state())


def test_the_next_daemon_goes_on_in_the_same_cluster() -> None:
    config = load(OPTIONS, None)
    assert again(of(OPTIONS)).config_of(config) == config


def test_without_cluster_there_is_none() -> None:
    config = load([], None)
    assert again(PLAIN).config_of(config) == config


def test_a_journal_of_before_clusters_and_for_a_version_of_before_them() -> None:
    """An older version takes over the mount where it knows everything that is said of it."""
    told = json.loads(PLAIN.to_json())
    assert "cluster" not in told
    assert Identity.from_json(told | {"cluster": None}) == PLAIN


def test_a_journal_that_says_more_than_this_version_knows() -> None:
    """It might be what a cluster is to this one, and must not be left out."""
    with pytest.raises(JournalError, match="this version does not know what a mount has to do with: moon, tides"):
        Identity.from_json(json.loads(PLAIN.to_json()) | {"tides": 2, "moon": {}})


def test_a_policy_file_that_is_lost_does_not_take_a_mount_out_of_its_cluster(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = load(OPTIONS, None)
    config = of(OPTIONS).config_of(load([], tmp_path / "gone.toml", takes_over=True))
    assert config.cluster == began.cluster
    assert config.mount.entry_timeout == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_options_that_came_since_hold_for_the_next_mount_only(caplog: pytest.LogCaptureFixture) -> None:
    assert PLAIN.config_of(load(OPTIONS, None)).cluster is None
    assert "next mount only" in caplog.text


def test_damaged_options_end_the_mount_rather_than_its_promise() -> None:
    damaged = Identity("/src", "/mnt", 7, 41, 0, 0, "", {"endpoints": ["ftp://x"], "host": "a"})
    with pytest.raises(MountError, match="cannot be taken over"):
        damaged.config_of(load([], None))
