"""The daemon's side of a store of descriptors, with a fake keeper, with the real one, and with a service manager's."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from pinfs.serve import kept as serving
from pinfs.serve.descriptorstore import DescriptorStore, Inheritance, ManagerLink, StoreLostError
from pinfs.serve.kept import KeeperLink, Kept, manager_store, wait_for_turn

KEPT = Kept(program=("/nowhere/python", "/nowhere/pinfs"), words=("mount",), mountpoint="/mnt", log="stderr")


class FakeLink:
    """Takes messages as long as it has room."""

    kind = "pinfs"

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.room = 1000
        self.error: Exception | None = None
        self.sent: list[str] = []
        self.renewals = 0
        self.says, self.said = trio.open_memory_channel[dict[str, str]](10)

    def send(self, text: str, fds: Sequence[int] = ()) -> None:
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError
        self.room -= 1
        self.sent.append(text + f" [{len(fds)}]" * bool(fds))

    async def wait_writable(self) -> None:
        await trio.sleep(1)
        self.room = self.room or 1

    async def receive(self) -> dict[str, str]:
        try:
            return await self.said.receive()
        except trio.EndOfChannel:
            raise StoreLostError("the keeper has ended") from None

    async def renew(self) -> None:
        self.renewals += 1
        if self.renewals > 1:
            raise StoreLostError("no keeper can be started")
        self.says, self.said = trio.open_memory_channel[dict[str, str]](10)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.error = StoreLostError("closed")


async def never() -> None:
    raise AssertionError


def test_names_go_out_with_their_descriptors() -> None:
    link = FakeLink()
    store = DescriptorStore(link)
    assert store.inherited() == {}
    assert store.keep("fuse", 0)
    assert store.keep("fuse", 1)
    store.drop("fuse")
    store.drop("unknown")
    stored = "FDSTORE=1\nFDPOLL=0\nFDNAME=fuse [1]"
    removed = "FDSTOREREMOVE=1\nFDNAME=fuse"
    assert link.sent == [stored, removed, stored, removed]


def test_a_full_store(caplog: pytest.LogCaptureFixture) -> None:
    store = DescriptorStore(FakeLink(limit=2))
    assert [store.keep(name, 0) for name in ("a", "b", "c", "d", "b")] == [True, True, False, False, True]
    assert store.status()["not_kept"] == 2
    assert caplog.text.count("will not outlive") == 1
    store.drop("a")
    assert store.keep("c", 0)
    assert not store.keep("n" * 256, 0)


async def test_what_finds_no_room_goes_out_later_and_in_order(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    link = FakeLink()
    store = DescriptorStore(link)
    nursery.start_soon(store.run, never)
    link.room = 1
    assert all(store.keep(name, 0) for name in "abc")
    store.drop("b")
    store.tell("READY=1")
    assert len(link.sent) == 1
    await trio.sleep(60)
    assert [line.split("\n")[-1] for line in link.sent] == ["FDNAME=a [1]", "FDNAME=c [1]", "FDNAME=b", "READY=1"]
    nursery.cancel_scope.cancel()


async def test_a_new_keeper_is_told_everything(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    link = FakeLink()
    store = DescriptorStore(link, Inheritance({"journal": 0}))
    nursery.start_soon(store.run, never)
    store.keep("fuse", 0)
    store.mounted("/mnt/a b", 77)
    store.ready(30)
    store.drop("journal")
    link.sent.clear()
    await link.says.aclose()
    await trio.sleep(1)
    settings = f"PINFS_MOUNT=77:{b'/mnt/a b'.hex()}\nWATCHDOG_USEC=30000000\nREADY=1"
    assert link.sent == [settings, "FDSTORE=1\nFDPOLL=0\nFDNAME=fuse [1]"]
    assert not store.lost_because
    await link.says.aclose()
    await trio.sleep(1)
    assert str(store.lost_because) == "no keeper can be started"
    assert not store.keep("n1", 0)
    assert "the mount will not outlive this daemon: no keeper can be started" in caplog.text
    nursery.cancel_scope.cancel()


async def test_messages_to_a_dead_keeper_wait_for_the_next(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    link = FakeLink()
    store = DescriptorStore(link)
    nursery.start_soon(store.run, never)
    link.error = StoreLostError("gone")
    assert store.keep("n1", 0)
    store.tell("WATCHDOG=1")
    link.error = None
    await link.says.aclose()
    await trio.sleep(1)
    assert link.sent == ["FDSTORE=1\nFDPOLL=0\nFDNAME=n1 [1]"]
    nursery.cancel_scope.cancel()


async def test_leaving_when_the_next_daemon_is_ready(nursery: trio.Nursery) -> None:
    link, left = FakeLink(), trio.Event()

    async def leave() -> None:
        left.set()

    store = DescriptorStore(link)
    store.words = ("mount", "/s")
    nursery.start_soon(store.run, leave)
    store.ask_to_hand_over(["/new/pinfs"])
    argv = b"/new/pinfs\0mount\0/s".hex()
    assert link.sent == [f"PINFS_ARGV={argv}", "PINFS_HANDOVER=1"]
    await link.says.send({"REFUSED": "no such program"})
    await trio.testing.wait_all_tasks_blocked()
    assert store.status()["upgrade_refused"] == "no such program"
    assert not left.is_set()
    store.ask_to_hand_over()
    assert store.status()["upgrade_refused"] is None
    await link.says.send({"LEAVE": "1"})
    await left.wait()
    nursery.cancel_scope.cancel()


def test_the_end() -> None:
    link = FakeLink()
    store = DescriptorStore(link)
    store.keep("a", 0)
    link.sent.clear()
    store.ended()
    assert link.sent == ["PINFS_ENDED=1", "FDSTOREREMOVE=1\nFDNAME=a"]
    link.error = StoreLostError("gone")
    store.ended()


def test_a_descriptor_that_was_closed_too_early_is_told(caplog: pytest.LogCaptureFixture) -> None:
    link = FakeLink()
    store = DescriptorStore(link)
    link.error = OSError(errno.EBADF, "bad")
    store.keep("n1", 99)
    assert "n1 was closed before it was dropped" in caplog.text
    assert store.status()["descriptors"] == 0


# With a keeper


@contextmanager
def keeper(tmp_path: Path) -> Iterator[KeeperLink]:
    """A keeper whose daemon is this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = replace(KEPT, log=str(tmp_path / "log"))
    pidfd = os.pidfd_open(os.getpid())
    with theirs:
        command = kept.command(theirs.fileno(), pidfd, os.getpid())
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(), pidfd))
    os.close(pidfd)
    link = KeeperLink(ours, kept)
    try:
        yield link
    finally:
        process.kill()
        process.wait()
        if link.pid not in (None, process.pid):
            os.kill(link.pid, signal.SIGKILL)  # a later one, which is no child of this process
        link.close()


