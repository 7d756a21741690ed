"""The policy as values: what is accepted, what a rule matches, what comes back as TOML."""

from __future__ import annotations

import errno
import fnmatch
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinfs.core.policy import (
    CACHED_PATHS,
    CHOICES,
    LIMITS,
    MAX_SECONDS,
    Limits,
    Policy,
    PolicyError,
    PolicySet,
    Rule,
    policy_from_mapping,
    policy_to_toml,
)


def test_defaults_are_those_of_the_contract() -> None:
    policy = PolicySet().for_path("any/file")
    assert policy == Policy("pin", "EBUSY", 45.0, 300.0, "deny", 5.0, "deny", "defer", "ignore")
    assert all(getattr(policy, key) == values[0] for key, values in CHOICES.items())
    assert policy_from_mapping({}) == PolicySet()


def test_a_million_pins_fit_and_one_user_cannot_take_all() -> None:
    limits = Limits()
    assert 1_000_000 < limits.max_pins_per_user < limits.max_pins


@pytest.mark.parametrize(("name", "number"), [("EBUSY", errno.EBUSY), ("ETXTBSY", errno.ETXTBSY)])
def test_errno_number(name: str, number: int) -> None:
    assert Policy(errno=name).errno_number == number


BAD = [
    ("conflict", "maybe"),
    ("conflict", True),
    ("conflict", ["pin"]),
    ("errno", "EPERM"),
    ("errno", 16),
    ("on_timeout", "KILL"),
    ("own", ""),
    ("unlink", None),
    ("mapped", {"deny": 1}),
    ("break_timeout", "45"),
    ("break_timeout", True),
    ("break_timeout", -1),
    ("break_timeout", float("nan")),
    ("break_timeout", float("inf")),
    ("break_timeout_max", MAX_SECONDS + 1),
    ("break_timeout", 10**5000),
    ("max_pins", 1.5),
    ("max_pins", False),
    ("max_waiting", -1),
    ("max_pins_per_user", "many"),
    ("max_pinned_bytes_per_user", 2**63),
    ("brake_timeout", 45),
    ("rule", {"path": "*"}),
    ("rule", "*"),
    ("rule", [7]),
]


@pytest.mark.parametrize(("key", "value"), BAD, ids=lambda v: str(v)[:20] if not isinstance(v, int) else "n")
def test_a_bad_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from_mapping({"own": "allow", key: value})
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({}, "path"),
        ({"path": 7}, "path"),
        ({"path": ""}, "path"),
        ({"path": "/"}, "path"),
        ({"path": "a//b"}, "path"),
        ({"path": "a/"}, "path"),
        ({"path": "../x"}, "path"),
        ({"path": "a\0b"}, "path"),
        ({"path": "\udcff"}, "path"),
        ({"path": "*", "max_pins": 1}, "max_pins"),
        ({"path": "*", "rule": []}, "rule"),
        ({"path": "*", "own": "never"}, "own"),
    ],
)
def test_a_bad_rule_is_refused_by_name(table: dict[str, Any], key: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from_mapping({"rule": [table]})
    assert caught.value.key == key


def test_a_line_is_told_where_it_is_known() -> None:
    with pytest.raises(PolicyError, match=r"^line 12: own: must be one of deny, allow") as caught:
        policy_from_mapping({"own": 1}, lambda rule, key: 12)
    assert caught.value.line == 12


@pytest.mark.parametrize(
    ("glob", "path", "match"),
    [
        ("*.bin", "w.bin", True),
        ("*.bin", "models/deep/w.bin", True),
        ("*.bin", "models.bin/w", False),
        ("/*.bin", "w.bin", True),
        ("/*.bin", "models/w.bin", False),
        ("models/*", "models/w.bin", True),
        ("models/*", "models/deep/w.bin", False),
        ("models/*", "other/models/w.bin", False),
        ("models/**", "models/deep/er/w.bin", True),
        ("/models/**", "models/w.bin", True),
        ("**/log/*", "log/a", True),
        ("**/log/*", "x/y/log/a", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "ab", False),
        ("a/**/**/b", "a/b", True),
        ("**", "a/b/c", True),
        ("**", "a", True),
        ("w?b[0-9]", "wxb7", True),
        ("w?b[!0-9]", "wxb7", False),
        ("a?b", "a/b", False),
        ("[*]", "*", True),
        ("[*]", "x", False),
        ("a**b", "axxb", True),
        ("Weights", "weights", False),
        ("x", "x\n", False),
        ("*", "line\nbreak", True),
        ("???", "\udcff\udcfe\n", True),
    ],
)
def test_globs(glob: str, path: str, match: bool) -> None:
    assert Rule(glob).matches(path) is match


@given(
    st.text("ab*?/", min_size=1, max_size=8), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4)
)
def test_without_slashes_a_glob_is_fnmatch_of_the_last_name(glob: str, names: list[str]) -> None:
    glob = glob.replace("/", "") or "*"
    assert Rule(glob).matches("/".join(names)) is fnmatch.fnmatchcase(names[-1], glob)


