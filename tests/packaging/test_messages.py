"""docs/messages.md explains each line of the log, by an identifier that each line has."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from support.log_calls import LogCall, log_calls
from support.mounts import REPO, Mount

from pinfs.cli.logs import JsonLines, PlainLines
from pinfs.runtime.messages import IDENTIFIERS

ROW = re.compile(r"\| (P\d{3}) \| (\w+) \| ([\w.]+) \| `(.*?)` \| (.+) \|")
PUT_TOGETHER = {("pinfs.daemon", ""): "state and tasks"}
"""Formats that the sources put together: their first lines."""


class Row(NamedTuple):
    """One of the page."""

    identifier: str
    level: str
    logger: str
    text: str
    meaning: str


def page() -> list[Row]:
    return [Row(*found) for found in ROW.findall((REPO / "docs/messages.md").read_text())]


def test_identifiers_in_other_pages_are_explained() -> None:
    explained = {row.identifier for row in page()}
    for other in REPO.glob("docs/*.md"):
        assert {*re.findall(r"\bP\d{3}\b", other.read_text())} <= explained, other


def key(call: LogCall) -> tuple[str, str]:
    return call.logger, PUT_TOGETHER.get((call.logger, call.text), call.text)


def identifier_of(call: LogCall) -> str | None:
    """As it is in the line: the keeper, which loads nothing of pinfs, has it in its texts."""
    if call.logger == "pinfs.keeper":
        found = re.search(r" \[(P\d{3})\]$", call.text)
        return found[1] if found else None
    return IDENTIFIERS.get(key(call))


def test_each_log_call_has_an_identifier() -> None:
    calls = list(log_calls())
    assert len(calls) > 60
    assert [f"{call.place}: {call.logger}: {call.text!r}" for call in calls if identifier_of(call) is None] == []


def test_the_page_explains_each() -> None:
    in_sources = set()
    for call in log_calls():
        text = re.sub(r" \[P\d{3}\]$", "", key(call)[1])
        in_sources.add((identifier_of(call), call.level, call.logger.removeprefix("pinfs."), text))
    assert {row[:4] for row in page()} == in_sources


def test_an_identifier_stands_for_one_message() -> None:
    identifiers = [row.identifier for row in page()]
    assert len(identifiers) == len(set(identifiers))
    keepers = {row.identifier for row in page() if row.logger == "keeper"}
    assert {*IDENTIFIERS.values()} | keepers == {*identifiers}


def test_where_a_line_has_it() -> None:
    record = logging.LogRecord("pinfs.daemon", logging.INFO, __file__, 1, "%s is mounted on %s", ("/a\nb", "/c"), None)
    assert PlainLines(with_time=False).format(record).splitlines()[0].endswith("[P101]")
    assert json.loads(JsonLines().format(record))["id"] == "P101"
    foreign = logging.LogRecord("trio", logging.INFO, __file__, 1, "%s is mounted on %s", ("/a", "/c"), None)
    assert PlainLines(with_time=False).format(foreign) == "trio INFO: /a is mounted on /c"
    assert "id" not in json.loads(JsonLines().format(foreign))


def test_a_daemon_writes_them(mount: Mount) -> None:
    assert re.search(rf"pinfs\.daemon INFO: .* is mounted on {mount.path} \[P101\]$", mount.log(), re.MULTILINE)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_keeper_writes_them(tmp_path: Path, as_json: bool) -> None:
    from pinfs.keeper.log import Log

    Log(str(tmp_path / "log"), "info", as_json)("warning", "pid 7 ended; the next one takes over [P902]")
    line = (tmp_path / "log").read_text()
    if as_json:
        entry = json.loads(line)
        assert (entry["message"], entry["id"]) == ("pid 7 ended; the next one takes over", "P902")
    else:
        assert line.endswith("pinfs.keeper WARNING: pid 7 ended; the next one takes over [P902]\n")
