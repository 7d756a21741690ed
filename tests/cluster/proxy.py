"""A way to a node that loses what a test wants lost."""

from __future__ import annotations

from contextlib import suppress

import trio

from pinfs.cluster.etcd import Endpoint


class Proxy:
    """Passes bytes on to a port of this host. `lost` is what goes nowhere, "requests" or "answers"; the connection ends
    as soon as there is one. Between `cut` and `mend` all bytes wait, as those of TCP do."""

    def __init__(self, nursery: trio.Nursery, port: int) -> None:
        self._nursery = nursery
        self._port = port
        self.lost = ""
        self._way = trio.Event()
        self._way.set()
        self.endpoint = Endpoint("http", "127.0.0.1", 0)

    def cut(self) -> None:
        self._way = trio.Event()

    def mend(self) -> None:
        self._way.set()

    async def start(self) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.endpoint = Endpoint("http", "127.0.0.1", listeners[0].socket.getsockname()[1])
        self._nursery.start_soon(trio.serve_listeners, self._serve, listeners)

    async def _serve(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", self._port) as node:
            async with trio.open_nursery() as both:
                both.start_soon(self._pass_on, client, node, both.cancel_scope, "requests")
                both.start_soon(self._pass_on, node, client, both.cancel_scope, "answers")

    async def _pass_on(
        self, source: trio.SocketStream, target: trio.SocketStream, end: trio.CancelScope, what: str
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while some := await source.receive_some(65536):
                await self._way.wait()
                if what == self.lost:
                    break
                await target.send_all(some)
        end.cancel()
