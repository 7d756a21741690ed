"""etcd for demonstrations and tests: the one that is installed, or Debian's, unpacked into a cache and not installed.

Nothing is installed, as the package would start a service. apt checks the signatures. Fetching takes a few seconds, and
10 MB for the index of each Debian. Standard library only.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

MIRROR = os.environ.get("PINFS_ETCD_MIRROR", "http://deb.debian.org/debian")
CACHE = Path(os.environ.get("PINFS_ETCD_CACHE", "/var/tmp/pinfs-etcd"))
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
STABLE = "bookworm"
START_LIMIT_S = 60.0


class FetchError(Exception):
    """It cannot be fetched; the text says why."""


def program() -> Path:
    """The installed etcd, or else Debian's. FetchError."""
    installed = shutil.which("etcd")
    return Path(installed) if installed else unpacked(STABLE, "etcd-server", STABLE) / "usr/bin/etcd"


def unpacked(suite: str, package: str, name: str) -> Path:
    """The directory `name` of the cache, with what is in a package of that Debian. FetchError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if CACHE.stat().st_uid not in (0, os.geteuid()):  # what is in it will be run
        raise FetchError(f"{CACHE} belongs to another user (PINFS_ETCD_CACHE names another directory)")
    there = CACHE / name
    if not (there / "usr").exists():
        try:
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                _fetch(suite, package, Path(work))
                shutil.rmtree(there, ignore_errors=True)
                Path(work, "unpacked").rename(there)
        except OSError as e:
            raise FetchError(f"{package} of {suite} cannot be unpacked: {e}") from e
    return there


def _fetch(suite: str, package: str, work: Path) -> None:
    for directory in ("lists/partial", "archives/partial"):
        (work / directory).mkdir(parents=True)
    (work / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {suite} main\n")
    options = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    for command in (
        [*apt, "update"],
        [*apt, "download", f"{package}/{suite}"],
        ["sh", "-c", f"dpkg-deb --extract {package}_*.deb unpacked"],
    ):
        done = subprocess.run(command, check=False, cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise FetchError(f"{package} of {suite} cannot be fetched from {MIRROR}: {done.stderr.strip()}")


class Etcd:
    """One node of `program` on the loopback interface, with its data in `directory`. `close` ends it."""

    def __init__(self, program: Path, directory: Path) -> None:
        with ExitStack() as stack:  # both ports are free at the same time
            self.port, peer_port = (_free_port(stack) for _ in range(2))
        self.endpoint = f"127.0.0.1:{self.port}"
        peer = f"http://127.0.0.1:{peer_port}"
        self._log = directory / "etcd.log"
        command = [
            *("setpriv", "--pdeathsig", "TERM", str(program), f"--data-dir={directory / 'etcd'}"),
            *(f"--{whose}-client-urls=http://{self.endpoint}" for whose in ("listen", "advertise")),
            *(
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            ),
            *("--heartbeat-interval=20", "--election-timeout=200", "--logger=zap", "--log-level=error"),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until_healthy(self) -> None:
        """SystemExit: it does not start."""
        end = time.monotonic() + START_LIMIT_S
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"etcd does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/health")
                return b'"true"' in connection.getresponse().read()
        finally:
            connection.close()
        return False

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _free_port(stack: ExitStack) -> int:
    sock = stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    return int(sock.getsockname()[1])
