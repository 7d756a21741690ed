"""What an operator says: mount options (`-o`) and the policy file, made into checked values.

Precedence: `-o` over the policy file over the defaults. An `-o` key replaces the mount's own value; rules of the file
still override it for the files they match. Whatever is wrong is refused whole, with its name and, in a file, its line.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pinfs.core.policy import CHOICES, LIMITS, MAX_SECONDS, SECONDS, PolicyError, PolicySet, policy_from_mapping

log = logging.getLogger("pinfs.policy")

POLICY_BYTES_MAX = 64 * 1024

# ---- the policy as TOML

_ASSIGNED = re.compile(r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[\w-]+))\s*[.=]""")
_HEADER = re.compile(r"""\s*\[\[?\s*["']?(?P<table>[^\]"'.\s]+)["']?\s*(?:\.\s*["']?(?P<key>[^\]"'.\s]+))?""")


def policy_from_toml(
    text: str, overrides: Mapping[str, Any] | None = None, defaults: Mapping[str, Any] | None = None
) -> PolicySet:
    """The policy that a TOML text states, with `overrides` (from `-o`) in place of its own values.

    `defaults`: the values of keys that it does not name. Raises PolicyError with key and line.
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

    policies = policy_from_mapping(values, line_of)  # a bad value is refused also where an override hides it
    if overrides or defaults:
        return policy_from_mapping({**(defaults or {}), **values, **(overrides or {})}, line_of)
    return policies


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise PolicyError("", "not TOML that anybody would write: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and numbers of more digits than int() takes
        at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(at[1] or text.count("\n") + 1) if at else None
        raise PolicyError("", f"not TOML: {error}", line) from None


def _lines_of_keys(text: str) -> dict[tuple[int | None, str], int]:
    """Where each key first stands: (number of its [[rule]] or None, key) -> line, from 1. tomllib does not tell.

    A look at line beginnings is enough, since a wrong guess (within a multi-line string) only misplaces a message.
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


class PolicyBox:
    """The policy in force, which can be replaced while the mount runs."""

    def __init__(self, policies: PolicySet) -> None:
        self.current = policies
        self._started_with = policies
        self.last_error = ""
        """Why the last replacement was refused; '' after one that was not."""

    def replace(self, text: str, who: str) -> None:
        """Puts a TOML policy in force for `who` (a word for the log). On PolicyError the old one stays.

        What it does not say is as the file and `-o` had it when the mount began: who writes one key changes one key.
        """
        self._install(lambda: policy_from_toml(text, defaults=self._started_with.own_values), who)

    def reload(self, config: Config, who: str) -> None:
        """Reads the policy file again; `-o` still goes first. On PolicyError the old policy stays."""
        self._install(config.read_policy, who)
        self._started_with = self.current

    def _install(self, make: Callable[[], PolicySet], who: str) -> None:
        try:
            new = make()
        except PolicyError as error:
            self.last_error = str(error)
            log.warning("policy from %s refused, the old one stays in force: %s", who, error)
            raise
        for change in self.current.changed(new) or ["nothing changed"]:
            log.info("policy from %s: %s", who, change)
        self.current, self.last_error = new, ""


# ---- options


class OptionError(ValueError):
    """A mount option that is refused; the message names it."""


