"""Readers of control files and of directories do not notice that the daemon has died (SPEC 13), without a mount."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from pinfs.fs import events, streamrecords
from pinfs.fs.inode import ROOT_ID
from pinfs.fs.types import Caller, Entry
from pinfs.journal.records import COMMANDED_WORD, Kind

from .conftest import ME
from .surviving import Survivor, surviving

SIZE = 8192
READ = 1 << 16
NOT_VISIBLE = Caller(0, 0, 0)


@pytest.fixture
async def survivor(tmp_path: Path) -> AsyncIterator[Survivor]:
    async with surviving(tmp_path) as survivor:
        yield survivor


@pytest.fixture
def other() -> Iterator[Caller]:
    """Another process, which lives until the test ends or kills it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield Caller(0, 0, process.pid, 0o022)
    process.kill()
    process.communicate()


def lines(text: bytes) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


async def read_all(survivor: Survivor, fh: int, size: int = READ) -> list[Any]:
    """All lines that wait."""
    found = []
    while True:
        try:
            found += lines(await survivor.ops.read(fh, 0, size, survivor.request().unique))
        except BlockingIOError:
            return found


async def break_of(survivor: Survivor, nodeid: int, size: int = 0) -> None:
    """Begin a break of the pins behind `size`, by a breaker that does not wait."""
    fh = (await survivor.ops.open(nodeid, os.O_RDWR | os.O_NONBLOCK, survivor.request())).fh
    with pytest.raises(BlockingIOError):
        await survivor.ops.fallocate(fh, 3, size, SIZE - size, survivor.request(NOT_VISIBLE))
    await survivor.ops.release(fh)


async def channel(survivor: Survivor, name: str = "events", ctx: Caller = ME) -> int:
    flags = os.O_NONBLOCK | (os.O_RDWR if name == "events" else os.O_RDONLY)
    return (await survivor.control(name, flags, survivor.request(ctx))).fh


# Channels


@pytest.mark.parametrize("name", ["events", "trace"])
async def test_lines_that_wait_are_there_after_a_death(survivor: Survivor, name: str) -> None:
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor, name)
    await survivor.pin(nodeid, "p", "0:100,mode=lease,signal=none", survivor.request())
    await break_of(survivor, nodeid)
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    before = await read_all_twice(survivor, fh, name)
    seqs = [line["seq"] for line in before]
    assert seqs == list(range(1, len(seqs) + 1))
    assert [line["event"] for line in before if line["event"] != "refused"][-2:] == ["break", "released"]
    survivor.die()
    nodeid = await survivor.file("g", SIZE)
    await survivor.pin(nodeid, "q", "0:100,mode=lease,signal=none", survivor.request())
    await break_of(survivor, nodeid)
    after = await read_all(survivor, fh)
    assert after[0]["seq"] == seqs[-1] + 1, "no gap, no doubled number"
    assert [line["event"] for line in after if line["event"] != "refused"][-1] == "break"


async def read_all_twice(survivor: Survivor, fh: int, name: str) -> list[Any]:
    """After a death; in pieces."""
    survivor.die()
    first = await read_all(survivor, fh, 400)
    survivor.die()
    return first + await read_all(survivor, fh, 400)


async def test_a_read_that_was_not_answered_gets_the_same_lines(survivor: Survivor) -> None:
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    for name in "ab":
        await survivor.pin(nodeid, name, "0:100", survivor.request())
        await survivor.ops.removexattr(nodeid, f"user.pinfs.pin.{name}".encode(), survivor.request())
    size = 300
    unique = survivor.request().unique
    first = await survivor.ops.read(fh, 0, size, unique)
    assert len(lines(first)) == 1
    for _ in range(3):
        survivor.die()
        assert await survivor.ops.read(fh, 0, size, unique) == first
    second = await survivor.ops.read(fh, 0, size, survivor.request().unique)
    assert [line["seq"] for line in lines(first + second)] == [1, 2]
    survivor.die()
    with pytest.raises(BlockingIOError):  # another request: the last one was answered
        await survivor.ops.read(fh, 0, size, survivor.request().unique)
    assert not survivor.records(Kind.LINE).get("LINE", 0) > 1


