"""Times, and pins as JSON, in what people and programs see."""

import json
import time
from collections import Counter

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pinfs.core.owners import ProcessId
from pinfs.core.pins import Mode, Pin, PinRequest, PinSpec
from pinfs.fs.describe import MAX_SHOWN_PATH, PinLines, pin_json, unix_time

HOLDER = ProcessId(4711, 99, 1, 7)


def pin_of(number: int = 7, inode: int = 12, note: str = "", name: bytes | None = b"weights") -> Pin:
    spec = PinSpec(0, 4096, Mode.LEASE, signal=29, note=note)
    return Pin(number, PinRequest(inode, HOLDER, HOLDER, 1000, name, spec), 5.0, 4096, number)


async def test_a_moment_is_the_same_time_whenever_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    first = unix_time(5.0)
    for _ in range(20):  # over two roundings; trio's clock stands still in a test
        now += 1e-4
        assert unix_time(5.0) == first
    now += 3600  # the clock was set
    assert unix_time(5.0) == pytest.approx(first + 3600, abs=1)


async def test_a_pin_as_json() -> None:
    shown = json.loads(pin_json(pin_of(note="my note"), "models/w.bin", lambda process: "trainer", True))
    assert shown == {
        "v": 1, "id": 7, "owner": "process", "start": 0, "length": 4096, "mode": "lease", "state": "held",
        "deadline": None, "remaining_s": None, "dirty": False, "inode": 12, "path": "models/w.bin",
        "since": unix_time(5.0), "sealed": True, "name": "weights", "pid": 4711, "uid": 1000, "comm": "trainer",
        "signal": "IO", "note": "my note", "eventfd": False,
    }  # fmt: skip


async def test_a_pin_whose_holder_the_reader_may_not_see() -> None:
    shown = json.loads(pin_json(pin_of(), None, None, False))
    assert not {"name", "pid", "uid", "comm", "signal", "note", "eventfd"} & shown.keys()
    assert (shown["id"], shown["path"], shown["sealed"]) == (7, None, False)


any_text = st.text(st.characters(), max_size=40)


@given(path=any_text, note=any_text, comm=any_text, name=st.binary(max_size=40))
def test_any_text_is_one_line_of_ascii_and_comes_back(path: str, note: str, comm: str, name: bytes) -> None:
    async def show() -> str:
        return pin_json(pin_of(note=note, name=name), path, lambda process: comm, False)

    text = trio.run(show)
    assert text.isascii()
    assert text.isprintable()
    shown = json.loads(text)
    assert (shown["path"], shown["note"], shown["comm"]) == (path, note, comm)
    assert shown["name"] == name.decode(errors="replace")


async def test_of_a_long_path_the_end() -> None:
    shown = json.loads(pin_json(pin_of(), "d/" * MAX_SHOWN_PATH + "w.bin", None, False))
    assert shown["path"].startswith(".../")
    assert shown["path"].endswith("/w.bin")


async def test_a_read_asks_once_for_what_pins_have_in_common() -> None:
    asked: Counter[object] = Counter()

    def comm_of(process: ProcessId) -> str:
        asked[process] += 1
        return "trainer"

    def facts(inode: int) -> tuple[str, bool]:
        asked[inode] += 1
        return f"file {inode}", False

    pins = {number: pin_of(number, inode=12 + number % 2) for number in range(1, 20)}
    lines = PinLines(pins, facts, lambda pin: None if pin.id == 3 else comm_of)
    shown = [json.loads(lines.of(number)) for number in pins]
    assert [pin["path"] for pin in shown[:3]] == ["file 13", "file 12", "file 13"]
    assert [pin.get("comm") for pin in shown[:3]] == ["trainer", "trainer", None]
    assert set(asked.values()) == {1}
    del pins[5]
    assert lines.of(5) == b""
