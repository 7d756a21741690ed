"""Options and policy files: precedence, messages with key and line, and what must never be accepted."""

from __future__ import annotations

import logging
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.config import options as config
from pinfs.config.foreign import REFUSED, WITHOUT_EFFECT
from pinfs.config.options import MountOptions, OptionError, load, parse_options, split_options, warnings_of
from pinfs.config.policies import POLICY_BYTES_MAX, PolicyBox, policy_from_toml
from pinfs.core.policy import CHOICES, LIMITS, SECONDS, PolicyError, PolicySet, policy_to_toml

GOOD = """\
# models are read by many
on_timeout = "revoke"
break_timeout = 10

[[rule]]
path = "models/**"
conflict = "deny"

[[rule]]
path = "*.tmp"
own = "allow"
"""


def test_a_policy_file_is_read() -> None:
    policies = policy_from_toml(GOOD)
    assert (policies.base.on_timeout, policies.base.break_timeout) == ("revoke", 10.0)
    assert policies.for_path("models/a/w").conflict == "deny"
    assert policies.for_path("x.tmp").own == "allow"
    assert [rule.line for rule in policies.rules] == [5, 9]


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ('own = "never"', "own", 1),
        ('\n\n  "own"="never"', "own", 3),
        ("brake_timeout = 5", "brake_timeout", 1),
        ("\n[limits]\nmax_pins = 5", "limits", 2),
        (GOOD.replace('"allow"', '"all"'), "own", 11),
        (GOOD.replace('"deny"', '"all"'), "conflict", 7),
        (GOOD + "max_pins = 5\n", "max_pins", 12),
        (GOOD + '[[rule]]\nown = "deny"\n', "path", 12),
        (GOOD + '[[rule]]\npath = "a//b"\n', "path", 13),
        (GOOD + '[rule.deep]\nown = "deny"\n', "deep", 12),
        ('own = "deny"\nrule = [\n {path = "x", own = 7}]', "own", 2),
        ('own = "deny"\nrule = "x"', "rule", 2),
        ("[rule]\n", "rule", 1),
        ("own = 1979-05-27", "own", 1),
        ("a.b.c = 1", "a", 1),
    ],
)
def test_key_and_line_of_what_is_wrong(text: str, key: str, line: int) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from_toml(text)
    assert (caught.value.key, caught.value.line) == (key, line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("own = ", 1),
        ('own = "deny"\nown = "deny"', 2),
        ('\n\nown = "deny', 3),
        ("[" * 60_000, None),
        ("max_pins = " + "9" * 5000, None),
        ("#" * (POLICY_BYTES_MAX + 1), None),
        ("# \udcff", None),
        ("own = '\0'", 1),
    ],
    ids=["no value", "twice", "open string", "deep", "digits", "size", "surrogate", "nul"],
)
def test_what_is_no_toml(text: str, line: int | None) -> None:
    if text == "# \udcff":
        assert policy_from_toml(text) == PolicySet()
        return
    with pytest.raises(PolicyError) as caught:
        policy_from_toml(text)
    assert caught.value.key == ""
    assert line is None or caught.value.line == line
    assert len(str(caught.value)) < 300


@given(st.text(max_size=200) | st.text("[]=\"'{}.,\n rulepathown_-1#", max_size=200))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        policy = policy_from_toml(text)
    except PolicyError:
        return
    assert policy_from_toml(policy_to_toml(policy)) == policy


# ---- options


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (",,", []),
        ("a,b=c", ["a", "b=c"]),
        (r"fsname=a\,b,c", ["fsname=a,b", "c"]),
        (r"fsname=a\\,b", ["fsname=a\\", "b"]),
        ("a\\", ["a\\"]),
        ("a=b=c", ["a=b=c"]),
        ("a=\n", ["a=\n"]),
    ],
)
def test_commas(text: str, parts: list[str]) -> None:
    assert list(split_options(text)) == parts


@given(st.lists(st.text(min_size=1), max_size=4))
def test_what_is_escaped_comes_back(parts: list[str]) -> None:
    text = ",".join(part.replace("\\", "\\\\").replace(",", "\\,") for part in parts)
    assert list(split_options(text)) == parts


def test_defaults_are_those_of_a_fuse_mount() -> None:
    mount, overrides, policy = parse_options([])
    assert not (mount.read_only or mount.suid or mount.dev) and mount.exec_ and mount.atime
    assert mount.allow_other is (os.geteuid() == 0)
    assert (overrides, policy) == ({}, None)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("ro", {"read_only": True}),
        ("ro,rw", {"read_only": False}),
        ("dev,suid", {"dev": True, "suid": True}),
        ("suid,nosuid", {"suid": False}),
        ("noexec,noatime", {"exec_": False, "atime": False}),
        ("allow_other", {"allow_other": True}),
        (r"fsname=host:/a\,b", {"fsname": "host:/a,b"}),
        ("bridge=off,passthrough=on", {"bridge": "off", "passthrough": "on"}),
        ("busy_poll=50", {"busy_poll": 50}),
        ("busy_poll=1000,busy_poll=0", {"busy_poll": 0}),
        ("entry_timeout=0,attr_timeout=1.5", {"entry_timeout": 0.0, "attr_timeout": 1.5}),
        (
            "log_level=debug,replace_stale,metrics_port=9100",
            {"log_level": "debug", "replace_stale": True, "metrics_port": 9100},
        ),
        ("defaults,auto,nofail,user=joe,users,_netdev,x-systemd.automount,x-gvfs-show,subtype=pinfs", {}),
    ],
)
def test_mount_options(option: str, expected: dict[str, Any]) -> None:
    mount, overrides, _ = parse_options(option.split(",") if "\\" not in option else [option])
    assert mount == MountOptions(**expected)
    assert parse_options([option])[0] == mount
    assert overrides == {}


