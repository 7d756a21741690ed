"""pin: what the command line means, and what is done on a break. With a real mount: test_mounted_cli."""

import os
import signal
import time
from pathlib import Path

import click
import pytest

from pinfs.cli import holding
from pinfs.cli import pin as verb
from pinfs.cli.holding import Held, ending_as_a_shell
from pinfs.cli.verb import Failure
from pinfs.client import xattrs
from pinfs.client.errors import ADVICE
from pinfs.client.model import Event, PinInfo
from pinfs.observe.asking import BoundedMount
from pinfs.observe.mounts import Mount

DEFAULTS = {"file": "f", "command": (), "mode": "deny", "start": None, "length": None, "on_break": None, "number": None,
            "note": "", "name": "n", "dirty": False, "pid": None, "wait_s": 0.0, "no_fork": False, "failure_code": None,
            "quiet": False, "as_json": False}  # fmt: skip


def request(**changes: object) -> verb.Request:
    return verb.Request(**(DEFAULTS | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/mnt/f", ("/mnt/f", 0, 0)),
        ("/mnt/f:4096:100", ("/mnt/f", 4096, 100)),
        ("a:b", ("a:b", 0, 0)),
        ("a:1", ("a:1", 0, 0)),
        ("a:1:b", ("a:1:b", 0, 0)),
        ("a:-1:2", ("a:-1:2", 0, 0)),
        ("a:1:2:3", ("a:1", 2, 3)),
        ("a\n:1:2", ("a\n", 1, 2)),
        (":1:2", (":1:2", 0, 0)),
        ("a:1:\u0662", ("a:1:\u0662", 0, 0)),
    ],
)
def test_only_trailing_numbers_are_a_range(text: str, expected: tuple[str, int, int]) -> None:
    assert request(file=text).target == expected


@pytest.mark.parametrize(("start", "length", "expected"), [(0, None, (0, 0)), (None, 5, (0, 5)), (7, 8, (7, 8))])
def test_a_range_by_options_leaves_the_name_alone(
    start: int | None, length: int | None, expected: tuple[int, int]
) -> None:
    assert request(file="a:1:2", start=start, length=length).target == ("a:1:2", *expected)


@pytest.mark.parametrize(
    ("word", "number"),
    [("TERM", 15), ("sigusr1", 10), ("34", 34), ("RTMIN+1", 35), ("SIGRTMAX-1", 63), ("none", None), (None, None)],
)
def test_names_of_signals(word: str | None, number: int | None) -> None:
    assert verb.signal_number(word) == number


@pytest.mark.parametrize("word", ["", "0", "65", "FOO", "RTMIN+99", "TERM+", "-1"])
def test_no_such_signal(word: str) -> None:
    with pytest.raises(click.BadParameter):
        verb.signal_number(word)


@pytest.mark.parametrize(
    "changes",
    [{"pid": 1, "on_break": "term"}, {"pid": 1, "command": ("true",)}, {"no_fork": True},
     {"no_fork": True, "command": ("true",), "on_break": "wait"}],
)  # fmt: skip
def test_options_that_contradict_each_other(changes: dict[str, object]) -> None:
    with pytest.raises(click.UsageError):
        request(**changes)


def test_the_holder_that_stays_gets_no_signal_itself() -> None:
    assert request(number=signal.SIGUSR1, command=("true",)).requested().signal == "none"
    assert request(number=signal.SIGUSR1, pid=1).requested().signal == signal.SIGUSR1
    assert request(pid=1, mode="lease").requested().signal == "none"


def test_not_on_pinfs(run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    result = run("pin", file, "--", "true")
    assert (result.exit_code, result.stderr) == (3, f"pinfs: {file}: not on a pinfs mount\n")
    assert run("pin", "-E", "99", file, "--", "true").exit_code == 99
    assert run("pin", tmp_path / "nowhere").exit_code == 12
    assert os.listxattr(file) == []  # nothing was stored on the wrong file system


def test_the_advice_of_the_client_is_for_the_shell_too() -> None:
    assert not [text for text in ADVICE.values() if "=" in text], "advice about Python parameters in a shell"


def test_a_note_that_the_attribute_cannot_carry(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "require_pinfs", lambda _inode: None)
    file = tmp_path / "file"
    file.write_text("")
    result = run("pin", "--pid", os.getpid(), "--note", "a,mode=lease", file)
    assert (result.exit_code, "comma" in result.stderr) == (2, True)


def test_wait_tries_again_while_a_removal_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[OSError | PinInfo] = [
        BlockingIOError(11, "x"),
        BlockingIOError(11, "x"),
        PinInfo(7, 0, 0, "deny", "held"),
    ]

    def register(*_args: object) -> PinInfo:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(verb, "require_pinfs", lambda _inode: None)
    monkeypatch.setattr(xattrs, "register", register)
    monkeypatch.setattr(time, "sleep", lambda _s: None)
    assert verb.register(request(file=str(file), wait_s=60.0)).id == 7
    answers.append(BlockingIOError(11, "x"))
    with pytest.raises(BlockingIOError):
        verb.register(request(file=str(file)))


class Recorder:
    """Stands for the mount (releases) and the child (signals)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[object] = []
        monkeypatch.setattr(BoundedMount, "command", lambda _mount, line: self.done.append(line))
        monkeypatch.setattr(os, "kill", lambda pid, number: self.done.append((pid, signal.Signals(number).name)))


def held(tmp_path: Path, on_break: str, number: int | None = None, *, quiet: bool = False) -> Held:
    info = PinInfo(7, 0, 4096, "lease", "held")
    return Held(Mount(str(tmp_path), ""), "a\x1bfile", "n", info, on_break, number, quiet)


BREAK = Event("break", pin=7, op="truncate", remaining_s=45.0)


@pytest.mark.parametrize(
    ("on_break", "number", "done", "gone"),
    [
        ("wait", None, [], False),
        ("ignore", None, [], False),
        ("release", None, ["release 7"], True),
        ("term", None, [(99, "SIGTERM")], False),
        ("wait", signal.SIGUSR1, [(99, "SIGUSR1")], False),
        ("release", signal.SIGUSR1, [(99, "SIGUSR1"), "release 7"], True),
    ],
)
def test_what_is_done_on_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_break: str, number: int | None, done: list[object], gone: bool
) -> None:
    recorder = Recorder(monkeypatch)
    assert held(tmp_path, on_break, number).gone_with(BREAK, 99) is gone
    assert recorder.done == done


def test_what_is_said_of_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    Recorder(monkeypatch)
    held(tmp_path, "wait").gone_with(BREAK, 99)
    assert capsys.readouterr().err == (
        "pinfs: a\\x1bfile [0, 4096): wanted for truncate, 45.0 s left: kept until the end\n"
    )
    held(tmp_path, "wait", quiet=True).gone_with(BREAK, 99)
    held(tmp_path, "ignore").gone_with(BREAK, 99)
    assert capsys.readouterr().err == ""


def test_events_of_other_pins_and_the_end_of_our_own(tmp_path: Path, capsys) -> None:
    pin = held(tmp_path, "release")
    assert not pin.gone_with(Event("break", pin=8))
    assert not pin.gone_with(Event("withdrawn", pin=7))
    assert pin.gone_with(Event("revoked", pin=7, by="root"))
    assert "revoked by root" in capsys.readouterr().err


def test_hold_ends_when_the_pin_is_gone(tmp_path: Path, capsys) -> None:
    events = [Event("revoked", pin=7, by="root")]
    assert holding.hold(held(tmp_path, "release"), events, as_json=False) == 0
    assert capsys.readouterr().out == "pin 7: a\\x1bfile [0, 4096)\n"


@pytest.mark.parametrize(
    ("end", "example"),
    [(":5", ":5:0"), (":0:-1", ":0:4096"), (":0-4095", ":0:4096"), (":4K:1M", ":0:4096"), (":", ":0:4096"),
     (":1:2:", ":0:4096")],
)  # fmt: skip
def test_a_range_of_another_form_is_hinted_at(run, tmp_path: Path, end: str, example: str) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(8192))
    result = run("pin", f"{file}{end}", "--", "true")
    assert (result.exit_code, result.stderr.count("\n")) == (12, 1)
    assert result.stderr.startswith(f"pinfs: {file}{end}: No such file or directory; a range has the form ")
    assert f"{file}:START:LENGTH, in bytes, LENGTH 0: to the end of the file (such as {file}{example})" in result.stderr


@pytest.mark.parametrize(("command", "hinted"), [("5", True), ("0:4096", True), ("no-such-command", False)])
def test_a_range_beside_the_file_is_hinted_at(command: str, hinted: bool) -> None:
    with pytest.raises(Failure) as failure, ending_as_a_shell(command):
        os.execvp(command, [command])
    assert failure.value.exit_code == 127
    assert ("FILE:START:LENGTH" in failure.value.message) is hinted


def test_a_missing_file_is_no_range(run, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("no", "no:5", "d:5"):
        result = run("pin", tmp_path / name, "--", "true")
        assert result.stderr == f"pinfs: {tmp_path / name}: No such file or directory\n"
    (tmp_path / "f").write_bytes(b"x")
    result = run("pin", "--start", "5", f"{tmp_path}/f:5", "--failure-code", "99", "--", "true")
    assert (result.exit_code, "a range" in result.stderr) == (99, False)
