"""The client and one real etcd that asks for certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio

from cluster.certificates import Authority
from cluster.conftest import StartNodes
from cluster.nodes import Node
from cluster.test_node import LIMIT_S, PATIENT, USER, set_up_users
from pinfs.cluster.etcd import (
    Done,
    Endpoint,
    EndpointError,
    Etcd,
    Range,
    Refused,
    Unreachable,
    below,
    one,
    parse_endpoints,
    tls_context,
)
from pinfs.cluster.etcd.connection import Connection, connect

READ = Range(one(b"/pinfs/k"))


@pytest.fixture
def authority(root: None, tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def secure(authority: Authority, start_nodes: StartNodes) -> Node:
    [node] = start_nodes(tls=authority.tls())
    return node


async def test_node_and_client_show_certificates(secure: Node) -> None:
    tls = secure.tls
    assert tls
    context = tls_context(str(tls.ca), str(tls.client_certificate), str(tls.client_key))
    connections = 0

    async def counted(endpoint: Endpoint, tls: ssl.SSLContext | None) -> Connection:
        nonlocal connections
        connections += 1
        return await connect(endpoint, tls)

    async with Etcd([secure.endpoint], tls=context, limits=PATIENT, connect=counted) as client:
        for _ in range(3):
            first = await client.put(b"/pinfs/k", b"")
        assert isinstance(first, Done)
        assert connections == 1
        async with client.watch(below(b"/"), first.revision) as watch:
            with trio.fail_after(LIMIT_S):
                assert (await anext(watch)).revision == first.revision


def test_certificates_are_not_for_http(authority: Authority) -> None:
    with pytest.raises(EndpointError, match="write https://"):
        Etcd(parse_endpoints("a"), tls=tls_context(str(authority.certificate)))


async def test_what_does_not_match_is_unreachable_in_words(secure: Node, tmp_path: Path) -> None:
    tls = secure.tls
    assert tls
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other")
    ours = str(tls.ca), str(tls.client_certificate), str(tls.client_key)
    port = secure.client_port
    for context, endpoint, words in (
        (tls_context(ours[0]), secure.endpoint, "client certificate is missing"),
        (tls_context(ours[0], *map(str, stranger.sign("b", "/", "DNS:b"))), secure.endpoint, "not of its CA"),
        (tls_context(str(stranger.certificate), *ours[1:]), secure.endpoint, "certificate verify failed"),
        (tls_context(*ours), Endpoint("https", "127.0.0.2", port), "refused"),
        (None, Endpoint("http", "127.0.0.1", port), "closed before an answer"),
    ):
        async with Etcd([endpoint], tls=context) as client:
            outcome = await client.range(READ)
            assert isinstance(outcome, Unreachable), outcome
            assert words in outcome.reason


async def test_a_certificate_for_another_name_is_not_the_nodes(authority: Authority, start_nodes: StartNodes) -> None:
    tls = authority.tls()
    certificate, key = authority.sign("other", "/O=etcd", "DNS:other.example.org")
    tls.certificate.write_bytes(certificate.read_bytes())
    tls.key.write_bytes(key.read_bytes())
    [node] = start_nodes(tls=tls, wait=False)
    context = tls_context(str(tls.ca), str(tls.client_certificate), str(tls.client_key))
    async with Etcd([node.endpoint], tls=context) as client:
        with trio.fail_after(LIMIT_S):
            while "refused" in (outcome := await client.range(READ)).reason:  # type: ignore[union-attr]
                await trio.sleep(0.05)
        assert isinstance(outcome, Unreachable)
        assert "IP address mismatch" in outcome.reason


async def test_a_common_name_is_refused_once_there_are_users(secure: Node, authority: Authority) -> None:
    tls = secure.tls
    assert tls
    named = tls_context(str(tls.ca), *map(str, authority.sign("named", "/CN=host-a", "DNS:host-a")))
    nameless = tls_context(str(tls.ca), str(tls.client_certificate), str(tls.client_key))
    async with Etcd([secure.endpoint], tls=named, limits=PATIENT) as client:
        assert isinstance(await client.put(b"/pinfs/k", b""), Done)
    set_up_users(secure)
    async with Etcd([secure.endpoint], tls=named, credentials=USER, limits=PATIENT) as client:
        for outcome in (await client.login(), await client.put(b"/pinfs/k", b"")):
            assert isinstance(outcome, Refused)
            assert "take a certificate without one" in outcome.reason
    async with Etcd([secure.endpoint], tls=nameless, credentials=USER, limits=PATIENT) as client:
        assert isinstance(await client.put(b"/pinfs/k", b""), Done)


def test_files_that_are_missing_or_no_certificates(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for ca, certificate in ((tmp_path / "missing", ""), (tmp_path / "empty", ""), (authority.certificate, "/dev/null")):
        with pytest.raises(OSError, match=r"No such file|NO_CERTIFICATE|no start line|PEM"):
            tls_context(str(ca), str(certificate))
