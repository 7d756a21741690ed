"""What happens on a conflict, as values an operator chooses (SPEC 8).

Pure: a policy comes in as a mapping (what a TOML file parses to) and goes out as TOML text. Reading files and options
is `pinfs.config`'s business. A policy is refused whole: either every key and value is good, or `PolicyError` names the
first bad one.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

CHOICES: Mapping[str, tuple[str, ...]] = {
    "conflict": ("pin", "deny", "break"),
    "errno": ("EBUSY", "ETXTBSY"),
    "on_timeout": ("deny", "revoke", "kill"),
    "own": ("deny", "allow"),
    "unlink": ("defer", "deny", "break"),
    "mapped": ("ignore", "deny"),
    "seal": ("auto", "off", "require"),
    "cut_off": ("revoke", "kill"),
}
SECONDS = ("break_timeout", "break_timeout_max", "retry_after")
MAX_SECONDS = 7 * 86400.0
"""A break that may take longer than a week is a typing error, not a policy: pinfs never hangs (SPEC 1)."""

COUNT_MAX = 1_000_000_000
BYTES_MAX = 2**63 - 1
LIMITS: Mapping[str, int] = {
    "max_pins": COUNT_MAX,
    "max_pins_per_user": COUNT_MAX,
    "max_pinned_bytes_per_user": BYTES_MAX,
    "max_waiting": COUNT_MAX,
}
"""The largest value of each limit; zero is allowed everywhere and means none at all."""

CACHED_PATHS = 4096

Value = str | float
LineOf = Callable[[int | None, str], int | None]


class PolicyError(ValueError):
    """A policy that is refused.

    `key` is the key at fault ('' for a text that is no TOML), `line` counts from 1 where it is known, `file` is the
    file in which it stands, if any.
    """

    def __init__(self, key: str, why: str, line: int | None = None, file: str = "") -> None:
        self.key, self.why, self.line, self.file = key, why, line, file
        super().__init__(": ".join(part for part in (file, f"line {line}" if line else "", key, why) if part))


@dataclass(frozen=True, slots=True)
class Policy:
    """The values that decide about one file. Times are seconds."""

    conflict: str = "pin"
    errno: str = "EBUSY"
    break_timeout: float = 45.0
    break_timeout_max: float = 300.0
    """How far a holder may extend its break, from the break's start. Below `break_timeout` nothing can be extended."""
    on_timeout: str = "deny"
    retry_after: float = 5.0
    """How long a holder that let a deadline pass is not notified again."""
    own: str = "deny"
    unlink: str = "defer"
    mapped: str = "ignore"
    seal: str = "auto"
    cut_off: str = "revoke"
    """What happens to a holder whose pin other hosts may take for gone, as this one is cut off from them."""

    @property
    def errno_number(self) -> int:
        """What a refused breaker gets."""
        return errno.ETXTBSY if self.errno == "ETXTBSY" else errno.EBUSY


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be held; above it: EDQUOT (`max_waiting`: EBUSY for the breaker that would be one too many)."""

    max_pins: int = 2_500_000
    """All pins of the mount: a million and more, yet the table stays within the memory of an ordinary machine."""
    max_pins_per_user: int = 1_250_000
    """Half of all, so that no single user can take the last one from the others."""
    max_pinned_bytes_per_user: int = 1 << 50
    max_waiting: int = 1000


@dataclass(frozen=True)
class Rule:
    """Overrides for the files that match `path`, a glob relative to the root of the mount.

    `*`, `?` and `[...]` stay within one component; a component `**` stands for any number of them, also none. A pattern
    without '/' is matched against the last component alone, a leading '/' anchors it to the root (as in gitignore(5)).
    """

    path: str
    overrides: Mapping[str, Value] = field(default_factory=dict)
    line: int | None = field(default=None, compare=False)

    @cached_property
    def _components(self) -> tuple[re.Pattern[str] | None, ...]:
        """A regular expression for each component, None for `**`. By component, as that cannot backtrack for ever."""
        anchored = self.path if "/" in self.path else f"**/{self.path}"
        parts = anchored.removeprefix("/").split("/")
        return tuple(None if part == "**" else re.compile(fnmatch.translate(part)) for part in parts)

    def matches(self, path: str) -> bool:
        """Whether the file at `path` (relative to the root of the mount, no leading '/') falls under this rule."""
        reached = self._skip_deep({0})
        for name in path.split("/"):
            reached = self._skip_deep(set(self._step(reached, name)))
        return len(self._components) in reached

    def _step(self, reached: set[int], name: str) -> list[int]:
        """The places in the pattern that can stand before the next component, after `name`."""
        after = []
        for place in reached:
            if place < len(self._components):
                pattern = self._components[place]
                if pattern is None:
                    after.append(place)
                elif pattern.match(name):
                    after.append(place + 1)
        return after

    def _skip_deep(self, reached: set[int]) -> set[int]:
        """`**` may stand for nothing."""
        for place, pattern in enumerate(self._components):
            if pattern is None and place in reached:
                reached.add(place + 1)
        return reached


@dataclass(frozen=True)
class PolicySet:
    """The policy of a mount: base values, rules by path, limits. Never changes; a new one replaces it."""

    base: Policy = field(default_factory=Policy)
    rules: tuple[Rule, ...] = ()
    limits: Limits = field(default_factory=Limits)
    _cache: dict[str, Policy] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def minds_mappings(self) -> bool:
        """Whether `mapped` is `deny` for any file."""
        return self.base.mapped == "deny" or any(rule.overrides.get("mapped") == "deny" for rule in self.rules)

    def for_path(self, path: str | None) -> Policy:
        """The values for the file at `path`, relative to the root of the mount (None: no name left, gets the base)."""
        if path is None or not self.rules:
            return self.base
        policy = self._cache.get(path)
        if policy is None:
            if len(self._cache) >= CACHED_PATHS:
                self._cache.clear()
            policy = self._cache[path] = self.explain(path)[0]
        return policy

    def explain(self, path: str | None) -> tuple[Policy, int | None, str | None]:
        """The values for `path`, with the index (from 0) and glob of the rule that decided: the last that matches."""
        if path is not None:
            for index in reversed(range(len(self.rules))):
                if self.rules[index].matches(path):
                    rule = self.rules[index]
                    return replace(self.base, **rule.overrides), index, rule.path  # type: ignore[arg-type]
        return self.base, None, None

    @property
    def own_values(self) -> dict[str, Value]:
        """All keys and values but the rules."""
        return {f.name: getattr(part, f.name) for part in (self.base, self.limits) for f in fields(part)}

    def changed(self, new: PolicySet) -> list[str]:
        """What is different in `new`, one line each, for the log."""
        lines = _differences(self.base, new.base) + _differences(self.limits, new.limits)
        if self.rules != new.rules:
            lines += [f"rule gone: {_rule_text(rule)}" for rule in self.rules if rule not in new.rules]
            lines += [f"rule added: {_rule_text(rule)}" for rule in new.rules if rule not in self.rules]
            lines += [f"rules in force: {len(new.rules)}"]
        return lines


def _differences(old: Policy | Limits, new: Policy | Limits) -> list[str]:
    pairs = ((f.name, getattr(old, f.name), getattr(new, f.name)) for f in fields(old))
    return [f"{name}: {before} -> {after}" for name, before, after in pairs if before != after]


def _rule_text(rule: Rule) -> str:
    return " ".join([f"path={rule.path!r}", *(f"{key}={value}" for key, value in rule.overrides.items())])


def policy_from_mapping(mapping: Mapping[str, Any], line_of: LineOf = lambda rule, key: None) -> PolicySet:
    """Checks every key and value, and raises `PolicyError` for the first that is not good.

    `line_of(rule index or None, key)` tells where a key stands in the text the mapping came from.
    """
    values: dict[str, Value] = {}
    limits: dict[str, int] = {}
    rules: tuple[Rule, ...] = ()
    for key, value in mapping.items():
        line = line_of(None, key)
        if key == "rule":
            rules = _rules(value, line_of)
        elif key in LIMITS:
            limits[key] = _limit(key, value, line)
        else:
            values[key] = _value(key, value, line)
    return PolicySet(Policy(**values), rules, Limits(**limits))  # type: ignore[arg-type]


def _rules(tables: Any, line_of: LineOf) -> tuple[Rule, ...]:
    if not isinstance(tables, Sequence) or not all(isinstance(table, Mapping) for table in tables):
        raise PolicyError("rule", "must be tables: [[rule]]", line_of(None, "rule"))
    return tuple(_rule(index, table, line_of) for index, table in enumerate(tables))


def _rule(index: int, table: Mapping[str, Any], line_of: LineOf) -> Rule:
    start = line_of(index, "rule")
    if "path" not in table:
        raise PolicyError("path", "missing in [[rule]]", start)
    glob = _glob(table["path"], line_of(index, "path"))
    overrides: dict[str, Value] = {}
    for key, value in table.items():
        line = line_of(index, key)
        if key in LIMITS:
            raise PolicyError(key, "a limit holds for the whole mount and cannot stand in a [[rule]]", line)
        if key != "path":
            overrides[key] = _value(key, value, line)
    return Rule(glob, overrides, start)


def _glob(glob: Any, line: int | None) -> str:
    if not isinstance(glob, str):
        raise PolicyError("path", f"must be a string, not {glob!r}", line)
    parts = glob.removeprefix("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in glob:
        raise PolicyError("path", f"{glob!r} names no file (for all files of a directory: 'DIR/**')", line)
    try:
        glob.encode()
    except UnicodeEncodeError:
        raise PolicyError("path", f"{glob!r} is not UTF-8 (a '?' stands for any byte)", line) from None
    return glob


def _value(key: str, value: Any, line: int | None) -> Value:
    if key in CHOICES:
        if not isinstance(value, str) or value not in CHOICES[key]:
            raise PolicyError(key, f"must be one of {', '.join(CHOICES[key])}, not {value!r}", line)
        return value
    if key in SECONDS:
        # bool is an int for Python, but `break_timeout = true` is no time.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
            raise PolicyError(key, f"must be seconds from 0 to {MAX_SECONDS:g}, not {_short(value)}", line)
        return math.fabs(value)
    raise PolicyError(key, "unknown key", line)


def _limit(key: str, value: Any, line: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LIMITS[key]:
        raise PolicyError(key, f"must be a whole number from 0 to {LIMITS[key]}, not {_short(value)}", line)
    return value


def _short(value: Any) -> str:
    """Numbers of thousands of digits are bad values too, but no message should carry them (and str() refuses them)."""
    return "a number of that size" if isinstance(value, int) and value.bit_length() > 128 else repr(value)


def policy_to_toml(policies: PolicySet) -> str:
    """The whole policy as TOML; `policy_from_mapping(tomllib.loads(text))` gives an equal one."""
    lines = [_assignment(key, value) for key, value in policies.own_values.items()]
    for rule in policies.rules:
        lines += ["", "[[rule]]", _assignment("path", rule.path)]
        lines += [_assignment(key, value) for key, value in rule.overrides.items()]
    return "\n".join(lines) + "\n"


def _assignment(key: str, value: Value) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{key} = {text}"
