"""`pinfs web` as a process, and a browser to look at it."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest
from support.mounts import REPO, Mount

LIMIT_S = 30.0


class Web:
    """The page of one mount, as root serves it or another user does."""

    def __init__(self, mount: Mount, *options: str, uid: int = 0) -> None:
        command = [sys.executable, "-c", "from pinfs.cli.main import main; main()", "web", str(mount.path)]
        user = ["setpriv", f"--reuid={uid}", "--clear-groups", "--inh-caps=+dac_read_search"] if uid else []
        user += ["--ambient-caps=+dac_read_search"] if uid else []
        self.process = subprocess.Popen(
            [*user, *command, "--port", "0", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPO)},
        )  # fmt: skip
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.communicate()
        parts = urlsplit(self.url)
        self.port, self.path = parts.port, parts.path

    def get(self, path: str = "", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        """`path` below the key, or anywhere when it begins with a slash."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        connection.request(
            method, path if path.startswith("/") else self.path + path, headers={"Connection": "close", **headers}
        )
        return connection.getresponse()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit status, and what it said on stderr."""
        self.process.send_signal(number)
        _out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, err


@contextmanager
def serving(mount: Mount, *options: str, uid: int = 0) -> Iterator[Web]:
    web = Web(mount, *options, uid=uid)
    try:
        yield web
        assert web.end() == (-signal.SIGTERM, "")
    finally:
        web.process.kill()
        web.process.communicate()


@pytest.fixture
def serve() -> Iterator[Callable[..., Web]]:
    """Ends well, whatever was asked of it: by a signal, at once, and without a word."""
    with ExitStack() as stack:
        yield lambda mount, *options, **how: stack.enter_context(serving(mount, *options, **how))


@pytest.fixture
def web(mount: Mount, serve: Callable[..., Web]) -> Web:
    return serve(mount)
