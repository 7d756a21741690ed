"""Pins as programs speak of them (SPEC 3, 4, 5, 7), without a mount; time is trio's autojump clock."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from pinfs.client import ioctl
from pinfs.core.pins import Mode
from pinfs.fs.events import ReadLimit
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.pins import SHORTEST_JSON
from pinfs.fs.pinvalue import parse_pin_value
from pinfs.fs.types import Caller

from .conftest import ME, Bench

SIZE = 8192


@pytest.fixture
def other() -> Iterator[Caller]:
    """Another process, which lives until the test ends or kills it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield Caller(0, 0, process.pid, 0o022)
    process.kill()
    process.communicate()


async def refused(attempt: Awaitable[object]) -> int:
    with pytest.raises(OSError) as e:
        await attempt
    assert e.value.errno is not None
    return e.value.errno


async def pin_json(bench: Bench, nodeid: int, name: str, ctx: Caller = ME) -> Any:
    return json.loads(await bench.ops.getxattr(nodeid, f"user.pinfs.pin.{name}".encode(), ctx))


async def test_register_query_replace_release(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "100:200")
    shown = await pin_json(bench, nodeid, "p")
    expected = {"v": 1, "start": 100, "length": 200, "mode": "deny", "state": "held", "deadline": None, "path": "f"}
    assert expected.items() <= shown.items()
    await bench.pin(nodeid, "p", "0:50,mode=lease,signal=USR1,note=hello")
    again = await pin_json(bench, nodeid, "p")
    assert again["id"] == shown["id"]
    assert (again["mode"], again["signal"], again["note"]) == ("lease", "USR1", "hello")
    await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
    assert await refused(bench.ops.getxattr(nodeid, b"user.pinfs.pin.p", ME)) == errno.ENODATA
    assert await refused(bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)) == errno.ENODATA


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("", errno.EINVAL),
        ("0", errno.EINVAL),
        ("0:1,", errno.EINVAL),
        ("-1:1", errno.EINVAL),
        ("0:-1", errno.EINVAL),
        ("0:1,colour=blue", errno.EINVAL),
        ("0:1,mode=lease,mode=deny", errno.EINVAL),
        ("0:1,mode=perhaps", errno.EINVAL),
        ("0:1,signal=NOSUCH", errno.EINVAL),
        ("0:1,signal=65", errno.EINVAL),
        ("0:1,dirty=maybe", errno.EINVAL),
        ("0:1,pid=0", errno.EINVAL),
        ("0:9223372036854775807", errno.ENXIO),
        ("1:9223372036854775807", errno.EINVAL),
        ("99999999999999999999:1", errno.EINVAL),
        (f"0:{SIZE + 1}", errno.ENXIO),
        (f"{SIZE + 1}:0", errno.ENXIO),
        ("0:1,note=" + "n" * 300, errno.EINVAL),
        ("٣:1", errno.EINVAL),
        ("0:1,pid=4194304", errno.ESRCH),
    ],
)
async def test_bad_values(bench: Bench, value: str, number: int) -> None:
    nodeid = await bench.file("f", SIZE)
    assert await refused(bench.pin(nodeid, "p", value)) == number
    assert not bench.fs.guard.book.files