async def test_a_read_that_waited_longer_does_not_take_the_answer_of_a_later_one(survivor: Survivor) -> None:
    """Requests come again by their numbers, and the one that has taken lines need not be the first."""
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    await survivor.pin(nodeid, "a", "0:100", survivor.request())
    waiting = survivor.request().unique
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.a", survivor.request())
    answered = survivor.request().unique
    text = await survivor.ops.read(fh, 0, READ, answered)
    survivor.die()
    with pytest.raises(BlockingIOError):
        await survivor.ops.read(fh, 0, READ, waiting)
    assert await survivor.ops.read(fh, 0, READ, answered) == text


async def test_end_and_a_wait_after_a_death(survivor: Survivor) -> None:
    fh = (await survivor.control("events", os.O_RDWR, survivor.request())).fh
    survivor.die()
    got: list[bytes] = []

    async def read() -> None:
        got.append(await survivor.ops.read(fh, 0, READ, survivor.request().unique))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await survivor.ops.write(fh, 0, b"end\n", unique=survivor.request().unique)
    assert got == [b""]
    survivor.die()
    assert await survivor.ops.read(fh, 0, READ, survivor.request().unique) == b""


async def test_a_channel_that_opens_during_a_break_is_told_of_it_once(survivor: Survivor) -> None:
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", "0:100,mode=lease,signal=none", survivor.request())
    await break_of(survivor, nodeid)
    survivor.die()
    fh = await channel(survivor)
    survivor.die()
    (told,) = await read_all(survivor, fh)
    assert (told["event"], told["seq"]) == ("break", 1)
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    survivor.die()
    assert [(line["event"], line["seq"]) for line in await read_all(survivor, fh)] == [("released", 2)]


