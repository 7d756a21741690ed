"""What status, ls and doctor say of a mount whose daemon was replaced."""

import json
from typing import Any

from cli.fakemount import STATUS, FakeMount

from pinfs.observe.wording import life_text

SURVIVES = {
    "keeper": "systemd", "unavailable_because": None, "journal_version": 1, "journal_bytes": 4096, "records": 9,
}  # fmt: skip
LAST = {
    "at": 1764000000.0, "why": "died", "pause_ms": 123.4, "restored": {"pins": 3}, "not_restored": [], "pid": 9,
    "version": "0.9.0",
}  # fmt: skip


def written(fake: FakeMount, **changes: Any) -> None:
    told = STATUS | {"survives": SURVIVES, "takeovers": 2, "last_takeover": LAST} | changes
    fake.write("status", json.dumps(told))


def test_status_says_it_in_words(run, fake: FakeMount) -> None:
    written(fake)
    table = run("status", "--table").stdout
    assert "yes, kept by systemd (journal: 9 records)" in table
    assert "the daemon before died, pause 123 ms" in table
    (one,) = json.loads(run("status").stdout)["mounts"]
    assert one["last_takeover"] == LAST


def test_what_was_lost_is_shown(run, fake: FakeMount) -> None:
    lost = ["a file that was open: a/\x1b[31mb: No such file"]
    written(fake, last_takeover=LAST | {"not_restored": lost})
    for verb in ("status", "ls"):
        answer = run(verb, "--table")
        shown = answer.stdout + answer.stderr
        assert "a file that was open: a/\\x1b[31mb: No such file" in shown
        assert "\x1b" not in shown
    assert json.loads(run("ls").stdout)["pins"] == []


def test_doctor_warns_of_what_was_lost(run, fake: FakeMount) -> None:
    def finding() -> Any:
        found = json.loads(run("doctor", "--json").stdout)["findings"]
        return [one for one in found if one["check"] == str(fake.point)][-1]

    written(fake)
    assert finding()["level"] == "ok"
    assert "daemons replaced: 2" in finding()["text"]
    written(fake, last_takeover=LAST | {"not_restored": ["a pin"]})
    assert finding()["level"] == "warn"
    written(fake, survives=SURVIVES | {"keeper": None, "unavailable_because": "foreground"}, last_takeover=None)
    assert finding()["text"] == "ends with its daemon: foreground"


def test_an_older_daemon_tells_nothing(run, fake: FakeMount) -> None:
    assert life_text(STATUS) == ""
    assert "survives" not in run("status", "--table").stdout
    found = json.loads(run("doctor", "--json").stdout)["findings"]
    texts = [one["text"] for one in found if one["check"] == str(fake.point)]
    assert texts
    assert not [text for text in texts if "its daemon" in text]
