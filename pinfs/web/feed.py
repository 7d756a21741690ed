"""Distributes pictures of a mount to the clients of the page; reads the mount only while there are clients."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from pinfs.web.look import AGE_S, AskedLook, Look
from pinfs.web.picture import Query

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
        self._clients: Counter[Query] = Counter()
        self._closed = False
        self._latest: dict[Query, bytes] = {}
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        return self._clients.total() >= MAX_CLIENTS

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._news.set()

    async def stream(self, query: Query) -> AsyncIterator[bytes]:
        """Server-sent events (html.spec.whatwg.org), each a picture of what `query` selects."""
        self._clients[query] += 1
        try:
            if self._looking is None:
                self._latest.clear()
                self._looking = asyncio.create_task(self._look_on())
            seen: bytes | None = None
            while not self._closed:
                latest = self._latest.get(query)
                if latest is None or latest is seen:
                    await self._news.wait()
                else:
                    seen = latest
                    yield latest
        finally:
            self._clients[query] -= 1
            if not self._clients[query]:
                del self._clients[query]
                self._latest.pop(query, None)

    async def _look_on(self) -> None:
        look = self._make_look()
        try:
            while self._clients and not self._closed:
                began = time.monotonic()
                pictures = await _in_thread(partial(look.take, list(self._clients)))
                for query, picture in pictures.items():
                    if query in self._clients:
                        self._latest[query] = b"data: %b\n\n" % json.dumps(picture).encode()
                news, self._news = self._news, asyncio.Event()
                news.set()
                failed = any("error" in picture for picture in pictures.values())
                await asyncio.sleep(AGE_S if failed else max(PAUSE_S, SHARE * (time.monotonic() - began)))
            self._looking = None
        finally:
            look.close()


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
