"""Very many short-lived processes: one small process forks them, because to fork the tests' own costs a hundred times
as much."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import TracebackType

PROGRAM = """
import ctypes, os, signal, sys
prctl = ctypes.CDLL(None).prctl
for line in sys.stdin:
    pid = int(line)
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    else:
        pid = os.fork()
        if not pid:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with this process
            os.close(0)
            signal.pause()
            os._exit(0)
    print(pid, flush=True)
"""


class Nest:
    """`hatch` gives the pid of a new process that does nothing; `end` returns when it has been reaped."""

    def __init__(self) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-I", "-S", "-c", PROGRAM]
        pipe = subprocess.PIPE
        self._program = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._living: set[int] = set()

    def _tell(self, number: int) -> int:
        assert self._program.stdin and self._program.stdout
        print(number, file=self._program.stdin, flush=True)
        return int(self._program.stdout.readline())

    def hatch(self) -> int:
        pid = self._tell(0)
        self._living.add(pid)
        return pid

    def end(self, pid: int) -> None:
        self._living.remove(pid)
        self._tell(pid)

    def __enter__(self) -> Nest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._living:
            os.kill(pid, signal.SIGKILL)
        self._program.communicate()
