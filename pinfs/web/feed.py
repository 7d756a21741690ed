"""Distributes pictures of a mount to the clients of the page; reads the mount only while there are clients."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from pinfs.web.look import AGE_S, AskedLook, Look

T = TypeVar("T")

MAX_CLIENTS: Final = 16
PAUSE_S: Final = 0.5  # between two readings at least: a poll of the trace would make io_uring slow on that mount
SHARE: Final = 9.0  # and this many times the duration of the last one, so that a big mount is read less often


class Feed:
    """Reads the mount while there are clients, and sends each client the latest picture as soon as it can take one.

    A picture contains all that the page shows, so a slow client may skip pictures without losing anything.
    """

    def __init__(self, make_look: Callable[[], Look | AskedLook]) -> None:
        self._make_look = make_look
        self._clients = 0
        self._closed = False
        self._latest = b""
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return self._clients >= MAX_CLIENTS

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._news.set()

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events (html.spec.whatwg.org), each a picture."""
        self._clients += 1
        try:
            if self._looking is None:
                self._latest = b""
                self._looking = asyncio.create_task(self._look_on())
            seen = b""
            while not self._closed:
                if self._latest is seen:
                    await self._news.wait()
                else:
                    seen = self._latest
                    yield seen
        finally:
            self._clients -= 1

    async def _look_on(self) -> None:
        look = self._make_look()
        try:
            while self._clients and not self._closed:
                began = time.monotonic()
                picture = await _in_thread(look.take)
                self._publish(json.dumps(picture))
                pause_s = AGE_S if "error" in picture else max(PAUSE_S, SHARE * (time.monotonic() - began))
                await asyncio.sleep(pause_s)
            self._looking = None
        finally:
            look.close()

    def _publish(self, picture: str) -> None:
        self._latest = b"data: %b\n\n" % picture.encode()
        news, self._news = self._news, asyncio.Event()
        news.set()


async def _in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a daemon thread: asyncio waits for its own threads at the end, and a mount may never answer."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            answer = partial(_unless_done, future, future.set_result, call())
        except BaseException as error:
            answer = partial(_unless_done, future, future.set_exception, error)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(answer)

    threading.Thread(target=run, daemon=True).start()
    return await future


def _unless_done(future: asyncio.Future[T], answer: Callable[[Any], None], what: object) -> None:
    if not future.done():  # cancelled
        answer(what)