def held(pid: int | None, path: Path) -> int:
    """How often a process has a file open."""
    return [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()].count(str(path))


async def test_a_keeper_that_is_killed_is_replaced_and_has_everything(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.touch()
    with keeper(tmp_path) as link, path.open() as file, trio.fail_after(30):
        store = DescriptorStore(link)
        nursery.start_soon(store.run, never)
        for number in range(700):  # more than the socket takes at once
            assert store.keep(f"n{number}", file.fileno())
        store.drop("n0")
        assert await store.barrier()
        first = link.pid
        assert first
        assert held(first, path) == 699
        os.kill(first, signal.SIGKILL)
        while link.pid in (None, first):
            await trio.sleep(0.01)
        assert await store.barrier()
        assert held(link.pid, path) == 699
        assert "the keeper has ended: another one is started" in caplog.text
        nursery.cancel_scope.cancel()


async def test_a_keeper_that_cannot_be_started(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "PROGRAM", tmp_path / "nowhere.py")
    with keeper(tmp_path) as link, trio.fail_after(30):
        store = DescriptorStore(link)
        nursery.start_soon(store.run, never)
        while not store.lost_because:
            await trio.sleep(0.01)
        assert not store.keep("n1", 0)
        store.tell("WATCHDOG=1")
        assert not await store.barrier()
        nursery.cancel_scope.cancel()
    assert "the mount will not outlive this daemon: no keeper can be started" in caplog.text


def test_a_daemon_gets_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(theirs, [b"KEEPER=7\nFDSTORE=10"], [])
        socket.send_fds(theirs, [b"TAKE=1\nFDNAMES=a:b\nLEFT=1"], [0, 1])
        socket.send_fds(theirs, [b"TAKE=1\nFDNAMES=c\nLEFT=0\nDIED_NS=5000000000\nWHY=was killed\nREFUSED="], [2])
        store = wait_for_turn(environ := {"PINFS_KEEPER": str(ours.detach()), "HOME": "/"}, KEPT)
        assert theirs.recv(100) == b"SPARE=1"
        assert theirs.recv(1000).startswith(b"PINFS_ARGV=")
    assert environ == {"HOME": "/"}
    inherited = store.inherited()
    assert sorted(inherited) == ["a", "b", "c"]
    assert not any(map(os.get_inheritable, inherited.values()))
    assert (store.predecessor.why, store.predecessor.died_at_s) == ("was killed", 5.0)
    for fd in inherited.values():
        os.close(fd)
    store.ended()


def test_a_spare_without_a_keeper_ends() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with pytest.raises(SystemExit):
        wait_for_turn({"PINFS_KEEPER": str(ours.detach())}, KEPT)


# With a service manager

Environ = dict[str, str]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        yield listening


async def test_the_store_of_a_service_manager(manager: socket.socket, nursery: trio.Nursery) -> None:
    store = manager_store({"NOTIFY_SOCKET": manager.getsockname(), "FDSTORE": "100"})
    assert store is not None
    left = trio.Event()

    async def leave() -> None:
        left.set()

    nursery.start_soon(store.run, leave)
    store.mounted("/mnt", 7)
    store.ready(30)
    assert store.keep("fuse", 0)
    data, fds, _, _ = socket.recv_fds(manager, 1000, 10)
    assert (data, len(fds)) == (b"FDSTORE=1\nFDPOLL=0\nFDNAME=fuse", 1)
    os.close(fds[0])
    store.drop("fuse")
    assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=fuse"
    assert not store.is_own
    store.ask_to_hand_over(["/ignored"])
    await left.wait()
    nursery.cancel_scope.cancel()


async def test_a_barrier_with_a_service_manager(manager: socket.socket, nursery: trio.Nursery) -> None:
    store = DescriptorStore(ManagerLink(manager.getsockname(), 10))

    def answer() -> None:
        data, fds, _, _ = socket.recv_fds(manager, 1000, 10)
        assert data == b"BARRIER=1"
        os.close(fds[0])

    nursery.start_soon(trio.to_thread.run_sync, answer)
    assert await store.barrier()


@pytest.mark.parametrize(
    "environ",
    [{}, {"FDSTORE": "100"}, {"NOTIFY_SOCKET": "/run/notify"}, {"NOTIFY_SOCKET": "/run/notify", "FDSTORE": "0"},
     {"NOTIFY_SOCKET": "vsock:1", "FDSTORE": "100"}, {"NOTIFY_SOCKET": "/run/notify", "FDSTORE": "x"}],
)  # fmt: skip
def test_no_store(environ: Environ) -> None:
    assert manager_store(environ) is None


def test_what_a_service_manager_passes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child, because the numbers begin with 3."""
    program = (
        "import os; from pinfs.serve.kept import manager_store\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'NOTIFY_SOCKET': '/x', 'FDSTORE': '5'}\n"
        "store = manager_store(os.environ)\n"
        "print(store.inherited(), [os.get_inheritable(fd) for fd in (3, 4)], [n for n in os.environ if 'LISTEN' in n])"
    )
    script = f'exec {sys.executable} -c "$1" 3</dev/null 4</dev/null'
    environ = {**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "fuse:journal"}
    out = subprocess.run(["sh", "-c", script, "sh", program], env=environ, capture_output=True, text=True, check=True)
    assert out.stdout == "{'fuse': 3, 'journal': 4} [False, False] []\n"
