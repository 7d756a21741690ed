"""Mount options (`-o`), made into checked values.

Precedence: `-o` over the policy file over the defaults. An `-o` key replaces the mount's own value; rules of the file
still override it for the files they match. An option that is wrong is refused with its name.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pinfs.config.cluster import OPTIONS as CLUSTER_OPTIONS
from pinfs.config.cluster import ClusterError, ClusterOptions, cluster_options, option_of
from pinfs.config.foreign import REFUSED, WITHOUT_EFFECT
from pinfs.config.policies import CLUSTER, read_cluster_table, read_policy
from pinfs.core.policy import CHOICES, LIMITS, MAX_SECONDS, SECONDS, PolicyError, PolicySet, policy_from_mapping

log = logging.getLogger("pinfs.config")

MAX_BUSY_POLL_US = 1000
TIMEOUTS = ("entry_timeout", "attr_timeout")
SHARED_TIMEOUT_S = 0.0
"""Of both, by default, in a cluster: other hosts change names and attributes at any time, and what is remembered for
a second is wrong for a second even where the shared file system is coherent. So pinfs remembers nothing, and programs
see what that file system promises."""


class OptionError(ValueError):
    """A mount option that is refused; the message names it."""


def _is_root() -> bool:
    return os.geteuid() == 0


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The options of the mount itself. Defaults are those of other FUSE mounts: neither set-id nor devices."""

    read_only: bool = False
    suid: bool = False
    dev: bool = False
    exec_: bool = True
    atime: bool = True
    allow_other: bool = field(default_factory=_is_root)
    """Whether users other than the mounting one may enter; on where root mounts."""
    fsname: str | None = None
    """What /proc/mounts shows as the source; None: the source itself."""
    bridge: str = "auto"
    passthrough: str = "auto"
    nfs_export: bool = False
    """Whether inodes can be found by file handle when the kernel has forgotten them: for NFS servers (docs/nfs.md)."""
    poll: str = "auto"
    """Whether poll(2) is answered; see `pinfs.fs.polling.PollMode`."""
    entry_timeout: float = 60.0
    """Seconds for which the kernel may remember a name; right as long as the files change through pinfs only."""
    attr_timeout: float = 60.0
    """Seconds for which the kernel may remember attributes."""
    log_level: str = "info"
    replace_stale: bool = False
    """Whether to unmount what a dead daemon left on the mount point."""
    metrics_port: int = 0
    """TCP port on loopback for Prometheus; 0: none."""
    survive: str = "auto"
    """Whether another daemon takes over when this one dies; auto: in the background, and under systemd with a
    descriptor store."""
    spare: bool = False
    """Whether the next daemon waits ready, which makes the pause shorter and takes its memory."""
    watchdog: float = 30.0
    """Seconds without a turn of its loop after which the keeper kills the daemon; 0: never."""
    busy_poll: int = 0
    """Microseconds for which the daemon looks for the next request before it sleeps; 0: it sleeps at once."""
    max_deaths: int = 5
    """How many deaths within a minute end the mount; 0: none do."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that an operator said."""

    mount: MountOptions
    policies: PolicySet
    policy_file: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Policy keys that came by `-o`."""
    cluster: ClusterOptions | None = None
    """None: the pins of this mount are this host's alone."""
    cluster_table: Mapping[str, Any] = field(default_factory=dict)
    """The table `[cluster]` of the policy file, as it was when the mount began."""
    given: frozenset[str] = frozenset()
    """The names of all options that came by `-o`."""

    def read_policy(self) -> PolicySet:
        """The policy as the file has it now, under the overrides. Raises PolicyError."""
        policies = read_policy(self.policy_file, self.overrides)
        if read_cluster_table(self.policy_file) != self.cluster_table:
            log.warning("[%s] of %s has changed: that holds for the next mount only", CLUSTER, self.policy_file)
        return policies

    def with_cluster(self, cluster: ClusterOptions | None) -> Config:
        """The same with these options of the cluster, and the timeouts that go with them: what a daemon that takes over
        goes on with, whatever the policy file says by now."""
        unsaid = () if cluster is None else (name for name in TIMEOUTS if name not in self.given)
        chosen: dict[str, Any] = dict.fromkeys(unsaid, SHARED_TIMEOUT_S)
        return replace(self, cluster=cluster, mount=replace(self.mount, **chosen))

    def warnings(self) -> Iterator[str]:
        """One line for each setting of a cluster that is not what an operator may expect."""
        if self.cluster is None:
            return
        yield from self.cluster.warnings()
        for name in TIMEOUTS:
            if (seconds := getattr(self.mount, name)) > SHARED_TIMEOUT_S:
                yield f"{name}: what other hosts change may go unnoticed for {seconds:g} seconds"


def load(options: Sequence[str], policy_file: Path | None, *, takes_over: bool = False) -> Config:
    """Check all `-o` strings and read the policy file (`policy_file`, or else `-o policy=FILE`).

    `takes_over`: for a mount that is there already, whose policy in force comes from the daemon before. A policy file
    that has become unusable is then no reason to fail. Raises OptionError, PolicyError.
    """
    mount, overrides, named_file = parse_options(options)
    file = policy_file or named_file
    try:
        policies = read_policy(file, overrides)
    except PolicyError:
        if not takes_over:
            raise
        policies = read_policy(None, overrides)
    table: dict[str, Any] = {}
    with suppress(PolicyError):  # where it was the file's, it is known by now
        table = read_cluster_table(file)
    given = frozenset(part.partition("=")[0] for part in _parts(options))
    config = Config(mount, policies, file, overrides, cluster_table=table, given=given)
    try:
        return config.with_cluster(_cluster(options, table, file))
    except OptionError:
        if not takes_over:
            raise
        return config  # the daemon before tells what it had


