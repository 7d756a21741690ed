"""What runs inside the machine: files under RDMA by soft-RoCE, natively and through pinfs, and what becomes of them.

The programs are `examples/rdma_region.c`, which registers a file, and `rdma_peer.c`, which writes into it. Prints one
JSON object a line: what was done, on which file system, and what was seen. `test_rdma.py` judges. Needs gcc and
librdmacm, the standard library, and pinfs beside it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vm.guest_base import BREAK_TIMEOUT_S, HERE, PMEM, SIZE, Child, Mount, run
from vm.guest_base import set_up as set_up_dax
from vm.guest_removals import REMOVALS, punch

ADDRESS, SERVER, PEER = "192.168.77.1", "/run/rdma_region", "/run/rdma_peer"
SOURCES = ("tmpfs", "disk", *PMEM)
ACCESS = {"write": (), "read": ("--read-only",), "write on demand": ("--on-demand",)}
LIMIT_S = 20.0


def say(what: str, **seen: object) -> None:
    print(json.dumps({"kernel": os.uname().release, "what": what, **seen}), flush=True)


def set_up() -> None:
    set_up_dax()
    run("modprobe", "-a", "dummy", "rdma_rxe", "rdma_ucm", "ib_uverbs")
    run("ip", "link", "add", "rdma", "type", "dummy")
    run("ip", "address", "add", f"{ADDRESS}/24", "dev", "rdma")
    run("ip", "link", "set", "rdma", "up")
    run("ip", "link", "set", "lo", "up")
    run("rdma", "link", "add", "rxe0", "type", "rxe", "netdev", "rdma")
    run("mkfs.ext4", "-q", "-F", "/dev/vdb")
    for kind, words in (("disk", ("/dev/vdb",)), ("tmpfs", ("-t", "tmpfs", "none"))):
        os.makedirs(f"/{kind}")
        os.makedirs(f"/{kind}.mnt")
        run("mount", *words, f"/{kind}")
    for program in (SERVER, PEER):
        source = f"{HERE}/examples/{Path(program).name}.c"
        run("cc", "-Wall", "-Wextra", "-Werror", "-o", program, source, "-lrdmacm", "-libverbs")


class Program:
    """A process whose lines are read one by one."""

    def __init__(self, *words: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def until(self, *beginnings: str, limit_s: float = LIMIT_S) -> str:
        """The next line that begins so; "ended" or "hangs" in its place."""
        end = time.monotonic() + limit_s
        while (line := self._line(end)) not in ("ended", "hangs"):
            self.lines.append(line)
            if line.startswith(beginnings):
                return line
        return line

    def _line(self, end: float) -> str:
        assert self._process.stdout
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                return "hangs"
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                return "ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def ask(self, line: str) -> None:
        assert self._process.stdin
        os.write(self._process.stdin.fileno(), f"{line}\n".encode())

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        self.send(number)
        self.until("nothing begins so")
        return self._process.wait(LIMIT_S)


class Region:
    """A registered file, and a peer that uses it."""

    def __init__(self, path: str, *options: str) -> None:
        self.server = Program(SERVER, *options, path, ADDRESS)
        self.registered = self.server.until("registered", "rdma_region: ").removeprefix("rdma_region: ")
        self.peer: Program | None = None

    def connect(self) -> Program:
        if self.peer is None:
            self.peer = Program(PEER, ADDRESS)
            self.peer.until("region: ")
        return self.peer

    def write(self, text: str, offset: int = 0) -> str:
        """How the adapter completed it. An error ends the connection, and the next write takes another peer."""
        completed = self._do(f"write {offset} {text}", "write: ")
        if completed != "success":
            self.drop_peer()
        return completed

    def read(self, length: int) -> str:
        return self._do(f"read 0 {length}", "read: ")

    def _do(self, line: str, answer: str) -> str:
        peer = self.connect()
        peer.ask(line)
        return peer.until(answer).removeprefix(answer)

    def drop_peer(self) -> None:
        assert self.peer is not None
        self.peer.end()
        self.peer = None
        self.server.until("the peer is gone")

    def end(self) -> int:
        if self.peer is not None:
            self.drop_peer()
        return self.server.end()


@contextmanager
def region(path: str, *options: str) -> Iterator[Region]:
    """Of a fresh file."""
    Path(path).write_bytes(b"A" * SIZE)
    found = Region(path, *options)
    try:
        yield found
    finally:
        found.end()


def file_has(path: str, text: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(text)) == text.encode()


def locked_kb(pid: int) -> int:
    """What a process has pinned."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmPin:"))


