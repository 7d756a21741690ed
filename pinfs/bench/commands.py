"""Programs that others have written, started by the benchmark and run to their end."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from time import perf_counter_ns

from pinfs.bench.rows import Skip


def program(name: str) -> str:
    """The path of a program. Skip: it is not installed."""
    path = shutil.which(name)
    if path is None:
        raise Skip(f"{name} is not installed")
    return path


def run(command: Sequence[str], variables: Mapping[str, str], given: bytes | None = None) -> float:
    """Run one to its end with `given` as its input; microseconds. Errors as `run_together`."""
    return run_together([command], variables, given)


def run_together(commands: Sequence[Sequence[str]], variables: Mapping[str, str], given: bytes | None = None) -> float:
    """Start all of them and wait for all; microseconds from before the first begins until the last has ended. Skip: one
    failed, and why. OSError: one cannot be started.

    Each is a process group of its own: Ctrl-C ends the benchmark, which then ends them and what they have started.
    """
    processes: list[subprocess.Popen[bytes]] = []
    start_ns = perf_counter_ns()
    try:
        for command in commands:
            processes.append(_started(command, variables, given is not None))
        said = [process.communicate(given)[1] for process in processes]
        end_ns = perf_counter_ns()
    finally:
        for process in processes:
            _end(process)
    for command, process, errors in zip(commands, processes, said, strict=True):
        if process.returncode:
            raise Skip(_failure(command, process.returncode, errors))
    return (end_ns - start_ns) / 1000


def _started(command: Sequence[str], variables: Mapping[str, str], is_given: bool) -> "subprocess.Popen[bytes]":
    stdin = subprocess.PIPE if is_given else subprocess.DEVNULL
    return subprocess.Popen(
        command, env=variables, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    with process:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)


def _failure(command: Sequence[str], status: int, errors: bytes) -> str:
    how = f"exit status {status}" if status > 0 else f"signal {-status}"
    lines = errors.decode(errors="replace").split("\n")
    why = next((line for line in lines if line.strip()), "no word of why")
    return f"{os.path.basename(command[0])}: {how}: {why}"
