"""Real etcd nodes on the loopback interface, with their data in memory."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.mounts import DIES_WITH_US

from cluster.network import Machine
from pinfs.cluster.etcd import Endpoint

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
SINGLE = ("--heartbeat-interval=20", "--election-timeout=200")
SEVERAL = ("--heartbeat-interval=50", "--election-timeout=500")


@dataclass(frozen=True)
class Tls:
    """PEM files of a node, and of the client by which the tests themselves ask it."""

    ca: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path


class Node:
    """One etcd process. Its data outlive it, until the directory goes. `machine`: on which it runs, in place of this
    one."""

    def __init__(
        self, program: Path, directory: Path, name: str, tls: Tls | None = None, machine: Machine | None = None
    ) -> None:
        self.name = name
        self.directory = directory
        self.tls = tls
        self.machine = machine
        self.address = machine.address if machine else "127.0.0.1"
        self.client_port, self.peer_port = _free_ports(2)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._words: list[str] = []

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("https" if self.tls else "http", self.address, self.client_port)

    @property
    def peer(self) -> str:
        return f"{self.name}=http://{self.address}:{self.peer_port}"

    def start(self, initial_cluster: str, options: Sequence[str] = ()) -> None:
        peer = f"http://{self.address}:{self.peer_port}"
        self._words = [
            f"--name={self.name}",
            f"--data-dir={self.directory / self.name}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={initial_cluster}",
            "--logger=zap",
            "--log-level=error",
            *options,
        ]
        if self.tls:
            self._words += [
                f"--cert-file={self.tls.certificate}",
                f"--key-file={self.tls.key}",
                f"--trusted-ca-file={self.tls.ca}",
                "--client-cert-auth",
            ]
        self.start_again()

    def start_again(self) -> None:
        """After `kill`, with the same data."""
        assert self._process is None
        with (self.directory / f"{self.name}.log").open("ab") as log:
            where = self.machine.prefix if self.machine else ()
            command = [*DIES_WITH_US, *where, str(self._program), *self._words]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until_healthy(self) -> None:
        """Until it answers as part of a majority."""
        wait_until(self._is_healthy, f"{self.name}: {self.log()[-2000:]}")

    def _is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        with suppress(OSError, http.client.HTTPException):
            return bool(self.get("/health").get("health") == "true")
        return False

    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text()

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_LIMIT_S)
        self._process = None

    def save(self) -> None:
        """Keeps a copy of the data, of a node that does not run."""
        shutil.copytree(self.directory / self.name, self.directory / f"{self.name}.saved")

    def put_back(self) -> None:
        """What `save` has kept becomes the data."""
        shutil.rmtree(self.directory / self.name)
        shutil.copytree(self.directory / f"{self.name}.saved", self.directory / self.name)

    def snapshot(self, etcdctl: Path) -> None:
        """Of a node that runs, as an operator makes one."""
        self._etcdctl(etcdctl, "snapshot", "save", f"{self._snapshot}")

    def restore(self, etcdctl: Path) -> None:
        """The snapshot becomes the data of this node, which does not run. As docs/etcd.md says, its clients notice."""
        shutil.rmtree(self.directory / self.name)
        where = [f"--data-dir={self.directory / self.name}", f"--name={self.name}", f"--initial-cluster={self.peer}"]
        where += [f"--initial-advertise-peer-urls=http://127.0.0.1:{self.peer_port}", "--initial-cluster-token=new"]
        self._etcdctl(etcdctl, "snapshot", "restore", f"{self._snapshot}", *where)

    @property
    def _snapshot(self) -> Path:
        return self.directory / f"{self.name}.snapshot"

    def _etcdctl(self, etcdctl: Path, *words: str) -> None:
        command = [str(etcdctl), f"--endpoints={self.endpoint}", *words]
        done = subprocess.run(command, env={"ETCDCTL_API": "3"}, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def suspend(self) -> None:
        """When it returns, no thread of the node runs any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self.kill()

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None, "")[1]

    def post(self, path: str, body: dict[str, Any], token: str = "") -> tuple[int, Any]:
        """HTTP status and JSON, asked without the client that is tested."""
        return self._ask("POST", path, json.dumps(body), token)

    def _ask(self, method: str, path: str, body: str | None, token: str) -> tuple[int, Any]:
        connection: http.client.HTTPConnection
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls.ca)
            context.load_cert_chain(self.tls.client_certificate, self.tls.client_key)
            connection = http.client.HTTPSConnection("127.0.0.1", self.client_port, timeout=20, context=context)
        elif self.machine:
            connection = self.machine.http(self.client_port, 20)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.client_port, timeout=20)
        try:
            connection.request(method, path, body, {"Authorization": token} if token else {})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return answer.status, json.loads(text) if text.startswith("{") else text

    def done(self, path: str, body: dict[str, Any], token: str = "") -> Any:
        """As `post`, of what must work."""
        status, answer = self.post(path, body, token)
        assert status == 200, answer
        return answer

    def put(self, key: bytes, value: bytes) -> int:
        """The revision."""
        answer = self.done("/v3/kv/put", {"key": b64(key), "value": b64(value)})
        return int(answer["header"]["revision"])

    def delete(self, key: bytes) -> None:
        self.done("/v3/kv/deleterange", {"key": b64(key)})

    def value(self, key: bytes) -> str | None:
        """As base64; None: there is no such key."""
        answer = self.done("/v3/kv/range", {"key": b64(key)})
        return str(answer["kvs"][0].get("value", "")) if "kvs" in answer else None

    def count(self, prefix: bytes) -> int:
        """How many keys begin with it."""
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        answer = self.done("/v3/kv/range", {"key": b64(prefix), "range_end": b64(end), "count_only": True})
        return int(answer.get("count", 0))

    def compact(self, revision: int) -> None:
        self.done("/v3/kv/compaction", {"revision": str(revision), "physical": True})

    def is_leader(self) -> bool:
        answer = self.done("/v3/maintenance/status", {})
        return bool(answer.get("leader") == answer["header"]["member_id"])


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def wait_until(condition: Callable[[], bool], otherwise: str, pause_s: float = 0.02) -> None:
    """`pause_s` is for what a look at the condition delays."""
    deadline = time.monotonic() + START_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(pause_s)


