"""Where etcd answers: endpoints as an operator writes them, and which of them is asked next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Final

DEFAULT_PORT: Final = 2379
MAX_ENDPOINTS: Final = 32
SCHEMES: Final = ("http", "https")
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")


class EndpointError(ValueError):
    """An endpoint, or a list of them, that cannot be meant; the message is for the operator."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The client URL of one etcd node. `host` is a name or an address, of IPv6 without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_encrypted(self) -> bool:
        return self.scheme == "https"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """The endpoints of a list with commas: `https://a:2379,https://[fd00::2]`, or `a:2379,b:2379` for http.

    All have one scheme: a password that goes to one node in the clear is no secret for the others. Raises
    EndpointError.
    """
    endpoints = [_parse(part.strip()) for part in text.split(",")]
    if len({endpoint.scheme for endpoint in endpoints}) > 1:
        raise EndpointError(f"{text!r} mixes http and https: all endpoints take the same")
    if len({*endpoints}) < len(endpoints):
        raise EndpointError(f"{text!r} names an endpoint twice")
    if len(endpoints) > MAX_ENDPOINTS:
        raise EndpointError(f"{len(endpoints)} endpoints: {MAX_ENDPOINTS} are the limit")
    return tuple(endpoints)


def _parse(text: str) -> Endpoint:
    scheme, separator, authority = text.partition("://")
    if not separator:
        scheme, authority = "http", text
    authority = authority.removesuffix("/")
    if not authority:
        raise EndpointError(f"{text!r} is empty: write HOST:PORT, http://HOST:PORT or https://HOST:PORT")
    if scheme not in SCHEMES:
        raise EndpointError(f"{text!r} has the scheme {scheme!r}: http and https are possible")
    if "@" in authority:
        raise EndpointError("an endpoint has a user in it: user and password are settings of their own")
    if "/" in authority:
        raise EndpointError(f"{text!r} has a path: an endpoint ends with its port")
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        if not bracket:
            raise EndpointError(f"{text!r} has a bracket that does not end: write [::1]:{DEFAULT_PORT}")
        host = _parse_ipv6(host, text)
    else:
        host, colon, port = authority.partition(":")
        port = colon + port
        if not _NAME.fullmatch(host) and ":" not in port[1:]:
            raise EndpointError(f"{text!r} has no host name: {host!r} cannot be one")
    return Endpoint(scheme, host, _parse_port(port, text))


def _parse_ipv6(host: str, text: str) -> str:
    try:
        return str(IPv6Address(host))
    except AddressValueError as e:
        raise EndpointError(f"{text!r} has no IPv6 address in brackets: {e}") from None


def _parse_port(text_of_port: str, text: str) -> int:
    """`text_of_port` begins with its colon, or is empty."""
    if not text_of_port:
        return DEFAULT_PORT
    port = text_of_port[1:]
    if ":" in port:
        raise EndpointError(f"{text!r} has several colons: write an IPv6 address as [::1]:{DEFAULT_PORT}")
    if text_of_port[0] != ":" or not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise EndpointError(f"{text!r} has the port {port!r}: 1 to 65535 are possible")
    return int(port)


class Endpoints:
    """Which endpoint to ask, with a short memory of those that failed. `now` is any clock that only rises, in seconds.

    One that works is kept: calls to one node see each other's effects without a round trip more, and its connections
    are open already. One that failed is asked again after `bad_for_s`, or when all have failed: the one that failed
    first then comes first.
    """

    def __init__(self, endpoints: Sequence[Endpoint], bad_for_s: float) -> None:
        if not endpoints:
            raise EndpointError("there is no endpoint")
        self._endpoints = list(endpoints)
        self._bad_for_s = bad_for_s
        self._failed_at: dict[Endpoint, float] = {}

    def __len__(self) -> int:
        return len(self._endpoints)

    def in_order(self, now: float) -> list[Endpoint]:
        """All of them, the one to ask first at the beginning."""
        bad = {one: at for one, at in self._failed_at.items() if now - at < self._bad_for_s}
        good = [endpoint for endpoint in self._endpoints if endpoint not in bad]
        return good + sorted(bad, key=bad.__getitem__)

    def worked(self, endpoint: Endpoint) -> None:
        self._failed_at.pop(endpoint, None)
        if self._endpoints[0] != endpoint:
            self._endpoints.remove(endpoint)
            self._endpoints.insert(0, endpoint)

    def failed(self, endpoint: Endpoint, now: float) -> None:
        self._failed_at[endpoint] = now
