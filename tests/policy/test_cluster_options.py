"""Options of the cluster: by `-o`, in the policy file, and what a reload and a take-over make of them."""

from __future__ import annotations

import json
import os
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pinfs.cluster.etcd.login import Credentials
from pinfs.cluster.membership import CLOCK_TRUST, Timing
from pinfs.config import cluster as cluster_module
from pinfs.config.cluster import OPTIONS, ClusterError, ClusterOptions, cluster_options
from pinfs.config.options import OptionError, load
from pinfs.config.policies import PolicyBox, policy_from_toml
from pinfs.core.policy import PolicyError

ONE = {"endpoints": "etcd1", "host": "a"}

FILE = """\
on_timeout = "revoke"

[cluster]
endpoints = ["https://etcd1:2379", "https://etcd2:2379"]
host = "models-1"
pin_ttl = 10

[[rule]]
path = "*.tmp"
own = "allow"
"""


def of(**values: Any) -> ClusterOptions:
    options = cluster_options({**ONE, **values})
    assert options is not None
    return options


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(FILE)
    return file


def test_without_endpoints_there_is_no_cluster() -> None:
    config = load([], None)
    assert config.cluster is None
    assert (config.mount.entry_timeout, config.mount.attr_timeout) == (60.0, 60.0)


@pytest.mark.parametrize(
    "option",
    ["cluster=http://a:2379+http://b:2379", r"cluster=http://a:2379\,http://b:2379", "cluster=a+b"],
)
def test_endpoints_of_an_option_stand_between_plus_signs_or_escaped_commas(option: str) -> None:
    cluster = load([f"ro,{option},cluster_host=h"], None).cluster
    assert cluster is not None
    assert [str(endpoint) for endpoint in cluster.endpoints] == ["http://a:2379", "http://b:2379"]


def test_the_table_of_a_policy_file_is_read_and_options_win(policy_file: Path) -> None:
    config = load(["cluster_pin_ttl=20,cluster_margin=2.5"], policy_file)
    cluster = config.cluster
    assert cluster is not None
    assert [str(endpoint) for endpoint in cluster.endpoints] == ["https://etcd1:2379", "https://etcd2:2379"]
    assert (cluster.host, cluster.pin_ttl, cluster.margin) == ("models-1", 20.0, 2.5)
    assert config.policies.base.on_timeout == "revoke"
    assert config.policies.for_path("x.tmp").own == "allow"


def test_defaults() -> None:
    cluster = of()
    assert (cluster.name, cluster.pin_ttl, cluster.member_ttl, cluster.margin) == (None, 15.0, 60.0, 5.0)
    assert cluster.pin_timeout == 5.0
    assert cluster.timing == Timing()
    assert cluster.tls() is None
    assert cluster.credentials() is None


def test_the_host_is_called_as_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((name[0], "db-7.example.org", *name[2:])))
    options = cluster_options({"endpoints": "etcd1"})
    assert options is not None
    assert options.host == "db-7.example.org"


@pytest.mark.parametrize("nodename", ["localhost", "localhost.localdomain", "(none)", ""])
def test_a_machine_without_a_name_of_its_own_needs_the_option(monkeypatch: pytest.MonkeyPatch, nodename: str) -> None:
    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((name[0], nodename, *name[2:])))
    with pytest.raises(OptionError, match=r"^cluster_host: .*choose one"):
        load(["cluster=etcd1"], None)


@pytest.mark.parametrize(("pin_ttl", "margin"), [(15.0, 5.0), (1.0, 0.5), (2.0, 0.1), (3600.0, 5.0)])
def test_two_beats_may_be_lost_before_the_fence(pin_ttl: float, margin: float) -> None:
    timing = of(pin_ttl=pin_ttl, margin=margin, member_ttl=7200).timing
    assert timing.beat_s > 0
    assert 3 * timing.beat_s <= pin_ttl * CLOCK_TRUST - margin + 1e-9
    assert timing.retry_s < timing.beat_s


