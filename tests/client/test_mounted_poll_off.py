"""The client on a mount that does not answer poll(2): what it can do elsewhere it can do here, and it does not spin.

The tests of `test_mounted_client` once more, on mounts with `-o poll=off`, and what is different there.
"""

import errno
import os
import select
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from client import test_mounted_client
from client.test_mounted_client import *  # noqa: F403
from client.test_mounted_client import LIMIT_S, Callback
from conftest import NewMount
from mounted.test_bridge_passthrough import requests
from support.actor import Actor, eventually
from support.mounts import Mount

import pinfs
from pinfs.client import handlepin, ioctl

SHARED_MOUNT_OPTIONS = ("poll=off",)
_no_channel_stays_open = test_mounted_client._no_channel_stays_open


@pytest.fixture
def new_mount(new_mount: NewMount) -> NewMount:
    def new(*options: str, **more: Any) -> Mount:
        return new_mount("poll=off", *options, **more)

    return new


def test_a_waiting_channel_costs_nothing(file: Path, shared_mount: Mount) -> None:
    with pinfs.EventChannel(file) as channel:
        threading.Timer(0.5, channel.wake).start()
        asked, spent = requests(shared_mount), time.process_time()
        assert channel.read() == []
        assert time.process_time() - spent < 0.1
        assert requests(shared_mount) - asked < 20


def test_a_channel_that_only_speaks_needs_no_thread(file: Path) -> None:
    with pinfs.EventChannel(file) as channel:
        with pytest.raises(FileNotFoundError):
            channel.release(99999)
        assert not any(thread.name == "pinfs-relay" for thread in threading.enumerate())


def test_a_closed_channel_lets_go_of_the_mount(mount: Mount) -> None:
    channel = pinfs.EventChannel(mount.path)
    assert channel.read(0) == []
    channel.close()
    eventually(lambda: not any(thread.name == "pinfs-relay" for thread in threading.enumerate()), LIMIT_S)
    mount.stop("umount")


@pytest.mark.parametrize("owner", ["process"])
def test_without_the_bridge_as_well(new_mount: NewMount, callback: Callback, owner) -> None:
    mount = new_mount("bridge=off")
    file = mount.path / "file"
    file.write_bytes(bytes(8192))
    callback.go_on.set()
    with pinfs.pin(file, mode="lease", on_break=callback, owner=owner):
        mount.actor()(os.truncate, str(file), 100)
    assert [event.event for event in callback.events] == ["break"]


def test_what_is_lost(file: Path, breaker: Actor, shared_mount: Mount) -> None:
    """Everything is always ready, and POLLPRI tells of nothing."""
    assert shared_mount.status()["poll"] is False
    events = os.open(shared_mount.path / ".pinfs" / "events", os.O_RDONLY | os.O_NONBLOCK)
    with file.open("r+b") as opened, pinfs.pin(opened, mode="lease", owner="handle", signal="none") as pin:
        cut = breaker.start(os.truncate, str(file), 0)
        eventually(lambda: pin.state() == "breaking")
        poll = select.poll()
        for fd in (events, opened.fileno()):
            poll.register(fd, select.POLLIN | select.POLLPRI)
        assert poll.poll(0) == [(events, select.POLLIN), (opened.fileno(), select.POLLIN)]
    cut.result()
    os.close(events)


def test_a_process_that_the_daemon_does_not_see_is_called(
    file: Path, breaker: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another pid namespace it has no channel, and looks at its pin. Once a break, also where the callback fails and
    the break goes on."""
    called: list[pinfs.Event] = []
    looks: list[bool] = []
    is_breaking = handlepin.HandlePin._is_breaking

    def no_channel(fd: int, pin_id: object) -> None:
        raise PermissionError

    def look(pin: handlepin.HandlePin) -> bool:
        looks.append(is_breaking(pin))
        return looks[-1]

    def fail(event: pinfs.Event) -> None:
        called.append(event)
        raise ValueError

    def unseen(fd: int, request: ioctl.PinRequest) -> int:
        if request.flags & ioctl.EVENTFD:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return register(fd, request)

    register = ioctl.pin
    monkeypatch.setattr(ioctl, "pin", unseen)
    monkeypatch.setattr(handlepin, "ChannelListener", no_channel)
    monkeypatch.setattr(handlepin, "LOOK_S", 0.05)
    monkeypatch.setattr(handlepin.HandlePin, "_is_breaking", look)
    with pinfs.pin(file, mode="lease", owner="handle", on_break=fail) as pin:
        cut = breaker.start(os.truncate, str(file), 0)
        eventually(lambda: looks.count(True) == 5)
        assert [(event.event, event.pin) for event in called] == [("break", pin.id)]
        assert not cut.done()
    cut.result()
