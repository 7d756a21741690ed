"""The stage of the scenes: shows and runs commands, directs readers, and counts failed expectations."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

PATTERN = b"x"
SIZE = 8 << 20
LIMIT_S = 60.0
"""How long anything may take here before the demo counts as failed."""
BOLD, RED, GREEN, CYAN = 1, 31, 32, 36
CLEAR = "\033[H\033[2J"


class Stage:
    """A scratch directory on tmpfs, with a plain directory `plain`, and `source` mounted through pinfs on `mounts`."""

    mounts: tuple[str, ...] = ("mnt",)

    def __init__(self, pause_s: float = 0.0) -> None:
        """`pause_s`: for spectators. Each scene has a screen of its own, which stands for so long at its end."""
        self.failures, self.pause_s, self.scenes = 0, pause_s, 0
        self.dir = Path(tempfile.mkdtemp(prefix="pinfs-demo-", dir="/dev/shm"))
        for name in ("plain", "source", *self.mounts):
            (self.dir / name).mkdir()
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in filter(self.is_mounted, self.mounts):
            subprocess.run(["pinfs", "umount", "--force", name], cwd=self.dir, env=self.environment, check=False)
        shutil.rmtree(self.dir)

    # --- telling

    def scene(self, title: str) -> None:
        if self.scenes:
            self.pause()
        self.scenes += 1
        print(CLEAR if self.pause_s else "", end="" if self.pause_s else "\n")
        print(styled(BOLD, title), flush=True)

    def pause(self) -> None:
        time.sleep(self.pause_s)

    def tell(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def show(self, command: str) -> None:
        self.tell(styled(CYAN, f"$ {command}"))

    def expect(self, holds: bool, what: str) -> None:
        """Show whether `what` holds. If not, the demo fails at its end."""
        self.failures += not holds
        self.tell(f"{styled(GREEN, '[ok]') if holds else styled(RED, '[NOT SO]')} {what}")

    # --- commands

    def run(self, *command: str) -> Outcome:
        """Shows a command, runs it, shows its output."""
        self.show(f"{shlex.join(command)}")
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=self.dir, env=self.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        outcome = Outcome(done.returncode, (done.stdout + done.stderr).strip(), time.monotonic() - started)
        for line in outcome.text.splitlines():
            self.tell(f"  {line}")
        return outcome

    def try_again(self, *command: str) -> bool:
        """Runs a command, and shows nothing; whether it has succeeded."""
        done = subprocess.run(
            command, cwd=self.dir, env=self.environment, capture_output=True, timeout=LIMIT_S, check=False
        )
        return done.returncode == 0

    def until_done(self, *command: str) -> None:
        """Shows a command, and runs it until it succeeds. SystemExit: it does not within LIMIT_S."""
        self.show(f"until {shlex.join(command)} 2>/dev/null; do sleep 0.1; done")
        wait_until(lambda: self.try_again(*command), f"{command[0]} fails for ever", pause_s=0.1)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Shows a command and starts it in the background."""
        self.show(f"{shlex.join(command)} &")
        return subprocess.Popen(command, cwd=self.dir, env=self.environment, stdout=subprocess.PIPE, text=True)

    def reader(self, *arguments: str) -> Reader:
        """Starts a reader (reader.py) and waits until it has mapped its file."""
        self.show(f"reader {' '.join(arguments)} &")
        return Reader(self, arguments)

    # --- files and mounts

    def write(self, name: str, size: int = SIZE) -> Path:
        """A file full of x."""
        path = self.dir / name
        path.write_bytes(PATTERN * size)
        return path

    def mount(self, *options: str, at: str = "mnt") -> bool:
        """Mounts `source` there. False when this machine or user can't."""
        asked = ["-o", ",".join(options)] if options else []
        return self.run("pinfs", "mount", "source", at, *asked, "--daemon").code == 0

    def umount(self, at: str = "mnt", *options: str) -> None:
        ended = self.run("pinfs", "umount", *options, at).code == 0
        self.expect(ended and not self.is_mounted(at), "nothing is left mounted")

    def is_mounted(self, at: str = "mnt") -> bool:
        return f" {self.dir / at} " in Path("/proc/self/mountinfo").read_text()


def styled(style: int, text: str) -> str:
    """On a terminal, in that rendition of ECMA-48 (SGR)."""
    return f"\033[{style}m{text}\033[0m" if sys.stdout.isatty() else text


def wait_until(holds: Callable[[], bool], otherwise: str, pause_s: float = 0.01) -> None:
    """SystemExit: it does not hold within LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(otherwise)
        time.sleep(pause_s)


class Outcome:
    """How a command ended: its exit code, what it printed, how long it took."""

    def __init__(self, code: int, text: str, seconds: float) -> None:
        self.code, self.text, self.seconds = code, text, seconds

    @property
    def busy(self) -> bool:
        return self.code != 0 and re.search("Device or resource busy", self.text) is not None


class Reader:
    """A running reader.py."""

    def __init__(self, stage: Stage, arguments: tuple[str, ...]) -> None:
        self.stage = stage
        program = [sys.executable, str(Path(__file__).with_name("reader.py")), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            program, stdin=pipe, stdout=pipe, text=True, cwd=stage.dir, env=stage.environment
        )
        self.line()

    def line(self) -> str:
        """The next line of its output; empty if it has died or prints none within LIMIT_S."""
        assert self.process.stdout
        text = self.process.stdout.readline() if select.select([self.process.stdout], [], [], LIMIT_S)[0] else ""
        if text:
            self.stage.tell(f"  reader: {text.strip()}")
        return text

    def still_reads(self) -> bool:
        """Whether it can read all its pages once more."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return "every page is there" in self.line()

    def ended(self) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        self.process.wait(timeout=LIMIT_S)
        return self.stop()

    def stop(self) -> int:
        """Ends it; the exit status."""
        self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode
