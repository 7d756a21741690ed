"""Logs: what a hostile file name cannot do to them, and where they go."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinfs.cli import logs


@pytest.fixture(autouse=True)
def root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize("target", logs.Target)
def test_targets_by_the_names_of_the_documents(run, target: logs.Target) -> None:
    """click 8.2 and later would take the names of an enum's members: STDERR."""
    assert run("mount", "/source", "/mnt", "--fake", "--log", target.value).exit_code == 0


def test_a_name_cannot_forge_a_record(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup(logs.Target.STDERR, file, "info", as_json=False)
    logging.getLogger("pinfs").info("cut of %s", "x\n2026 pinfs ERROR: forged\x1b[2J")
    first, second = file.read_text().splitlines()
    assert first.endswith("pinfs INFO: cut of x")
    assert second == "    2026 pinfs ERROR: forged\\x1b[2J"


def test_json_is_one_object_a_record(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup(logs.Target.STDERR, file, "warning", as_json=True)
    logging.getLogger("pinfs").info("below the level")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("pinfs").exception("a\nb")
    (entry,) = map(json.loads, file.read_text().splitlines())
    assert (entry["v"], entry["level"], entry["logger"]) == (1, "error", "pinfs")
    assert entry["message"].startswith("a\nb\nTraceback")


def test_journal_gets_fields_with_their_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "journal")
    monkeypatch.setattr(logs.Journal.__init__, "__defaults__", (address,))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(address)
        logs.setup(logs.Target.JOURNAL, None, "info", as_json=False)
        logging.getLogger("pinfs").warning("one\ntwo")
        datagram = journal.recv(4096)
    message = b"pinfs WARNING: one\n    two"
    assert b"MESSAGE\n" + len(message).to_bytes(8, "little") + message + b"\n" in datagram
    assert b"PRIORITY\n" + (1).to_bytes(8, "little") + b"4\n" in datagram


def test_a_journal_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failure:
        logs.Journal(str(tmp_path / "nowhere"))
    assert failure.value.filename == str(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("there", "target"), [(["JOURNAL", "SYSLOG"], "journal"), (["SYSLOG"], "syslog"), ([], "stderr")]
)
def test_where_a_background_daemon_can_be_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], target: str
) -> None:
    for name in ("JOURNAL", "SYSLOG"):
        path = tmp_path / name
        monkeypatch.setattr(logs, name, str(path))
        if name in there:
            path.touch()
    assert logs.background_target() == target