BAD = [
    ("cluster", "must be|empty"),
    ("cluster=", "needs a value"),
    ("cluster=ftp://a", "http and https"),
    ("cluster=http://a+https://b", "mixes"),
    ("cluster_host=a/b", "letters"),
    ("cluster_host=..", "letters"),
    (f"cluster_host={'x' * 65}", "letters"),
    ("cluster_name=a b", "letters"),
    ("cluster_pin_ttl=0.5", "seconds from 1 to 3600"),
    ("cluster_pin_ttl=soon", "seconds from 1 to 3600"),
    ("cluster_pin_ttl=1e3", "seconds from 1 to 3600"),
    ("cluster_pin_timeout=0", "seconds"),
    ("cluster_pin_timeout=nan", "seconds"),
    ("cluster_margin=8", "half of pin_ttl"),
    ("cluster_member_ttl=15", "more than pin_ttl"),
    ("cluster_user=pinfs", "password_file"),
    ("cluster_password_file=/etc/passwd", "user"),
    ("cluster_ca=/etc/passwd", "https"),
    ("cluster_key=/etc/passwd", "https"),
]


@pytest.mark.parametrize(("option", "why"), BAD)
def test_a_bad_option_is_refused_by_name(option: str, why: str) -> None:
    name = option.partition("=")[0]
    given = [] if name == "cluster" else ["cluster=etcd1"]
    with pytest.raises(OptionError, match=rf"^{name}: .*({why}|needs a value)"):
        load([*given, option, *([] if "host" in option else ["cluster_host=a"])], None)


def test_options_of_a_cluster_without_endpoints_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^cluster_host: .*cluster=HOST:PORT"):
        load(["cluster_host=a"], None)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("pin_ttl = 0.1", "cluster.pin_ttl: must be seconds"),
        ("pin_ttl = true", "cluster.pin_ttl: must be seconds"),
        ("pin_tll = 5", "cluster.pin_tll: unknown key"),
        ("user = 7", "cluster.user: must be a text"),
    ],
)
def test_a_bad_value_of_the_file_is_refused_with_its_line(policy_file: Path, change: str, where: str) -> None:
    policy_file.write_text(FILE.replace("pin_ttl = 10", change))
    with pytest.raises(PolicyError, match=rf"^{policy_file}: line 6: {where}"):
        load([], policy_file)


def test_what_only_the_whole_shows_names_the_file(policy_file: Path) -> None:
    policy_file.write_text(FILE.replace("pin_ttl = 10", "margin = 9"))
    with pytest.raises(OptionError, match=rf"^{policy_file}: cluster.margin: "):
        load([], policy_file)


@pytest.mark.parametrize("text", ["cluster = 5", "[[cluster]]\nhost = 'a'"])
def test_the_table_must_be_one(text: str) -> None:
    with pytest.raises(PolicyError, match=r"^line 1: cluster: must be a table"):
        policy_from_toml(text, is_file=True)


def test_a_running_mount_takes_no_table(policy_file: Path) -> None:
    box = PolicyBox(policy_from_toml("", is_file=True))
    with pytest.raises(PolicyError, match="line 3: cluster: holds for as long as the mount"):
        box.replace(FILE, "uid 0")


