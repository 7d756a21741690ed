"""Eventfds go from one daemon to the next, without a mount and without the help of their holders (SPEC 13)."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pinfs.bridge.handlers import PollWake
from pinfs.journal.records import EventFdRecord, Kind, unpack_eventfd
from pinfs.journal.slots import Slots

from .conftest import ME
from .surviving import MemoryStore, Survivor, surviving
from .test_streams import SIZE, break_of, channel, read_all

LEASE = "0:100,mode=lease,signal=none"


@pytest.fixture
async def survivor(tmp_path: Path) -> AsyncIterator[Survivor]:
    async with surviving(tmp_path) as survivor:
        yield survivor
        survivor.fs.verbs.eventfds.close()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def other() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def counted(eventfd: int) -> int:
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


def die(survivor: Survivor) -> None:
    """And its descriptors with it."""
    eventfds = survivor.fs.verbs.eventfds
    survivor.stop()
    for known in eventfds._known.values():
        os.close(known.fd)
    eventfds._known.clear()
    eventfds.close()
    assert survivor.take_over().lost == []


def kept(survivor: Survivor) -> set[int]:
    """The eventfds that the store has, by the kernel's numbers."""
    return {int(name[1:]) for name in survivor.store.kept if name.startswith("e")}


def recorded(survivor: Survivor) -> set[int]:
    """Those that records name."""
    slots = Slots(survivor.journal)
    found = slots.load().get(Kind.EVENTFD, {})
    numbers = {unpack_eventfd(slots.body(slot)).eventfd for slot in found.values()}
    slots.close()
    return numbers


def test_a_record_is_what_it_was() -> None:
    record = EventFdRecord(2**64 - 1, 2, 3, 4, 2**63)
    assert unpack_eventfd(record.pack()) == record


async def test_a_pin_writes_to_its_eventfd_after_deaths(survivor: Survivor, eventfd: int) -> None:
    number = os.dup(eventfd)
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", f"{LEASE},eventfd={number}", survivor.request())
    os.close(number)
    for _ in range(2):
        die(survivor)
        assert counted(eventfd) == 0
    await break_of(survivor, nodeid)
    assert counted(eventfd) == 1
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    assert (kept(survivor), recorded(survivor)) == (set(), set())


async def test_a_break_that_was_told_is_not_told_again(survivor: Survivor, eventfd: int) -> None:
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", f"{LEASE},eventfd={eventfd}", survivor.request())
    await break_of(survivor, nodeid)
    assert counted(eventfd) == 1
    die(survivor)
    assert counted(eventfd) == 0


async def test_a_channel_writes_to_its_eventfd_after_deaths(survivor: Survivor, eventfd: int) -> None:
    number = os.dup(eventfd)
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    await survivor.ops.write(fh, 0, f"eventfd {number}\n".encode())
    os.close(number)
    for _ in range(2):
        die(survivor)
        assert counted(eventfd) == 0
    await survivor.pin(nodeid, "p", LEASE, survivor.request())
    await break_of(survivor, nodeid)
    assert counted(eventfd) == 1
    await survivor.ops.release(fh)
    assert (kept(survivor), recorded(survivor)) == (set(), set())


