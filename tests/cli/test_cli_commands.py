"""release, revoke, policy, and what holds for all verbs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli.fakemount import FakeMount

from pinfs.cli import mounthelper
from pinfs.cli.exitcodes import ExitCode, of_errno
from pinfs.cli.main import VERBS, cli
from pinfs.observe.mounts import Mount

DOCUMENT = Path(__file__).parents[2] / "docs/exit-codes.md"


@pytest.mark.parametrize("verb", ["release", "revoke"])
def test_commands_go_to_the_event_channel(run, fake: FakeMount, verb: str) -> None:
    assert run(verb, 7).exit_code == 0
    assert fake.read("events") == f"{verb} 7\n"


@pytest.mark.parametrize(("number", "code"), [("ENOENT", 9), ("EPERM", 5), ("EACCES", 5), ("ENOTCONN", 7), ("EIO", 1)])
def test_what_the_daemon_answers_to_a_command(run, fake: FakeMount, monkeypatch, number: str, code: int) -> None:
    def refuse(_mount: Mount, _line: str) -> None:
        errno = getattr(__import__("errno"), number)
        raise OSError(errno, os.strerror(errno))

    monkeypatch.setattr(Mount, "command", refuse)
    result = run("revoke", 7)
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)


def test_several_mounts_ask_which(run, fake: FakeMount, table: Path) -> None:
    other = FakeMount(fake.point.parent / "other")
    table.write_text(table.read_text() + other.row())
    result = run("release", 7)
    assert result.exit_code == 2
    assert str(other.point) in result.stderr
    assert run("release", "--mount", other.file, 7).exit_code == 0
    assert (other.read("events"), fake.read("events")) == ("release 7\n", "")


@pytest.mark.parametrize("word", ["0", "-1", "seven"])
def test_ids_are_positive_numbers(run, fake: FakeMount, word: str) -> None:
    assert run("release", "--", word).exit_code == 2


def test_policy_set_changes_single_keys(run, fake: FakeMount) -> None:
    assert run("policy", "set", "break_timeout=2.5", "on_timeout=revoke").exit_code == 0
    shown = json.loads(run("policy", "show", "--json").stdout)
    assert (shown["break_timeout"], shown["on_timeout"], shown["conflict"]) == (2.5, "revoke", "pin")


@pytest.mark.parametrize("words", [["nonsense=1"], ["on_timeout=explode"], ["break_timeout=soon"]])
def test_a_bad_change_is_refused_whole(run, fake: FakeMount, words: list[str]) -> None:
    before = fake.read("policy")
    result = run("policy", "set", "own=allow", *words)
    assert (result.exit_code, fake.read("policy")) == (11, before)
    assert words[0].split("=")[0] in result.stderr


def test_policy_check_names_key_and_line(run, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('own = "deny"\nbrake_timeout = 3\n')
    result = run("policy", "check", file)
    assert result.exit_code == 11
    assert "brake_timeout" in result.stderr
    assert "line 2" in result.stderr
    file.write_text('own = "deny"\n')
    assert run("policy", "check", file).exit_code == 0


def test_policy_explain_names_the_rule_that_decides(run, fake: FakeMount) -> None:
    fake.write("policy", '[[rule]]\npath = "*.bin"\nconflict = "deny"\n\n[[rule]]\npath = "*.txt"\nown = "allow"\n')
    answer = json.loads(run("policy", "explain", fake.file).stdout)
    assert answer["rule"] == {"number": 1, "path": "*.bin"}
    assert (answer["path"], answer["policy"]["conflict"], answer["from_rule"]) == ("models/w.bin", "deny", ["conflict"])
    assert "decided by rule 1" in run("policy", "explain", "--table", fake.file).stdout
    assert json.loads(run("policy", "explain", fake.point / "other").stdout)["rule"] is None


def test_exit_codes_are_documented_with_name_and_number() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", DOCUMENT.read_text(), re.MULTILINE))
    assert rows == {str(code.value): code.name for code in ExitCode}


def test_errnos_are_documented() -> None:
    for names, code in re.findall(r"^\| (E[A-Z, ]+) \| (\d+) \|", DOCUMENT.read_text(), re.MULTILINE):
        for name in names.split(", "):
            assert of_errno(getattr(__import__("errno"), name)) == int(code)


@pytest.mark.parametrize("verb", [verb for verb in cli.list_commands(click.Context(cli)) if verb != "bench"])
def test_help_of_each_verb_ends_in_examples(run, verb: str) -> None:
    text = run(verb, "--help").stdout
    assert "Examples:\n" in text
    assert "pinfs " in text.split("Examples:")[1]


def test_version_and_help(run) -> None:
    assert run("--version").stdout.startswith("pinfs, version ")
    assert all(f"  {verb} " in run("--help").stdout for verb in ("mount", "pin", "ls"))


def test_unknown_verb(run) -> None:
    assert run("frobnicate").exit_code == 2


def test_pin_does_not_import_the_daemons_libraries() -> None:
    code = "import sys; from pinfs.cli.main import cli; cli.get_command(None, 'pin'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pinfs.cli.pin" in loaded
    assert not {"trio", "pyfuse3", "rich", "pinfs.serve.daemon"} & set(loaded)


@pytest.mark.parametrize("shell", ["zsh", "fish", "bash"])
def test_completion(run, shell: str) -> None:
    assert "_PINFS_COMPLETE" in run("completion", shell).stdout


def test_completion_completes_verbs() -> None:
    environment = os.environ | {"_PINFS_COMPLETE": "bash_complete", "COMP_WORDS": "pinfs re", "COMP_CWORD": "1"}
    code = "from pinfs.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert sorted(done.stdout.split()) == ["plain,release", "plain,revoke"]


def test_man_pages_of_all_verbs(run, tmp_path: Path) -> None:
    assert run("man", tmp_path / "man1").exit_code == 0
    pages = {page.name for page in (tmp_path / "man1").iterdir()}
    assert {"pinfs.1", "pinfs-pin.1", "pinfs-policy-explain.1"} <= pages
    assert "pinfs-man.1" not in pages
    for page in (tmp_path / "man1").iterdir():
        checked = subprocess.run(["man", "--warnings", "-l", str(page)], capture_output=True, text=True, check=True,
                                 env=os.environ | {"LC_ALL": "C"})  # fmt: skip
        assert checked.stderr == ""
        assert "EXIT STATUS" in checked.stdout
        assert page.name != "pinfs-pin.1" or "--no-fork" in checked.stdout


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("pinfs", ["ls", "/mnt"], ["ls", "/mnt"]),
        ("pinfs", ["/src", "/mnt", "-o", "rw,dev,suid"], ["mount", "/src", "/mnt", "-o", "rw,dev,suid", "--daemon"]),
        ("mount.pinfs", ["/src", "/mnt", "-o", "rw"], ["mount", "--daemon", "/src", "/mnt", "-o", "rw"]),
        ("mount.pinfs", ["/src", "/mnt", "-sno", "rw"], ["mount", "--daemon", "/src", "/mnt", "-o", "rw"]),
        ("mount.pinfs", ["-orw", "/src", "/mnt"], ["mount", "--daemon", "-o", "rw", "/src", "/mnt"]),
        ("mount.fuse.pinfs", ["/src", "/mnt", "-f", "-v"], ["mount", "--daemon", "/src", "/mnt", "--fake", "-v"]),
        ("mount.pinfs", ["/s", "/m", "-t", "fuse.pinfs", "-N", "/ns"], ["mount", "--daemon", "/s", "/m"]),
    ],
)
def test_calls_by_mount8(program: str, arguments: list[str], expected: list[str]) -> None:
    assert mounthelper.translate(program, arguments, VERBS) == expected


@pytest.mark.parametrize(
    ("program", "arguments", "status"),
    [
        ("mount.pinfs", ["/nowhere", "/tmp"], 32),
        ("mount.pinfs", ["/tmp", "/nowhere", "-o", "break_timeot=1"], 1),
        ("pinfs", ["/nowhere", "/tmp", "-o", "rw"], 32),
        ("mount.pinfs", ["/tmp", "/tmp", "-f"], 0),
        ("pinfs", ["mount", "/nowhere", "/tmp"], 6),
    ],
)
def test_mount8_is_told_in_its_own_numbers(tmp_path: Path, program: str, arguments: list[str], status: int) -> None:
    (tmp_path / program).symlink_to(Path(sys.executable).with_name("pinfs"))
    done = subprocess.run([tmp_path / program, *arguments], capture_output=True, check=False)
    assert done.returncode == status, done.stderr
