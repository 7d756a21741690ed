"""A removal that comes from another host, as holders and tracing readers hear of it; and `forget HOST`."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest
import trio

from pinfs.core.policy import Policy
from pinfs.core.ranges import END
from pinfs.core.removals import RemovalRequest
from pinfs.enforce.reports import break_text, removal_text
from pinfs.fs.controlfiles import EventsFile, Forgetting

from .conftest import ME, Bench


async def lines(bench: Bench, fh: int) -> list[dict[str, Any]]:
    read = await bench.ops.read(fh, 0, 1 << 16)
    return [json.loads(line) for line in bytes(read).splitlines()]


@pytest.mark.parametrize("host", ["b", None])
async def test_the_host_of_a_breaker_is_told(bench: Bench, host: str | None) -> None:
    nodeid = await bench.file("f", 8192)
    holder = await bench.control("events")
    trace = await bench.control("trace")
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    request = RemovalRequest(nodeid, 4096, END, "truncate", pid=11, uid=5, host=host)
    bench.fs.guard.book.begin(request, Policy(), trio.current_time())
    (told,) = await lines(bench, holder.fh)
    assert (told["event"], told["op"], told["from"], told.get("host")) == ("break", "truncate", 4096, host)
    traced = [line for line in await lines(bench, trace.fh) if line["event"] == "break"]
    assert [line.get("host") for line in traced] == [host]


def test_the_log_names_a_host_in_place_of_a_process() -> None:
    request = RemovalRequest(7, 0, 4096, "truncate", pid=11, uid=5, path="f")
    assert removal_text(request) == "truncate of 'f' [0, 4096) by pid 11 uid 5"
    assert removal_text(request._replace(host="b")) == "truncate of 'f' [0, 4096) by host b"
    assert break_text(None) == ""


# forget


def test_only_root_forgets_a_host_and_only_in_a_cluster() -> None:
    forgetting = Forgetting()
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        forgetting.forget("b", 0)
    forgotten: list[str] = []

    def forget(host: str) -> bool:
        forgotten.append(host)
        return host == "b"

    forgetting.request = forget
    with pytest.raises(PermissionError):
        forgetting.forget("b", 1000)
    with pytest.raises(ProcessLookupError):
        forgetting.forget("c", 0)
    forgetting.forget("b", 0)
    assert forgotten == ["c", "b"]


async def test_the_command_goes_to_the_daemon(bench: Bench, root: None) -> None:
    channel = await bench.control("events", os.O_RDWR)
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        await bench.ops.write(channel.fh, 0, b"forget b\n")
    file = dict(bench.fs.control._files)[b"events"]
    assert isinstance(file, EventsFile)
    file.forgetting.request = lambda host: host == "b"
    assert await bench.ops.write(channel.fh, 0, b"forget b\n") == 9
    with pytest.raises(ProcessLookupError):
        await bench.ops.write(channel.fh, 0, b"forget c\n")
    assert ME.uid == 0
