"""Which daemons may serve one source at a time: one alone, or those of one cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinfs.bridge.mount import AlreadyServedError, _is_served, open_source, warn_of_cluster
from pinfs.fs.identity import cluster_name, enclosing_cluster, remove_token, write_token

Open = Callable[..., int]


@pytest.fixture
def opened() -> Iterator[Open]:
    fds: list[int] = []

    def opened(path: Path, *, shared: bool = False) -> int:
        fds.append(open_source(str(path), shared=shared))
        return fds[-1]

    yield opened
    for fd in fds:
        os.close(fd)


def test_one_daemon_serves_alone(tmp_path: Path, opened: Open) -> None:
    opened(tmp_path)
    with pytest.raises(AlreadyServedError, match=r"another pinfs already serves .*: two of them"):
        opened(tmp_path)


def test_daemons_of_a_cluster_serve_together(tmp_path: Path, opened: Open) -> None:
    for _ in range(3):
        opened(tmp_path, shared=True)


def test_with_and_without_cluster_exclude_each_other(tmp_path: Path, opened: Open) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    opened(alone)
    with pytest.raises(AlreadyServedError, match=r"without cluster="):
        opened(alone, shared=True)
    opened(together, shared=True)
    with pytest.raises(AlreadyServedError, match=r"with cluster=.*the same options"):
        opened(together)
    opened(together, shared=True)  # what was refused has left no lock


@pytest.mark.parametrize("shared", [True, False])
def test_a_source_is_served_by_either_kind(tmp_path: Path, opened: Open, shared: bool) -> None:
    assert not _is_served(str(tmp_path))
    opened(tmp_path, shared=shared)
    assert _is_served(str(tmp_path))


def test_the_next_daemon_may_be_of_the_other_kind(tmp_path: Path) -> None:
    for shared in (True, False, True):
        os.close(open_source(str(tmp_path), shared=shared))


def test_a_daemon_alone_is_warned_of_hosts_that_have_left_tokens(
    tmp_path: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    fd = opened(tmp_path)
    warn_of_cluster(fd)
    assert not caplog.records
    for host in ("b", "a"):
        write_token(fd, host, "1f")
    warn_of_cluster(fd)
    assert "have served the source (a, b)" in caplog.text
    for host in ("a", "b"):
        remove_token(fd, host, "1f")
    caplog.clear()
    warn_of_cluster(fd)
    assert not caplog.records


def test_a_cluster_inside_of_another_one_is_refused(tmp_path: Path, opened: Open) -> None:
    source = tmp_path / "a" / "b"
    source.mkdir(parents=True)
    outer = os.open(tmp_path, os.O_RDONLY)
    cluster_name(outer, create=True)
    assert enclosing_cluster(outer) == ""
    os.close(outer)
    with pytest.raises(AlreadyServedError, match=rf"lies inside {tmp_path}, which belongs to a cluster"):
        opened(source, shared=True)
    opened(source)
    opened(tmp_path, shared=True)
