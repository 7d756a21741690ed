"""The metrics over HTTP for Prometheus (`-o metrics_port=N`): on loopback only, since there is no password."""

import logging
import os
import socket
from contextlib import closing, suppress
from socketserver import TCPServer
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import trio
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

from pinfs.bridge.mount import MountError
from pinfs.runtime.errors import logged
from pinfs.serve.metrics import Families, Family

log = logging.getLogger("pinfs.scrape")

LOOPBACK: Final = "127.0.0.1"
MAX_REQUESTS: Final = 8  # at one time; further connections are closed at once
REQUEST_S: Final = 10.0  # what a request may take, from its first byte to the last of the answer
RETRY_S: Final = 0.1  # after a connection that could not be accepted, for want of descriptors


class _InLoop(Collector):
    """Counts in the event loop, where nothing changes meanwhile, for a request that is answered in a thread."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return trio.from_thread.run_sync(self._families)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scraper asks every few seconds."""


class _Server(WSGIServer):
    def server_bind(self) -> None:
        """Do not ask the name service for the name of 127.0.0.1."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]
        self.setup_environ()


class NoPort:
    """In the place of MetricsPort without `metrics_port`."""

    def close(self) -> None:
        pass

    async def run(self) -> None:
        pass


class MetricsPort:
    """Takes the port when it is made; `run` answers."""

    def __init__(self, port: int, families: Families) -> None:
        """MountError: the port cannot be had."""
        registry = CollectorRegistry()
        registry.register(_InLoop(families))
        try:
            self._server = _Server((LOOPBACK, port), _Handler)
        except OSError as e:
            raise MountError(f"metrics_port={port}: {os.strerror(e.errno or 0)}") from e
        self._server.set_app(make_wsgi_app(registry))
        self._server.socket.setblocking(False)

    def close(self) -> None:
        self._server.server_close()

    async def run(self) -> None:
        """Each request is read and answered in a thread of trio's."""
        log.info("metrics at http://%s:%d/metrics", LOOPBACK, self._server.server_port)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._server.socket)
                try:
                    connection, address = self._server.get_request()
                except OSError as e:
                    log.info("no connection for metrics: %s", e)
                    await trio.sleep(RETRY_S)
                    continue
                if len(nursery.child_tasks) < MAX_REQUESTS:
                    nursery.start_soon(self._answer, connection, address)
                else:
                    connection.close()

    async def _answer(self, connection: socket.socket, address: Any) -> None:
        with logged("a scrape"), closing(connection), trio.move_on_after(REQUEST_S), suppress(OSError):
            try:
                await trio.to_thread.run_sync(self._server.finish_request, connection, address, abandon_on_cancel=True)
            finally:
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread when time is up
