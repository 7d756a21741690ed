"""`pinfs web` over HTTP on a real mount: what each user sees, and which requests are refused."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from cli.fakemount import FakeMount
from click.testing import CliRunner
from support.actor import eventually
from support.mounts import Mount
from web.conftest import LIMIT_S, Web

from pinfs.cli import web as verb
from pinfs.cli.main import cli
from pinfs.linux import mountinfo
from pinfs.web.feed import MAX_CLIENTS

Serve = Callable[..., Web]


def news(web: Web, asked: str = "") -> http.client.HTTPResponse:
    answer = web.get(f"news{asked}")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    return answer


def pictures(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := answer.readline():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


@pytest.fixture
def file(mount: Mount) -> Path:
    path = mount.path / "f"
    path.write_bytes(bytes(8192))
    path.chmod(0o666)
    return path


# What it tells


def test_a_daemon_that_is_stopped_and_goes_on(mount: Mount, file: Path, web: Web) -> None:
    with news(web) as answer:
        stream = pictures(answer)
        assert "error" not in next(stream)
        mount.process.send_signal(signal.SIGSTOP)
        try:
            failed = next(picture for picture in stream if "error" in picture)
        finally:
            mount.process.send_signal(signal.SIGCONT)
        assert f"the daemon does not answer (pid {mount.pid}, state T: stopped)" in failed["error"]
        assert next(picture for picture in stream if "error" not in picture)["mount"] == str(mount.path)


def test_it_ends_while_the_daemon_is_stopped(mount: Mount, serve: Serve) -> None:
    web = serve(mount)
    with news(web) as answer:
        next(pictures(answer))
        mount.process.send_signal(signal.SIGSTOP)
        try:
            next(picture for picture in pictures(answer) if "error" in picture)
            assert web.end() == (-signal.SIGTERM, "")
        finally:
            mount.process.send_signal(signal.SIGCONT)


def test_pins_breaks_and_policy_as_they_happen(mount: Mount, file: Path, web: Web) -> None:
    holder, breaker = mount.actor(uid=1000), mount.actor()
    with news(web) as answer:
        stream = pictures(answer)
        first = next(stream)
        assert (first["mount"], first["files"]["files"], first["sees_all"]) == (str(mount.path), [], True)
        holder.pin(file, "p", "0:4096,mode=lease,signal=none,note=hello")
        one = next(p for p in stream if p["status"]["pins"])["files"]["files"][0]
        assert (one["path"], one["size"], one["bar"]) == ("f", 8192, [[0, 500, "lease"]])
        assert (one["pins"][0]["uid"], one["pins"][0]["note"]) == (1000, "hello")
        cut = breaker.start(os.truncate, str(file), 0)
        breaking = next(p for p in stream if p["status"]["waiting"])
        assert breaking["files"]["files"][0]["bar"] == [[0, 500, "breaking"]]
        assert breaking["files"]["files"][0]["pins"][0]["deadline"] > breaking["at"]
        assert breaking["holders"]["holders"][0]["breaking"] == 1
        (one,) = breaking["breaks"]["breaks"]
        assert (one["op"], one["pid"], one["deadline"]) == (
            "truncate",
            breaker.pid,
            breaking["files"]["files"][0]["pins"][0]["deadline"],
        )
        assert [by["pid"] for by in one["holders"]] == [holder.pid]
        holder.release(file, "p")
        cut.result()
        last = next(p for p in stream if not p["status"]["pins"])
        told = [event["event"] for event in last["events"]]
        assert [kind for kind in told if kind != "proceeded"] == ["pinned", "break", "released"]
        mount.policy("break_timeout = 7")
        next(p for p in stream if ["break_timeout", "7.0"] in p["policy"]["values"])


def test_each_viewer_sees_what_it_asks_for(mount: Mount, file: Path, web: Web) -> None:
    holder = mount.actor()
    other = mount.path / "other.bin"
    holder(Path.write_bytes, other, bytes(4096))
    holder.pin(file, "p", "0:4096,mode=lease,signal=none,note=weights of layer 7")
    holder.pin(other, "q", "0:0")
    with news(web) as all_of_them, news(web, "?find=WEIGHTS&show=lease&by=age") as some:
        both = next(pictures(all_of_them))
        assert (both["files"]["by"], both["files"]["selected"], len(both["files"]["files"])) == ("file", 2, 2)
        one = next(pictures(some))
        assert [pin["path"] for pin in one["files"]["pins"]] == ["f"]
        assert one["holders"]["holders"][0]["pins"] == 1
        assert one["status"]["pins"] == 2


def test_others_do_not_see_the_holders_of_pins(mount: Mount, file: Path, serve: Serve) -> None:
    holder = mount.actor(uid=1000)
    web = serve(mount, uid=2000)
    with news(web) as answer:
        stream = pictures(answer)
        assert next(stream)["sees_all"] is False
        holder.pin(file, "p", "0:4096,note=secret")
        shown = next(p for p in stream if p["status"]["pins"] and p["events"])
    assert [event["event"] for event in shown["events"]] == ["pinned"]
    assert shown["files"]["files"][0]["pins"][0].keys() == {
        "id", "start", "length", "mode", "state", "owner", "dirty", "since"
    }  # fmt: skip
    assert "secret" not in json.dumps(shown)


def test_a_mount_that_goes_and_comes_back(mount: Mount, web: Web) -> None:
    with news(web) as answer:
        stream = pictures(answer)
        assert "error" not in next(stream)
        mount.stop()
        assert "files" not in next(p for p in stream if "error" in p)
        mount._start(())
        next(p for p in stream if "error" not in p)


# Users


def test_nothing_without_the_key(shared_web: Web) -> None:
    for path in (
        "/",
        "/wrong/",
        "/wrong/news",
        "/page.js",
        shared_web.path[:-2] + "/",
        "/%00/",
        "/" + "a" * 4000 + "/",
    ):
        with shared_web.get(path) as answer:
            assert answer.status == 404
            assert shared_web.path.encode() not in answer.read()


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "", "[::2]", "localhost.evil"])
def test_no_other_host_names(shared_web: Web, name: str) -> None:
    with shared_web.get("", Host=name) as answer:
        assert answer.status == 400


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1:1", "LOCALHOST:80", "[::1]:80"])
def test_names_of_loopback(shared_web: Web, name: str) -> None:
    with shared_web.get("", Host=name) as answer:
        assert answer.status == 200


def test_a_name_of_ones_own(mount: Mount, serve: Serve) -> None:
    with serve(mount, "--name", "models.example").get("", Host="models.example") as answer:
        assert answer.status == 200


def test_only_loopback_unless_told(shared_web: Web) -> None:
    table = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()]
    assert [local for local, _, state in table if state == "0A" and local.endswith(f":{shared_web.port:04X}")] == [
        f"0100007F:{shared_web.port:04X}"
    ]


# How


@pytest.mark.parametrize("path", ["", "page.js", "page.css", "icon.svg", "/nowhere"])
def test_every_answer_forbids_what_the_page_does_not_need(shared_web: Web, path: str) -> None:
    with shared_web.get(path) as answer:
        headers = dict(answer.headers)
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert not [rule for rule in policy.values() if "unsafe" in rule or "*" in rule or "http" in rule]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_read_only(shared_web: Web, method: str) -> None:
    with shared_web.get("", method) as answer:
        assert answer.status == 405


def test_one_client_too_many(shared_web: Web) -> None:
    with ExitStack() as streams:
        for _ in range(MAX_CLIENTS):
            next(pictures(streams.enter_context(news(shared_web))))
        with shared_web.get("news") as answer:
            assert answer.status == 503


def test_the_mount_is_read_for_viewers_only(mount: Mount, web: Web) -> None:
    trace = str(mount.control("trace"))

    def is_looking() -> bool:
        """A child of it, as only such a one waits for the daemon."""
        children = Path(f"/proc/{web.process.pid}/task/{web.process.pid}/children").read_text().split()
        for descriptor in (each for pid in children for each in Path(f"/proc/{pid}/fd").iterdir()):
            with suppress(FileNotFoundError):  # others come and go
                if os.readlink(descriptor) == trace:
                    return True
        return False

    assert not is_looking()
    with news(web) as answer:
        next(pictures(answer))
        assert is_looking()
    eventually(lambda: not is_looking())


def test_a_client_that_reads_nothing_does_not_hold_up_others(shared_web: Web) -> None:
    with closing(socket.create_connection(("127.0.0.1", shared_web.port), timeout=LIMIT_S)) as silent:
        silent.sendall(f"GET {shared_web.path}news HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        with news(shared_web) as answer:
            stream = pictures(answer)
            assert next(stream)["at"] < next(stream)["at"] < next(stream)["at"]


def test_it_ends_at_once_and_with_its_streams(mount: Mount, serve: Serve) -> None:
    web = serve(mount)
    with news(web) as answer:
        stream = pictures(answer)
        next(stream)
        web.process.send_signal(signal.SIGTERM)
        assert len(list(stream)) < 5  # then they end


def test_ctrl_c(mount: Mount) -> None:
    web = Web(mount)
    assert web.end(signal.SIGINT) == (130, "")


# What it says when it can not


def pinfs_web(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pinfs.cli.main import main; main()", "web", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_a_port_that_is_taken(shared_mount: Mount) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        result = pinfs_web(shared_mount.path, "--port", port)
    assert (result.returncode, result.stderr) == (1, f"pinfs: 127.0.0.1:{port}: Address already in use\n")


def test_an_address_that_is_not_ours(shared_mount: Mount) -> None:
    result = pinfs_web(shared_mount.path, "--host", "192.0.2.1")
    assert (result.returncode, result.stderr) == (1, "pinfs: 192.0.2.1:7467: Cannot assign requested address\n")


def test_no_mount_there(tmp_path: Path) -> None:
    assert pinfs_web(tmp_path).returncode == 3


def test_without_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMount(tmp_path / "mnt")
    table = tmp_path / "mountinfo"
    table.write_text(fake.row())
    monkeypatch.setattr(mountinfo, "PATH", str(table))
    monkeypatch.setattr(verb, "find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["web", str(fake.point)])
    message = "pinfs: the page needs starlette and uvicorn: pip install 'pinfs[web]'\n"
    assert (result.exit_code, result.stderr) == (1, message)