async def test_lines_of_which_nobody_was_told_are_told_by_the_next(
    survivor: Survivor, eventfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the line and the eventfd: else the program would wait for ever beside a line."""
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    await survivor.ops.write(fh, 0, f"eventfd {eventfd}\n".encode())
    await survivor.pin(nodeid, "p", LEASE, survivor.request())
    with monkeypatch.context() as killed:
        killed.setattr(survivor.fs.verbs.eventfds, "signal", lambda id_: None)
        await break_of(survivor, nodeid)
    assert counted(eventfd) == 0
    die(survivor)
    assert counted(eventfd) >= 1
    assert [line["event"] for line in await read_all(survivor, fh)] == ["break"]
    die(survivor)
    assert counted(eventfd) == 0


async def test_what_a_pin_and_a_channel_share_goes_with_the_last(survivor: Survivor, eventfd: int) -> None:
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    await survivor.ops.write(fh, 0, f"eventfd {eventfd}\n".encode())
    for name in "pq":
        await survivor.pin(nodeid, name, f"{LEASE},eventfd={eventfd}", survivor.request())
    (id_,) = kept(survivor)
    die(survivor)
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.p", survivor.request())
    await survivor.ops.release(fh)
    assert kept(survivor) == recorded(survivor) == {id_}
    die(survivor)
    await survivor.ops.removexattr(nodeid, b"user.pinfs.pin.q", survivor.request())
    assert (kept(survivor), recorded(survivor)) == (set(), set())


async def test_a_holder_that_died_meanwhile_leaves_nothing(survivor: Survivor, eventfd: int) -> None:
    nodeid = await survivor.file("f", SIZE)
    holder = os.fork()
    if not holder:
        signal.pause()
    caller = ME._replace(pid=holder)
    await survivor.pin(nodeid, "p", f"0:0,eventfd={eventfd}", survivor.request(caller))
    await survivor.ops.write(await channel(survivor, ctx=caller), 0, f"eventfd {eventfd}\n".encode())
    assert len(kept(survivor)) == 1
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    die(survivor)
    assert not survivor.fs.guard.book.table.by_id
    await survivor.taken.finish(lambda nodeid: True)
    (fh,) = [handle.number for handle in survivor.ops.handles.all()]
    await survivor.ops.release(fh)
    assert (kept(survivor), recorded(survivor)) == (set(), set())


async def test_no_record_names_what_the_store_has_let_go_of(
    survivor: Survivor, eventfd: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each moment at which the daemon may be killed: else the pin would stand there without its eventfd."""
    drop, dropped = MemoryStore.drop, []

    def checked(store: MemoryStore, name: str) -> None:
        if name in store.kept and name.startswith("e"):
            assert int(name[1:]) not in recorded(survivor)
            dropped.append(name)
        drop(store, name)

    monkeypatch.setattr(MemoryStore, "drop", checked)
    nodeid = await survivor.file("f", SIZE)
    fh = await channel(survivor)
    for number in (eventfd, other, eventfd):
        await survivor.pin(nodeid, "p", f"0:0,eventfd={number}", survivor.request())
    await survivor.pin(nodeid, "p", "0:0", survivor.request())
    assert len(dropped) == 3
    for number in (eventfd, other, eventfd):
        await survivor.ops.write(fh, 0, f"eventfd {number}\n".encode())
    await survivor.ops.release(fh)
    assert len(dropped) == 6


async def test_whose_it_is_counts_on(survivor: Survivor, eventfd: int) -> None:
    """The user that has registered it, also where the pin is another's."""
    nodeid = await survivor.file("f", SIZE)
    await survivor.pin(nodeid, "p", f"0:0,pid={os.getpid()},eventfd={eventfd}", survivor.request())
    (pin,) = survivor.fs.guard.book.table.by_id.values()
    pin.uid = 1234
    assert survivor.fs.recorder is not None
    survivor.fs.recorder.pin(pin, survivor.request())
    die(survivor)
    assert [known.uid for known in survivor.fs.verbs.eventfds._known.values()] == [ME.uid]


# Polls


async def test_a_program_that_waits_by_poll_is_remembered(survivor: Survivor) -> None:
    """The first request after a death may be io_uring's, before the kernel asks again for the program that waits."""
    nodeid = await survivor.file("f", SIZE)
    file = (await survivor.ops.open(nodeid, os.O_RDWR, survivor.request())).fh
    fh = await channel(survivor)
    assert await survivor.ops.poll(fh, 0x1, PollWake(lambda message: None, 7)) & 0x1 == 0
    die(survivor)
    assert await survivor.ops.poll(file, 0x1, None) & 0x1
    await survivor.ops.release(fh)
    with pytest.raises(OSError, match="not implemented"):
        await survivor.ops.poll(file, 0x1, None)
    die(survivor)
    with pytest.raises(OSError, match="not implemented"):
        await survivor.ops.poll(file, 0x2, None)