async def test_only_regular_files_and_known_verbs(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    assert await refused(bench.pin(ROOT_ID, "p", "0:0")) == errno.EINVAL
    for name in (b"user.pinfs.pin.", b"user.pinfs.release.p", b"user.pinfs.other", b"user.pinfs.pins"):
        assert await refused(bench.ops.setxattr(nodeid, name, b"0:1", 0, ME)) == errno.EINVAL
    for name in (b"user.pinfs.pin.", b"user.pinfs.other", b"user.pinfs.release.p"):
        assert await refused(bench.ops.getxattr(nodeid, name, ME)) == errno.ENODATA


async def test_names_belong_to_processes(bench: Bench, other: Caller) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:10")
    assert await refused(bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", other)) == errno.ENODATA
    await bench.pin(nodeid, "p", "20:10", other)
    assert (await pin_json(bench, nodeid, "p"))["start"] == 0
    assert (await pin_json(bench, nodeid, "p", other))["start"] == 20


async def test_a_pin_for_another_process(bench: Bench, other: Caller) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", f"0:10,pid={other.pid}")
    assert (await pin_json(bench, nodeid, "p", other))["pid"] == other.pid
    assert (await pin_json(bench, nodeid, "p"))["pid"] == other.pid  # by the name its registrar gave it
    await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
    assert not bench.fs.guard.book.files
    stranger = Caller(1000, 1000, ME.pid)
    assert await refused(bench.pin(nodeid, "p", f"0:10,pid={other.pid}", stranger)) == errno.EPERM
    assert await refused(bench.pin(nodeid, "p", "0:10", Caller(0, 0, 0))) == errno.EPERM


async def test_deny_pins_refuse_and_byte_exact(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "100:100")
    stranger = Caller(0, 0, 1)
    assert await refused(bench.truncate(nodeid, 199, stranger)) == errno.EBUSY
    assert await refused(bench.ops.open(nodeid, os.O_RDWR | os.O_TRUNC, stranger)) == errno.EBUSY
    assert (await bench.truncate(nodeid, 200, stranger)).st_size == 200
    assert (await bench.truncate(nodeid, SIZE, stranger)).st_size == SIZE
    opened = await bench.ops.open(nodeid, os.O_RDWR, stranger)
    assert await refused(bench.ops.fallocate(opened.fh, 3, 199, 1, stranger)) == errno.EBUSY
    await bench.ops.fallocate(opened.fh, 3, 200, 1, stranger)
    await bench.ops.fallocate(opened.fh, 1, 0, SIZE, stranger)
    await bench.ops.write(opened.fh, 100, b"in place")
    assert bench.fs.stats.refusals == {("truncate", "deny"): 1, ("open_trunc", "deny"): 1, ("punch_hole", "deny"): 1}


async def test_the_own_process_is_refused_as_well(bench: Bench, autojump_clock: MockClock) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    started = trio.current_time()
    assert await refused(bench.truncate(nodeid, 0)) == errno.EBUSY
    assert trio.current_time() == started


async def test_a_lease_is_broken_and_released(bench: Bench, other: Caller, autojump_clock: MockClock) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    channel = await bench.control("events", os.O_RDWR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.truncate, nodeid, 0, other)
        event = json.loads(await bench.ops.read(channel.fh, 0, 4096))
        expected = {"event": "break", "seq": 1, "op": "truncate", "from": 0, "to": None, "remaining_s": 45.0}
        assert expected.items() <= event.items()
        assert (await pin_json(bench, nodeid, "p"))["state"] == "breaking"
        assert await refused(bench.pin(nodeid, "q", "0:10", other)) == errno.EAGAIN
        assert await bench.ops.getxattr(nodeid, b"user.pinfs.release.p", ME, 0) == b"released"  # asks for the size
        assert await bench.ops.getxattr(nodeid, b"user.pinfs.release.p", ME, 100) == b"released"
        assert await refused(bench.ops.getxattr(nodeid, b"user.pinfs.release.p", ME, 100)) == errno.ENODATA
    assert (await bench.ops.getattr(nodeid, ME)).st_size == 0
    event = json.loads(await bench.ops.read(channel.fh, 0, 4096))
    assert (event["event"], event["seq"], event["by"]) == ("released", 2, "holder")


@pytest.mark.parametrize(
    ("options", "number", "told"),
    [
        (["on_timeout=deny"], errno.EBUSY, "withdrawn"),
        (["on_timeout=deny,errno=ETXTBSY"], errno.ETXTBSY, "withdrawn"),
        (["on_timeout=revoke,break_timeout=10"], 0, "revoked"),
    ],
)
async def test_the_deadline(bench: Bench, other: Caller, autojump_clock: MockClock, number: int, told: str) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    channel = await bench.control("events", os.O_RDWR)
    started = trio.current_time()
    if number:
        assert await refused(bench.truncate(nodeid, 10, other)) == number
    else:
        assert (await bench.truncate(nodeid, 10, other)).st_size == 10
    timeout = bench.policies.current.for_path("f").break_timeout
    assert trio.current_time() - started == pytest.approx(timeout, abs=0.01)
    lines = (await bench.ops.read(channel.fh, 0, 4096)).splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["break", told]
    assert (nodeid in bench.fs.guard.book.files) == bool(number)


@pytest.mark.parametrize("options", [["on_timeout=kill"]])
async def test_kill_at_the_deadline(bench: Bench) -> None:
    """With the real clock: a real process has to die."""
    bench.policies.replace("on_timeout = 'kill'\nbreak_timeout = 0.05\n", "test")
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none", Caller(0, 0, victim.pid))
    assert (await bench.truncate(nodeid, 0)).st_size == 0
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert not bench.fs.guard.book.files


async def test_extension(bench: Bench, other: Caller, autojump_clock: MockClock) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    channel = await bench.control("events", os.O_RDWR)
    started = trio.current_time()

    async def extend() -> None:
        pin = json.loads(await bench.ops.read(channel.fh, 0, 4096))["pin"]
        await trio.sleep(40)
        await bench.ops.write(channel.fh, 0, f"extend {pin} 100\n".encode())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(extend)
        assert await refused(bench.truncate(nodeid, 0, other)) == errno.EBUSY
    assert trio.current_time() - started == pytest.approx(140, abs=0.01)


async def test_shrinking_out_of_the_range_answers(bench: Bench, other: Caller, autojump_clock: MockClock) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    channel = await bench.control("events", os.O_RDWR)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.truncate, nodeid, 4096, other)
        pin = json.loads(await bench.ops.read(channel.fh, 0, 4096))["pin"]
        assert await refused(bench.ops.write(channel.fh, 0, f"resize {pin} 0 x".encode())) == errno.EINVAL
        await bench.ops.write(channel.fh, 0, f"resize {pin} 0 4096".encode())
    assert trio.current_time() == started
    assert (await bench.ops.getattr(nodeid, ME)).st_size == 4096
    shown = await pin_json(bench, nodeid, "p")
    assert (shown["length"], shown["state"]) == (4096, "held")


async def test_a_dead_holder_is_no_obstacle(bench: Bench) -> None:
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none", Caller(0, 0, holder.pid))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.truncate, nodeid, 0)
        holder.kill()
        holder.communicate()
    assert (await bench.ops.getattr(nodeid, ME)).st_size == 0
    assert not bench.fs.guard.book.files


async def test_o_nonblock_breaks_and_comes_back(bench: Bench, other: Caller, autojump_clock: MockClock) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    opened = await bench.ops.open(nodeid, os.O_RDWR | os.O_NONBLOCK, other)
    assert await refused(bench.truncate(nodeid, 0, other, opened.fh)) == errno.EAGAIN
    assert (await pin_json(bench, nodeid, "p"))["state"] == "breaking"
    await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
    assert await refused(bench.pin(nodeid, "p", "0:1")) == errno.EAGAIN  # the breaker has its turn
    assert (await bench.truncate(nodeid, 0, other, opened.fh)).st_size == 0


async def test_an_interrupted_breaker(bench: Bench, other: Caller, autojump_clock: MockClock) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    with trio.move_on_after(1) as scope:
        await bench.truncate(nodeid, 0, other)
    assert scope.cancelled_caught
    assert (await pin_json(bench, nodeid, "p"))["state"] == "breaking"
    await trio.sleep(50)
    assert (await pin_json(bench, nodeid, "p"))["state"] == "held"


async def test_what_is_asked_for_after_its_size_has_room_to_grow(bench: Bench, autojump_clock: MockClock) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    for name in (b"user.pinfs.pin.p", b"user.pinfs.pins"):
        sizes = [len(await bench.ops.getxattr(nodeid, name, ME, size)) for size in (0, 65536)]
        assert sizes[0] >= sizes[1] + 16
        assert json.loads(await bench.ops.getxattr(nodeid, name, ME, 65536))


async def test_release_where_the_size_of_the_buffer_is_not_known(bench: Bench) -> None:
    """Through pyfuse3 alone: the C library asks for the size, and then once more for the value."""
    nodeid = await bench.file("f", SIZE)
    ask = partial(bench.ops.getxattr, nodeid, b"user.pinfs.release.p", ME)
    for _ in range(2):
        await bench.pin(nodeid, "p", "0:10")
        assert await ask() == b"released"
        assert not len(bench.fs.guard.book.table)
    assert await ask() == b"released"
    assert await refused(ask()) == errno.ENODATA


async def test_who_is_not_visible_registers_for_nobody(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    assert await refused(bench.pin(nodeid, "p", f"0:10,pid={os.getpid()}", Caller(0, 0, 0))) == errno.EPERM


@pytest.mark.parametrize("name", ["pins", "trace", "metrics", "status", "policy.error"])
async def test_what_can_only_be_read_is_not_opened_for_writing(bench: Bench, name: str) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR):
        assert await refused(bench.control(name, flags)) == errno.EACCES


@pytest.mark.parametrize(("options", "number"), [(["unlink=deny"], errno.EBUSY), (["unlink=defer"], 0)])
async def test_the_last_name(bench: Bench, other: Caller, number: int) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:10")
    await bench.ops.link(nodeid, ROOT_ID, b"g", ME)
    await bench.ops.unlink(ROOT_ID, b"f", other)  # one of several: never in conflict
    if number:
        assert await refused(bench.ops.unlink(ROOT_ID, b"g", other)) == number
        (bench.source / "new").touch()
        assert await refused(bench.ops.rename(ROOT_ID, b"new", ROOT_ID, b"g", 0, other)) == number
        return
    await bench.ops.unlink(ROOT_ID, b"g", other)
    bench.ops.forget([(nodeid, 2)])
    listing = await bench.ops.read((await bench.control("pins")).fh, 0, 65536)
    shown = [json.loads(line) for line in listing.splitlines()]
    assert [(pin["inode"], pin["path"]) for pin in shown] == [(nodeid, None)]
    assert os.fstat(bench.fs.inodes.fd(bench.fs.inodes.get(nodeid))).st_size == SIZE
    bench.fs.guard.release(next(iter(bench.fs.guard.book.table.by_id.values())))
    with pytest.raises(OSError):
        bench.fs.inodes.get(nodeid)


@pytest.mark.parametrize("options", [["unlink=break"]])
async def test_unlink_breaks(bench: Bench, other: Caller, autojump_clock: MockClock) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:0,mode=lease,signal=none")
    channel = await bench.control("events", os.O_RDWR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.ops.unlink, ROOT_ID, b"f", other)
        pin = json.loads(await bench.ops.read(channel.fh, 0, 4096))["pin"]
        await bench.ops.write(channel.fh, 0, f"release {pin}\n".encode())
    assert not (bench.source / "f").exists()


async def test_strangers_see_that_but_not_by_whom(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "secret", "0:10,note=mine")
    stranger = Caller(1000, 1000, ME.pid)
    (shown,) = json.loads(await bench.ops.getxattr(nodeid, b"user.pinfs.pins", stranger))["pins"]
    assert shown["mode"] == "deny"
    assert not {"name", "pid", "uid", "comm", "note", "signal"} & shown.keys()
    (shown,) = json.loads(await bench.ops.getxattr(nodeid, b"user.pinfs.pins", ME))["pins"]
    assert (shown["name"], shown["note"], shown["pid"]) == ("secret", "mine", ME.pid)


async def test_a_list_tells_how_many_did_not_fit(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    for number in range(500):
        await bench.pin(nodeid, f"p{number}", f"{number}:1")
    listed = await bench.ops.getxattr(nodeid, b"user.pinfs.pins", ME)
    shown = json.loads(listed)
    assert 60_000 < len(listed) <= 65536
    assert [pin["start"] for pin in shown["pins"]] == list(range(len(shown["pins"])))
    assert len(shown["pins"]) + shown["more"] == 500


async def test_all_pins_are_read_in_steps(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    for number in range(500):
        await bench.pin(nodeid, f"p{number}", f"{number}:1")
    handle = await bench.control("pins")
    text = b""
    while part := await bench.ops.read(handle.fh, len(text), 1 << 20):
        assert len(part) <= 65536
        text += part
    assert [json.loads(line)["start"] for line in text.splitlines()] == list(range(500))


async def test_the_pins_of_a_handle_are_asked_for_one_after_the_other(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    handles = [(await bench.ops.open(nodeid, os.O_RDWR, ME)).fh for _ in range(2)]
    ids: dict[int, list[int]] = {fh: [] for fh in handles}
    for fh in [*handles, *handles, *handles[:1] * 3, handles[1]]:
        answer = await bench.ops.ioctl(fh, ioctl.PIN, ioctl.PinRequest(0, 1, 0).pack(), 200, ME)
        ids[fh].append(ioctl.PinRequest.unpack(answer).id)
    for fh in handles:
        asked: list[int] = []
        following = 0
        while not asked or following:
            answer = await bench.ops.ioctl(fh, ioctl.QUERY, ioctl.PinQuery(following).pack(), 200, ME)
            asked.append(ioctl.PinQuery.unpack(answer).id)
            following = ioctl.PinQuery.unpack(answer).next_id
        assert asked == ids[fh]


async def test_commands(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:10")
    (pin,) = bench.fs.guard.book.table.by_id
    channel = await bench.control("events", os.O_RDWR)
    stranger = await bench.control("events", os.O_RDWR, Caller(1000, 1000, ME.pid))
    for command, number in {
        "": errno.EINVAL,
        "sing": errno.EINVAL,
        f"sing {pin}": errno.EINVAL,
        "release x": errno.EINVAL,
        "frobnicate 99999": errno.EINVAL,
        "extend 99999 x": errno.EINVAL,
        "extend 99999 1": errno.ENOENT,
        "resize 99999 0 x": errno.EINVAL,
        "resize 99999 0 1": errno.ENOENT,
        "release 99999": errno.ENOENT,
        "release " + "9" * 5000: errno.EINVAL,
        f"extend {pin} soon": errno.EINVAL,
        f"extend {pin} nan": errno.EINVAL,
        f"extend {pin} 10": errno.ENODATA,
    }.items():
        assert await refused(bench.ops.write(channel.fh, 0, command.encode())) == number, command
    for command in (f"release {pin}", f"revoke {pin}"):
        assert await refused(bench.ops.write(stranger.fh, 0, command.encode())) == errno.EPERM
    await bench.ops.write(channel.fh, 0, f"revoke {pin}\n".encode())
    assert json.loads(await bench.ops.read(channel.fh, 0, 4096))["event"] == "revoked"
    assert not bench.fs.guard.book.table.by_id


async def test_a_read_that_waits_is_ended_by_a_command(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:10")
    channel, other = await bench.control("events", os.O_RDWR), await bench.control("events", os.O_RDWR)
    answers: list[bytes] = []

    async def read() -> None:
        answers.append(await bench.ops.read(channel.fh, 0, 4096))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await bench.ops.write(channel.fh, 0, b"end\n")
    await read()
    assert answers == [b"", b""]
    await bench.ops.removexattr(nodeid, b"user.pinfs.pin.p", ME)
    assert b"released" in await bench.ops.read(channel.fh, 0, 4096)
    assert b"released" in await bench.ops.read(other.fh, 0, 4096)


async def test_readers_without_patience(bench: Bench, autojump_clock: MockClock) -> None:
    """Without the bridge nobody can interrupt a read, and each takes a task: few may wait, and not for ever."""
    bench.fs.hub.read_limit = ReadLimit(10.0, 1)
    first, second = await bench.control("events"), await bench.control("events")
    started = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def read_first() -> None:
            assert await refused(bench.ops.read(first.fh, 0, 4096)) == errno.EINTR

        nursery.start_soon(read_first)
        await trio.testing.wait_all_tasks_blocked()
        assert await refused(bench.ops.read(second.fh, 0, 4096)) == errno.EAGAIN
    assert trio.current_time() - started == pytest.approx(10, abs=0.01)


async def test_the_policy_file(bench: Bench) -> None:
    handle = await bench.control("policy", os.O_RDWR)
    assert b"break_timeout" in await bench.ops.read(handle.fh, 0, 65536)
    assert await refused(bench.ops.write(handle.fh, 0, b"colour = 'blue'\n")) == errno.EINVAL
    assert b"colour" in await bench.ops.read((await bench.control("policy.error")).fh, 0, 4096)
    handle = await bench.control("policy", os.O_RDWR)
    await bench.ops.write(handle.fh, 0, b"break_timeout = 3\n[[rule]]\npath = '*.log'\nconflict = 'break'\n")
    assert bench.policies.current.for_path("a/b.log").conflict == "break"
    assert bench.policies.current.for_path("f").break_timeout == 3


async def test_metrics_can_be_read(bench: Bench) -> None:
    nodeid = await bench.file("f", SIZE)
    await bench.pin(nodeid, "p", "0:10")
    text = (await bench.ops.read((await bench.control("metrics")).fh, 0, 1 << 20)).decode()
    assert "\npinfs_pins 1.0\n" in text
    assert "\npinfs_pinned_bytes 10.0\n" in text


@settings(max_examples=300)
@given(st.binary(max_size=80) | st.text(alphabet="0123456789:,=abcdefgilmnoprstuyx-", max_size=40).map(str.encode))
def test_any_value_is_a_pin_or_einval(value: bytes) -> None:
    try:
        parsed = parse_pin_value(value)
    except OSError as e:
        assert e.errno == errno.EINVAL
    else:
        assert parsed.spec.start >= 0
        assert parsed.spec.length >= 0
        assert parsed.spec.mode in Mode


async def test_no_json_is_shorter_than_what_is_refused_unwritten(bench: Bench) -> None:
    nodeid = await bench.file("f", 10)
    await bench.pin(nodeid, "n", "0:1,signal=IO")
    pin = json.loads(await bench.ops.getxattr(nodeid, b"user.pinfs.pin.n", ME))
    smallest = {key: 0 if isinstance(value, int | float) else None for key, value in pin.items()}
    short_words = {"name": "", "owner": "handle", "mode": "deny", "state": "held", "comm": "", "signal": "", "note": ""}
    assert len(json.dumps(smallest | short_words | {"path": ""})) >= SHORTEST_JSON
    with pytest.raises(OSError, match=f"Errno {errno.ERANGE}"):
        await bench.ops.getxattr(nodeid, b"user.pinfs.pin.n", ME, SHORTEST_JSON - 1)
    with pytest.raises(OSError, match=f"Errno {errno.ENODATA}"):
        await bench.ops.getxattr(nodeid, b"user.pinfs.pin.m", ME, 1)


async def test_the_text_of_a_pin_is_that_of_now(bench: Bench) -> None:
    """It is kept while nothing in it changes."""
    nodeid = await bench.file("f", 8192)
    await bench.pin(nodeid, "p", "0:4096,mode=lease")
    first = await pin_json(bench, nodeid, "p")
    assert await pin_json(bench, nodeid, "p") == first
    await bench.pin(nodeid, "p", "0:8192,mode=lease,note=new")
    assert await pin_json(bench, nodeid, "p") == first | {"length": 8192, "note": "new"}
    await bench.ops.rename(ROOT_ID, b"f", ROOT_ID, b"g", 0, ME)
    assert (await pin_json(bench, nodeid, "p"))["path"] == "g"
