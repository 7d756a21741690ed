"""`pinfs bench --only cluster` on two hosts: every row has a result, and nothing stays behind. No times."""

from __future__ import annotations

import os

import pytest
from bench.fakes import Silent
from support.mounts import Mount

from pinfs.bench import cluster
from pinfs.bench.places import open_places
from pinfs.bench.report import as_json, remarks
from pinfs.bench.run import NoPeerError, Plan, run

OF_ALL = "without pins"


def test_rows_of_two_hosts(a: Mount, b: Mount) -> None:
    paths = [str(a.path), str(b.path)]
    outcome = run(Plan(paths, only=["cluster"], rounds=1, quick=True), Silent())
    assert {one.row.name for one in outcome.measured} == {row.name for row in cluster.rows}
    for one in outcome.measured:
        assert all(one.samples[path] for path in paths), one
        assert list(one.notes.values()) == ([] if OF_ALL in one.row.name else ["in no cluster"])
    found = as_json(outcome)["directories"]
    assert isinstance(found, list)
    assert [one["cluster"] and one["cluster"]["host"] for one in found] == ["a", None, "b"]
    assert any(text.startswith("a: ") or ": host a of its cluster, etcd at http" in text for text in remarks(outcome))
    assert not a.pins() + b.pins()
    assert [name for name in os.listdir(a.path) if name != ".pinfs-cluster"] == []


def test_each_host_reaches_the_files_of_the_other(a: Mount, b: Mount) -> None:
    inside = a.path / "inside"
    inside.mkdir()
    with open_places([str(inside), str(b.path)]) as places:
        there, here = places[0].peer_work, places[0].work
        assert there is not None
        assert there.startswith(str(b.path))
        assert os.path.samestat(os.stat(there), os.stat(here)) or os.stat(there).st_ino == os.stat(here).st_ino


def test_one_host_is_told_that_there_have_to_be_two(a: Mount) -> None:
    with pytest.raises(NoPeerError, match=r"needs two mounts of one source in one cluster.*is host a of cluster"):
        run(Plan([str(a.path)], only=["cluster"], rounds=1, quick=True), Silent())
    outcome = run(Plan([str(a.path)], only=["first pin"], rounds=1, quick=True), Silent())
    assert outcome.measured[0].notes[str(a.path)] == cluster.NEEDS
