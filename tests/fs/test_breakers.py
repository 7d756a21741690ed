"""Which removals wait for which pins, as `.pinfs/status` says it to each reader."""

import json
import os
from typing import Any

import trio

from fs.conftest import ME, Bench
from pinfs.fs.breakers import MAX_WAITS_FOR
from pinfs.fs.types import Caller

OTHER = Caller(0, 0, 1)
STRANGER = Caller(1234, 1234, os.getpid(), 0o022)


async def breakers(bench: Bench, ctx: Caller = ME) -> list[dict[str, Any]]:
    handle = await bench.control("status", ctx=ctx)
    found: list[dict[str, Any]] = json.loads(await bench.ops.read(handle.fh, 0, 1 << 20))["breakers"]
    return found


async def waiting(bench: Bench, count: int) -> None:
    with trio.fail_after(5):
        while bench.fs.guard.book.waiting < count:
            await trio.lowlevel.checkpoint()


async def test_what_a_truncate_waits_for(bench: Bench) -> None:
    nodeid = await bench.file("f", 8192)
    await bench.pin(nodeid, "below", "0:4096,mode=lease,signal=none", OTHER)
    await bench.pin(nodeid, "in the way", "4096:0,mode=lease,signal=none", OTHER)
    assert await breakers(bench) == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.truncate, nodeid, 6000)
        await waiting(bench, 1)
        (shown,) = await breakers(bench)
        assert (shown["op"], shown["path"], shown["from"], shown["to"]) == ("truncate", "f", 6000, None)
        assert (shown["waits_for"], shown["more"]) == ([2], False)
        assert 0 < shown["remaining_s"] <= 45
        assert (shown["pid"], shown["uid"]) == (ME.pid, 0)
        (foreign,) = await breakers(bench, STRANGER)
        assert not {"pid", "uid", "comm"} & foreign.keys()
        assert foreign["waits_for"] == [2]
        nursery.cancel_scope.cancel()


async def test_of_many_pins_some(bench: Bench) -> None:
    nodeid = await bench.file("f", 8192)
    for number in range(MAX_WAITS_FOR + 1):
        await bench.pin(nodeid, f"p{number}", f"{number}:1,mode=lease,signal=none", OTHER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.truncate, nodeid, 0)
        await waiting(bench, 1)
        (shown,) = await breakers(bench)
        assert (len(shown["waits_for"]), shown["more"]) == (MAX_WAITS_FOR, True)
        nursery.cancel_scope.cancel()
