"""ls: order, filters, and the same again and again."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cli.fakemount import STATUS, FakeMount

from pinfs.cli.pintable import COLUMNS, chosen_order, complete_columns, in_order
from pinfs.observe.wording import age_text, breaker_text

BREAKER = {"op": "truncate", "path": "models/w.bin", "inode": 12, "from": 0, "to": None, "waits_for": [7],
           "more": False, "deadline": 1764000045.0, "remaining_s": 44.2, "pid": 99, "uid": 0,
           "comm": "truncate"}  # fmt: skip
HIDDEN = ("name", "pid", "uid", "comm", "signal", "note")


def ids(result: Any) -> list[int]:
    assert result.exit_code == 0, result.output
    return [pin["id"] for pin in json.loads(result.stdout)["pins"]]


@pytest.fixture
def three(fake: FakeMount) -> FakeMount:
    """Of two users, two programs, two files."""
    fake.pins(
        {"id": 1, "pid": 20, "comm": "trainer", "uid": 1000, "length": 100, "path": "models/w.bin", "since": 30.0},
        {"id": 2, "pid": 3, "comm": "python3", "uid": 0, "length": 0, "path": "index/deep/v.faiss", "since": 10.0},
        {"id": 3, "pid": 100, "comm": "python3.11", "uid": 1000, "length": 5, "path": None, "since": 20.0,
         "state": "breaking", "remaining_s": 4.0},
    )  # fmt: skip
    return fake


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [3, 1, 2]),  # breaking pins first
        (["--reverse"], [2, 1, 3]),
        (["--sort", "id"], [1, 2, 3]),
        (["--sort", "-id"], [3, 2, 1]),
        (["--sort", "+id"], [1, 2, 3]),
        (["--sort=-ID", "-r"], [1, 2, 3]),
        (["-s", "pid"], [2, 1, 3]),  # as a number
        (["--sort", "length"], [3, 1, 2]),  # "end" is longer than any
        (["--sort", "path"], [2, 1, 3]),  # what has none comes last
        (["--sort", "-path"], [1, 2, 3]),
        (["--sort", "deadline,-id"], [3, 2, 1]),
        (["--sort", "uid,-pid"], [2, 3, 1]),
        (["--sort", "-age"], [2, 3, 1]),
        (["--sort", "since"], [2, 3, 1]),
    ],
)
def test_sorted(run, three: FakeMount, options: list[str], expected: list[int]) -> None:
    assert ids(run("ls", *options)) == expected


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_sorts_whatever_is_missing(name: str) -> None:
    pins = [{"id": 1, "state": "held", "mode": "deny", "start": 0, "length": 0, "mount": "/m"},
            {"id": 2, "state": "breaking", "mode": "lease", "start": 1, "length": 1, "mount": "/m", "inode": 3,
             "pid": 4, "uid": 5, "comm": "x", "path": "p", "since": 1.0, "signal": 40, "remaining_s": 1.0, "note": "n",
             "name": "n", "owner": "process", "host": "a"}]  # fmt: skip
    order = chosen_order(None, None, name)  # type: ignore[arg-type]  # click's words for an error alone
    assert len(in_order(pins, order)) == len(in_order(pins, order, reverse=True)) == 2


@pytest.mark.parametrize("value", ["NONSENSE", "id,,nonsense", "-", ","])
def test_an_unknown_column_to_sort_by_is_a_usage_error(run, fake: FakeMount, value: str) -> None:
    result = run("ls", "--sort", value)
    assert (result.exit_code, "DEADLINE" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--user", "root"], [2]),
        (["--user", "1000"], [3, 1]),
        (["-u", "root", "-u", "1000"], [3, 1, 2]),
        (["--process", "20"], [1]),
        (["--process", "2"], []),
        (["--process", "python3"], [2]),
        (["-p", "python*"], [3, 2]),
        (["-p", "python*", "-u", "1000"], [3]),
        (["--path", "*.bin"], [1]),
        (["--path", "models/*"], [1]),
        (["--path", "index/**"], [2]),
        (["--path", "/deep/*"], []),
        (["--path", "*.faiss", "--path", "*.bin"], [1, 2]),
        (["--state", "breaking"], [3]),
    ],
)
def test_filtered(run, three: FakeMount, options: list[str], expected: list[int]) -> None:
    assert ids(run("ls", *options)) == expected


def test_a_user_that_there_is_not_is_a_usage_error(run, fake: FakeMount) -> None:
    result = run("ls", "--user", "nobody-of-this-name")
    assert (result.exit_code, "nobody-of-this-name" in result.stderr) == (2, True)


@pytest.mark.parametrize("glob", ["", "../x", "a//b"])
def test_a_glob_that_matches_no_file_is_a_usage_error(run, fake: FakeMount, glob: str) -> None:
    assert run("ls", "--path", glob).exit_code == 2


def test_pins_whose_holders_one_may_not_see_are_counted(run, three: FakeMount) -> None:
    first, *rest = [json.loads(line) for line in three.read("pins").splitlines()]
    hidden = [{key: value for key, value in pin.items() if key not in HIDDEN} for pin in rest]
    three.write("pins", "".join(json.dumps(pin) + "\n" for pin in [first, *hidden]))
    result = run("ls", "--table", "-n", "-o", "ID", "--user", "1000")
    assert result.stdout.split() == ["1"]
    assert "2 pins are left out" in result.stderr
    assert "left out" not in run("ls", "--table", "--path", "*").stderr


def test_what_a_breaker_waits_for_stands_below_the_table(run, fake: FakeMount) -> None:
    fake.pins({"state": "breaking"})
    fake.write("status", json.dumps(STATUS | {"breakers": [BREAKER, BREAKER | {"waits_for": [8]}]}))
    said = run("ls", "--table").stderr
    assert f"truncate of {fake.file} [0, end) by 99 truncate waits for pin 7: 44.2 s left" in said
    assert "pin 8" in said
    assert "pin 8" not in run("ls", "--table", "--state", "breaking").stderr  # of what is listed alone
    assert [one["waits_for"] for one in json.loads(run("ls").stdout)["breakers"]] == [[7], [8]]


def test_the_status_has_a_row_for_each_removal_that_waits(run, fake: FakeMount) -> None:
    fake.write("status", json.dumps(STATUS | {"breakers": [BREAKER]}))
    assert (
        "waits             truncate of models/w.bin [0, end) by 99 truncate waits for pin 7"
        in run("status", "--table").stdout
    )


def test_a_breaker_in_words() -> None:
    many = BREAKER | {"waits_for": [1, 2], "more": True, "path": "a\nb"}
    assert breaker_text(many).startswith(
        "truncate of a\\x0ab [0, end) by 99 truncate waits for pins 1, 2 and more: 44.2"
    )
    earlier = BREAKER | {"waits_for": [], "remaining_s": None, "host": "b", "to": 5}
    assert breaker_text(earlier) == (
        "truncate of models/w.bin [0, 5) from host b waits for an earlier removal, or for another host"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3725, "1h 2m"), (90061, "1d 1h")]
)
def test_an_age_in_words(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


@pytest.mark.parametrize(
    ("begun", "offered"),
    [("sta", ["START", "STATE"]), ("pid,-ag", ["pid,-AGE"]), ("+n", ["+NOTE", "+NAME"]), ("id,nonsense", [])],
)
def test_a_shell_completes_columns(begun: str, offered: list[str]) -> None:
    assert sorted(complete_columns(None, None, begun)) == sorted(offered)  # type: ignore[arg-type]


# Again and again


@pytest.mark.parametrize(("words", "every_s"), [(["--watch"], 2.0), (["-w", "0.5"], 0.5), (["--watch=7"], 7.0)])
def test_in_a_pipe_each_reading_is_a_line(
    run, fake: FakeMount, pauses: list[float], words: list[str], every_s: float
) -> None:
    fake.pins({})
    result = run("ls", *words)
    assert result.exit_code == 130
    assert [json.loads(line)["pins"][0]["id"] for line in result.stdout.splitlines()] == [7, 7, 7]
    assert pauses == [every_s] * 3


def test_what_follows_is_a_path_unless_it_is_a_number(run, fake: FakeMount, pauses: list[float]) -> None:
    fake.pins({})
    assert run("ls", "--watch", fake.file.parent).exit_code == 130
    assert run("ls", "--", "--watch").exit_code == 12  # a name


def test_tables_in_a_pipe_are_parted_by_an_empty_line(run, fake: FakeMount, pauses: list[float]) -> None:
    fake.pins({})
    assert run("ls", "--table", "-n", "-o", "ID", "--watch").stdout.split("\n\n") == ["7", "7", "7", ""]


@pytest.mark.parametrize("value", ["0", "0.01", "inf"])
def test_it_is_not_read_too_often(run, fake: FakeMount, value: str) -> None:
    assert run("ls", "--watch", value).exit_code == 2


def test_in_place_on_a_terminal_until_q(typing, fake: FakeMount) -> None:
    fake.pins({"state": "breaking", "note": "x" * 300}, {"id": 8})
    terminal = typing(["ls", "--watch", "600"])
    shown = terminal.until("2 pins")
    assert "breaking" in shown  # of the note there is less
    assert "\x1b[?1049h" in shown  # the other screen
    assert "Every 600 s" in shown
    terminal.types("q")
    assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.shown


def test_rows_that_find_no_room_are_counted(typing, fake: FakeMount) -> None:
    fake.pins(*({"id": number} for number in range(100)))
    terminal = typing(["ls", "--watch", "600"])
    terminal.until("100 pins, 73 of them not shown")
    terminal.types("q")
    assert terminal.end() == 0


def test_a_mount_that_ends_is_said_in_place(typing, fake: FakeMount, table: Path) -> None:
    fake.pins({})
    terminal = typing(["ls", "--watch", "0.1", str(fake.file.parent)])
    terminal.until("1 pin")
    table.write_text("")
    terminal.until("not on a pinfs mount")
    terminal.types("q")
    assert terminal.end() == 0


def test_control_c_leaves_the_terminal_as_it_was(typing, fake: FakeMount) -> None:
    terminal = typing(["ls", "--watch", "600"])
    terminal.until("0 pins")
    os.kill(terminal.child, signal.SIGINT)
    assert terminal.end() == 130
    assert "\x1b[?1049l" in terminal.shown