def test_a_reload_changes_the_policy_and_not_the_cluster(policy_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load([], policy_file)
    box = PolicyBox(config.policies)
    policy_file.write_text(FILE.replace("revoke", "kill"))
    box.reload(config.read_policy, "SIGHUP")
    assert box.current.base.on_timeout == "kill"
    assert "cluster" not in caplog.text
    policy_file.write_text(FILE.replace("pin_ttl = 10", "pin_ttl = 12"))
    box.reload(config.read_policy, "SIGHUP")
    assert f"[cluster] of {policy_file} has changed: that holds for the next mount only" in caplog.text


def test_nothing_is_remembered_of_a_directory_that_others_change(policy_file: Path) -> None:
    config = load([], policy_file)
    assert (config.mount.entry_timeout, config.mount.attr_timeout) == (0.0, 0.0)
    assert list(config.warnings()) == []


def test_the_operators_timeouts_win_with_a_warning() -> None:
    config = load(["cluster=etcd1,cluster_host=a,attr_timeout=2"], None)
    assert (config.mount.entry_timeout, config.mount.attr_timeout) == (0.0, 2.0)
    assert list(config.warnings()) == ["attr_timeout: what other hosts change may go unnoticed for 2 seconds"]


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"^cluster: .*pip install 'pinfs\[cluster\]'.*python3-h11"):
        load(["cluster=etcd1"], None)


# Secrets


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("sesame\n")
    return file


def test_user_and_password(password_file: Path) -> None:
    options = of(endpoints="https://etcd1", user="pinfs", password_file=str(password_file))
    assert options.credentials() == Credentials("pinfs", "sesame")
    assert list(options.warnings()) == []
    in_the_clear = of(user="pinfs", password_file=str(password_file))
    assert "in the clear" in next(in_the_clear.warnings())


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o601, 0o644])
def test_a_password_that_others_may_read_is_refused(password_file: Path, mode: int) -> None:
    password_file.chmod(mode)
    with pytest.raises(ClusterError, match=r"^password_file: .*others may read it"):
        of(user="pinfs", password_file=str(password_file))


def test_a_group_may_read_it(password_file: Path) -> None:
    password_file.chmod(0o640)
    assert of(user="pinfs", password_file=str(password_file)).credentials() is not None


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 2000, b"\xff\xfe"])
def test_what_is_no_password_is_refused(password_file: Path, content: bytes) -> None:
    password_file.write_bytes(content)
    with pytest.raises(ClusterError, match=r"^password_file: "):
        of(user="pinfs", password_file=str(password_file))


@pytest.mark.parametrize("key", ["ca", "certificate", "password_file"])
def test_a_missing_file_is_named(tmp_path: Path, key: str) -> None:
    more = {"user": "pinfs"} if key == "password_file" else {}
    with pytest.raises(ClusterError, match=f"^{key}: {tmp_path}/none: No such file"):
        of(endpoints="https://etcd1", **{key: str(tmp_path / "none")}, **more)


def test_a_key_needs_a_certificate(password_file: Path) -> None:
    with pytest.raises(ClusterError, match=r"^key: needs a certificate"):
        of(endpoints="https://etcd1", key=str(password_file))


def test_a_file_that_is_no_certificate_shows_when_it_is_used(password_file: Path) -> None:
    with pytest.raises(ssl.SSLError):
        of(endpoints="https://etcd1", ca=str(password_file)).tls()


# Taking over


def test_the_next_daemon_has_the_same_options(password_file: Path) -> None:
    options = of(endpoints=["https://a", "https://b"], name="models", user="u", password_file=str(password_file))
    state = json.loads(json.dumps(options.state()))
    assert "sesame" not in json.dumps(state)
    assert ClusterOptions.restored(state) == options


def test_a_policy_file_that_was_broken_since_does_not_end_a_mount(policy_file: Path) -> None:
    config = load([], policy_file)
    policy_file.write_text("[cluster\n")
    again = load(["cluster_pin_ttl=20"], policy_file, takes_over=True)
    assert again.cluster is None
    restored = again.with_cluster(config.cluster)
    assert restored.cluster == config.cluster
    assert (restored.mount.entry_timeout, restored.mount.attr_timeout) == (0.0, 0.0)
    with pytest.raises(PolicyError):
        load([], policy_file)


def test_all_keys_can_be_options() -> None:
    assert set(OPTIONS.values()) == set(ClusterOptions.__dataclass_fields__)
    assert replace(of(), pin_ttl=20.0).pin_ttl == 20.0
