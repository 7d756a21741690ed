"""ls, status, watch: what each user is shown, and in which form."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli.fakemount import PIN, STATUS, FakeMount

from pinfs.cli.pintable import in_order, table_of_pins
from pinfs.observe.mounts import Mount
from pinfs.observe.wording import describe, differences, printable


def test_json_in_a_pipe(run, fake: FakeMount) -> None:
    fake.pins({}, {"id": 8})
    answer = json.loads(run("ls").stdout)
    assert answer["v"] == 1
    assert answer["pins"] == [PIN | {"mount": str(fake.point)}, PIN | {"id": 8, "mount": str(fake.point)}]


def test_table_on_a_terminal_in_colour(on_terminal, fake: FakeMount) -> None:
    fake.pins({"state": "breaking", "remaining_s": 44.25})
    shown = on_terminal(["ls"])
    assert "\x1b[" in shown
    assert "44.2s" in shown
    assert "COMM" in shown


def test_no_color_is_honoured(on_terminal, fake: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    fake.pins({"state": "breaking"})
    shown = on_terminal(["ls"])
    assert "breaking" in shown
    assert "\x1b[3" not in shown
    assert "\x1b[9" not in shown


def test_table_in_a_pipe_is_plain(run, fake: FakeMount) -> None:
    fake.pins({"state": "breaking"}, {"id": 12345, "length": 0})
    lines = run("ls", "--table").stdout.splitlines()
    assert lines[0].split() == [
        "ID",
        "MODE",
        "STATE",
        "START",
        "LENGTH",
        "PID",
        "COMM",
        "UID",
        "PATH",
        "NOTE",
        "DEADLINE",
    ]
    assert lines[1].startswith("    7  lease  breaking") or lines[1].startswith("    7 lease breaking")
    assert lines[2].split()[:5] == ["12345", "lease", "held", "0", "end"]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("id,pid", ["7 4711"]),
        ("PATH", ["{mount}/models/w.bin"]),
        ("NAME,SIGNAL,DIRTY,OWNER", ["weights IO no process"]),
    ],
)
def test_columns(run, fake: FakeMount, option: str, expected: list[str]) -> None:
    fake.pins({})
    lines = run("ls", "--table", "-n", "-o", option).stdout.splitlines()
    assert [" ".join(line.split()) if "mount" not in line else line for line in lines] == [
        line.format(mount=fake.point) for line in expected
    ]


def test_more_columns(run, fake: FakeMount) -> None:
    assert run("ls", "--table", "-o", "+INODE").stdout.split()[-1] == "INODE"


@pytest.mark.parametrize("option", ["", "ID,NONSENSE", "+"])
def test_unknown_column_is_a_usage_error(run, fake: FakeMount, option: str) -> None:
    result = run("ls", "-o", option)
    assert result.exit_code == 2
    assert "PATH" in result.stderr  # names what there is


def test_holder_that_one_may_not_see(run, fake: FakeMount) -> None:
    hidden = {key: PIN[key] for key in ("v", "id", "start", "length", "mode", "state", "inode", "path")}
    fake.write("pins", json.dumps(hidden) + "\n")
    assert run("ls", "--table", "-n", "-o", "ID,PID,COMM,UID,NOTE").stdout.split() == ["7", "-", "-", "-", "-"]


def test_file_from_its_attribute(run, fake: FakeMount) -> None:
    os.setxattr(fake.file, "user.pinfs.pins", json.dumps({"v": 1, "pins": [PIN], "more": 0}).encode())
    assert [pin["id"] for pin in json.loads(run("ls", fake.file).stdout)["pins"]] == [7]


def test_file_with_more_pins_than_an_attribute_holds(run, fake: FakeMount) -> None:
    fake.pins({}, {"id": 8}, {"id": 9, "inode": 13})
    os.setxattr(fake.file, "user.pinfs.pins", json.dumps({"v": 1, "pins": [PIN], "more": 1}).encode())
    assert [pin["id"] for pin in json.loads(run("ls", fake.file).stdout)["pins"]] == [7, 8]


def test_not_on_pinfs(run, fake: FakeMount, tmp_path: Path) -> None:
    result = run("ls", tmp_path)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "not on a pinfs mount" in result.stderr


def test_no_such_file(run, fake: FakeMount) -> None:
    assert run("ls", "/nowhere/at/all").exit_code == 12


@pytest.mark.parametrize("how", ["--json", "--table"])
def test_pins_below_a_directory(run, fake: FakeMount, how: str) -> None:
    elsewhere = ("w.bin", "models", "models2/w.bin", "a/models/w.bin", None)
    fake.pins({}, {"id": 8, "path": "models/deep/w.bin"}, *({"id": 9, "path": path} for path in elsewhere))
    result = run("ls", how, "-n", "-o", "ID", f"{fake.point}/models/")
    shown = [pin["id"] for pin in json.loads(result.stdout)["pins"]] if how == "--json" else result.stdout.split()
    assert (result.exit_code, [int(number) for number in shown]) == (0, [7, 8])


def test_a_directory_that_a_link_leads_to(run, fake: FakeMount, tmp_path: Path) -> None:
    fake.pins({})
    (tmp_path / "link").symlink_to(fake.point)
    (fake.point / "current").symlink_to("models")
    for path in (tmp_path / "link/models", fake.point / "current", tmp_path / "link/../link/current/."):
        assert [pin["id"] for pin in json.loads(run("ls", path).stdout)["pins"]] == [7]


def test_what_is_neither_file_nor_directory_is_a_usage_error(run, fake: FakeMount) -> None:
    os.mkfifo(fake.point / "fifo")
    result = run("ls", fake.point / "fifo")
    assert (result.exit_code, "neither a regular file nor a directory" in result.stderr) == (2, True)


def test_bind_mounts_of_a_part_and_hidden_mounts_are_not_listed(run, fake: FakeMount, table: Path) -> None:
    fake.pins({})
    table.write_text(table.read_text() + fake.row(fstype="tmpfs"))  # something else is mounted over it
    assert json.loads(run("ls").stdout)["pins"] == []
    table.write_text(fake.row(root="/models"))
    assert json.loads(run("ls").stdout)["pins"] == []


def test_a_mount_that_cannot_be_read_is_named_and_the_others_are_listed(run, fake: FakeMount, table: Path) -> None:
    fake.pins({})
    gone = FakeMount(fake.point.parent / "gone")
    table.write_text(table.read_text() + gone.row())
    (gone.point / ".pinfs/pins").unlink()
    result = run("ls")
    assert [pin["id"] for pin in json.loads(result.stdout)["pins"]] == [7]
    assert (result.exit_code, str(gone.point) in result.stderr) == (12, True)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTCONN])
@pytest.mark.parametrize("how", ["--json", "--table"])
def test_a_mount_that_ends_meanwhile_is_passed_over(
    run, fake: FakeMount, table: Path, monkeypatch: pytest.MonkeyPatch, how: str, number: int
) -> None:
    fake.pins({})
    ending = FakeMount(fake.point.parent / "ending")
    before = table.read_text()

    def control(mount: Mount, name: str) -> Path:
        if mount.point == str(ending.point):
            table.write_text(before)
            raise OSError(number, os.strerror(number), mount.point)
        return Path(mount.point, ".pinfs", name)

    monkeypatch.setattr(Mount, "control", control)
    for verb in ("ls", "status"):
        table.write_text(before + ending.row())
        result = run(verb, how)
        assert (result.exit_code, result.stderr) == (0, "")
        assert str(fake.point) in result.stdout
        assert str(ending.point) not in result.stdout


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("caf\u00e9 \u65e5\u672c", "caf\u00e9 \u65e5\u672c"),
        (os.fsdecode(b"\xff\xfe"), "\\xff\\xfe"),
        ("\u2028\x9b31m", "\\u2028\\x9b31m"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
    ],
)
def test_nothing_reaches_out_of_the_terminal(on_terminal, fake: FakeMount, hostile: str, shown: str) -> None:
    assert printable(hostile) == shown
    fake.pins({"note": hostile, "path": hostile, "comm": hostile})
    table = on_terminal(["ls", "-n", "-o", "NOTE"])
    assert table.strip() == shown


def test_status_of_all_mounts(run, fake: FakeMount) -> None:
    passthrough = {"passthrough": False, "passthrough_unavailable_because": "kernel is too old"}
    status = STATUS | passthrough | {"page_pins": "reading", "pins": 12345, "negotiated": ["ASYNC_READ", "POSIX_ACL"]}
    fake.write("status", json.dumps(status))
    (one,) = json.loads(run("status").stdout)["mounts"]
    assert one["mountpoint"] == str(fake.point)
    assert one["counters"] == {"pinfs_refusals_total": 2.0}
    rows = [line.split("  ", 1) for line in run("status", "--table").stdout.splitlines()]
    assert {label: words.strip() for label, words in rows} == {
        "mount": str(fake.point), "source": "/src", "daemon's process": "1", "version": "0.1.0", "up for": "0:01:01",
        "passthrough": "no: kernel is too old",
        "page pins": "for reading only; RDMA that writes needs on-demand paging",
        "bridge": "yes", "pins": "12,345", "breakers waiting": "0",
        "descriptors": "9", "refusals": "2", "kernel features": "ASYNC_READ, POSIX_ACL",
    }  # fmt: skip


def test_status_without_mounts(run, table: Path) -> None:
    assert run("status").exit_code == 3


def test_status_of_a_mount_that_does_not_answer(run, fake: FakeMount) -> None:
    (fake.point / ".pinfs/status").unlink()
    (one,) = json.loads(run("status").stdout)["mounts"]
    assert one["v"] == 1
    result = run("status", "--table")
    assert result.exit_code == 12
    assert "pinfs umount" in result.stdout


def test_watch_prints_the_trace_and_ends_after_count(run, fake: FakeMount) -> None:
    events = [{"v": 1, "seq": n, "event": "break", "pin": n} for n in (1, 2, 3)]
    fake.write("trace", "".join(json.dumps(event) + "\n" for event in events))
    result = run("watch", "--count", 2)
    assert [json.loads(line) for line in result.stdout.splitlines()] == events[:2]
    assert "break" in run("watch", "--text").stdout


def test_changes_of_the_table_as_events() -> None:
    def kinds(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[tuple[object, object]]:
        old, new = ({pin["id"]: PIN | pin for pin in pins} for pins in (before, now))
        return [(event["event"], event["pin"]) for event in differences(old, new)]

    held, breaking = {"id": 1, "state": "held"}, {"id": 1, "state": "breaking"}
    assert kinds([], [held]) == [("pinned", 1)]
    assert kinds([], [breaking]) == [("pinned", 1), ("break", 1)]
    assert kinds([held], [breaking]) == [("break", 1)]
    assert kinds([breaking], [breaking]) == []
    assert kinds([breaking], [held]) == [("withdrawn", 1)]
    assert kinds([held], []) == [("released", 1)]


def test_an_event_in_words() -> None:
    event = PIN | {"event": "break", "pin": 7, "op": "truncate", "breaker": {"pid": 99, "uid": 0}, "remaining_s": 45.0}
    assert describe(event) == (
        "pin 7 lease [0, 4096) of models/w.bin held by 4711 trainer for truncate of 99 45.0 s left"
    )
    assert describe({"event": "overflow", "lost": 3}) == "3 events lost"


def test_a_table_has_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    pins = [{"id": number, "state": "held", "mode": "deny"} for number in range(7)] + [{"id": 99, "state": "breaking"}]
    table_of_pins(in_order(pins, []), ["ID"], limit=3).print()
    shown = capsys.readouterr()
    assert shown.out.split() == ["ID", "99", "0", "1"]
    assert "5 more" in shown.err