def _as_root() -> bool:
    return os.geteuid() == 0


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `-o` says about the mount itself. Defaults are those of other FUSE mounts: neither set-id nor devices."""

    read_only: bool = False
    suid: bool = False
    dev: bool = False
    exec_: bool = True
    atime: bool = True
    allow_other: bool = field(default_factory=_as_root)
    """Whether users other than the one who mounts may enter; on for root, whose files they are not."""
    fsname: str | None = None
    """What /proc/mounts shows as the source, when not the source itself."""
    bridge: str = "auto"
    passthrough: str = "auto"
    poll: bool = True
    """Whether poll(2) is answered. If not, io_uring is as fast as on the backing, but nobody can wait by poll."""
    entry_timeout: float = 60.0
    """Seconds for which the kernel may remember a name; good as long as pinfs is the only way in."""
    attr_timeout: float = 60.0
    """Seconds for which the kernel may remember attributes."""
    log_level: str = "info"
    replace_stale: bool = False
    """Unmount what a dead daemon left on the mount point."""
    metrics_port: int = 0
    """TCP port on loopback for Prometheus; 0: none."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything an operator said."""

    mount: MountOptions
    policies: PolicySet
    policy_file: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Policy keys that came by `-o`."""

    def read_policy(self) -> PolicySet:
        """The policy as the file has it now, under the overrides. Raises PolicyError."""
        return _policy(self.policy_file, self.overrides)


def load(options: Sequence[str], policy_file: Path | None) -> Config:
    """Checks all `-o` strings and reads the policy file (`policy_file`, or else `-o policy=FILE`).

    Raises OptionError, PolicyError.
    """
    mount, overrides, by_option = parse_options(options)
    file = policy_file or by_option
    return Config(mount, _policy(file, overrides), file, overrides)


def _policy(file: Path | None, overrides: Mapping[str, Any]) -> PolicySet:
    if file is None:
        return policy_from_mapping(overrides)
    try:
        with file.open("rb") as opened:
            text = opened.read(POLICY_BYTES_MAX + 1).decode()
    except OSError as error:
        raise PolicyError("policy", f"{file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise PolicyError("policy", f"{file}: not UTF-8, or more than {POLICY_BYTES_MAX} bytes") from None
    try:
        return policy_from_toml(text, overrides)
    except PolicyError as error:
        raise PolicyError(error.key, error.why, error.line, str(file)) from None


def split_options(text: str) -> Iterator[str]:
    r"""The parts of one `-o` string: between commas, where `\,` and `\\` stand for the characters themselves."""
    for part in re.findall(r"(?:\\.|[^,\\]|\\$)+", text, re.DOTALL):
        yield re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL)


def parse_options(options: Sequence[str]) -> tuple[MountOptions, dict[str, Any], Path | None]:
    """The mount's options, the policy keys among them, and `policy=FILE`. The later of two wins. Raises OptionError."""
    changes: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    policy: Path | None = None
    for option in (part for text in options for part in split_options(text)):
        name, given, value = option.partition("=")
        if name in CHOICES or name in SECONDS or name in LIMITS:
            overrides[name] = _policy_value(name, value)
        elif name == "policy" and value:
            policy = Path(value).absolute()
        elif name in _SETTINGS and given:
            changes[name] = _SETTINGS[name](name, value)
        elif name in _SWITCHES and not given:
            changes |= _SWITCHES[name]
        elif name == "allow_root" and not given:
            changes |= _allow_root()
        elif not _is_for_others(name):
            raise OptionError(_complaint(name, option))
    policy_from_mapping(overrides)
    return replace(MountOptions(), **changes), overrides, policy


_SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "suid": {"suid": True},
    "nosuid": {"suid": False},
    "dev": {"dev": True},
    "nodev": {"dev": False},
    "exec": {"exec_": True},
    "noexec": {"exec_": False},
    "atime": {"atime": True},
    "noatime": {"atime": False},
    "allow_other": {"allow_other": True},
    "replace_stale": {"replace_stale": True},
}
# fstab(5), mount(8) and systemd act on these before we are called (and mount(8) adds noexec,nosuid,nodev for `user`).
_FSTAB = {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "comment"}
_HELPER = {"helper", "uhelper"}
# What pinfs does anyway, or what is left to the backing.
_MOOT = {
    "default_permissions",
    "subtype",
    "nonempty",
    "async",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
}
_MOOT |= {"lazytime", "nolazytime", "diratime", "nodiratime", "silent", "loud"}
_FOR_OTHERS = _FSTAB | _HELPER | _MOOT


def _is_for_others(name: str) -> bool:
    return name in _FOR_OTHERS or name.startswith(("x-", "X-"))


def _allow_root() -> dict[str, Any]:
    if not _as_root():
        # The kernel lets in either the mounting user alone or everybody.
        raise OptionError("allow_root: only for mounts by root; as a user, take allow_other")
    return {"allow_other": False}


def _complaint(name: str, option: str) -> str:
    if name in _SETTINGS or name == "policy":
        return f"{name}: needs a value: {name}=..."
    if name in _SWITCHES or name == "allow_root":
        return f"{name}: takes no value, not {option!r}"
    return f"unknown option: {name!r}"


def _policy_value(name: str, text: str) -> Any:
    """The typed value; what is no number stays text, which the policy then refuses with its own words."""
    if name in SECONDS and re.fullmatch(r"\d{1,15}(\.\d{1,15})?", text, re.ASCII):
        return float(text)
    if name in LIMITS and re.fullmatch(r"\d{1,20}", text, re.ASCII):
        return int(text)
    return text


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"\d{1,15}(\.\d{1,15})?", text, re.ASCII) or float(text) > MAX_SECONDS:
        raise OptionError(f"{name}: must be seconds from 0 to {MAX_SECONDS:g}, not {text!r}")
    return float(text)


def _port(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or int(text) > 65535:
        raise OptionError(f"{name}: must be a port from 1 to 65535, or 0 for none, not {text!r}")
    return int(text)


def _text(name: str, text: str) -> str:
    if not text:
        raise OptionError(f"{name}: must not be empty")
    return text


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def check(name: str, text: str) -> str:
        if text not in choices:
            raise OptionError(f"{name}: must be one of {', '.join(choices)}, not {text!r}")
        return text

    return check


def _on_or_off(name: str, text: str) -> bool:
    return _one_of("on", "off")(name, text) == "on"


_SETTINGS: Mapping[str, Callable[[str, str], Any]] = {
    "fsname": _text,
    "bridge": _one_of("auto", "on", "off"),
    "passthrough": _one_of("auto", "on", "off"),
    "poll": _on_or_off,
    "entry_timeout": _seconds,
    "attr_timeout": _seconds,
    "log_level": _one_of("debug", "info", "warning", "error"),
    "metrics_port": _port,
}
