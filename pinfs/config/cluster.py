"""What an operator says of the cluster of hosts (docs/hosts.md): `-o cluster=ENDPOINTS` and `-o cluster_KEY=VALUE`, or
the table `[cluster]` of the policy file; the option wins.

Values are checked here, once, when the mount begins. A mount keeps them for as long as it lives: a reload of the policy
file does not change them, and a daemon that takes over gets them from the one before (`state`, `restored`).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import ssl

    from pinfs.cluster.etcd.endpoints import Endpoint
    from pinfs.cluster.etcd.login import Credentials
    from pinfs.cluster.membership import Timing

MIN_TTL_S: Final = 1.0
MAX_TTL_S: Final = 3600.0
MAX_SECRET: Final = 1024
"""Bytes of a password."""

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_NAMES: Final = "up to 64 letters, digits, '.', '_' and '-'"
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


class ClusterError(ValueError):
    """A value of the cluster that is refused. `key` as in the table; the text says why."""

    def __init__(self, key: str, why: str) -> None:
        self.key, self.why = key, why
        super().__init__(f"{key}: {why}")


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Times are seconds of each host's own clock; no two clocks are ever compared.

    `host`: what other hosts call this one. `name`: of the cluster, the part of the keys that all its hosts share; None:
    the UUID at the root of the source (`pinfs.fs.identity.cluster_name`). `pin_ttl`: after a silence of that length
    others take this host's pins for gone. `member_ttl`: and what it had begun to cut for over. `margin`: how long
    before `pin_ttl` this host stops cutting and tells its holders. `pin_timeout`: what a pin may wait for the other
    hosts and for etcd before it gets EAGAIN.
    """

    endpoints: tuple[Endpoint, ...]
    host: str
    name: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    pin_ttl: float = 15.0
    member_ttl: float = 60.0
    margin: float = 5.0
    pin_timeout: float = 5.0

    @property
    def timing(self) -> Timing:
        """For the protocol. A host beats often enough to miss two beats and still not reach its fence."""
        from pinfs.cluster.membership import CLOCK_TRUST, Timing

        usual = Timing()
        beat_s = min(usual.beat_s, (self.pin_ttl * CLOCK_TRUST - self.margin) / 3)
        return replace(
            usual,
            pin_ttl_s=self.pin_ttl,
            member_ttl_s=self.member_ttl,
            margin_s=self.margin,
            beat_s=beat_s,
            retry_s=min(usual.retry_s, beat_s / 2),
            patience_s=min(usual.patience_s, self.pin_timeout),
        )

    def tls(self) -> ssl.SSLContext | None:
        """None: the endpoints are http, or the system's CAs are trusted and this host shows no certificate. OSError:
        a file cannot be read, or is none (ssl.SSLError)."""
        from pinfs.cluster.etcd import tls_context

        if self.ca is None and self.certificate is None:
            return None
        return tls_context(*("" if path is None else str(path) for path in (self.ca, self.certificate, self.key)))

    def credentials(self) -> Credentials | None:
        """User and password, which is read from its file each time. Raises ClusterError."""
        from pinfs.cluster.etcd import Credentials

        if self.user is None or self.password_file is None:
            return None
        return Credentials(self.user, _password(self.password_file))

    def warnings(self) -> Iterator[str]:
        """What works, but not as an operator would want it to, one line each."""
        if self.user is not None and not self.endpoints[0].is_encrypted:
            yield "cluster: user and password go to etcd in the clear: https:// keeps them secret"

    def state(self) -> dict[str, Any]:
        """As JSON values, for the daemon that takes over. The password is not among them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["endpoints"] = [str(endpoint) for endpoint in self.endpoints]
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> ClusterOptions:
        """From `state`. Files are not looked at. Raises ClusterError."""
        return _checked({key: value for key, value in state.items() if value is not None})


def option_of(key: str) -> str:
    """The `-o` name of a key of the table."""
    return "cluster" if key == "endpoints" else f"cluster_{key}"


def cluster_options(values: Mapping[str, Any]) -> ClusterOptions | None:
    """Checked values; None: there are no endpoints, so there is no cluster. Files have to be readable. Raises
    ClusterError.

    `values`: by key of the table, of `-o` as text.
    """
    if not values:
        return None
    if find_spec("h11") is None:
        raise ClusterError(
            "endpoints", "the client of etcd needs h11: pip install 'pinfs[cluster]' (or Debian's python3-h11)"
        )
    options = _checked(values)
    for key in ("ca", "certificate", "key"):
        if path := getattr(options, key):
            _require_readable(key, path)
    if options.password_file is not None:
        _password(options.password_file)
    return options


def check_table(table: Any) -> None:
    """A table `[cluster]` on its own, which options may still complete. Raises ClusterError."""
    if not isinstance(table, Mapping):
        raise ClusterError("", "must be a table: [cluster]")
    for key, value in table.items():
        _value(key, value)


def _checked(values: Mapping[str, Any]) -> ClusterOptions:
    if "endpoints" not in values:
        key = next(iter(values))
        raise ClusterError(key, f"there is no cluster without endpoints of etcd: {option_of('endpoints')}=HOST:PORT")
    checked = {key: _value(key, value) for key, value in values.items()}
    checked.setdefault("host", _host_name())
    options = ClusterOptions(**checked)
    _check_times(options)
    _check_secrets(options)
    return options


def _check_times(options: ClusterOptions) -> None:
    if options.margin > options.pin_ttl / 2:
        raise ClusterError(
            "margin", f"must be at most half of pin_ttl ({options.pin_ttl:g} s), not {options.margin:g}: "
            "between them this host has to reach etcd"
        )  # fmt: skip
    if options.member_ttl <= options.pin_ttl:
        raise ClusterError(
            "member_ttl", f"must be more than pin_ttl ({options.pin_ttl:g} s), not {options.member_ttl:g}: "
            "what a dead host has begun to cut may take effect after its pins are gone"
        )  # fmt: skip


def _check_secrets(options: ClusterOptions) -> None:
    if not options.endpoints[0].is_encrypted:
        for key in ("ca", "certificate", "key"):
            if getattr(options, key) is not None:
                raise ClusterError(key, "the endpoints are http: write https://")
    if options.key is not None and options.certificate is None:
        raise ClusterError("key", "needs a certificate")
    if (options.user is None) != (options.password_file is None):
        given, missing = ("password_file", "user") if options.user is None else ("user", "password_file")
        raise ClusterError(given, f"needs {missing} as well")


# Values by key: text of `-o`, or what TOML has


def _value(key: str, value: Any) -> Any:
    check = _CHECKS.get(key)
    if check is None:
        raise ClusterError(key, f"unknown key; there are {', '.join(_CHECKS)}")
    return check(key, value)


def _endpoints(key: str, value: Any) -> tuple[Endpoint, ...]:
    """A list, or text with `,` or `+` between them: a comma in `-o` has to be written as `\\,`."""
    from pinfs.cluster.etcd.endpoints import EndpointError, parse_endpoints

    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(part, str) for part in parts):
        raise ClusterError(key, f"must be endpoints of etcd, such as 'https://etcd1:2379', not {value!r}")
    try:
        return parse_endpoints(",".join(parts).replace("+", ","))
    except EndpointError as error:
        raise ClusterError(key, str(error)) from None


def _name(key: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or not value.strip("."):
        raise ClusterError(key, f"must be {_NAMES}, not {value!r}")
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ClusterError(key, f"must be a text that is not empty, not {value!r}")
    return value


def _path(key: str, value: Any) -> Path:
    """Absolute: a daemon has / as its directory."""
    return Path(_text(key, value)).absolute()


def _seconds(low: float, high: float) -> Callable[[str, Any], float]:
    def check(key: str, value: Any) -> float:
        if isinstance(value, str) and _SECONDS.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ClusterError(key, f"must be seconds from {low:g} to {high:g}, not {value!r}")
        return float(value)

    return check


_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "endpoints": _endpoints,
    "host": _name,
    "name": _name,
    "ca": _path,
    "certificate": _path,
    "key": _path,
    "user": _text,
    "password_file": _path,
    "pin_ttl": _seconds(MIN_TTL_S, MAX_TTL_S),
    "member_ttl": _seconds(MIN_TTL_S, 2 * MAX_TTL_S),
    "margin": _seconds(0.1, MAX_TTL_S),
    "pin_timeout": _seconds(0.1, MAX_TTL_S),
}
OPTIONS: Final = {option_of(key): key for key in _CHECKS}
"""The keys of the table, by their names in `-o`."""


def _host_name() -> str:
    """This machine's own, as far as it tells anything."""
    name = os.uname().nodename
    if not _NAME.fullmatch(name) or not name.strip(".") or name.partition(".")[0] == "localhost":
        raise ClusterError("host", f"the name of this machine, {name!r}, tells other hosts nothing: choose one")
    return name


def _require_readable(key: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ClusterError(key, f"{path}: {error.strerror}") from None


def _password(path: Path) -> str:
    """The text of a file, without the line end that editors put there."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise ClusterError(
                    "password_file", f"{path}: others may read it, or its group may write it: chmod 600 {path}"
                )
            text = file.read(MAX_SECRET + 1).decode()
    except OSError as error:
        raise ClusterError("password_file", f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ClusterError("password_file", f"{path}: not UTF-8") from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password or len(text) > MAX_SECRET:
        raise ClusterError("password_file", f"{path}: must have 1 to {MAX_SECRET} bytes")
    return password
