"""top: what a mount is doing, from two readings."""

import json
import time

import pytest
from cli.fakemount import PIN, STATUS, FakeMount

from pinfs.cli.screen import pause_s
from pinfs.observe import activity
from pinfs.observe.wording import bytes_text

BREAKER = {"op": "truncate", "path": "models/w.bin", "inode": 12, "from": 0, "to": None, "waits_for": [7, 8],
           "more": False, "remaining_s": 30.0, "pid": 99, "uid": 0, "comm": "truncate"}  # fmt: skip
CLUSTER = {"name": "blue", "host": "a", "state": "joined",
           "members": [{"host": "b", "incarnation": 1, "silent_s": 90.0},
                       {"host": "b", "incarnation": 2, "silent_s": 1.5},
                       {"host": "a", "incarnation": 1, "silent_s": 0.2}]}  # fmt: skip


def metrics(requests: int, breaks: int) -> str:
    return (
        "# TYPE pinfs_requests counter\n"
        f'pinfs_requests_total{{path="fast"}} {requests}\npinfs_requests_total{{path="parked"}} 5\n'
        f"# TYPE pinfs_breaks_started counter\npinfs_breaks_started_total {breaks}\n"
        "# TYPE pinfs_pinned_bytes gauge\npinfs_pinned_bytes 1048576\n"
    )


@pytest.fixture
def busy(fake: FakeMount, monkeypatch: pytest.MonkeyPatch) -> FakeMount:
    """Between two readings 400 requests and 2 breaks."""
    fake.pins(
        {"state": "breaking"},
        {"id": 8, "pid": 5, "comm": "searchd", "length": 0},
        {"id": 9, "pid": 5, "comm": "searchd"},
    )
    fake.write("status", json.dumps(STATUS | {"waiting": 1, "breakers": [BREAKER], "cluster": CLUSTER}))
    fake.write("metrics", metrics(1000, 3))

    def sleep(seconds: float) -> None:
        fake.write("metrics", metrics(1400, 5))

    monkeypatch.setattr(time, "sleep", sleep)
    return fake


def test_once_in_a_pipe_is_json(run, busy: FakeMount) -> None:
    result = run("top", "--once", "--every", 4)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["rates"]["requests"] / found["rates"]["breaks"] == pytest.approx(200, rel=0.01)
    assert found["rates"]["refusals"] == 0
    assert (found["pinned_bytes"], found["waiting"], found["more_holders"]) == (1 << 20, 1, 0)
    (one,) = found["breaks"]
    assert one["holders"] == [{"pid": 4711, "comm": "trainer"}]  # pin 8 does not break
    assert [holder["pid"] for holder in found["holders"]] == [4711, 5]
    assert [host["silent_s"] for host in found["hosts"]] == [0.2, 1.5]


def test_once_as_text(run, busy: FakeMount) -> None:
    text = run("top", "--once", "--text").stdout
    assert "3 pins of 1 MiB" not in text  # what the daemon counts, not what is listed
    assert "1 pin of 1 MiB, 1 breaker waiting, up for 1m 1s" in text
    assert "truncate of models/w.bin [0, end) by 99 truncate waits for pins 7, 8: 30.0 s left" in text
    assert "cluster blue, as host a: joined, 2 hosts; silent for: a 0.2 s, b 1.5 s" in text
    (searchd,) = [line.split() for line in text.splitlines() if "searchd" in line]
    assert searchd[:7] == ["5", "searchd", "1000", "2", "0", "4", "KiB+"]


def test_in_a_pipe_each_reading_is_a_line(run, fake: FakeMount, pauses: list[float]) -> None:
    result = run("top", "--every", 600)
    assert result.exit_code == 130
    assert [json.loads(line)["v"] for line in result.stdout.splitlines()] == [1, 1]
    assert pauses == [600.0] * 3


def test_a_mount_of_very_many_pins_is_left_alone_for_longer() -> None:
    assert pause_s(0.5, 0.4) == 0.5
    assert pause_s(0.5, 2.0) == 18.0
    assert pause_s(60.0, 2.0) == 60.0


def test_a_mount_that_does_not_answer(run, fake: FakeMount) -> None:
    (fake.point / ".pinfs/pins").unlink()
    assert run("top", "--once").exit_code == 12


def test_without_a_mount(run, table) -> None:
    assert run("top").exit_code == 3


def test_keys_sort_the_holders(typing, fake: FakeMount) -> None:
    fake.pins(
        {"pid": 1, "comm": "many"},
        {"id": 8, "pid": 1, "comm": "many"},
        {"id": 9, "pid": 2, "comm": "large", "length": 1 << 30},
    )
    fake.write("status", json.dumps(STATUS | {"breakers": [BREAKER]}))
    terminal = typing(["top", "--every", "600"])
    first = terminal.until("breaks (now)")
    assert "REMOVAL" in first
    assert first.index("many") < first.index("large")
    terminal.types("s")
    second = terminal.until("bytes (now)")[len(first) :]
    assert second.index("large") < second.index("many")
    terminal.types("q")
    assert terminal.end() == 0


def test_a_mount_that_ends_is_said_in_place(typing, fake: FakeMount) -> None:
    terminal = typing(["top", "--every", "0.1"])
    terminal.until("sort by")
    (fake.point / ".pinfs/pins").unlink()
    terminal.until("No such file")
    fake.pins({"comm": "again"})
    terminal.until("again")
    terminal.types("q")
    assert terminal.end() == 0


@pytest.mark.parametrize(
    ("order", "first"), [("breaks", "breaking"), ("pins", "many"), ("bytes", "large"), ("age", "old")]
)
def test_orders_of_holders(order: str, first: str) -> None:
    pins = [PIN | {"id": n, "comm": "many", "since": 50.0} for n in range(3)]
    pins += [PIN | {"comm": "large", "length": 1 << 40, "since": 60.0}, PIN | {"comm": "old", "since": 1.0}]
    pins += [PIN | {"comm": "breaking", "state": "breaking", "since": 70.0}]
    ranked = activity.holders(pins, 100.0, order)
    assert ranked[0]["comm"] == first
    assert {one["comm"]: one["oldest_s"] for one in ranked}["old"] == 99.0


def test_holders_that_one_may_not_see_are_one() -> None:
    hidden = {key: value for key, value in PIN.items() if key not in ("pid", "comm", "uid")}
    (one,) = activity.holders([hidden, hidden | {"inode": 13, "length": 0}], 0.0)
    assert (one["pid"], one["pins"], one["files"], one["bytes"], one["open_ended"]) == (None, 2, 2, 4096, 1)


def test_counters_that_begin_anew_are_no_rate() -> None:
    assert activity.rates({"pinfs_requests_total": 50.0}, {"pinfs_requests_total": 5.0}, 1.0)["requests"] == 0.0


def test_the_least_time_left_comes_first() -> None:
    waiting = [BREAKER | {"remaining_s": left, "waits_for": [1]} for left in (None, 9.0, 2.0)]
    found = activity.breaks({"breakers": waiting}, [])
    assert [one["remaining_s"] for one in found] == [2.0, 9.0, None]
    assert activity.breaks({}, []) == []  # of an older daemon


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (4 << 30, "4 GiB"), (1 << 60, "1,024.0 PiB")],
)
def test_bytes_in_words(count: int, text: str) -> None:
    assert bytes_text(count) == text
