"""The trio form, with a socket pair for the channel and a pin that is none."""

import json
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from pinfs.client.channel import EventChannel
from pinfs.client.model import Event, PinInfo
from pinfs.client.pin import Pin
from pinfs.client.trio import AsyncPin
from pinfs.client.xattrs import RequestedPin


class FakePin(Pin):
    def __init__(self) -> None:
        super().__init__("fake", RequestedPin(0, 10, "lease"))
        self.id = 7
        self.told = "held"

    def info(self) -> PinInfo:
        return PinInfo(self.id, 0, 10, "lease", self.told)  # type: ignore[arg-type]

    def _replace(self, requested: RequestedPin) -> None: ...

    def _release(self) -> None: ...

    def extend(self, seconds: float) -> None: ...


class Fake:
    def __init__(self) -> None:
        self.socket, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.setblocking(False)
        self.plain = FakePin()
        self.pin = AsyncPin(self.plain, EventChannel.over(client.detach()))

    def send(self, event: str, pin: int = 7) -> None:
        self.socket.send(json.dumps({"v": 1, "seq": 1, "event": event, "pin": pin}).encode() + b"\n")


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.pin.close()
    fake.socket.close()


async def test_breaks_of_this_pin_only(fake) -> None:
    fake.send("break", pin=8)
    fake.send("break")
    async for event in fake.pin.breaks():
        assert event.pin == 7
        await fake.pin.release()
    assert not fake.pin.active


async def test_breaks_end_with_the_pin(fake) -> None:
    fake.send("released", pin=8)
    fake.send("revoked")
    assert [event async for event in fake.pin.breaks()] == []


async def test_waits_without_blocking(fake) -> None:
    async def later() -> None:
        await trio.testing.wait_all_tasks_blocked()
        fake.send("break")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        assert (await fake.pin.next_break()).event == "break"


async def test_lost_events_are_looked_for(fake) -> None:
    fake.plain.told = "breaking"
    fake.send("overflow")
    assert (await fake.pin.next_break()).pin == 7


async def test_serve_releases_after_the_callback(fake) -> None:
    seen: list[bool] = []

    async def let_go(event: Event) -> None:
        seen.append(fake.pin.active)

    fake.send("break")
    await fake.pin.serve(let_go)
    assert seen == [True]
    assert not fake.pin.active


async def test_serve_ends_when_nobody_listens_any_more(fake) -> None:
    async def never(event: Event) -> None:
        raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fake.pin.serve, never)
        await trio.testing.wait_all_tasks_blocked()
        fake.pin.listening.cancel()
    assert fake.pin.active


async def test_a_callback_is_waited_for_as_long_as_its_break_lasts(fake) -> None:
    fake.plain.told = "breaking"
    waited = False

    async def leave() -> None:
        nonlocal waited
        await trio.testing.wait_all_tasks_blocked()
        await fake.pin.answered()
        waited = True
        nursery.cancel_scope.cancel()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            fake.send("break")
            nursery.start_soon(fake.pin.serve, lambda event: trio.sleep_forever())
            nursery.start_soon(leave)
            for told in ("breaking", "held"):
                await trio.testing.wait_all_tasks_blocked(0.05)  # state() is asked in a thread
                assert not waited
                fake.plain.told = told
                fake.send("withdrawn")


async def test_nothing_is_waited_for_where_no_callback_has_begun(fake) -> None:
    fake.plain.told = "breaking"
    await fake.pin.answered()


async def test_a_callback_that_fails_releases_nothing_by_itself(fake) -> None:
    async def fail(event: Event) -> None:
        raise RuntimeError("cannot let go")

    fake.send("break")
    with pytest.raises(RuntimeError):
        await fake.pin.serve(fail)
    assert fake.pin.active


async def test_release_is_not_cancelled_half_way(fake) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await fake.pin.release()
    assert not fake.pin.active
