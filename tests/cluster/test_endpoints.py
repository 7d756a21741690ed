"""Endpoints as operators write them, and their order."""

from __future__ import annotations

import pytest

from pinfs.cluster.etcd import Endpoint, EndpointError, parse_endpoints
from pinfs.cluster.etcd.endpoints import Endpoints


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [("http", "a", 2379)]),
        ("a:1,b:2", [("http", "a", 1), ("http", "b", 2)]),
        (" http://a:1 , http://b/", [("http", "a", 1), ("http", "b", 2379)]),
        ("https://etcd-1.example.org:65535", [("https", "etcd-1.example.org", 65535)]),
        ("https://[::1]:2379", [("https", "::1", 2379)]),
        ("[FD00:0::2]", [("http", "fd00::2", 2379)]),
        ("10.0.0.1:2380", [("http", "10.0.0.1", 2380)]),
    ],
)
def test_they_are_read(text: str, expected: list[tuple[str, str, int]]) -> None:
    assert parse_endpoints(text) == tuple(Endpoint(*one) for one in expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a,,b", "is empty"),
        ("ftp://a", "scheme 'ftp'"),
        ("://a", "scheme ''"),
        ("http://", "is empty"),
        ("a:0", "port '0'"),
        ("a:65536", "port '65536'"),
        ("a:", "port ''"),
        ("a:x", "port 'x'"),
        ("a:²", "port '²'"),
        ("fd00::2", "several colons"),
        ("::1", "several colons"),
        ("[fd00::2", "does not end"),
        ("[fd00::g]:1", "no IPv6 address"),
        ("[a]:1", "no IPv6 address"),
        ("[::1]x1", "port '1'"),
        ("a:99999999999999999999", "port '9"),
        ("http://a:1/v3", "has a path"),
        ("http://a/v3", "has a path"),
        ("http://user:secret@a:1", "has a user"),
        ("user@a:1", "has a user"),
        ("a b:1", "no host name"),
        ("a\r\nb", "no host name"),
        ("-a", "no host name"),
        ("a..b", "no host name"),
        ("a" * 64, "no host name"),
        (".".join(["a" * 50] * 6), "no host name"),
        ("a:1,a:1", "twice"),
        ("[::1],[0::1]:2379", "twice"),
        ("http://a,https://b", "mixes http and https"),
        (",".join(f"a{n}" for n in range(33)), "32 are the limit"),
    ],
)
def test_what_cannot_be_meant_is_said_in_words(text: str, words: str) -> None:
    with pytest.raises(EndpointError) as raised:
        parse_endpoints(text)
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_endpoint_is_written_as_it_is_read() -> None:
    for text in ("https://[fd00::2]:2379", "http://a:1"):
        assert str(parse_endpoints(text)[0]) == text


def test_one_that_failed_is_asked_last_for_a_while() -> None:
    a, b, c = parse_endpoints("a,b,c")
    endpoints = Endpoints([a, b, c], bad_for_s=5)
    assert endpoints.in_order(0) == [a, b, c]
    endpoints.failed(a, 0)
    assert endpoints.in_order(4.9) == [b, c, a]
    assert endpoints.in_order(5) == [a, b, c]


def test_one_that_works_is_kept() -> None:
    a, b, c = parse_endpoints("a,b,c")
    endpoints = Endpoints([a, b, c], bad_for_s=5)
    endpoints.failed(a, 0)
    endpoints.worked(b)
    assert endpoints.in_order(100) == [b, a, c]
    endpoints.failed(b, 100)
    endpoints.worked(b)
    assert endpoints.in_order(100) == [b, a, c]


def test_when_all_have_failed_the_first_one_to_fail_comes_first() -> None:
    a, b, c = parse_endpoints("a,b,c")
    endpoints = Endpoints([a, b, c], bad_for_s=5)
    for now, endpoint in enumerate((b, c, a)):
        endpoints.failed(endpoint, now)
    assert endpoints.in_order(3) == [b, c, a]


def test_there_has_to_be_one() -> None:
    with pytest.raises(EndpointError):
        Endpoints([], bad_for_s=5)