BAD_OPTIONS = ["foo", "foo=1", "=", "ro=1", "bridge", "bridge=maybe", "bridge=", "passthrough=yes", "entry_timeout=-1"]
BAD_OPTIONS += ["busy_poll", "busy_poll=", "busy_poll=-1", "busy_poll=1001", "busy_poll=5.0", "busy_poll=٣"]
BAD_OPTIONS += [
    "entry_timeout=nan",
    "entry_timeout=1e3",
    "attr_timeout=9999999",
    "metrics_port=65536",
    "metrics_port=x",
]
BAD_OPTIONS += [
    "metrics_port=٣",
    "log_level=loud",
    "policy",
    "policy=",
    "fsname=",
    "allow_root=1",
    "replace_stale=no",
    "poll",
    "poll=maybe",
    "y-z",
]


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_a_bad_option_is_named(option: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(["rw,nofail", option])
    assert option.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize(
    "option", ["own", "own=", "own=x", "break_timeout=inf", "break_timeout=1s", "max_pins=-1", "max_pins=1.5"]
)
def test_a_bad_policy_key_among_the_options_is_named(option: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_options([option])
    assert caught.value.key == option.partition("=")[0]


def test_every_policy_key_is_an_option() -> None:
    options = [f"{key}={values[-1]}" for key, values in CHOICES.items()]
    options += [f"{key}=7.5" for key in SECONDS] + [f"{key}=7" for key in LIMITS]
    policies = load([",".join(options)], None).policies
    assert all(getattr(policies.base, key) == values[-1] for key, values in CHOICES.items())
    assert all(getattr(policies.base, key) == 7.5 for key in SECONDS)
    assert all(getattr(policies.limits, key) == 7 for key in LIMITS)


def test_allow_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_is_root", lambda: True)
    assert not parse_options(["allow_root"])[0].allow_other
    monkeypatch.setattr(config, "_is_root", lambda: False)
    with pytest.raises(OptionError, match="allow_root"):
        parse_options(["allow_root"])


# ---- file and options together


def test_options_go_before_the_file_before_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(GOOD)
    config = load(["on_timeout=kill", f"policy={file}", "max_waiting=5"], None)
    assert (config.policies.base.on_timeout, config.policies.base.break_timeout) == ("kill", 10.0)
    assert config.policies.base.own == "deny"
    assert config.policies.limits.max_waiting == 5
    assert config.policies.for_path("models/w").conflict == "deny"
    assert load(["on_timeout=kill", "max_waiting=5"], file).policies == config.policies


def test_policy_is_found_again_after_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy.toml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    config = load(["policy=policy.toml"], None)
    monkeypatch.chdir("/")
    assert config.read_policy() == config.policies


def test_a_policy_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, content in ((tmp_path / "none", None), (tmp_path / "bytes", b"\xff"), (tmp_path, None)):
        if content:
            path.write_bytes(content)
        with pytest.raises(PolicyError) as caught:
            load([], path)
        assert caught.value.key == "policy" and str(path) in str(caught.value)


def test_an_error_in_a_file_names_file_line_and_key(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(GOOD.replace('"allow"', '"all"'))
    with pytest.raises(PolicyError) as caught:
        load([], tmp_path / "policy.toml")
    assert str(caught.value) == f"{tmp_path}/policy.toml: line 11: own: must be one of deny, allow, not 'all'"


def test_a_huge_policy_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PolicyError):
        load([], tmp_path / "huge")


# ---- at run time


def test_a_new_policy_is_in_force_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    box = PolicyBox(PolicySet())
    box.replace(GOOD, "uid 0")
    assert box.current == policy_from_toml(GOOD)
    assert {record.getMessage() for record in caplog.records} == {
        "policy from uid 0: on_timeout: deny -> revoke",
        "policy from uid 0: break_timeout: 45.0 -> 10.0",
        "policy from uid 0: rule added: path='models/**' conflict=deny",
        "policy from uid 0: rule added: path='*.tmp' own=allow",
        "policy from uid 0: rules in force: 2",
    }
    assert {(record.name, record.levelno) for record in caplog.records} == {("pinfs.policy", logging.INFO)}


def test_a_bad_policy_leaves_the_old_one_in_force(caplog: pytest.LogCaptureFixture) -> None:
    box = PolicyBox(policy_from_toml(GOOD))
    with pytest.raises(PolicyError):
        box.replace('on_timeout = "kill"\nown = "x"', "uid 0")
    assert box.current == policy_from_toml(GOOD)
    assert box.last_error == "line 2: own: must be one of deny, allow, not 'x'"
    assert box.last_error in caplog.text
    box.replace("", "uid 0")
    assert (box.current.base, box.current.rules, box.last_error) == (policy_from_toml(GOOD).base, (), "")


def test_what_a_new_policy_does_not_say_is_as_the_mount_began(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('break_timeout = 2\nmax_pins = 7\n[[rule]]\npath = "*.log"\nown = "allow"\n')
    config = load(["errno=ETXTBSY"], file)
    box = PolicyBox(config.policies)
    for text in ('on_timeout = "revoke"', 'own = "allow"'):
        box.replace(text, "uid 0")
        began = {"break_timeout": 2.0, "max_pins": 7, "errno": "ETXTBSY"}
        assert box.current == policy_from_toml(text, defaults=began)
        assert not box.current.rules
    file.write_text("break_timeout = 3")
    box.reload(config.read_policy, "SIGHUP")
    box.replace('on_timeout = "revoke"', "uid 0")
    assert (box.current.base.break_timeout, box.current.base.errno) == (3.0, "ETXTBSY")
    box.replace(policy_to_toml(PolicySet()), "uid 0")
    assert box.current == PolicySet()


def test_reload_reads_the_file_again_under_the_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(GOOD)
    config = load(["break_timeout=3"], file)
    box = PolicyBox(config.policies)
    file.write_text('own = "allow"\nbreak_timeout = 9\n')
    box.reload(config.read_policy, "SIGHUP")
    assert (box.current.base.own, box.current.base.on_timeout, box.current.base.break_timeout) == ("allow", "deny", 3.0)
    file.write_text("own = 1")
    with pytest.raises(PolicyError):
        box.reload(config.read_policy, "SIGHUP")
    assert box.current.base.own == "allow"
    assert "SIGHUP refused" in caplog.text


def test_what_is_written_can_be_written_back() -> None:
    box = PolicyBox(policy_from_toml(GOOD))
    text = policy_to_toml(box.current)
    assert tomllib.loads(text)["rule"][0] == {"path": "models/**", "conflict": "deny"}
    box.replace(text, "uid 0")
    assert box.current == policy_from_toml(GOOD)


# ---- options of other FUSE file systems


@pytest.mark.parametrize("option", ["default_permissions", "nonempty", "subtype=pinfs", "async", "relatime", "rw"])
def test_what_pinfs_does_anyway_is_accepted_in_silence(option: str) -> None:
    assert parse_options([option])[0] == MountOptions()
    assert list(warnings_of([option])) == []


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("auto_unmount", "replace_stale"),
        ("max_read=131072", "agree on the size"),
        ("max_write=4096", "agree on the size"),
        ("big_writes", "agree on the size"),
        ("kernel_cache", "entry_timeout"),
        ("use_ino", "source"),
    ],
)
def test_what_has_no_effect_is_accepted_with_a_warning(option: str, instead: str) -> None:
    assert parse_options([option])[0] == MountOptions()
    (warning,) = warnings_of([f"ro,{option}", option])
    assert warning.startswith(f"{option.partition('=')[0]}: has no effect: ")
    assert instead in warning


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("negative_timeout=5", "entry_timeout"),
        ("ac_attr_timeout=5", "attr_timeout"),
        ("umask=022", "source"),
        ("uid=1000", "source"),
        ("fd=3", "as the user"),
        ("drop_privileges", "ordinary user"),
        ("direct_io", "O_DIRECT"),
        ("writeback_cache", "passthrough"),
        ("modules=subdir", "SOURCE"),
        ("debug", "log_level=debug"),
        ("sync", "O_SYNC"),
        ("remount", "pinfs policy set"),
    ],
)
def test_what_would_mean_something_else_is_refused_with_what_to_use(option: str, instead: str) -> None:
    with pytest.raises(OptionError, match=f"^{option.partition('=')[0]}: not an option of pinfs: .*{instead}"):
        parse_options([option])


def test_no_option_has_two_meanings() -> None:
    own = {*config._SETTINGS, *config._SWITCHES, *CHOICES, *SECONDS, *LIMITS, "policy", "allow_root"}
    others = [*WITHOUT_EFFECT, *REFUSED, *config._WITHOUT_EFFECT, *config._ACTED_ON_BY_MOUNT]
    assert not own & set(others)
    assert len(others) == len(set(others))


def test_options_of_others_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    covered = ("splice_", "no_splice_", "no_remote_", "fscontext", "defcontext", "rootcontext")
    missing = [name for name in (*WITHOUT_EFFECT, *REFUSED) if f"`{name}`" not in text and not name.startswith(covered)]
    assert missing == []