@contextmanager
def running(
    program: Path, names: str = "a", options: Sequence[str] = (), tls: Tls | None = None, wait: bool = True
) -> Iterator[list[Node]]:
    """A cluster with a node for each letter of `names`; killed at the end, its data removed."""
    directory = Path(tempfile.mkdtemp(prefix="pinfs-etcd-", dir="/dev/shm"))
    with _together(directory, [Node(program, directory, name, tls) for name in names], options, wait) as nodes:
        yield nodes


@contextmanager
def running_on(program: Path, machines: Sequence[Machine]) -> Iterator[list[Node]]:
    """The same with a node on each machine."""
    directory = Path(tempfile.mkdtemp(prefix="pinfs-etcd-", dir="/dev/shm"))
    nodes = [Node(program, directory, f"etcd{number}", None, machine) for number, machine in enumerate(machines)]
    with _together(directory, nodes, (), True):
        yield nodes


@contextmanager
def _together(directory: Path, nodes: list[Node], options: Sequence[str], wait: bool) -> Iterator[list[Node]]:
    try:
        initial_cluster = ",".join(node.peer for node in nodes)
        for node in nodes:
            node.start(initial_cluster, [*(SINGLE if len(nodes) == 1 else SEVERAL), *options])
        for node in nodes if wait else ():
            node.wait_until_healthy()
        yield nodes
    finally:
        for node in nodes:
            node.close()
        shutil.rmtree(directory)


def _free_ports(count: int) -> list[int]:
    """Below those of outgoing connections, so that none of these takes the port of a node that starts again."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            ports.append(port)
    return ports