async def test_a_line_that_was_being_told_counts_for_nothing(
    survivor: Survivor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon dies when one of two channels has a line, before the number is written. The pin stands, so the same
    request comes again, and both are told."""
    nodeid = await survivor.file("f", SIZE)
    first, second = await channel(survivor), await channel(survivor)
    await survivor.pin(nodeid, "p", "0:100", survivor.request())
    put = streamrecords.StreamRecords.put_line
    told: list[Any] = []

    class DeathError(BaseException):
        pass

    def die_at_the_second(self: streamrecords.StreamRecords, *args: Any) -> int:
        if told:
            raise DeathError
        told.append(args)
        return put(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(streamrecords.StreamRecords, "put_line", die_at_the_second)
        with pytest.raises(DeathError):
            await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    survivor.die()
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    for fh in (first, second):
        assert [(line["event"], line["seq"]) for line in await read_all(survivor, fh)] == [("released", 1)]


async def test_lines_that_were_lost_are_counted_after_a_death(
    survivor: Survivor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 3)
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    for _ in range(5):
        await survivor.pin(nodeid, "p", "0:100", survivor.request())
        await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    survivor.die()
    told = await read_all(survivor, fh)
    assert [line["event"] for line in told] == ["overflow", "released", "released", "released"]
    assert (told[0]["lost"], [line["seq"] for line in told[1:]]) == (2, [3, 4, 5])
    await survivor.ops.release(fh)
    assert survivor.records(Kind.LINE) == {}


async def test_lines_without_room_are_counted_after_a_death(
    survivor: Survivor, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    monkeypatch.setattr(streamrecords, "MAX_LINES_BYTES", 450)
    for _ in range(5):
        await survivor.pin(nodeid, "p", "0:100", survivor.request())
        await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    survivor.die()
    told = await read_all(survivor, fh)
    assert [line["seq"] for line in told if line["event"] == "released"] == [1, 2]
    assert told[-1] == {"v": 1, "event": "overflow", "lost": 3}
    await survivor.ops.release(fh)
    assert survivor.records(Kind.LINE) == {}


async def test_the_channel_of_a_process_that_has_ended(survivor: Survivor, other: Caller) -> None:
    """The handle may be open elsewhere (SCM_RIGHTS): what waits is read, and nothing more comes."""
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor, "events", other)
    await survivor.pin(nodeid, "p", "0:100", survivor.request(other))
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request(other))
    os.kill(other.pid, 9)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    survivor.die()
    assert [line["event"] for line in await read_all(survivor, fh)] == ["released"]
    await survivor.ops.release(fh)
    assert survivor.records(Kind.LINE, Kind.STREAM, Kind.HANDLE) == {}


async def test_holders_that_died_meanwhile_are_told_of_to_the_trace(survivor: Survivor, other: Caller) -> None:
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor, "trace")
    await survivor.pin(nodeid, "p", "0:100", survivor.request(other))
    assert [line["event"] for line in await read_all(survivor, fh)] == ["pinned"]
    os.kill(other.pid, 9)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    survivor.die()
    (line,) = await read_all(survivor, fh)
    assert (line["event"], line["by"], line["seq"]) == ("released", "death", 2)


async def test_a_process_that_holds_nothing_begins_anew(survivor: Survivor, other: Caller) -> None:
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", "0:100,mode=lease,signal=none", survivor.request(other))
    await break_of(survivor, nodeid)
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request(other))
    assert survivor.records(Kind.STREAM) == {"STREAM": 1}, "it is watched for a while"
    survivor.die()
    assert survivor.records(Kind.STREAM) == {}


# Commands


async def test_commands_that_were_done_are_not_done_again(survivor: Survivor) -> None:
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    for name in "abc":
        await survivor.pin(nodeid, name, "0:100", survivor.request())
    unique = survivor.request().unique
    assert await survivor.ops.write(fh, 0, b"release 1\nrelease 2\n", unique=unique) == 20
    survivor.die()
    assert await survivor.ops.write(fh, 0, b"release 1\nrelease 2\n", unique=unique) == 20
    with pytest.raises(FileNotFoundError):
        await survivor.ops.write(fh, 0, b"release 1\n", unique=survivor.request().unique)
    with pytest.raises(FileNotFoundError):
        await survivor.ops.write(fh, 0, b"release 3\nrelease 1\n", unique=survivor.request().unique)
    assert [line["pin"] for line in await read_all(survivor, fh)] == [1, 2, 3]


@pytest.mark.parametrize("command", ["release", "revoke"])
async def test_a_death_in_the_middle_of_commands(
    survivor: Survivor, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The second pin is released, and the number of commands that are done is not written yet."""
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    for name in "abc":
        await survivor.pin(nodeid, name, "0:100", survivor.request())
    unique = survivor.request().unique
    text = f"{command} 1\n{command} 2\n{command} 3\n".encode()
    set_word = streamrecords.StreamRecords.set_word

    class DeathError(BaseException):
        pass

    def die(self: streamrecords.StreamRecords, slot: int, word: int, value: int) -> None:
        if word == COMMANDED_WORD and value == 2:
            raise DeathError
        set_word(self, slot, word, value)

    with monkeypatch.context() as patched:
        patched.setattr(streamrecords.StreamRecords, "set_word", die)
        with pytest.raises(DeathError):
            await survivor.ops.write(fh, 0, text, unique=unique)
    survivor.die()
    assert await survivor.ops.write(fh, 0, text, unique=unique) == len(text)
    told = await read_all(survivor, fh)
    assert [line["pin"] for line in told] == [1, 2, 3]
    assert [line["seq"] for line in told] == [1, 2, 3]
    assert survivor.records(Kind.PIN) == {}


# Texts, the policy, lists of pins


@pytest.mark.parametrize("name", ["status", "metrics", "policy", "policy.error"])
async def test_a_text_is_read_on_as_it_was_at_open(survivor: Survivor, name: str) -> None:
    fh = (await survivor.control(name, os.O_RDONLY, survivor.request())).fh
    whole = await survivor.ops.read(fh, 0, READ)
    if name == "policy":
        survivor.policies.replace("errno = 'ETXTBSY'", "test")
    survivor.die()
    assert await survivor.ops.read(fh, 0, 10) + await survivor.ops.read(fh, 10, READ) == whole
    await survivor.ops.release(fh)
    assert survivor.records(Kind.HANDLE) == {}


async def test_a_policy_that_is_written_in_two_halves(survivor: Survivor) -> None:
    fh = (await survivor.control("policy", os.O_RDWR, survivor.request())).fh
    text = b"break_timeout = 7\n# " + b"x" * 100 + b"\nerrno = 'ETXTBSY'\n"
    assert await survivor.ops.write(fh, 0, text[:40]) == 40
    survivor.die()
    assert survivor.policies.current.base.break_timeout == 7
    assert await survivor.ops.write(fh, 40, text[40:]) == len(text) - 40
    survivor.die()
    assert await survivor.ops.write(fh, 40, text[40:]) == len(text) - 40, "the same once more"
    assert survivor.policies.current.base.errno == "ETXTBSY"
    await survivor.ops.write(fh, 0, b"break_timeout = 8\n")
    assert survivor.policies.current.base.errno == "EBUSY", "keys that are not named are as they began"


async def test_the_policy_written_at_run_time_stays_in_force(survivor: Survivor) -> None:
    text = "max_waiting = 3\n[[rule]]\npath = 'a/**'\nerrno = 'ETXTBSY'\n"
    survivor.policies.replace(text, "test")
    before = survivor.policies.current
    with pytest.raises(ValueError):
        survivor.policies.replace("nonsense = 1", "test")
    why = survivor.policies.last_error
    survivor.options = ["break_timeout=3"]  # the next daemon is told otherwise, which does not count
    survivor.die()
    assert survivor.policies.current == before
    assert survivor.policies.last_error == why
    survivor.policies.replace("", "test")
    assert survivor.policies.current.base.break_timeout == 45, "as the mount began"
    assert survivor.policies.last_error == ""


@pytest.mark.parametrize("deaths", [False, True])
async def test_a_list_of_pins_is_read_on(survivor: Survivor, deaths: bool) -> None:
    nodeid = await survivor.file("f", SIZE)
    for number in range(100):
        await survivor.pin(nodeid, f"p{number}", f"{number}:1", survivor.request())
    await survivor.pin(nodeid, "p3", "3:2", survivor.request())  # replaced
    fh = (await survivor.control("pins", os.O_RDONLY, survivor.request())).fh
    text = b""
    while part := await survivor.ops.read(fh, len(text), 777):
        if deaths:
            survivor.die()
            if part != await survivor.ops.read(fh, len(text), 777):  # the reply was not written
                part = await survivor.ops.read(fh, len(text), 777)
            await survivor.pin(nodeid, f"new{len(text)}", "0:1", survivor.request())
        text += part
    assert [pin["id"] for pin in lines(text)] == list(range(1, 101))
    with pytest.raises(OSError) as e:
        await survivor.ops.read(fh, 5, 777)
    assert e.value.errno == errno.ESPIPE
    await survivor.ops.release(fh)
    assert "HANDLE" not in survivor.records()


async def test_pins_that_end_before_their_turn_are_not_listed(survivor: Survivor) -> None:
    nodeid = await survivor.file("f", SIZE)
    for number in range(20):
        await survivor.pin(nodeid, f"p{number}", f"{number}:1", survivor.request())
    fh = (await survivor.control("pins", os.O_RDONLY, survivor.request())).fh
    first = await survivor.ops.read(fh, 0, 500)
    survivor.die()
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p10", survivor.request())
    rest = b""
    while part := await survivor.ops.read(fh, len(first + rest), READ):
        rest += part
    assert [pin["id"] for pin in lines(first + rest)] == [*range(1, 11), *range(12, 21)]


async def test_the_control_directory_is_listed_on(survivor: Survivor) -> None:
    nodeid = (await survivor.ops.lookup(ROOT_ID, b".pinfs", ME)).nodeid
    fh = (await survivor.ops.opendir(nodeid, survivor.request())).fh
    whole = await listed(survivor, fh, 0, 100)
    first = await listed(survivor, fh, 0, 3)
    survivor.die()
    assert first + await listed(survivor, fh, 3, 100) == whole
    await survivor.ops.releasedir(fh)
    assert survivor.records(Kind.HANDLE) == {}


# Directories


async def listed(survivor: Survivor, fh: int, offset: int, room: int, *, plus: bool = False) -> list[bytes]:
    """The names of one reply that has room for so many."""
    names: list[bytes] = []

    def add(name: bytes, next_offset: int, what: Entry | tuple[int, int]) -> bool:
        if len(names) == room:
            return False
        if name not in (b".", b"..") and not isinstance(what, Entry):
            assert what[0] > 1, "readdir(3) skips names without a number"
        names.append(name)
        return True

    await survivor.ops.readdir(fh, offset, plus, add)
    return names


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("count", [10, 5000])
async def test_a_listing_goes_on_where_it_was(
    survivor: Survivor, count: int, plus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name is seen once, although names come and go meanwhile."""
    names = {b"%04d" % number for number in range(count)}
    for name in names:
        (survivor.source / name.decode()).touch()
    fh = (await survivor.ops.opendir(ROOT_ID, survivor.request())).fh
    seen: list[bytes] = []
    room = 7 if count == 10 else 500
    while some := await listed(survivor, fh, len(seen), room, plus=plus):
        seen += some
        if count == 5000 or len(seen) == room:
            survivor.die()
        (survivor.source / f"new{len(seen)}").touch()
    assert len(seen) == len(set(seen)) == count + 2
    assert set(seen) == names | {b".", b".."}
    await survivor.ops.releasedir(fh)
    assert survivor.records(Kind.HANDLE) == {}
    assert survivor.store.kept == {}


async def test_a_listing_in_one_reply_costs_a_word_only(survivor: Survivor) -> None:
    for number in range(50):
        (survivor.source / f"{number}").touch()
    fh = (await survivor.ops.opendir(ROOT_ID, survivor.request())).fh
    before = len(survivor.slots)
    assert len(await listed(survivor, fh, 0, 100)) == 52
    assert len(survivor.slots) == before
    assert await listed(survivor, fh, 52, 100) == []
    for number in range(50):
        (survivor.source / f"{number}").unlink()
    for number in range(100):
        (survivor.source / f"later{number}").touch()
    survivor.die()
    assert await listed(survivor, fh, 52, 200) == [], "it was at its end"
    assert len(await listed(survivor, fh, 0, 200)) == 102, "rewinddir(3)"
    assert await listed(survivor, fh, 102, 200) == []


async def test_a_long_listing_lies_with_the_keeper(survivor: Survivor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamrecords, "CHAINED_UP_TO", 1000)
    for number in range(600):
        (survivor.source / f"{number:03}").touch()
    fh = (await survivor.ops.opendir(ROOT_ID, survivor.request())).fh
    seen = await listed(survivor, fh, 0, 100)
    assert list(survivor.store.kept) == [f"d{fh}"]
    survivor.die()
    for number in range(0, 600, 2):
        (survivor.source / f"{number:03}").unlink()
    seen += await listed(survivor, fh, 100, 1000)
    assert len(seen) == len(set(seen)) < 602
    assert {b"%03d" % number for number in range(1, 600, 2)} <= set(seen)
    await listed(survivor, fh, 0, 1000)
    assert survivor.store.kept == {}, "rewound: a listing of one reply"
    await listed(survivor, fh, 0, 100)
    assert list(survivor.store.kept) == [f"d{fh}"]
    survivor.die()
    await survivor.ops.releasedir(fh)
    assert survivor.store.kept == {}


async def test_a_removed_directory_that_is_still_open(survivor: Survivor) -> None:
    (survivor.source / "d").mkdir()
    for number in range(20):
        (survivor.source / "d" / f"{number}").touch()
    nodeid = (await survivor.ops.lookup(ROOT_ID, b"d", ME)).nodeid
    fh = (await survivor.ops.opendir(nodeid, survivor.request())).fh
    seen = await listed(survivor, fh, 0, 10)
    for number in range(20):
        await survivor.ops.unlink(nodeid, f"{number}".encode(), survivor.request())
    await survivor.ops.rmdir(ROOT_ID, b"d", survivor.request())
    assert survivor.die().lost == []
    assert await listed(survivor, fh, len(seen), 100) == [], "all names are gone"
    await survivor.ops.releasedir(fh)
    survivor.ops.forget([(nodeid, 1)])
    assert survivor.store.kept == {}
    assert survivor.records(Kind.HANDLE, Kind.INODE) == {}


# Waiting


async def test_pollers_are_found(survivor: Survivor) -> None:
    class Wake:
        def __init__(self, kh: int) -> None:
            self.kh = kh

        def __call__(self) -> None:
            pass

    nodeid = await survivor.file("f", SIZE)
    file = (await survivor.ops.open(nodeid, os.O_RDWR, survivor.request())).fh
    events_fh = await channel(survivor)
    silent = await channel(survivor)
    await survivor.ops.poll(file, 2, Wake(71))
    await survivor.ops.poll(events_fh, 1, Wake(72))
    await survivor.ops.poll(silent, 1, None)
    assert sorted(survivor.die().pollers) == [71, 72]
    assert survivor.die().pollers == [], "they have been woken, and none has asked again"


# What breakers leave behind, silent holders


async def test_an_orphan_keeps_its_range_to_its_old_end(
    survivor: Survivor, other: Caller, mock_clock: MockClock
) -> None:
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", "0:100,mode=lease,signal=none", survivor.request())
    await break_of(survivor, nodeid)
    assert survivor.records(Kind.ORPHAN) == {"ORPHAN": 1}
    survivor.die()
    with pytest.raises(BlockingIOError):
        await survivor.pin(nodeid, "q", "50:100", survivor.request(other))
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    mock_clock.jump(0.5)
    survivor.die()
    with pytest.raises(BlockingIOError):
        await survivor.pin(nodeid, "q", "50:100", survivor.request(other))
    mock_clock.jump(0.6)
    survivor.fs.guard.book.expire(trio.current_time())
    await survivor.pin(nodeid, "q", "50:100", survivor.request(other))
    assert survivor.records(Kind.ORPHAN) == {}


async def test_a_cool_down_that_is_over_when_the_next_daemon_comes(
    survivor: Survivor, other: Caller, mock_clock: MockClock
) -> None:
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", "0:100,mode=lease,signal=none", survivor.request())
    await break_of(survivor, nodeid)
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    mock_clock.jump(5)
    survivor.die()
    survivor.fs.guard.book.expire(trio.current_time())
    await survivor.pin(nodeid, "q", "50:100", survivor.request(other))
    assert survivor.records(Kind.ORPHAN) == {}


async def test_a_silent_holder_is_not_notified(survivor: Survivor, mock_clock: MockClock) -> None:
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", "0:100,mode=lease,signal=none", survivor.request())
    await break_of(survivor, nodeid)
    mock_clock.jump(46)
    survivor.fs.guard.book.expire(trio.current_time())
    assert survivor.records(Kind.SILENT) == {"SILENT": 1}
    survivor.die()

    def silent() -> bool:
        pin = next(iter(survivor.fs.guard.book.table.by_id.values()))
        return survivor.fs.guard.book.silent.has(pin.owner, trio.current_time())

    assert silent()
    mock_clock.jump(4)
    survivor.die()
    assert silent()
    mock_clock.jump(2)
    assert not silent()
    survivor.fs.guard.book.silent.sweep(trio.current_time())
    assert survivor.records(Kind.SILENT) == {}


# Counters


async def test_no_counter_that_was_read_goes_back(survivor: Survivor) -> None:
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", "0:100,mode=lease,signal=none", survivor.request())
    await survivor.pin(nodeid, "d", "200:100", survivor.request())
    with pytest.raises(OSError):
        await survivor.truncate(nodeid, 100, survivor.request(NOT_VISIBLE))
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.d", survivor.request())
    await break_of(survivor, nodeid)
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    survivor.fs.stats.requests["fast"] += 17
    survivor.fs.holders.counters.deaths += 3

    async def totals() -> dict[str, float]:
        fh = (await survivor.control("metrics", os.O_RDONLY, survivor.request())).fh
        text = (await survivor.ops.read(fh, 0, READ)).decode()
        await survivor.ops.release(fh)
        rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in rows if "_total" in name or "_seconds" in name}

    before = await totals()
    assert before["pinfs_breaks_answered_total"] == 1
    survivor.die()
    after = await totals()
    assert after == before
    assert survivor.fs.holders.counters.deaths == 3


async def test_counters_are_written_once_a_second(survivor: Survivor, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(survivor.fs.counters.run)
        survivor.fs.stats.requests["fast"] = 5
        await trio.sleep(1.5)
        slots = len(survivor.slots)
        survivor.fs.stats.requests["fast"] = 6
        await trio.sleep(1)
        assert len(survivor.slots) == slots
        nursery.cancel_scope.cancel()
    survivor.die()
    assert survivor.fs.stats.requests["fast"] == 6


# Nothing is left


async def test_every_record_goes_with_its_subject(survivor: Survivor, other: Caller) -> None:
    """Also those of inodes, files and pins, and after a death in between."""
    for dying in (False, True):
        nodeid = await survivor.file("f", SIZE)
        (survivor.source / "d").mkdir()
        directory = (await survivor.ops.lookup(ROOT_ID, b"d", ME)).nodeid
        created, entry = await survivor.ops.create(directory, b"n" * 200, 0o600, os.O_RDWR, survivor.request())
        await survivor.ops.link(entry.nodeid, ROOT_ID, b"l" * 90, survivor.request())
        await survivor.ops.unlink(directory, b"n" * 200, survivor.request())
        await survivor.ops.unlink(ROOT_ID, b"l" * 90, survivor.request())
        opened = [created.fh, *[await channel(survivor, name) for name in ("events", "trace", "trace")]]
        for name in ("pins", "status", "metrics", "policy"):
            opened.append((await survivor.control(name, os.O_RDONLY, survivor.request())).fh)
        await survivor.ops.read(opened[4], 0, 100)
        listing = (await survivor.ops.opendir(directory, survivor.request())).fh
        await listed(survivor, listing, 0, 1)
        control = (await survivor.ops.lookup(ROOT_ID, b".pinfs", ME)).nodeid
        listings = [listing, (await survivor.ops.opendir(control, survivor.request())).fh]
        await survivor.pin(nodeid, "p" * 90, "0:100,mode=lease,signal=none,note=hello", survivor.request())
        await survivor.pin(nodeid, "q", "0:100,mode=lease,signal=none", survivor.request(other))
        await break_of(survivor, nodeid)
        if dying:
            assert survivor.die().lost == []
        for name, caller in (("p" * 90, ME), ("q", other)):
            await survivor.ops.removexattr(nodeid, f"user.pinfs.pin.{name}".encode(), survivor.request(caller))
        for fh in opened:
            await survivor.ops.release(fh)
        for fh in listings:
            await survivor.ops.releasedir(fh)
        survivor.fs.guard.book.expire(trio.current_time() + 2)
        survivor.ops.forget([(nodeid, 1), (directory, 1), (entry.nodeid, 2)])
        (survivor.source / "f").unlink()
        (survivor.source / "d").rmdir()
        for process in list(survivor.fs.holders._idle):
            survivor.fs.holders._unwatch(process)
        left = survivor.records()
        del left["TEXT"]
        assert left == {}
        assert survivor.store.kept == {}
        assert survivor.fs.streams is not None
        assert survivor.fs.streams.line_bytes == 0
        used = {"texts": 3, "chains": len(survivor.slots)}
        assert used["chains"] < 60, used


async def test_no_handle_of_a_channel_forms_a_cycle(survivor: Survivor) -> None:
    import gc

    fh = await channel(survivor)
    await survivor.ops.release(fh)
    gc.collect()
    gc.disable()
    try:
        fh = await channel(survivor)
        await survivor.ops.release(fh)
        assert gc.collect() == 0
    finally:
        gc.enable()
