"""The metrics over HTTP: what a scraper gets from a real mount, and what bad clients can not do."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio
from conftest import NewMount
from prometheus_client.parser import text_string_to_metric_families
from support.mounts import REPO, is_mounted
from trio.testing import MockClock

from pinfs.bridge.mount import MountError
from pinfs.serve.metrics import Family
from pinfs.serve.scrape import MAX_REQUESTS, REQUEST_S, MetricsPort, NoPort

LIMIT_S = 20.0
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port: int = taken.getsockname()[1]
        return port


def get(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    connection.request(method, path, headers={"Connection": "close", **headers})
    return connection.getresponse()


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


MOVING = {"pinfs_requests_total", "pinfs_descriptors", "pinfs_open_files", "pinfs_inodes"}  # by looking at them


def test_a_scrape_shows_what_the_file_shows(new_mount: NewMount) -> None:
    port = free_port()
    mount = new_mount(f"metrics_port={port}")
    holder, file = mount.actor(), mount.path / "f"
    holder(Path.write_bytes, file, bytes(8192))
    holder.pin(file, "p", "0:4096")
    assert holder.errno(os.truncate, str(file), 0)
    with get(port) as answer:
        assert answer.status == 200
        assert str(answer.headers["content-type"]).startswith("text/plain")
        scraped = parsed(answer.read().decode())
    shown = parsed(mount.control("metrics").read_text())
    assert scraped.keys() == shown.keys()
    assert {k: v for k, v in scraped.items() if k[0] not in MOVING} == {
        k: v for k, v in shown.items() if k[0] not in MOVING
    }
    assert scraped["pinfs_pins", ()] == 1
    assert scraped["pinfs_passthrough", ()] == mount.status()["passthrough"]
    assert scraped["pinfs_refusals_total", (("op", "truncate"), ("why", "own"))] == 1


def mounting(base: Path, port: int) -> subprocess.CompletedProcess[str]:
    for name in ("source", "mnt"):
        (base / name).mkdir(exist_ok=True)
    command = [sys.executable, str(REPO / "mount.py"), str(base / "source"), str(base / "mnt")]
    command += ["-o", f"metrics_port={port}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_a_port_that_is_taken_is_told_before_anything_is_mounted(base: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        result = mounting(base, port)
    assert (result.returncode, is_mounted(base / "mnt")) == (6, False)
    assert result.stderr == f"pinfs: metrics_port={port}: Address already in use\n"


def test_a_mount_that_has_ended_leaves_the_port(new_mount: NewMount) -> None:
    port = free_port()
    mount = new_mount(f"metrics_port={port}")
    get(port).close()
    mount.remount(f"metrics_port={port}")
    get(port).close()


# Without a mount


@pytest.fixture
async def port(nursery: trio.Nursery) -> int:
    number = free_port()
    port = MetricsPort(number, list)
    nursery.start_soon(port.run)
    nursery.start_soon(_closed_at_the_end, port)
    return number


async def _closed_at_the_end(port: MetricsPort) -> None:
    try:
        await trio.sleep_forever()
    finally:
        port.close()


async def test_only_loopback(port: int) -> None:
    table = Path("/proc/net/tcp").read_text()
    (local,) = (line.split()[1] for line in table.splitlines() if f":{port:04X} " in line and " 0A " in line)
    assert local == f"0100007F:{port:04X}"


async def test_other_methods_are_refused(port: int) -> None:
    answer = await trio.to_thread.run_sync(lambda: get(port, method="POST"))
    assert answer.status == 405
    answer.close()


async def test_it_counts_in_the_event_loop(nursery: trio.Nursery) -> None:
    seen: list[trio.lowlevel.Task] = []

    def families() -> list[Family]:
        seen.append(trio.lowlevel.current_task())  # RuntimeError anywhere else
        return []

    number = free_port()
    with closing(MetricsPort(number, families)) as port:
        async with trio.open_nursery() as serving:
            serving.start_soon(port.run)
            (await trio.to_thread.run_sync(get, number)).close()
            serving.cancel_scope.cancel()
    assert len(seen) == 1


async def test_a_request_that_fails_ends_nothing(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("pinfs.serve.scrape._Handler.handle", fails)
        with pytest.raises(http.client.BadStatusLine):
            await trio.to_thread.run_sync(get, port)
    (await trio.to_thread.run_sync(get, port)).close()
    assert "ZeroDivisionError" in caplog.text


async def test_silent_clients_take_no_more_than_their_places_and_time(port: int, mock_clock: MockClock) -> None:
    began = trio.current_time()
    ends: list[float] = []

    async def is_hung_up_on() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert await stream.receive_some() == b""
            ends.append(trio.current_time() - began)
            mock_clock.jump(REQUEST_S)

    with trio.fail_after(MAX_REQUESTS * REQUEST_S * 2):
        async with trio.open_nursery() as clients:
            for _ in range(MAX_REQUESTS + 1):
                clients.start_soon(is_hung_up_on)
    assert ends[:2] == [0, REQUEST_S]  # one too many; all others together when their time is up
    assert len(ends) == MAX_REQUESTS + 1


def test_a_port_that_cannot_be_had() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, pytest.raises(MountError, match="already in use"):
        MetricsPort(taken.getsockname()[1], list)


async def test_no_port() -> None:
    await NoPort().run()
    NoPort().close()