def test_many_stars_do_not_take_for_ever() -> None:
    assert not Rule("**/" + "*a" * 60 + "/**/" * 1 + "b").matches("/".join(["a" * 250] * 8))


def test_the_last_rule_that_matches_wins_alone() -> None:
    policies = policy_from_mapping(
        {
            "own": "allow",
            "rule": [
                {"path": "*.bin", "conflict": "deny", "on_timeout": "kill"},
                {"path": "models/**", "break_timeout": 5},
                {"path": "tmp/**"},
            ],
        }
    )
    assert policies.explain("models/w.bin") == (Policy(own="allow", break_timeout=5.0), 1, "models/**")
    assert policies.explain("w.bin") == (Policy(own="allow", conflict="deny", on_timeout="kill"), 0, "*.bin")
    assert policies.explain("tmp/w.bin") == (Policy(own="allow"), 2, "tmp/**")
    assert policies.explain("w.txt") == (policies.base, None, None)
    assert policies.explain(None) == (policies.base, None, None)
    assert policies.for_path("models/w.bin") == policies.for_path("models/w.bin") == policies.explain("models/w.bin")[0]
    assert policies.for_path(None) is policies.base


def test_the_cache_of_paths_is_bounded_and_right_after_it_was_full() -> None:
    policies = PolicySet(rules=(Rule("odd*", {"own": "allow"}),))
    for number in range(CACHED_PATHS + 10):
        expected = "allow" if number % 2 else "deny"
        assert policies.for_path(f"{'odd' if number % 2 else 'even'}{number}").own == expected
    assert len(policies._cache) <= CACHED_PATHS


def test_changed_names_every_difference() -> None:
    old = policy_from_mapping({"rule": [{"path": "a"}, {"path": "b", "own": "allow"}]})
    new = policy_from_mapping({"conflict": "deny", "max_pins": 5, "rule": [{"path": "a"}, {"path": "c"}]})
    assert old.changed(old) == []
    assert old.changed(new) == [
        "conflict: pin -> deny",
        "max_pins: 2500000 -> 5",
        "rule gone: path='b' own=allow",
        "rule added: path='c'",
        "rules in force: 2",
    ]
    reordered = PolicySet(rules=tuple(reversed(old.rules)))
    assert old.changed(reordered)


values = {key: st.sampled_from(choices) for key, choices in CHOICES.items()} | {
    key: st.floats(0, MAX_SECONDS) | st.integers(0, int(MAX_SECONDS)) for key in ("break_timeout", "break_timeout_max")
}
names = st.text(min_size=1, max_size=12).filter(lambda s: "/" not in s and "\0" not in s and s not in (".", ".."))
globs = st.lists(
    names.filter(lambda s: s.isprintable() or s.encode("utf-8", "ignore") == s.encode("utf-8", "replace")),
    min_size=1,
    max_size=3,
)
rules = st.fixed_dictionaries({"path": globs.map("/".join)}, optional=values)
limits = {key: st.integers(0, most) for key, most in LIMITS.items()}
mappings = st.fixed_dictionaries({}, optional=values | limits | {"rule": st.lists(rules, max_size=4)})


@given(mappings)
def test_toml_round_trip(mapping: dict[str, Any]) -> None:
    policies = policy_from_mapping(mapping)
    assert policy_from_mapping(tomllib.loads(policy_to_toml(policies))) == policies


@given(
    st.dictionaries(
        st.sampled_from([*CHOICES, *LIMITS, "break_timeout", "rule"]) | st.text(max_size=5),
        st.from_type(object) | st.none(),
    )
)
def test_anything_is_either_a_policy_or_a_policy_error(mapping: dict[str, Any]) -> None:
    try:
        assert isinstance(policy_from_mapping(mapping), PolicySet)
    except PolicyError as error:
        assert error.key in mapping or error.key == "path"
