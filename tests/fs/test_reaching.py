"""Names on a file system of several hosts (NFS), where an open descriptor keeps no inode, and the kernel believes for a
while what it has heard of a name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pinfs.fs import reaching as reaching_module
from pinfs.fs.inode import ROOT_ID, stale
from pinfs.fs.remote import RemoteOperations
from pinfs.linux import syscalls

from .conftest import ME, Bench
from .test_removals_of_hosts import FakeHost, rename, unlink
from .test_removals_of_hosts import host as host
from .test_removals_of_hosts import options as options
from .test_removals_of_hosts import served as served

pytestmark = pytest.mark.usefixtures("served", "host")


def operations(bench: Bench) -> RemoteOperations:
    assert isinstance(bench.ops, RemoteOperations)
    return bench.ops


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories of which the server has been asked."""
    asked: list[str] = []

    def ask(fd: int) -> None:
        asked.append(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(reaching_module, "wait_for_attributes", ask)
    monkeypatch.setattr(syscalls, "wait_for_attributes", ask)
    return asked


@pytest.mark.parametrize("tells_lives", [True, False])
async def test_a_number_that_the_server_has_given_to_another_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tells_lives: bool
) -> None:
    """`g` is to be the other file. Where handles say nothing a number is all there is: several names, one file."""
    ops = operations(bench)
    ops.reaching.tells_lives = tells_lives
    monkeypatch.setattr(reaching_module, "life_of", lambda fd: os.readlink(f"/proc/self/fd/{fd}").encode()[-1:])
    node = await bench.file("f", 10)
    os.link(bench.source / "f", bench.source / "g")
    entry = await ops.lookup(ROOT_ID, b"g", ME)
    assert (entry.nodeid == node) is not tells_lives
    assert (await ops.getattr(node, ME)).st_size == 10
    assert (await ops.lookup(ROOT_ID, b"g", ME)).nodeid == entry.nodeid


async def test_what_was_stale_is_asked_of_the_server_when_it_is_looked_up_again(bench: Bench, asked: list[str]) -> None:
    """As the kernel does, which makes a call once more after ESTALE, and then believes nothing."""
    ops = operations(bench)
    node = await bench.file("f", 10)

    def fail(view: object) -> None:
        raise stale()

    with pytest.raises(OSError, match="Stale"):
        await ops.reaching.call(bench.fs.inodes.get(node), fail)
    assert not asked
    await ops.lookup(ROOT_ID, b"f", ME)
    assert asked == [str(bench.source)]
    await ops.lookup(ROOT_ID, b"f", ME)
    assert len(asked) == 1


@pytest.mark.parametrize("take", [unlink, rename])
async def test_before_a_name_goes_the_server_is_asked_where_it_leads(
    bench: Bench, host: FakeHost, monkeypatch: pytest.MonkeyPatch, take: Callable[[Bench, bytes], Any]
) -> None:
    """And from then on no host can pin what it leads to, until it has gone."""
    await bench.file("f", 10)
    await bench.file("other", 20)
    under_way: list[bool] = []
    monkeypatch.setattr(syscalls, "wait_for_attributes", lambda fd: under_way.append(bool(host.under_way)))
    await take(bench, b"f")
    assert under_way[-1]


async def test_a_symbolic_link_that_is_a_file_by_now_stays(
    bench: Bench, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host has pinned that. No host can while the server is asked."""
    (bench.source / "link").symlink_to("f")
    await bench.ops.lookup(ROOT_ID, b"link", ME)
    unseen: list[bool] = []

    def ask(fd: int) -> None:
        unseen.append(bool(host.unseen))
        (bench.source / "new").write_bytes(b"precious")
        (bench.source / "new").rename(bench.source / "link")

    monkeypatch.setattr(syscalls, "wait_for_attributes", ask)
    with pytest.raises(OSError, match="Stale"):
        await unlink(bench, b"link")
    assert (bench.source / "link").read_bytes() == b"precious"
    assert (unseen, host.unseen) == ([True], set())


async def test_before_a_rename_the_server_is_asked_whether_the_new_name_is_free(
    bench: Bench, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.file("other", 20)
    unseen: list[bool] = []
    monkeypatch.setattr(reaching_module, "wait_for_attributes", lambda fd: unseen.append(bool(host.unseen)))
    await rename(bench, b"new")
    assert unseen == [True]