def _cluster(options: Sequence[str], table: Mapping[str, Any], file: Path | None) -> ClusterOptions | None:
    """Of the table, under the options. OptionError names where the value at fault came from."""
    pairs = (part.partition("=") for part in _parts(options))
    by_option = {CLUSTER_OPTIONS[name]: value for name, _, value in pairs if name in CLUSTER_OPTIONS}
    try:
        return cluster_options({**table, **by_option})
    except ClusterError as error:
        is_in_file = error.key in table and error.key not in by_option
        where = f"{file}: {CLUSTER}.{error.key}" if is_in_file else option_of(error.key)
        raise OptionError(f"{where}: {error.why}") from None


def split_options(text: str) -> Iterator[str]:
    r"""The parts of one `-o` string: between commas, where `\,` and `\\` stand for the characters themselves."""
    for part in re.findall(r"(?:\\.|[^,\\]|\\$)+", text, re.DOTALL):
        yield re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL)


def _parts(options: Sequence[str]) -> Iterator[str]:
    return (part for text in options for part in split_options(text))


def parse_options(options: Sequence[str]) -> tuple[MountOptions, dict[str, Any], Path | None]:
    """The mount's options, the policy keys among them, and `policy=FILE`. The later of two wins. Raises OptionError."""
    changes: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    policy: Path | None = None
    for option in _parts(options):
        name, given, value = option.partition("=")
        if name in CHOICES or name in SECONDS or name in LIMITS:
            overrides[name] = _policy_value(name, value)
        elif name in CLUSTER_OPTIONS and value:
            pass  # `load` puts them together with those of the policy file
        elif name == "policy" and value:
            policy = Path(value).absolute()
        elif name in _SETTINGS and given:
            changes[name] = _SETTINGS[name](name, value)
        elif name in _SWITCHES and not given:
            changes |= _SWITCHES[name]
        elif name == "allow_root" and not given:
            changes |= _allow_root()
        elif not _is_ignored(name) and name not in WITHOUT_EFFECT:
            raise OptionError(_unusable_because(name, option))
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
    "spare": {"spare": True},
}
# fstab(5), mount(8) and systemd act on these before `pinfs mount` is called; mount(8) adds noexec,nosuid,nodev for
# `user`, and helper or uhelper for umount(8).
_ACTED_ON_BY_MOUNT = {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev"}
_ACTED_ON_BY_MOUNT |= {"comment", "helper", "uhelper"}
# What pinfs does anyway, or what the backing decides.
_WITHOUT_EFFECT = {"default_permissions", "subtype", "nonempty", "async", "silent", "loud", "diratime", "nodiratime"}
_WITHOUT_EFFECT |= {"relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"}


def warnings_of(options: Sequence[str]) -> Iterator[str]:
    """One line for each option that is accepted but has no effect, and is not known to be met anyway."""
    for name in dict.fromkeys(part.partition("=")[0] for part in _parts(options)):
        if name in WITHOUT_EFFECT:
            yield f"{name}: has no effect: {WITHOUT_EFFECT[name]}"


def _is_ignored(name: str) -> bool:
    return name in _ACTED_ON_BY_MOUNT or name in _WITHOUT_EFFECT or name.startswith(("x-", "X-"))


def _allow_root() -> dict[str, Any]:
    if not _is_root():
        # The kernel lets in either the mounting user alone or all users.
        raise OptionError("allow_root: only for mounts by root; as a user, take allow_other")
    return {"allow_other": False}


def _unusable_because(name: str, option: str) -> str:
    if name in _SETTINGS or name in CLUSTER_OPTIONS or name == "policy":
        return f"{name}: needs a value: {name}=..."
    if name in _SWITCHES or name == "allow_root":
        return f"{name}: takes no value, not {option!r}"
    if name in REFUSED:
        return f"{name}: not an option of pinfs: {REFUSED[name]}"
    return f"unknown option: {name!r}"


_SECONDS = re.compile(r"\d{1,15}(\.\d{1,15})?", re.ASCII)


def _policy_value(name: str, text: str) -> Any:
    """The typed value. Text where a number is needed stays text: the policy refuses it in its own words."""
    if name in SECONDS and _SECONDS.fullmatch(text):
        return float(text)
    if name in LIMITS and re.fullmatch(r"\d{1,20}", text, re.ASCII):
        return int(text)
    return text


def _seconds(name: str, text: str) -> float:
    if not _SECONDS.fullmatch(text) or float(text) > MAX_SECONDS:
        raise OptionError(f"{name}: must be seconds from 0 to {MAX_SECONDS:g}, not {text!r}")
    return float(text)


def _port(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or int(text) > 65535:
        raise OptionError(f"{name}: must be a port from 1 to 65535, or 0 for none, not {text!r}")
    return int(text)


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise OptionError(f"{name}: must be a number from 0 to 999999, not {text!r}")
    return int(text)


def _microseconds(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or int(text) > MAX_BUSY_POLL_US:
        raise OptionError(f"{name}: must be microseconds from 0 to {MAX_BUSY_POLL_US}, not {text!r}")
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
    "nfs_export": _on_or_off,
    "poll": _one_of("auto", "on", "off"),
    "entry_timeout": _seconds,
    "attr_timeout": _seconds,
    "log_level": _one_of("debug", "info", "warning", "error"),
    "metrics_port": _port,
    "survive": _one_of("auto", "on", "off"),
    "watchdog": _seconds,
    "busy_poll": _microseconds,
    "max_deaths": _number,
}
