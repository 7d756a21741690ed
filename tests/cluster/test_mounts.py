"""Several mounts of one directory, as daemons of several hosts, over a real etcd: what programs see (SPEC 14)."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from breaks.acts import pin_handle, unpin_handle
from support import acts
from support.actor import Actor, eventually
from support.mounts import DaemonError, Mount, new_base, remove_tree
from survival.surviving import Surviving

from cluster.conftest import NewHost
from cluster.nodes import Node

PIN, RELEASE = "user.pinfs.pin.", "user.pinfs.release."
TTL = ("cluster_pin_ttl=4", "cluster_margin=1.5", "cluster_member_ttl=8")
"""Of hosts that shall be missed soon; a busy machine must not take a live one for dead, so others have longer."""
SIZE = 65536


def cluster(mount: Mount | Surviving) -> dict[str, Any]:
    shown: dict[str, Any] = mount.status()["cluster"]
    return shown


def new_file(source: Path, name: str = "f") -> None:
    (source / name).write_bytes(bytes(range(256)) * (SIZE // 256))


def pinned(actor: Actor, mount: Mount | Surviving, value: bytes = b"0:4096", name: str = "f") -> str:
    """The path of the file, which the actor has pinned."""
    path = str(mount.path / name)
    actor(os.setxattr, path, f"{PIN}x", value)
    return path


def assert_not_cut(breaker: Actor, path: str, fd: int) -> None:
    """All of a file whose first bytes another host has pinned. `fd`: of the breaker, of that file."""
    assert breaker.errno(os.truncate, path, 100) == errno.EBUSY
    assert breaker.errno(os.ftruncate, fd, 0) == errno.EBUSY
    assert breaker.errno(os.open, path, os.O_RDWR | os.O_TRUNC) == errno.EBUSY


# Refusals


def test_what_one_host_has_pinned_no_host_takes_away(source: Path, a: Mount, b: Mount) -> None:
    new_file(source)
    holder, breaker = a.actor(), b.actor()
    path = pinned(holder, a)
    there = str(b.path / "f")
    fd = breaker(os.open, there, os.O_RDWR)
    assert_not_cut(breaker, there, fd)
    assert breaker.errno(acts.fallocate, fd, 3, 0, 4096) == errno.EBUSY
    assert breaker.errno(acts.fallocate, fd, 3, 4096, 4096) is None
    assert breaker.errno(os.truncate, there, 4096) is None
    holder(os.removexattr, path, f"{PIN}x")
    assert breaker.errno(os.truncate, there, 0) is None
    assert a.actor()(os.stat, path).st_size == 0


def test_the_refused_breaker_hears_nothing_but_its_errno_and_the_log_names_the_host(
    source: Path, a: Mount, b: Mount
) -> None:
    new_file(source)
    pinned(a.actor(), a)
    with b.trace() as trace:
        assert b.actor().errno(os.truncate, str(b.path / "f"), 0) == errno.EBUSY
        refused = trace.until("refused")
    assert (refused["why"], refused["op"]) == ("deny", "truncate")
    assert "is refused (deny): host a" in b.log()


def test_the_end_of_a_holder_is_the_end_of_its_pin_on_all_hosts(source: Path, a: Mount, b: Mount) -> None:
    new_file(source)
    holder = a.actor()
    pinned(holder, a)
    assert b.actor().errno(os.truncate, str(b.path / "f"), 0) == errno.EBUSY
    holder.kill()
    assert b.actor().errno(os.truncate, str(b.path / "f"), 0) in (None, errno.EBUSY)
    eventually(lambda: b.actor().errno(os.truncate, str(b.path / "f"), 0) is None)


def test_a_removal_of_a_file_without_pins_asks_nobody(source: Path, a: Mount, b: Mount) -> None:
    for name in ("f", "g", "h"):
        new_file(source, name)
    actor = a.actor()

    def work() -> None:
        for size in range(100):
            actor(os.truncate, str(a.path / "f"), 1000 - size)
        actor(os.unlink, str(a.path / "g"))
        actor(os.rename, str(a.path / "f"), str(a.path / "h"))

    before = cluster(a)["counters"]["calls"]
    began = time.monotonic()
    work()
    beats = 2 + (time.monotonic() - began) / cluster(a)["members"][0]["pin_ttl_s"] * 6
    assert cluster(a)["counters"]["calls"] - before <= beats
    assert cluster(a)["marks"] == 0


# Leases


def test_a_lease_is_broken_by_its_own_daemon_and_its_holder_hears_from_which_host(
    source: Path, a: Mount, b: Mount
) -> None:
    new_file(source)
    holder, breaker = a.actor(), b.actor()
    holder(acts.catch, signal.SIGUSR1)
    path = pinned(holder, a, b"0:4096,mode=lease,signal=USR1")
    events = holder(os.open, str(a.control("events")), os.O_RDONLY)
    cut = breaker.start(os.truncate, str(b.path / "f"), 100)
    assert holder(acts.next_signal, signal.SIGUSR1)
    [event] = map(json.loads, holder(acts.read_event_lines, events).splitlines())
    assert (event["event"], event["op"], event["from"], event["host"]) == ("break", "truncate", 100, "b")
    assert a.actor().errno(os.setxattr, path, f"{PIN}y", b"200:10") == errno.EOPNOTSUPP  # EAGAIN: docs/interfaces.md
    assert not cut.done()
    holder(os.removexattr, path, f"{PIN}x")
    assert cut.error() is None


def test_the_holder_may_take_more_time_by_its_own_policy(source: Path, new_host: NewHost) -> None:
    new_file(source)
    a = new_host("a", "break_timeout=0.5", "break_timeout_max=60")
    b = new_host("b", "break_timeout=0.1", "break_timeout_max=0.1")
    holder, breaker = a.actor(), b.actor()
    holder(acts.catch, signal.SIGUSR1)
    path = pinned(holder, a, b"0:4096,mode=lease,signal=USR1")
    events = holder(os.open, str(a.control("events")), os.O_RDWR)
    cut = breaker.start(os.truncate, str(b.path / "f"), 0)
    told = json.loads(holder(acts.read_event_lines, events))
    holder(os.write, events, f"extend {told['pin']} 50\n".encode())
    holder(os.removexattr, path, f"{PIN}x")
    assert cut.error() is None


@pytest.mark.parametrize(("on_timeout", "outcome"), [("deny", errno.EBUSY), ("revoke", None), ("kill", None)])
def test_a_silent_holder_is_judged_where_it_lives(
    source: Path, new_host: NewHost, on_timeout: str, outcome: int | None
) -> None:
    new_file(source)
    a, b = new_host("a", "break_timeout=0.3", f"on_timeout={on_timeout}"), new_host("b")
    holder = a.actor()
    pinned(holder, a, b"0:4096,mode=lease,signal=none")
    assert b.actor().errno(os.truncate, str(b.path / "f"), 0) == outcome
    if on_timeout == "kill":
        assert holder.process.wait(20) == -signal.SIGKILL


# Last names


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_the_bytes_of_a_last_name_stay_for_other_hosts(source: Path, a: Mount, b: Mount, how: str) -> None:
    new_file(source)
    new_file(source, "other")
    holder, breaker = a.actor(), b.actor()
    pinned(holder, a)
    fd = holder(os.open, str(a.path / "f"), os.O_RDWR)
    address = holder(acts.map_fd, fd, 4096)
    if how == "unlink":
        breaker(os.unlink, str(b.path / "f"))
    else:
        breaker(os.rename, str(b.path / "other"), str(b.path / "f"))
    assert holder(acts.peek, address, 4) == bytes(range(4))
    assert len(os.listdir(source / ".pinfs-cluster" / "held")) == 1
    assert holder(os.fstat, fd).st_size == SIZE


@pytest.mark.parametrize(("policy", "outcome"), [("deny", errno.EBUSY), ("break", None)])
def test_policies_of_last_names(source: Path, new_host: NewHost, policy: str, outcome: int | None) -> None:
    new_file(source)
    a, b = (new_host(name, f"unlink={policy}", "break_timeout=0.3", "on_timeout=revoke") for name in "ab")
    pinned(a.actor(), a, b"0:4096,mode=lease,signal=none")
    assert b.actor().errno(os.unlink, str(b.path / "f")) == outcome
    assert (source / "f").exists() == (outcome is not None)


def test_names_of_files_without_pins_go_with_their_bytes(source: Path, a: Mount, b: Mount) -> None:
    new_file(source)
    holder = a.actor()
    path = pinned(holder, a)
    holder(os.removexattr, path, f"{PIN}x")
    b.actor()(os.unlink, str(b.path / "f"))
    assert not (source / ".pinfs-cluster" / "held").exists()


# Deaths


def test_the_pins_of_a_dead_host_end_after_its_time_to_live_and_not_before(
    source: Path, a: Mount, options: tuple[str, ...]
) -> None:
    new_file(source)
    base = new_base()
    victim = Mount(base, (*options, "cluster_host=v", *TTL), source=source)
    try:
        eventually(lambda: cluster(victim)["state"] == "joined")
        pinned(victim.actor(), victim)
        before = time.monotonic()
        victim.process.kill()
        victim.reap()
        path = str(a.path / "f")
        breaker = a.actor()
        assert breaker.errno(os.truncate, path, 0) == errno.EBUSY
        eventually(lambda: breaker.errno(os.truncate, path, 0) is None)
        assert time.monotonic() - before > 3  # less a beat, of which the last one was before it was killed
    finally:
        victim.reap()
        remove_tree(base)


def test_a_daemon_that_takes_over_keeps_its_pins_on_all_hosts(
    source: Path, a: Mount, options: tuple[str, ...], actors: Any
) -> None:
    new_file(source)
    base = new_base()
    mount = Surviving(base, (*options, "cluster_host=s"), source=source)
    try:
        eventually(lambda: cluster(mount)["state"] == "joined")
        incarnation = cluster(mount)["incarnation"]
        holder = actors.actor()
        holder(acts.catch, signal.SIGUSR1)
        pinned(holder, mount)
        path = str(mount.path / "f")
        holder(os.setxattr, path, f"{PIN}l", b"8192:4096,mode=lease,signal=USR1")
        breaker = a.actor()
        for _ in range(2):
            with mount.gap():
                assert breaker.errno(os.truncate, str(a.path / "f"), 100) == errno.EBUSY
            assert breaker.errno(os.truncate, str(a.path / "f"), 100) == errno.EBUSY
            eventually(lambda: cluster(mount)["state"] == "joined")
            assert cluster(mount)["incarnation"] == incarnation
        cut = breaker.start(os.truncate, str(a.path / "f"), 8192)
        assert holder(acts.next_signal, signal.SIGUSR1)
        mount.kill()
        holder(os.removexattr, path, f"{PIN}l")
        assert cut.error() is None
        holder(os.removexattr, path, f"{PIN}x")
        assert breaker.errno(os.truncate, str(a.path / "f"), 0) is None
        assert holder(os.stat, path).st_size == 0
    finally:
        mount.stop()
        remove_tree(base)


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_pins_stay_when_another_host_takes_the_name_and_then_the_daemon_dies(
    source: Path, a: Mount, options: tuple[str, ...], actors: Any, how: str
) -> None:
    new_file(source)
    new_file(source, "other")
    base = new_base()
    mount = Surviving(base, (*options, "cluster_host=s"), source=source)
    try:
        eventually(lambda: cluster(mount)["state"] == "joined")
        by_handle, by_name, breaker = actors.actor(), actors.actor(), a.actor()
        path = pinned(by_name, mount, b"0:100")
        fd = by_handle(os.open, path, os.O_RDWR)
        pin = by_handle(pin_handle, fd, 4096, 4096, "deny")
        there = breaker(os.open, str(a.path / "f"), os.O_RDWR)
        if how == "unlink":
            breaker(os.unlink, str(a.path / "f"))
        else:
            breaker(os.rename, str(a.path / "other"), str(a.path / "f"))
        mount.kill()
        assert {shown["id"]: shown["mode"] for shown in mount.pins()}[pin] == "deny"
        assert len(mount.pins()) == 2
        eventually(lambda: cluster(mount)["state"] == "joined")
        assert breaker.errno(os.ftruncate, there, 0) == errno.EBUSY
        assert by_handle(os.pread, fd, 4, 4096) == bytes(range(4))
        by_handle(unpin_handle, fd, pin)
        assert breaker.errno(os.ftruncate, there, 100) is None
        assert breaker.errno(os.ftruncate, there, 0) == errno.EBUSY
        by_name.kill()
        eventually(lambda: breaker.errno(os.ftruncate, there, 0) is None)
    finally:
        mount.stop()
        remove_tree(base)


def test_releases_that_wait_for_other_hosts_while_the_daemon_dies_are_done_once(
    source: Path, start_nodes: Callable[..., list[Node]], actors: Any
) -> None:
    new_file(source)
    [etcd] = start_nodes()
    base = new_base()
    mount = Surviving(base, (f"cluster={etcd.endpoint}", "cluster_host=s"), source=source)
    try:
        eventually(lambda: cluster(mount)["state"] == "joined")
        path = str(mount.path / "f")
        by_ioctl, by_name, by_value, by_command = holders = [actors.actor() for _ in range(4)]
        fd = by_ioctl(os.open, path, os.O_RDWR)
        pin = by_ioctl(pin_handle, fd)
        for holder in (by_name, by_value, by_command):
            pinned(holder, mount)
        channel = by_command(os.open, str(mount.path / ".pinfs" / "events"), os.O_RDWR)
        [commanded] = [shown["id"] for shown in mount.pins() if shown["pid"] == by_command.pid]
        etcd.suspend()
        by_ioctl.start(unpin_handle, fd, pin)
        by_name.start(os.removexattr, path, f"{PIN}x")
        by_value.start(os.getxattr, path, f"{RELEASE}x")
        by_command.start(os.write, channel, f"release {commanded}\n".encode())
        eventually(lambda: not mount.pins())
        mount.kill()
        assert [holder.answer(20) for holder in holders] == [None, None, b"released", len(f"release {commanded}\n")]
        etcd.resume()
    finally:
        mount.stop()
        remove_tree(base)


def test_a_host_that_is_cut_off_tells_its_holders_and_cuts_nothing(
    source: Path, start_nodes: Callable[..., list[Node]], fuse: None
) -> None:
    new_file(source)
    new_file(source, "free")
    [etcd] = start_nodes()
    base = new_base()
    options = (f"cluster={etcd.endpoint}", "cluster_host=a", "cluster_pin_timeout=0.5", *TTL)
    try:
        with Mount(base, options, source=source) as mount:
            eventually(lambda: cluster(mount)["state"] == "joined")
            holder = mount.actor()
            holder(acts.catch, signal.SIGUSR1)
            path = pinned(holder, mount, b"0:4096,mode=lease,signal=USR1")
            events = holder(os.open, str(mount.control("events")), os.O_RDONLY)
            etcd.kill()
            assert holder(acts.next_signal, signal.SIGUSR1)
            [event] = map(json.loads, holder(acts.read_event_lines, events).splitlines())
            assert (event["event"], event["by"], event["why"]) == ("revoked", "cluster", "cluster")
            assert not mount.pins()
            assert holder.errno(os.truncate, str(mount.path / "free"), 0) == errno.EIO
            assert holder.errno(os.setxattr, path, f"{PIN}x", b"0:4") == errno.EIO
            holder(acts.write_file, str(mount.path / "new"), b"data")
            assert holder(acts.read_file, str(mount.path / "new")) == b"data"
            mount.expect_log("is cut off from the cluster")
            mount.expect_log("a pin or removal has failed: this host is cut off from the others")
            etcd.start_again()
            eventually(lambda: cluster(mount)["state"] == "joined")
            holder(os.truncate, str(mount.path / "free"), 0)
            pinned(holder, mount)
    finally:
        remove_tree(base)


# What is refused


def test_two_directories_with_one_name_are_refused(source: Path, a: Mount, options: tuple[str, ...]) -> None:
    other, base = new_base(), new_base()
    try:
        with pytest.raises(DaemonError, match="serve another directory than this one"):
            Mount(base, (*options, "cluster_host=x"), source=other)
    finally:
        remove_tree(other)
        remove_tree(base)


def test_a_mount_begins_without_etcd_and_joins_later(
    source: Path, start_nodes: Callable[..., list[Node]], fuse: None
) -> None:
    new_file(source)
    [etcd] = start_nodes()
    etcd.kill()
    base = new_base()
    options = (f"cluster={etcd.endpoint}", "cluster_host=a", "cluster_pin_timeout=0.2")
    try:
        with Mount(base, options, source=source) as mount:
            mount.expect_log("etcd does not answer")
            mount.expect_log("a pin or removal has failed")
            actor = mount.actor()
            assert actor(acts.read_file, str(mount.path / "f"))[:3] == bytes(range(3))
            assert actor.errno(os.truncate, str(mount.path / "f"), 0) == errno.EIO
            etcd.start_again()
            eventually(lambda: cluster(mount)["state"] == "joined")
            actor(os.truncate, str(mount.path / "f"), 0)
    finally:
        remove_tree(base)


def test_nothing_is_left_in_etcd(source: Path, node: Node, options: tuple[str, ...], fuse: None) -> None:
    new_file(source)
    base = new_base()
    prefix = f"/pinfs/{options[1].partition('=')[2]}/".encode()
    try:
        with Mount(base, (*options, "cluster_host=a"), source=source) as mount:
            eventually(lambda: cluster(mount)["state"] == "joined")
            holder = mount.actor()
            path = pinned(holder, mount)
            holder(os.removexattr, path, f"{PIN}x")
            assert node.count(prefix) >= 2
        assert node.count(prefix) <= 2, "the count of marks, and a mark that lingers"
        assert not list((source / ".pinfs-cluster").glob("host-*"))
    finally:
        remove_tree(base)
