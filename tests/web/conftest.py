"""`pinfs web` as a process, and a browser to look at it."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from support.actor import SYSTEM_PYTHON
from support.mounts import REPO, Mount

LIMIT_S = 30.0
PATHS = {"PYTHONPATH": f"{REPO}:{Path(click.__file__).parents[1]}"}
"""Other users may be unable to run this interpreter; the system's finds the pure Python packages by this."""


class Web:
    """The page of one mount, as root serves it or another user does."""

    def __init__(self, mount: Mount, *options: str, uid: int = 0) -> None:
        python = SYSTEM_PYTHON if uid else sys.executable
        words = [python, "-c", "from pinfs.cli.main import main; main()", "web", str(mount.path), "--port", "0"]
        how: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if uid else {}
        self.process = subprocess.Popen(
            [*words, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | PATHS, **how
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.communicate()
        parts = urlsplit(self.url)
        self.port, self.path = parts.port, parts.path

    def get(self, path: str = "", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        """`path` below the key, or anywhere when it begins with a slash."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        below = path if path.startswith("/") else self.path + path
        connection.request(method, below, headers={"Connection": "close", **headers})
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


@pytest.fixture(scope="module")
def _module_web(_module_mount: Mount) -> Iterator[Web]:
    with serving(_module_mount) as web:
        yield web


@pytest.fixture
def shared_web(shared_mount: Mount, _module_web: Web) -> Web:
    """One for all tests of a module, which leave it as they found it."""
    return _module_web