def cut_and_grow(path: str) -> None:
    os.truncate(path, 0)
    os.truncate(path, SIZE)


def allowed(kind: str, base: str, pages: str, *options: str) -> None:
    """Which registrations the kernel allows, and whether what the peer does arrives."""
    for access, words in ACCESS.items():
        with region(f"{base}/allowed", *words, *options) as found:
            completed = hint = locked = None
            if found.registered.startswith("registered"):
                completed = found.write("bytes") if "write" in access else found.read(5)
                locked = locked_kb(found.server.pid)
            else:
                hint = found.server.until("The ", "This ")
            at_once = file_has(f"/{kind}/allowed", "bytes")
        say("allowed", kind=kind, native=base == f"/{kind}", page_pins=pages, access=access,
            registered=found.registered, hint=hint, locked_kb=locked, completed=completed, at_once=at_once,
            in_the_end=file_has(f"/{kind}/allowed", "bytes"))  # fmt: skip


def lost(kind: str, remove: str) -> None:
    """Without pinfs: bytes are taken away under the adapter."""
    path = f"/{kind}/lost"
    take = {"truncate": cut_and_grow, "punch_hole": punch}[remove]
    with region(path, "--pin", "none") as found:
        before = found.write("before"), file_has(path, "before")
        removed = Child(partial(take, path)).wait(LIMIT_S)
        written = found.write("after!")
        say("lost", op=remove, before=before, removed=removed, written=written, arrived=file_has(path, "after!"),
            read=found.read(6))  # fmt: skip


def by_hand(mount: Mount) -> None:
    """As docs/devices.md shows it."""
    path = f"{mount.path}/by-hand"
    with region(path):
        lines = "nonsense\nwrite 65536 beyond\nwrite 0 hello\nread 0 5\n"
        done = subprocess.run((PEER, ADDRESS), input=lines, stdout=subprocess.PIPE, check=False, text=True)
        say("by hand", code=done.returncode, lines=done.stdout.splitlines(), arrived=file_has(path, "hello"))


def deny(mount: Mount) -> None:
    path, below = f"{mount.path}/deny", f"{mount.source}/deny"
    with region(path, "--pin", "deny") as found:
        first = found.write("first")
        removals = {op: Child(partial(remove, path)).wait(LIMIT_S) for op, remove in REMOVALS.items()}
        second = found.write("second")
        say("deny", removals=removals, written=(first, second), arrived=file_has(below, "second"),
            size=os.stat(below).st_size)  # fmt: skip
    say("deny ended", lines=found.server.lines[-2:], ended=Child(partial(os.truncate, path, 0)).wait(LIMIT_S))


def killed(mount: Mount) -> None:
    path = f"{mount.path}/killed"
    with region(path, "--pin", "deny") as found:
        found.write("first")
        before = Child(partial(os.truncate, path, 0)).wait(LIMIT_S)
        found.server.end(signal.SIGKILL)
        say("killed", before=before, ended=Child(partial(os.truncate, path, 0)).wait(LIMIT_S))


def lease(mount: Mount) -> None:
    path, below = f"{mount.path}/lease", f"{mount.source}/lease"
    with region(path) as found:
        first = found.write("first")
        breaker = Child(partial(os.truncate, path, 0))
        ended = breaker.wait(LIMIT_S)
        found.server.until("waiting until")
        empty = os.stat(below).st_size
        peer = found.connect()
        peer.ask("write 0 again")
        os.truncate(path, 2 * SIZE)
        again = peer.until("write: ").removeprefix("write: ")
        say("lease", written=(first, again), ended=ended, took_s=breaker.took_s, size=empty, server=found.server.lines,
            peer=peer.lines, arrived=file_has(below, "again"))  # fmt: skip


def silent(mount: Mount) -> None:
    """The holder is stopped: it is told, and does nothing. The adapter goes on without it."""
    path, below = f"{mount.path}/silent", f"{mount.source}/silent"
    with region(path) as found:
        found.connect()
        found.server.send(signal.SIGSTOP)
        breaker = Child(partial(os.truncate, path, 0))
        waits, meanwhile = breaker.wait(1), found.write("while")
        ended = breaker.wait(3 * BREAK_TIMEOUT_S)
        afterwards = found.write("after")
        say("silent", waits=waits, written=(meanwhile, afterwards), ended=ended, took_s=breaker.took_s,
            size=os.stat(below).st_size, arrived=file_has(below, "after"))  # fmt: skip
        found.server.send(signal.SIGCONT)


