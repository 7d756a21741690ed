"""Remote control of the benchmark's other processes: programs of their own that answer with a JSON value a line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Remote:
    """Another process, as seen from the benchmark."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def tell(self, command: str, *arguments: object) -> Any:
        """Send a command and read its first answer. Raises the OSError of the other process."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError("the other process has ended")
        value = json.loads(line)
        if isinstance(value, dict):
            raise OSError(value["errno"], os.strerror(value["errno"] or 0))
        return value

    def wait_asleep(self) -> None:
        """Wait until the process sleeps, so that its remaining work is not measured with the wake-up."""
        stat = Path(f"/proc/{self._process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()


@contextmanager
def started(program: str, *arguments: object, pass_fds: Sequence[int] = ()) -> Iterator[Remote]:
    """A process for the length of the block; killed at the end, which releases its pins.

    It is a process group of its own: Ctrl-C ends the benchmark, which then ends this process.
    """
    command = [sys.executable, "-P", program, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds, process_group=0
    )
    try:
        yield Remote(process)
    finally:
        process.kill()
        process.communicate()
