"""What the parts of `guest.py` share: file systems on DAX, calls in processes of their own, pages that a process holds,
a mount."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
PAGE, SIZE = 4096, 65536
BREAK_TIMEOUT_S = 8
PINFS = (sys.executable, "-c", "from pinfs.cli.main import main; main()")
PMEM = {"ext4": "/dev/pmem0", "xfs": "/dev/pmem1"}
libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)


def set_up() -> None:
    run("modprobe", "-a", "fuse", "nfit", "nd_pmem", "libnvdimm", "ext4", "xfs")
    run("udevadm", "settle", "-t", "20")
    for namespace in ("namespace0.0", "namespace1.0"):
        run("ndctl", "create-namespace", "-f", "-e", namespace, "--mode=fsdax", "--map=mem")
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0", PMEM["ext4"])
    run("mkfs.xfs", "-q", "-f", "-m", "reflink=0", PMEM["xfs"])
    for kind, device in PMEM.items():
        os.makedirs(f"/{kind}")
        os.makedirs(f"/{kind}.mnt")
        run("mount", "-o", "dax=always", device, f"/{kind}")


class Child:
    """A call in a process of its own: `wait` says what became of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.began = time.monotonic()
        self.ended: str | None = None
        self.took_s = float("inf")
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                call()
                os._exit(0)
            except OSError as e:
                os._exit(e.errno or 255)
            finally:
                os._exit(254)

    def wait(self, limit_s: float) -> str:
        """`done`, an errno, the signal that ended it, or `hangs` after `limit_s` seconds."""
        until = time.monotonic() + limit_s
        while self.ended is None and time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.took_s = time.monotonic() - self.began
                number = os.waitstatus_to_exitcode(status)
                self.ended = "done" if not number else errno.errorcode.get(number, f"signal {-number}")
            else:
                time.sleep(0.005)
        return self.ended or "hangs"


class Held:
    """A process that holds one page of a file by vmsplice(2) into a pipe, as a device or O_DIRECT would."""

    def __init__(self, path: str, *, page: int = 0, mapped: bool = True) -> None:
        self._told, self._ready = os.pipe(), os.pipe()
        self.child = Child(partial(self._hold, path, page, mapped))
        os.read(self._ready[0], 1)

    def _hold(self, path: str, page: int, mapped: bool) -> None:
        held = hold_page(path, page=page, mapped=mapped)
        self._wait_until_told()
        del held  # the end of the process closes the pipe

    def _wait_until_told(self) -> None:
        os.write(self._ready[1], b"x")
        os.read(self._told[0], 1)

    def let_go(self) -> str:
        os.write(self._told[1], b"x")
        return self.child.wait(20)


class Kept(Held):
    """The same, with a mapping that stays when the page is let go, and that has been touched again before."""

    def _hold(self, path: str, page: int, mapped: bool) -> None:
        pipe, start = hold_page(path, page=page)
        self._wait_until_told()
        assert start.value
        os.close(pipe[0])
        os.close(pipe[1])
        os.close(os.open(path, os.O_RDWR))
        self._wait_until_told()

    def let_page_go(self) -> float:
        """Seconds until the holder had opened the file once more as well."""
        began = time.monotonic()
        os.write(self._told[1], b"x")
        os.read(self._ready[0], 1)
        return time.monotonic() - began


def hold_page(path: str, *, page: int = 0, mapped: bool = True) -> tuple[tuple[int, int], ctypes.c_char]:
    """Have a pipe hold the page, until the process ends. The mapping stays as well, without being touched again: Linux
    6.12 looks for held pages in mapped files only (dax_layout_busy_page()). It would keep a removed file alive."""

    class Iovec(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))

    fd = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(fd, SIZE)
    os.close(fd)
    at = page * PAGE
    mapping[at] = mapping[at]
    start = ctypes.c_char.from_buffer(mapping, at)
    pipe = os.pipe()
    if libc.vmsplice(pipe[1], ctypes.byref(Iovec(ctypes.addressof(start), PAGE)), ctypes.c_ulong(1), 0) < 0:
        raise OSError(ctypes.get_errno(), "vmsplice")
    if not mapped:
        start = ctypes.c_char()
        mapping.close()
    return pipe, start


class Mount:
    """pinfs over one of the file systems."""

    def __init__(self, kind: str, options: str = "") -> None:
        self.kind = kind
        self.source, self.path = f"/{kind}", f"/{kind}.mnt"
        self.log = open(f"/run/{kind}.log", "ab")  # noqa: SIM115
        options = f"break_timeout={BREAK_TIMEOUT_S}{options}"
        command = (sys.executable, str(HERE / "mount.py"), self.source, self.path, "-o", options)
        self.daemon = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while not os.path.ismount(self.path) and self.daemon.poll() is None:
            time.sleep(0.05)
        self.file(other)

    def file(self, name: str) -> str:
        """A fresh file, by its path on the mount."""
        path = f"{self.path}/{name}"
        with open(path, "wb") as file:
            file.write(b"A" * SIZE)
            os.fsync(file.fileno())
        return path

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(Path(self.path, ".pinfs/status").read_text())
        return status

    def until(self, reached: Callable[[dict[str, Any]], bool], limit_s: float = 20) -> float | None:
        """How long it took until the status was so; None: too long."""
        began = time.monotonic()
        while not reached(self.status()):
            if time.monotonic() > began + limit_s:
                return None
            time.sleep(0.01)
        return time.monotonic() - began

    def longest_stat_s(self, while_: Child) -> float:
        """Of another file, until the child has ended."""
        longest = 0.0
        while while_.wait(0) == "hangs" and time.monotonic() < while_.began + 5 * BREAK_TIMEOUT_S:
            began = time.monotonic()
            os.stat(f"{self.path}/{other}")
            longest = max(longest, time.monotonic() - began)
            while_.wait(0.02)
        return longest

    def end(self) -> int:
        """What the daemon ended with. It is told to."""
        self.daemon.send_signal(signal.SIGTERM)
        return self.daemon.wait(60)

    def say(self, what: str, **seen: object) -> None:
        print(json.dumps({"kind": self.kind, "kernel": os.uname().release, "what": what, **seen}), flush=True)


def doctor(directory: str) -> list[dict[str, str]]:
    """What `pinfs doctor` finds there."""
    done = subprocess.run(
        (*PINFS, "doctor", "--json", directory), cwd=HERE, stdout=subprocess.PIPE, check=False, text=True
    )
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return findings


other = "other"


def waits(status: dict[str, Any]) -> bool:
    return bool(status["in_kernel"])


def names_processes(status: dict[str, Any]) -> bool:
    return waits(status) and bool(status["in_kernel"][0]["mapped_by"])


def is_quiet(status: dict[str, Any]) -> bool:
    return not status["in_kernel"]
