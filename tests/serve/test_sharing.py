"""A host that serves another directory is noticed, and one that is late is not."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from pinfs.bridge.mount import MountError
from pinfs.config.cluster import ClusterOptions, cluster_options
from pinfs.fs.identity import DIRECTORY, SHARED_WITHIN_S, cluster_name, read_tokens, remove_token, write_token
from pinfs.serve.sharing import LOOK_S, Sharing, name_of

T = TypeVar("T")


async def at_once(call: Callable[[], T], /) -> T:
    """The test's clock would run on while a thread works."""
    await trio.lowlevel.checkpoint()
    return call()


class World:
    """Host a, which knows of itself and of host b."""

    def __init__(self, source: Path) -> None:
        self.fd = os.open(source, os.O_RDONLY)
        self.status: dict[str, Any] = {"state": "joining", "incarnation": None, "members": []}
        self.sharing = Sharing(self.fd, "a", lambda: self.status, at_once)

    def joins(self, incarnation: str = "1", **others: str) -> None:
        members = [{"host": host, "incarnation": life} for host, life in {"a": incarnation, **others}.items()]
        self.status = {"state": "joined", "incarnation": incarnation, "members": members}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.sharing.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
def world(tmp_path: Path) -> Any:
    world = World(tmp_path)
    yield world
    os.close(world.fd)


async def test_a_host_leaves_its_token_when_it_has_joined_and_takes_it_along(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running():
        await trio.sleep(1.5)  # never when it looks
        assert read_tokens(world.fd) == {}
        world.joins("1")
        await trio.sleep(LOOK_S)
        assert read_tokens(world.fd) == {"a": "1"}
        world.joins("2")
        await trio.sleep(LOOK_S)
        assert read_tokens(world.fd) == {"a": "2"}
    await world.sharing.leave()
    assert read_tokens(world.fd) == {}


async def test_a_host_without_a_token_is_reported_once_and_not_at_once(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.joins("1", b="7")
    async with world.running():
        await trio.sleep(SHARED_WITHIN_S - LOOK_S / 2)
        assert not world.sharing.not_seen
        await trio.sleep(2 * LOOK_S)
        assert world.sharing.not_seen == ["b"]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "host b is in the cluster" in caplog.text
        write_token(world.fd, "b", "7")
        await trio.sleep(LOOK_S)
        assert not world.sharing.not_seen


async def test_a_host_that_is_late_is_not_reported(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.joins("1", b="7")
    async with world.running():
        await trio.sleep(SHARED_WITHIN_S / 2)
        write_token(world.fd, "b", "7")
        await trio.sleep(SHARED_WITHIN_S / 2)
        world.joins("1", b="8")  # it was fenced, and is back: a new time begins
        await trio.sleep(SHARED_WITHIN_S / 2)
        write_token(world.fd, "b", "8")
        await trio.sleep(2 * SHARED_WITHIN_S)
    assert not caplog.records


async def test_a_source_that_cannot_be_looked_at_is_reported_once(
    world: World, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / DIRECTORY).write_text("not a directory")
    world.joins("1")
    async with world.running():
        await trio.sleep(5 * LOOK_S)
        assert len(caplog.records) == 1
        (tmp_path / DIRECTORY).unlink()
        await trio.sleep(LOOK_S)
        assert read_tokens(world.fd) == {"a": "1"}


async def test_a_token_that_was_removed_is_left_once_more(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.joins("1")
    async with world.running():
        await trio.sleep(1.5)
        remove_token(world.fd, "a", "1")
        await trio.sleep(LOOK_S)
        assert read_tokens(world.fd) == {"a": "1"}
    assert not caplog.records


async def test_two_machines_with_one_name_are_noticed(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.joins("1")
    async with world.running():
        for _ in range(3):
            await trio.sleep(1.5 * LOOK_S)
            write_token(world.fd, "a", "2")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "another machine calls itself a in this cluster"
    ]


# Its name


def options(**values: str) -> ClusterOptions:
    found = cluster_options({"endpoints": "etcd1", "host": "a", **values})
    assert found is not None
    return found


def test_the_operator_names_the_cluster_or_the_source_does(world: World, tmp_path: Path) -> None:
    assert name_of(options(name="models"), world.fd) == "models"
    assert not (tmp_path / DIRECTORY).exists()
    assert name_of(options(), world.fd) == cluster_name(world.fd, create=False)


def test_a_source_that_takes_no_name_needs_the_option(world: World, tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).write_text("not a directory")
    with pytest.raises(MountError, match=r"cluster_name=NAME"):
        name_of(options(), world.fd)
