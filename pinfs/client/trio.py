"""Pins for trio programs. The channel is read in the program's own loop: no threads wait for breaks.

async with pinfs.client.trio.pin(file, mode="lease", on_break=let_go) as pin:
    ...

async with pinfs.client.trio.pin(file, mode="lease") as pin:
    async for event in pin.breaks():
        ...
        await pin.release()
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Unpack

import trio

from pinfs.client import pin as plain
from pinfs.client.channel import LOOK_S, EventChannel
from pinfs.client.inode import File, inode_of
from pinfs.client.model import Event, Mode, PinInfo, State, break_of
from pinfs.client.mounts import is_pinfs
from pinfs.client.options import PinOptions


class AsyncPin:
    """A pin of this process, held by a trio program. See `pinfs.Pin`."""

    def __init__(self, held: plain.Pin, channel: EventChannel | None) -> None:
        self._held = held
        self._channel = channel
        self._breaks: deque[Event] = deque()
        self._gone = False
        self._answering = False
        self.listening = trio.CancelScope()

    @property
    def id(self) -> int:
        return self._held.id

    @property
    def start(self) -> int:
        return self._held.start

    @property
    def length(self) -> int:
        return self._held.length

    @property
    def mode(self) -> Mode:
        return self._held.mode

    @property
    def name(self) -> str:
        return self._held.name

    @property
    def active(self) -> bool:
        return self._held.active

    async def info(self) -> PinInfo:
        """See `pinfs.Pin.info`."""
        return await trio.to_thread.run_sync(self._held.info)

    async def state(self) -> State:
        """See `pinfs.Pin.state`."""
        return await trio.to_thread.run_sync(self._held.state)

    async def resize(self, start: int, length: int) -> None:
        """See `pinfs.Pin.resize`: it also answers a break."""
        await trio.to_thread.run_sync(self._held.resize, start, length)

    async def change(self, *, mode: Mode) -> None:
        """See `pinfs.Pin.change`."""
        await trio.to_thread.run_sync(partial(self._held.change, mode=mode))

    async def extend(self, seconds: float) -> None:
        """See `pinfs.Pin.extend`."""
        await trio.to_thread.run_sync(self._held.extend, seconds)

    async def release(self) -> None:
        """Release the pin. A release that has begun ends, cancelled or not."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._held.release)

    def close(self) -> None:
        """Close the event channel; the pin stays as it is."""
        if self._channel is not None:
            self._channel.close()

    async def breaks(self) -> AsyncIterator[Event]:
        """The breaks of this pin as they start, until it is gone. For one reader, which also releases it."""
        while event := await self.next_break():
            yield event

    async def next_break(self) -> Event | None:
        """The next break of this pin; None when it is gone."""
        while self._channel is not None and self.active and not self._gone:
            if self._breaks:
                return self._breaks.popleft()
            for event in await _news(self._channel):
                await self._note(event)
        return None

    async def _note(self, event: Event) -> None:
        if event.event == "overflow":
            await self._query()
        elif event.pin == self.id and event.event == "break":
            self._breaks.append(event)
        elif event.pin == self.id and event.event in ("released", "revoked"):
            self._gone = True

    async def _query(self) -> None:
        """Events were lost, the break may be among them: ask the mount about the pin."""
        if await self.state() == "breaking":
            self._breaks.append(break_of(await self.info()))

    async def serve(self, on_break: Callable[[Event], Awaitable[object]]) -> None:
        """Wait for a break, until `listening` is cancelled, and answer it."""
        event = None
        with self.listening:
            event = await self.next_break()
        if event and not self.listening.cancel_called:
            self._answering = True
            await on_break(event)
            await self.release()
            self._answering = False

    async def answered(self) -> None:
        """Wait for a callback that has begun, but no longer than its break lasts: the deadline decides."""
        while self._channel is not None and self._answering and await self.state() == "breaking":
            await _news(self._channel)


async def _news(channel: EventChannel) -> list[Event]:
    with trio.move_on_after(LOOK_S):
        await trio.lowlevel.wait_readable(channel)
    return channel.take()


def _open(file: File, listen: bool, register: Callable[[], plain.Pin]) -> AsyncPin:
    """The channel comes first, so that no event of the pin is missed."""
    channel = EventChannel(file) if listen and is_pinfs(inode_of(file)) else None
    try:
        return AsyncPin(register(), channel)
    except BaseException:
        if channel is not None:
            channel.close()
        raise


@asynccontextmanager
async def pin(
    file: File,
    start: int = 0,
    length: int = 0,
    *,
    mode: Mode = "deny",
    on_break: Callable[[Event], Awaitable[object]] | None = None,
    **options: Unpack[PinOptions],
) -> AsyncIterator[AsyncPin]:
    """Pin a byte range for the length of the block; arguments and errors as of `pinfs.pin`, but no signal by default.

    `on_break(event)` is awaited in a task of the block's own nursery; when it returns, the pin is released. What it
    raises cancels the block, and comes out of it in a group, as from any nursery. Without a callback, `breaks()` tells
    of the breaks of a lease.

    Leaving the block waits for a callback that has begun, but not beyond the end of the break (released, withdrawn,
    revoked): then the callback is cancelled.
    """
    options.setdefault("signal", "none")
    register = partial(plain.pin, file, start, length, mode=mode, **options)
    listens = mode == "lease" or on_break is not None
    held = await trio.to_thread.run_sync(_open, file, listens, register)
    try:
        if on_break is None:
            yield held
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(held.serve, on_break)
                yield held
                held.listening.cancel()
                await held.answered()
                nursery.cancel_scope.cancel()
    finally:
        try:
            await held.release()
        finally:
            held.close()
