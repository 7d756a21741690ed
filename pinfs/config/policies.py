"""The policy (SPEC 8) as an operator writes it: a TOML file, or a text written to `.pinfs/policy` while the mount runs.

A policy that is wrong anywhere is refused whole, with the name of the key and its line.
"""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pinfs.config.cluster import ClusterError, check_table
from pinfs.core.policy import PolicyError, PolicySet, policy_from_mapping

log = logging.getLogger("pinfs.policy")

CLUSTER: Final = "cluster"
"""The table of a policy file that is no policy: it says how a mount finds the other hosts (`pinfs.config.cluster`)."""

POLICY_BYTES_MAX: Final = 64 * 1024

_ASSIGNED = re.compile(r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[\w-]+))\s*[.=]""")
_HEADER = re.compile(r"""\s*\[\[?\s*["']?(?P<table>[^\]"'.\s]+)["']?\s*(?:\.\s*["']?(?P<key>[^\]"'.\s]+))?""")


def policy_from_toml(
    text: str,
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    *,
    is_file: bool = False,
) -> PolicySet:
    """The policy that a TOML text states, with `overrides` (from `-o`) in place of its own values.

    `defaults`: the values of keys that the text does not name. `is_file`: it may have a table `[cluster]`, which is
    checked and left out. Raises PolicyError with key and line.
    """
    if len(text.encode(errors="surrogatepass")) > POLICY_BYTES_MAX:
        raise PolicyError("", f"a policy of more than {POLICY_BYTES_MAX} bytes")
    values = _parsed(text)
    lines = _lines_of_keys(text)

    def line_of(rule: int | None, key: str) -> int | None:
        if rule is None:
            return lines.get((None, key))
        # An inline table has no lines of its own keys: then where it, or all of them, begin.
        return lines.get((rule, key)) or lines.get((rule, "rule")) or lines.get((None, "rule"))

    if CLUSTER in values:
        _check_cluster(values.pop(CLUSTER), line_of, is_file)
    policies = policy_from_mapping(values, line_of)  # a bad value is refused also where an override hides it
    if overrides or defaults:
        return policy_from_mapping({**(defaults or {}), **values, **(overrides or {})}, line_of)
    return policies


def _check_cluster(table: Any, line_of: Callable[[int | None, str], int | None], is_file: bool) -> None:
    if not is_file:
        why = "holds for as long as the mount: it can be changed in the policy file only, for the next mount"
        raise PolicyError(CLUSTER, why, line_of(None, CLUSTER))
    try:
        check_table(table)
    except ClusterError as error:
        key = f"{CLUSTER}.{error.key}" if error.key else CLUSTER
        raise PolicyError(key, error.why, line_of(None, error.key) or line_of(None, CLUSTER)) from None


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise PolicyError("", "not TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and numbers of more digits than int() takes
        at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(at[1] or text.count("\n") + 1) if at else None
        raise PolicyError("", f"not TOML: {error}", line) from None


def _lines_of_keys(text: str) -> dict[tuple[int | None, str], int]:
    """The line, from 1, in which each (number of its [[rule]] or None, key) first stands. tomllib does not tell.

    Only the beginnings of lines are read: a wrong guess (within a multi-line string) misplaces a message, no more.
    """
    lines: dict[tuple[int | None, str], int] = {}
    rule: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table, key = header["table"], header["key"]
            if table == "rule" and key is None:
                rule = 0 if rule is None else rule + 1
                lines[rule, "rule"] = number
            lines.setdefault((rule, key) if table == "rule" and key else (None, table), number)
        elif assigned := _ASSIGNED.match(line):
            lines.setdefault((rule, assigned["double"] or assigned["single"] or assigned["bare"]), number)
    return lines


def read_policy(file: Path | None, overrides: Mapping[str, Any]) -> PolicySet:
    """The policy that a file has now, with `overrides` (from `-o`) in place of its own values; no file: only these.

    Raises PolicyError, which names the file, key and line.
    """
    if file is None:
        return policy_from_mapping(overrides)
    text = _text_of(file)
    try:
        return policy_from_toml(text, overrides, is_file=True)
    except PolicyError as error:
        raise PolicyError(error.key, error.why, error.line, str(file)) from None


def read_cluster_table(file: Path | None) -> dict[str, Any]:
    """The table `[cluster]` that a policy file has now, unchecked; empty where there is none. Raises PolicyError."""
    table = {} if file is None else _parsed(_text_of(file)).get(CLUSTER, {})
    return table if isinstance(table, dict) else {}


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(POLICY_BYTES_MAX + 1).decode()
    except OSError as error:
        raise PolicyError("policy", f"{file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise PolicyError("policy", f"{file}: not UTF-8, or more than {POLICY_BYTES_MAX} bytes") from None


class PolicyBox:
    """The policy in force, which can be replaced while the mount runs.

    `origin`, below, is a word for the log: where a new policy comes from.
    """

    def __init__(self, policies: PolicySet) -> None:
        self.current = policies
        self._started_with = policies
        self.last_error = ""
        """Why the last replacement was refused; '' after one that was not."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after each replacement, and after one that was refused."""

    def state(self) -> dict[str, Any]:
        """All that there is to it, as JSON values."""
        return {
            "current": _plain(self.current),
            "started_with": _plain(self._started_with),
            "last_error": self.last_error,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what another daemon had in force. Raises PolicyError, KeyError: nothing has changed."""
        current, started_with = (policy_from_mapping(state[key]) for key in ("current", "started_with"))
        self.current, self._started_with, self.last_error = current, started_with, str(state["last_error"])

    def replace(self, text: str, origin: str) -> None:
        """Put a TOML policy in force. Raises PolicyError, and then the old one stays in force.

        Keys that the text does not name are as the file and `-o` had them when the mount began (SPEC 8).
        """
        self._install(lambda: policy_from_toml(text, defaults=self._started_with.own_values), origin)

    def reload(self, read: Callable[[], PolicySet], origin: str) -> None:
        """Put in force what `read` gives: the policy file once more. Raises PolicyError as `replace` does."""
        self._install(read, origin)
        self._started_with = self.current
        self.on_change()

    def _install(self, make: Callable[[], PolicySet], origin: str) -> None:
        try:
            new = make()
        except PolicyError as error:
            self.last_error = str(error)
            self.on_change()
            log.warning("policy from %s refused, the old one stays in force: %s", origin, error)
            raise
        for change in self.current.changed(new) or ["nothing changed"]:
            log.info("policy from %s: %s", origin, change)
        self.current, self.last_error = new, ""
        self.on_change()


def _plain(policies: PolicySet) -> dict[str, Any]:
    """As `policy_from_mapping` takes it."""
    rules = [{"path": rule.path, **rule.overrides} for rule in policies.rules]
    return {**policies.own_values, "rule": rules}
