"""Signals that hit a waiting breaker: it is set free at once, while the break goes on (SPEC 3.7).

"At once" is shown by what has not happened yet: the deadline is a minute away, and the pin is still breaking.
"""

from __future__ import annotations

import errno
import operator
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounted.world import nothing_is_stuck, state_of
from support.actor import Actor, eventually
from support.mounts import Mount, Trace

SHARED_MOUNT_OPTIONS = ("break_timeout=60",)
PROMPT_S = 10.0
"""Far below the deadline. Never measured: only what has to be over before the break is."""
BIG = 1 << 20

PYTHON = ("/usr/bin/python3", "-c")
BREAKERS = {
    "truncate(2)": [*PYTHON, "import os, sys; os.truncate(sys.argv[1], 0)"],
    "ftruncate(2)": [*PYTHON, "import os, sys; os.ftruncate(os.open(sys.argv[1], os.O_RDWR), 0)"],
    "O_TRUNC": [*PYTHON, "import sys; open(sys.argv[1], 'w')"],
    "truncate": ["truncate", "-s", "0"],
    "fallocate": ["fallocate", "-p", "-o", "0", "-l", "4096"],
    "shell": ["sh", "-c", ': > "$0"'],
}


@pytest.fixture
def file(shared_dir: Path) -> Path:
    path = shared_dir / "file"
    path.write_bytes(b"x" * BIG)
    return path


def lease(mount: Mount, file: Path) -> Actor:
    holder = mount.actor()
    holder.pin(file, "p", "0:0,mode=lease,signal=none")
    return holder


@contextmanager
def waiting(command: list[str], file: Path, trace: Trace) -> Iterator[subprocess.Popen[bytes]]:
    """A real program that waits for the lease of `file`."""
    process = subprocess.Popen([*command, file], stderr=subprocess.PIPE)
    try:
        trace.until("break")
        yield process
    finally:
        process.kill()
        process.wait(PROMPT_S)
        assert process.stderr
        process.stderr.close()


def is_breaking(file: Path, mount: Mount) -> bool:
    (pin,) = (pin for pin in mount.pins() if pin["inode"] == file.stat().st_ino)
    return bool(pin["state"] == "breaking")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("breaker", BREAKERS)
def test_a_signal_ends_a_waiting_breaker(shared_mount: Mount, file: Path, breaker: str, number: int) -> None:
    lease(shared_mount, file)
    with shared_mount.trace() as trace, waiting(BREAKERS[breaker], file, trace) as process:
        process.send_signal(number)
        assert process.wait(PROMPT_S) == -number
        assert state_of(process.pid) == "X"
    assert is_breaking(file, shared_mount)
    assert file.stat().st_size == BIG


def test_a_handled_signal_is_eintr_and_the_second_try_joins_the_break(shared_mount: Mount, file: Path) -> None:
    holder, breaker = lease(shared_mount, file), shared_mount.actor()
    breaker(signal.signal, signal.SIGUSR1, operator.is_)  # a handler that does nothing
    with shared_mount.trace() as trace:
        cut = breaker.start(os.truncate, str(file), 0)
        trace.until("break")
        breaker.signal(signal.SIGUSR1)
        assert cut.error(PROMPT_S) == errno.EINTR
        again = breaker.start(os.truncate, str(file), 0)
        eventually(lambda: shared_mount.status()["waiting"] == 1)
        holder.release(file, "p")
        again.result()
        trace.until("proceeded")
    assert [event["event"] for event in trace.seen].count("break") == 1
    assert file.stat().st_size == 0


def test_who_gave_up_does_not_hold_up_the_next_one(shared_mount: Mount, file: Path) -> None:
    """The dead breaker's turn is over: the next one proceeds as soon as the holder lets go."""
    holder, second = lease(shared_mount, file), shared_mount.actor()
    with shared_mount.trace() as trace:
        with waiting(BREAKERS["truncate(2)"], file, trace) as process:
            opening = second.start(os.open, str(file), os.O_WRONLY | os.O_TRUNC)
            eventually(lambda: shared_mount.status()["waiting"] == 2)
            process.kill()
            process.wait(PROMPT_S)
        assert not opening.done()
        holder.release(file, "p")
        opening.result()
    assert file.stat().st_size == 0


def test_a_second_truncate_waits_in_the_kernel_for_the_first(shared_mount: Mount, file: Path) -> None:
    """The kernel holds the inode's lock while a SETATTR waits: the second one does not even reach the daemon. Who waits
    for that lock is in state D; whether SIGKILL ends it there depends on the kernel. (O_TRUNC takes no lock.)"""
    second = shared_mount.actor()
    lease(shared_mount, file)
    with shared_mount.trace() as trace, waiting(BREAKERS["truncate(2)"], file, trace) as first:
        second.start(os.truncate, str(file), 0)
        eventually(lambda: second.state() == "D")
        assert shared_mount.status()["waiting"] == 1
        second.process.kill()
        first.kill()
        assert second.process.wait(PROMPT_S) == -signal.SIGKILL
    nothing_is_stuck()
    assert is_breaking(file, shared_mount)


def test_stopping_a_breaker_interrupts_it_too(shared_mount: Mount, file: Path) -> None:
    """The kernel sends an INTERRUPT for any signal, and does not say which: after Ctrl-Z and `fg`, too, it is EINTR."""
    breaker = shared_mount.actor()
    lease(shared_mount, file)
    with shared_mount.trace() as trace:
        cut = breaker.start(os.truncate, str(file), 0)
        trace.until("break")
        breaker.signal(signal.SIGSTOP)
        eventually(lambda: breaker.state() == "T")
        breaker.signal(signal.SIGCONT)
        assert cut.error(PROMPT_S) == errno.EINTR
    assert is_breaking(file, shared_mount)


def test_a_whole_group_is_interrupted_by_one_ctrl_c(shared_mount: Mount, shared_dir: Path) -> None:
    files = [shared_dir / str(number) for number in range(8)]
    for file in files:
        file.write_bytes(b"x" * 4096)
        lease(shared_mount, file)
    script = 'for file; do truncate -s 0 "$file" & done; wait'
    with shared_mount.trace() as trace:
        shell = subprocess.Popen(["bash", "-c", script, "bash", *files], start_new_session=True)
        for _ in files:
            trace.until("break")
        eventually(lambda: shared_mount.status()["waiting"] == len(files))
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(PROMPT_S)
        eventually(lambda: shared_mount.status()["waiting"] == 0)
    nothing_is_stuck()
    assert all(file.stat().st_size == 4096 for file in files)
