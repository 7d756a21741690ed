"""The event channel over a socket pair that plays the mount."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from pinfs.client.channel import EventChannel


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, EventChannel]]:
    mount, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.setblocking(False)
    with mount, EventChannel.over(client.detach()) as channel:
        yield mount, channel


def line(seq: int) -> bytes:
    return json.dumps({"v": 1, "seq": seq, "event": "break", "pin": 7}).encode() + b"\n"


def test_nothing_there(pair) -> None:
    _, channel = pair
    assert channel.take() == []
    assert channel.read(0) == []


def test_several_lines_in_one_read(pair) -> None:
    mount, channel = pair
    mount.send(line(1) + line(2))
    assert [event.seq for event in channel.read()] == [1, 2]


def test_iteration_goes_across_reads(pair) -> None:
    mount, channel = pair
    mount.send(line(1) + line(2))
    mount.send(line(3))
    events = iter(channel)
    assert [next(events).seq for _ in range(3)] == [1, 2, 3]


def test_commands(pair) -> None:
    mount, channel = pair
    channel.release(7)
    channel.resize(7, 0, 4096)
    channel.extend(7, 2.5)
    assert mount.recv(100) == b"release 7\n"
    assert mount.recv(100) == b"resize 7 0 4096\n"
    assert mount.recv(100) == b"extend 7 2.500\n"


def test_wake_ends_a_wait_without_events(pair) -> None:
    _, channel = pair
    answers: list[object] = []
    reader = threading.Thread(target=lambda: answers.append(channel.read()))
    reader.start()
    channel.wake()
    reader.join()
    assert answers == [[]]


def test_a_wake_is_not_lost_and_not_kept(pair) -> None:
    mount, channel = pair
    channel.wake()
    assert channel.read() == []
    mount.send(line(1))
    assert [event.seq for event in channel.read()] == [1]


def test_events_come_with_a_wake(pair) -> None:
    mount, channel = pair
    mount.send(line(1))
    channel.wake()
    assert [event.seq for event in channel.read()] == [1]


def test_a_mount_that_goes_is_an_error(pair) -> None:
    mount, channel = pair
    mount.close()
    with pytest.raises(OSError, match="closed"):
        channel.read()


def test_close_twice(pair) -> None:
    _, channel = pair
    channel.close()
    channel.close()
    assert channel.fileno() == -1
    assert list(channel) == []
