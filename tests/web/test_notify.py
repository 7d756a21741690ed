"""Messages to a service manager: a fake one in time that jumps, and one of a daemon."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from conftest import NewMount
from trio.testing import MockClock

from pinfs.serve.notify import STATUS_S, Notifier


class Manager:
    """The end of NOTIFY_SOCKET at which systemd sits."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(name.replace("@", "\0", 1))
        self._socket.settimeout(20)

    def receive(self) -> dict[str, str]:
        """One datagram."""
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def received(self) -> list[dict[str, str]]:
        """All that have come so far."""
        self._socket.setblocking(False)
        messages = []
        try:
            while True:
                messages.append(self.receive())
        except BlockingIOError:
            return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, base: Path) -> Iterator[Manager]:
    manager = Manager(str(base / "notify") if request.param == "file" else f"@pinfs-test-{base.name}")
    yield manager
    manager.close()


def test_a_message(manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.name, "HOME": "/"}
    Notifier(environ).tell("READY=1", "STATUS=a b=c")
    assert manager.received() == [{"READY": "1", "STATUS": "a b=c"}]
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize("name", ["", "vsock:2:9999", "relative", "/nowhere/at/all"])
def test_without_a_listener(name: str) -> None:
    Notifier({"NOTIFY_SOCKET": name}).tell("READY=1")


def test_a_manager_that_does_not_listen_does_not_stop_the_daemon(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    for _ in range(5000):  # more than any queue holds
        notifier.tell("STATUS=")
    assert 0 < len(manager.received()) < 5000


def test_no_descriptor_for_a_message_is_no_error(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})

    def no_descriptor(*args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", no_descriptor)
        notifier.tell("STATUS=lost")
    notifier.tell("STATUS=heard")
    assert manager.received() == [{"STATUS": "heard"}]


async def test_a_status_that_fails_does_not_stop_the_beat(
    manager: Manager, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "3000000"})

    def fails() -> str:
        raise ZeroDivisionError

    with trio.move_on_after(2):
        await notifier.keep_telling(fails)
    assert manager.received() == [{"WATCHDOG": "1", "STATUS": ""}] * 2
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("30000000", "", 30.0), ("500000", str(os.getpid()), 0.5), ("30000000", "1", 0.0), ("", "", 0.0), ("x", "", 0.0)],
)
def test_the_process_that_the_watchdog_watches(usec: str, pid: str, seconds: float) -> None:
    assert Notifier({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).watchdog_s == seconds


async def test_a_beat_at_half_of_the_watchdogs_time(manager: Manager, autojump_clock: MockClock) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "3000000"})
    began = trio.current_time()
    with trio.move_on_after(4):
        await notifier.keep_telling(lambda: f"{trio.current_time() - began:g} s")
    assert manager.received() == [{"WATCHDOG": "1", "STATUS": f"{at} s"} for at in ("0", "1.5", "3")]


async def test_a_patient_watchdog_does_not_make_the_status_old(manager: Manager, autojump_clock: MockClock) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "30000000"})
    with trio.move_on_after(STATUS_S * 1.5):
        await notifier.keep_telling(lambda: "well")
    assert len(manager.received()) == 2


async def test_the_status_alone_without_a_watchdog(manager: Manager, autojump_clock: MockClock) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    with trio.move_on_after(STATUS_S * 1.5):
        await notifier.keep_telling(lambda: "well")
    assert manager.received() == [{"STATUS": "well"}] * 2


async def test_no_task_without_a_listener(autojump_clock: MockClock) -> None:
    with trio.fail_after(1):
        await Notifier({}).keep_telling(lambda: "")


def test_a_daemon_under_a_manager(manager: Manager, new_mount: NewMount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.name)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    mount = new_mount()
    first = manager.receive()
    assert first["READY"] == "1"
    assert first["STATUS"].startswith(f"{mount.source} on {mount.path}")
    assert manager.receive()["WATCHDOG"] == "1"
    holder = mount.actor()
    holder(Path.write_bytes, mount.path / "f", b"x")
    holder.pin(mount.path / "f", "p", "0:1")
    while not (beat := manager.receive())["STATUS"].endswith(": pins 1, waiting 0"):
        assert beat["WATCHDOG"] == "1"
    mount.stop()
    assert any(message.get("STOPPING") == "1" for message in manager.received())
