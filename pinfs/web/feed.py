"""From the one who looks to all who watch: a picture at a time, and only while somebody watches."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Final, TypeVar

from pinfs.web.look import Look

T = TypeVar("T")

MAX_CLIENTS: Final = 16
PAUSE_S: Final = 0.2  # between two looks at least
SHARE: Final = 9.0  # and this many times what the last one took, so that a big mount is looked at less often
AGE_S: Final = 1.0  # without news, the next look comes after this


class Feed:
    """Looks at the mount while there are clients, and gives each of them the latest picture as soon as it can take it.

    A picture holds all that the page shows, so a slow client misses none by missing some.
    """

    def __init__(self, make_look: Callable[[], Look]) -> None:
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
        """No more pictures: all streams end."""
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
        with closing(self._make_look()) as look:
            while self._clients and not self._closed:
                began = time.monotonic()
                self._publish(await _in_thread(lambda: json.dumps(look.take())))
                await asyncio.sleep(max(PAUSE_S, SHARE * (time.monotonic() - began)))
                await _in_thread(lambda: look.wait_for_news(AGE_S))
            self._looking = None

    def _publish(self, picture: str) -> None:
        self._latest = b"data: %b\n\n" % picture.encode()
        news, self._news = self._news, asyncio.Event()
        news.set()


async def _in_thread(call: Callable[[], T]) -> T:
    """Not in asyncio's own threads: those are waited for at the end, and a mount may never answer."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)
