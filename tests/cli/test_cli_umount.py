"""umount: what is in the way, waiting, force. With a real mount: test_mounted_cli."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.fakemount import FakeMount

from pinfs.cli import umount as verb
from pinfs.observe import asking, daemons
from pinfs.observe.daemons import connection_of
from pinfs.observe.mounts import Mount, mounts


class Kernel:
    """Unmounts, or answers EBUSY as many times as it is told to."""

    def __init__(self, fake: FakeMount, table, monkeypatch: pytest.MonkeyPatch) -> None:
        self.busy = 0
        self.calls: list[bool] = []
        self._row, self._table = fake.row(), table
        monkeypatch.setattr(verb, "unmount", self.unmount)
        monkeypatch.setattr(verb, "users", lambda _point: ["4711 (bash)"])
        monkeypatch.setattr(verb, "daemon_of", lambda _status: None)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def unmount(self, point: str, *, lazy: bool = False) -> None:
        self.calls.append(lazy)
        if self.busy and not lazy:
            self.busy -= 1
            raise OSError(errno.EBUSY, "busy", point)
        self._table.write_text(self._table.read_text().replace(self._row, ""))


@pytest.fixture
def kernel(fake: FakeMount, table, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(fake, table, monkeypatch)


def test_nothing_in_the_way(run, fake: FakeMount, kernel: Kernel) -> None:
    assert run("umount", fake.point).exit_code == 0
    assert kernel.calls == [False]
    assert run("umount", fake.point).exit_code == 3


def test_holders_are_listed(run, fake: FakeMount, kernel: Kernel) -> None:
    fake.pins({})
    result = run("umount", fake.point)
    assert (result.exit_code, kernel.calls) == (4, [])
    assert "4711" in result.stdout
    assert "pins held: 1" in result.stderr


def test_users_of_files_are_named(run, fake: FakeMount, kernel: Kernel) -> None:
    kernel.busy = 1
    result = run("umount", fake.point)
    assert (result.exit_code, kernel.calls) == (4, [False])
    assert "in use by 4711 (bash)" in result.stderr


def test_wait_for_pins_and_for_files(run, fake: FakeMount, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.pins({})
    kernel.busy = 2
    monkeypatch.setattr(time, "sleep", lambda _s: fake.pins())  # the holder lets go while we wait
    assert run("umount", "--wait", "60", fake.point).exit_code == 0
    assert kernel.calls == [False, False, False]


def test_force_does_not_ask_the_holders(run, fake: FakeMount, kernel: Kernel) -> None:
    fake.pins({})
    assert run("umount", "--force", fake.point).exit_code == 0
    assert kernel.calls == [True]


def test_force_aborts_the_connection(
    run, fake: FakeMount, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the user who mounted, who may not use MNT_FORCE."""
    (mount,) = mounts()
    abort = tmp_path / str(connection_of(mount)) / "abort"
    abort.parent.mkdir()
    monkeypatch.setattr(verb, "_CONNECTIONS", tmp_path)
    assert run("umount", "--force", fake.point).exit_code == 0
    assert (abort.read_text(), kernel.calls) == ("1", [True])


def test_stale_mounts_are_taken_away(run, fake: FakeMount, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_self: object) -> list[object]:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(Mount, "pins", gone)
    assert run("umount", fake.point).exit_code == 0
    assert kernel.calls == [False]


def test_other_errors_are_told(run, fake: FakeMount, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(point: str, *, lazy: bool = False) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), point)

    monkeypatch.setattr(verb, "unmount", refuse)
    result = run("umount", fake.point)
    assert (result.exit_code, result.stderr) == (5, f"pinfs: {fake.point}: Operation not permitted\n")


def test_a_daemon_that_does_not_answer_is_not_waited_for(fake: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    (mount,) = mounts()
    assert asking.ask(mount, lambda: 5) == 5
    monkeypatch.setattr(asking, "LOOK_S", 0.01)
    monkeypatch.setattr(asking, "ANSWER_S", 0.01)
    with pytest.raises(asking.NoAnswerError, match="not visible here"):
        asking.ask(mount, signal.pause)


def test_a_number_that_means_another_process_is_not_the_daemon() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert verb.daemon_of({"pid": process.pid}) is None
        process.send_signal(signal.SIGKILL)
    assert verb.daemon_of({}) is None


def test_the_end_of_the_daemon_is_waited_for() -> None:
    program = "import os, sys; fuse = os.open('/dev/fuse', os.O_RDWR); print('up', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"up\n"
        pidfd = verb.daemon_of({"pid": process.pid})
        assert pidfd is not None
        process.kill()
        verb._ended(pidfd)
        assert os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None
        os.close(pidfd)


def test_the_daemon_is_the_one_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not another one that hangs, whose connection had the same number before."""
    links = {7: {"3": "/other", "4": "/dev/fuse"}, 8: {"3": "/src", "4": "/dev/fuse"}, 9: {"3": "/src"}}
    monkeypatch.setattr(daemons, "processes", lambda: iter(links))
    monkeypatch.setattr(daemons, "_descriptors", lambda pid: links[pid].items())
    monkeypatch.setattr(daemons, "_connections", lambda pid, name: [40])
    monkeypatch.setattr(daemons, "connection_of", lambda mount: 40)
    assert daemons.daemon_pid(Mount("/mnt", "/src")) == 8
    assert daemons.daemon_pid(Mount("/mnt", "a name")) == 7