def silent_peer(mount: Mount) -> None:
    """The peer is stopped: it answers the server too late, and in time at the next break."""
    path = f"{mount.path}/silent-peer"
    with region(path) as found:
        peer = found.connect()
        peer.send(signal.SIGSTOP)
        breaker = Child(partial(os.truncate, path, 100))
        ended = breaker.wait(3 * BREAK_TIMEOUT_S)
        found.server.until("registered")
        peer.send(signal.SIGCONT)
        seen, late = list(found.server.lines), found.write("late")
        again = Child(partial(os.truncate, path, 50)).wait(LIMIT_S)
        found.server.until("registered: 50")
        say("silent peer", ended=ended, took_s=breaker.took_s, server=seen, late=late, arrived=file_has(path, "late"),
            again=again, server_then=found.server.lines[len(seen):], written=found.write("last"))  # fmt: skip


def on_demand(kind: str, base: str) -> None:
    """Nothing is pinned by the kernel: a truncate takes the bytes away, and the next write breaks the connection."""
    path = f"{base}/on-demand"
    with region(path, "--on-demand", "--pin", "none") as found:
        first = found.write("first"), file_has(f"/{kind}/on-demand", "first")
        cut = Child(partial(os.truncate, path, 0)).wait(LIMIT_S)
        second = found.write("second")
        os.truncate(path, SIZE)
        third = found.write("third")
        say("on demand", kind=kind, native=base == f"/{kind}", first=first, cut=cut, second=second, third=third,
            arrived=file_has(f"/{kind}/on-demand", "third"))  # fmt: skip


def on_demand_pinned(mount: Mount) -> None:
    path = f"{mount.path}/on-demand-pinned"
    with region(path, "--on-demand", "--pin", "deny") as found:
        first = found.write("first")
        cut = {op: Child(partial(remove, path)).wait(LIMIT_S) for op, remove in REMOVALS.items()}
        second = found.write("second")
        say("on demand pinned", kind=mount.kind, removals=cut, written=(first, second),
            arrived=file_has(f"{mount.source}/on-demand-pinned", "second"))  # fmt: skip


def on_demand_lease(mount: Mount) -> None:
    path = f"{mount.path}/on-demand-lease"
    with region(path, "--on-demand") as found:
        first = found.write("first")
        breaker = Child(partial(os.truncate, path, 100))
        ended = breaker.wait(LIMIT_S)
        again = found.write("again")
        say("on demand lease", kind=mount.kind, ended=ended, took_s=breaker.took_s, written=(first, again),
            size=os.stat(path).st_size, arrived=file_has(f"{mount.source}/on-demand-lease", "again"))  # fmt: skip


def main() -> None:
    set_up()
    usage = [subprocess.run((program,), stderr=subprocess.PIPE, check=False, text=True) for program in (SERVER, PEER)]
    say("usage", codes=[one.returncode for one in usage], texts=[one.stderr for one in usage])
    mounts = {kind: Mount(kind) for kind in SOURCES}
    for kind, mount in mounts.items():
        pages = str(mount.status()["page_pins"])
        allowed(kind, f"/{kind}", pages, "--pin", "none")
        allowed(kind, mount.path, pages)
    for op in ("truncate", "punch_hole"):
        lost("tmpfs", op)
    for part in (by_hand, deny, killed, lease, silent, silent_peer):
        part(mounts["tmpfs"])
    with region("/tmpfs/elsewhere") as found:
        say("elsewhere", registered=found.registered)
    if os.uname().release.startswith("7."):
        for kind, mount in mounts.items():
            on_demand(kind, f"/{kind}")
            on_demand(kind, mount.path)
            on_demand_pinned(mount)
            on_demand_lease(mount)
    without_passthrough(mounts["tmpfs"])
    for kind, mount in mounts.items():
        mount.end()
        say("log", kind=kind, text=Path(f"/run/{kind}.log").read_text())


def without_passthrough(mount: Mount) -> None:
    """Pages of the mount are FUSE's there, not the file's."""
    mount.end()
    mount = Mount(mount.kind, ",passthrough=off")
    allowed(mount.kind, mount.path, str(mount.status()["page_pins"]))
    mount.end()


if __name__ == "__main__":
    main()
