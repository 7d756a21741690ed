"""cluster status and forget, what other verbs show of a cluster, and the doctor's section about it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.fakemount import STATUS, FakeMount
from click.testing import Result

from pinfs.cli import hosts
from pinfs.cli.findings import Level
from pinfs.cli.hosts import Looked, check_shared
from pinfs.cluster.etcd import Code, Done, Found, Refused, Status, Unreachable
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import cluster_text, describe

Run = Callable[..., Result]

CLUSTER: dict[str, Any] = {
    "host": "a",
    "name": "models",
    "incarnation": "1f",
    "state": "joined",
    "fence_in_s": 9.25,
    "endpoints": ["http://etcd1:2379", "http://etcd2:2379"],
    "interrupted_because": "",
    "members": [
        {"host": "b", "incarnation": "2e", "silent_s": 1.04, "own": False},
        {"host": "a", "incarnation": "1f", "silent_s": 0.5, "own": True},
    ],
    "marks": 12,
    "pins": 3,
    "removals": 1,
    "not_seen": [],
}


@pytest.fixture
def clustered(fake: FakeMount) -> Callable[..., None]:
    def set_cluster(**changes: Any) -> None:
        fake.write("status", json.dumps(STATUS | {"cluster": CLUSTER | changes}))

    set_cluster()
    return set_cluster


@pytest.mark.usefixtures("clustered")
def test_status_of_a_cluster_is_json_in_a_pipe(run: Run, fake: FakeMount) -> None:
    result = run("cluster", "status", fake.point)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"v": 1, "mountpoint": str(fake.point), "cluster": CLUSTER}


@pytest.mark.usefixtures("clustered")
def test_status_of_a_cluster_as_a_table(run: Run) -> None:
    lines = run("cluster", "status", "--table").stdout.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["HOST", "LIFE", "SILENT"],
        ["a", "1f", "0.5s", "this", "host"],
        ["b", "2e", "1.0s"],
    ]
    assert lines[4:] == [
        "models, as host a: joined, 2 hosts",
        "fence: in 9.2s unless etcd answers",
        "marked files 12, pins of this host 3, removals 1",
        "etcd: http://etcd1:2379, http://etcd2:2379",
    ]


def test_what_is_wrong_is_said(run: Run, clustered: Callable[..., None]) -> None:
    clustered(state="joining", fence_in_s=None, interrupted_because="no\x1b leader", not_seen=["b"])
    result = run("cluster", "status", "--table")
    assert result.exit_code == 16
    assert "its files are not seen here" in result.stdout
    assert "fence: -" in result.stdout
    assert result.stderr.splitlines() == [
        "warning: until it has joined, pins and removals get EIO",
        "warning: etcd is interrupted: no\\x1b leader",
        "warning: not the same directory there, or not shared: b",
    ]


def test_a_host_that_does_not_join_says_why(run: Run, clustered: Callable[..., None]) -> None:
    clustered(state="refused", fence_in_s=None, refused_because="another directory", members=[])
    result = run("cluster", "status", "--table")
    assert result.exit_code == 16
    assert "warning: another directory" in result.stderr.splitlines()


@pytest.mark.parametrize("cluster", [None, ...])
def test_a_mount_in_no_cluster(run: Run, fake: FakeMount, cluster: object) -> None:
    """Also one of an older daemon, which says nothing of it."""
    fake.write("status", json.dumps(STATUS | ({} if cluster is ... else {"cluster": None})))
    for words in (["status"], ["forget", "--yes", "b"]):
        result = run("cluster", *words)
        assert (result.exit_code, result.stderr.count("\n")) == (15, 1)
    assert not any(line.startswith("cluster") for line in run("status", "--table").stdout.splitlines())


@pytest.mark.usefixtures("clustered")
def test_a_host_is_forgotten_by_a_command(run: Run, fake: FakeMount) -> None:
    assert run("cluster", "forget", "--yes", "b").exit_code == 0
    assert fake.read("events") == "forget b\n"


@pytest.mark.usefixtures("clustered")
def test_forgetting_asks_for_a_word_and_says_what_it_risks(run: Run, fake: FakeMount) -> None:
    result = run("cluster", "forget", "b")
    assert result.exit_code == 2
    assert "b must be dead" in result.stderr
    assert "--yes" in result.stderr
    assert fake.read("events") == ""


@pytest.mark.usefixtures("clustered")
@pytest.mark.parametrize(("host", "code"), [("a", 2), ("c", 17), ("", 17)])
def test_hosts_that_cannot_be_forgotten(run: Run, fake: FakeMount, host: str, code: int) -> None:
    assert run("cluster", "forget", "--yes", host).exit_code == code
    assert fake.read("events") == ""


@pytest.mark.usefixtures("clustered")
@pytest.mark.parametrize(("number", "code"), [(errno.ESRCH, 17), (errno.EPERM, 5), (errno.ENOTCONN, 7)])
def test_what_the_daemon_answers(run: Run, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    def refuse(_mount: Mount, _line: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Mount, "command", refuse)
    result = run("cluster", "forget", "--yes", "b")
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)


# Other verbs


@pytest.mark.usefixtures("clustered")
def test_status_has_a_line_for_it(run: Run) -> None:
    assert any(
        line.split("  ")[0] == "cluster" and line.endswith("models, as host a: joined, 2 hosts")
        for line in run("status", "--table").stdout.splitlines()
    )


@pytest.mark.usefixtures("clustered")
def test_lists_of_pins_say_of_which_host_they_are(run: Run, fake: FakeMount) -> None:
    fake.pins({})
    (pin,) = json.loads(run("ls").stdout)["pins"]
    assert pin["host"] == "a"
    assert run("ls", "--table", "--noheadings", "-o", "ID,HOST").stdout.split() == ["7", "a"]


def test_lists_of_a_mount_in_no_cluster_are_as_before(run: Run, fake: FakeMount) -> None:
    fake.pins({})
    (pin,) = json.loads(run("ls").stdout)["pins"]
    assert "host" not in pin
    assert run("ls", "--table", "--noheadings", "-o", "ID,HOST").stdout.split() == ["7", "-"]


def test_a_breaker_of_another_host_is_no_process_of_this_one() -> None:
    event = {"event": "break", "pin": 7, "op": "truncate", "host": "b",
             "breaker": {"pid": None, "uid": None, "host": "b"}}  # fmt: skip
    assert describe(event) == "pin 7 for truncate from host b"
    local = {"event": "break", "pin": 7, "op": "truncate", "breaker": {"pid": 11, "uid": 0}}
    assert describe(local) == "pin 7 for truncate of 11"


def test_one_host_alone() -> None:
    alone = CLUSTER | {"members": CLUSTER["members"][1:], "name": None}
    assert cluster_text(alone) == "cluster, as host a: joined, 1 host"


# The doctor


def test_the_doctor_looks_at_mounted_clusters(run: Run, fake: FakeMount, clustered: Callable[..., None]) -> None:
    def findings() -> list[tuple[str, str]]:
        found = json.loads(run("doctor").stdout)["findings"]
        return [(one["level"], one["text"]) for one in found if one["check"] == str(fake.point)]

    assert ("ok", "cluster models, as host a: joined, 2 hosts") in findings()
    clustered(not_seen=["b"])
    assert ("warn", "cluster: not the same directory there, or not shared: b") in findings()


def levels(looked: Looked, *, is_any_there: bool = True) -> list[tuple[str, str]]:
    return [(finding.level.value, finding.text) for finding in hosts._findings("e1", looked, is_any_there)]


LOGGED_IN = Done(None, 0, 0)
STATUS_OF_NODE = Status("3.5.16", 1, 1, 4096, ())
COMPACTED = Refused("required revision has been compacted", Code.OUT_OF_RANGE)


def looked(status: Any = STATUS_OF_NODE, login: Any = LOGGED_IN, old: Any = COMPACTED) -> Looked:
    return Looked(login, Done(status, 9, 1) if isinstance(status, Status) else status, old)


def test_a_healthy_node() -> None:
    assert levels(looked()) == [
        ("ok", "e1 answers: etcd 3.5.16, 4 KiB"),
        ("ok", "e1 has compacted old revisions"),
    ]


@pytest.mark.parametrize(
    ("node", "level", "words"),
    [
        (looked(Status("3.3.27", 1, 1, 0, ())), "fail", "is etcd 3.3.27"),
        (looked(Status("3.5.16", 1, 0, 0, ())), "fail", "knows no leader"),
        (looked(Status("3.5.16", 1, 1, 0, ("NOSPACE",))), "fail", "alarm: NOSPACE"),
        (looked(Status("3.5.16", 1, 1, 1 << 31, ())), "warn", "holds 2048 MiB"),
        (looked(Refused("CommonName of client...", Code.INVALID_ARGUMENT)), "fail", "refuses: CommonName"),
        (looked(Unreachable("refused")), "warn", "does not answer: refused"),
        (looked(login=Refused("login: wrong password", Code.INVALID_ARGUMENT)), "fail", "wrong password"),
        (looked(old=Done(Found((), 0), 200_000, 1)), "warn", "all of its 200,000 revisions"),
        (looked(old=Refused("permission denied", Code.PERMISSION_DENIED)), "fail", "keys below /pinfs/"),
    ],
)
def test_a_node_that_needs_something(node: Looked, level: str, words: str) -> None:
    assert any(found == level and words in text for found, text in levels(node)), levels(node)


def test_no_node_at_all_is_a_failure() -> None:
    assert levels(looked(Unreachable("refused")), is_any_there=False)[0][0] == "fail"


def test_nobody_answers_at_the_endpoint(run: Run) -> None:
    result = run("doctor", "-o", "cluster=127.0.0.1:1,cluster_host=a")
    found = [one for one in json.loads(result.stdout)["findings"] if one["check"] == "etcd"]
    assert [one["level"] for one in found] == ["fail", "warn"]
    assert result.exit_code == 8


def test_options_that_are_wrong(run: Run) -> None:
    result = run("doctor", "-o", "cluster=ftp://x")
    assert (result.exit_code, result.stderr.count("\n")) == (11, 1)


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("nfs4", Level.OK, "close-to-open"),
        ("ceph", Level.OK, "coherent"),
        ("fuse.glusterfs", Level.WARN, "up to it"),
        ("ext4", Level.WARN, "no other host has"),
    ],
)
def test_what_a_shared_file_system_promises(tmp_path: Path, kind: str, level: Level, words: str) -> None:
    found = list(check_shared(str(tmp_path), kind))
    assert (found[0].level, words in found[0].text) == (level, True)
    assert found[-1].text.startswith(f"{tmp_path} has no cluster yet")
