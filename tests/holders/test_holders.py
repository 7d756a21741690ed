"""Processes as holders, with real processes and threads."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from support.actor import eventually

from pinfs.core.owners import ProcessId
from pinfs.enforce.holders import REMEMBERED, Holders, raise_descriptor_limit
from pinfs.enforce.processes import A_MOMENT_S
from pinfs.linux import syscalls
from pinfs.linux.signals import parse_signal, signal_name

as_root = pytest.mark.usefixtures("root")
NOBODY = 65534


@pytest.fixture
def holders() -> Iterator[Holders]:
    with contextlib.closing(Holders()) as holders:
        yield holders


class Child:
    """A program that says a line when it is ready and ends when its input does."""

    def __init__(self, code: str) -> None:
        argv = [sys.executable, "-c", code]
        self.popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdin and self.popen.stdout
        self.stdin, self.stdout = self.popen.stdin, self.popen.stdout

    def line(self) -> str:
        return self.stdout.readline().strip()

    def say(self, text: str) -> None:
        self.stdin.write(text + "\n")
        self.stdin.flush()

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.popen.wait()
        self.stdout.close()


@contextlib.contextmanager
def child(code: str = "print('ready', flush=True); input()") -> Iterator[Child]:
    started = Child(code)
    try:
        yield started
    finally:
        started.popen.kill()
        started.end()


@contextlib.contextmanager
def thread() -> Iterator[int]:
    """The id of a running thread of this process."""
    end = threading.Event()
    runner = threading.Thread(target=end.wait)
    runner.start()
    assert runner.native_id
    try:
        yield runner.native_id
    finally:
        end.set()
        runner.join()


def test_all_threads_are_one_process(holders: Holders) -> None:
    main = holders.process_of(os.getpid())
    assert main is not None and main.pid == os.getpid()
    with thread() as tid:
        assert tid != os.getpid()
        assert holders.process_of(tid) is main
        assert holders.process_of(tid) is main
        assert holders.process_by_pid(tid) is main


def test_a_thread_that_is_known_before_its_process(holders: Holders) -> None:
    with thread() as tid:
        process = holders.process_of(tid)
        assert process is not None and process.pid == os.getpid()
        assert holders.process_of(os.getpid()) is process


def test_an_ended_thread_is_nobody(holders: Holders) -> None:
    with thread() as tid:
        assert holders.process_of(tid)
    eventually(lambda: holders.process_of(tid) is None)  # join() comes back a moment before the kernel is done with it
    with pytest.raises(ProcessLookupError) as caught:
        holders.process_by_pid(tid)
    assert caught.value.errno == errno.ESRCH


@pytest.mark.parametrize("tid", [0, -1, 2**22 + 1, 2**31, 2**70])
def test_what_is_no_thread_is_nobody(holders: Holders, tid: int) -> None:
    assert holders.process_of(tid) is None


def test_a_dead_process_is_nobody_as_zombie_and_after(holders: Holders) -> None:
    with child() as program:
        program.line()
        process = holders.process_of(program.popen.pid)
        assert process is not None and process.alive
        program.popen.kill()
        os.waitid(os.P_PID, program.popen.pid, os.WEXITED | os.WNOWAIT)
        assert not process.alive
        assert holders.process_of(program.popen.pid) is None
        program.popen.wait()
        assert holders.process_of(program.popen.pid) is None
        with pytest.raises(ProcessLookupError):
            holders.hold(process)


def test_a_caller_waits_for_its_reply_and_so_lives(holders: Holders) -> None:
    """What has its number a moment later is that process still; what has it after that is looked at."""
    with child() as program:
        program.line()
        pid = program.popen.pid
        process = holders.process_of(pid)
        assert holders.caller(pid) is process
        assert holders.caller(pid) is process
        assert holders.caller(0) is None
        program.popen.kill()
        program.popen.wait()
        until = time.monotonic() + A_MOMENT_S
        while time.monotonic() <= until:
            pass
        assert holders.caller(pid) is None


def test_exec_stays_the_same_process_under_a_new_name(holders: Holders) -> None:
    with child("import os; print('ready', flush=True); os.read(0, 3); os.execvp('cat', ['cat'])") as program:
        program.line()
        process = holders.process_by_pid(program.popen.pid)
        holders.hold(process)
        started = process.id.start_time
        program.say("go")
        program.say("echo")
        assert program.line() == "echo"
        assert holders.process_of(program.popen.pid) is process
        assert (process.comm, process.id.start_time) == ("cat", started)
        assert process.alive
        holders.drop(process.id)


def test_a_forked_child_is_another_process(holders: Holders) -> None:
    code = """
import os
reader, writer = os.pipe()
pid = os.fork()
if pid:
    print(pid, flush=True)
    input()
else:
    os.close(writer)
    os.read(reader, 1)
"""
    with child(code) as program:
        forked = int(program.line())
        parent, grandchild = holders.process_of(program.popen.pid), holders.process_of(forked)
        assert parent is not None and grandchild is not None
        assert parent is not grandchild


def test_a_process_lives_on_after_its_main_thread(holders: Holders) -> None:
    exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    code = f"""
import ctypes, threading, os
threading.Thread(target=lambda: (print(threading.get_native_id(), flush=True), os.read(0, 1), os._exit(0))).start()
ctypes.CDLL(None).syscall({exit_thread}, 0)
"""
    with child(code) as program:
        tid = int(program.line())
        process = holders.process_of(tid)
        assert process is not None and process.pid == program.popen.pid
        assert process.alive
        assert holders.process_of(tid) is process
        program.end()
        assert not process.alive


@as_root
def test_a_reused_pid_is_another_process(holders: Holders) -> None:
    first = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert first.stdin and first.stdout
    first.stdin.write(b"x")
    assert first.stdout.read(1) == b"x"  # now it is cat; before it may still bear our name
    process = holders.process_by_pid(first.pid)
    holders.hold(process)
    first.communicate()
    second = _process_with_pid(first.pid)
    try:
        successor = holders.process_of(second.pid)
        assert successor is not None and successor is not process
        holders.hold(successor)
        assert (process.alive, successor.alive) == (False, True)
        assert process.comm == "cat"
        assert not holders.signal(process.id, signal.SIGKILL, 0, 0)
        assert not holders.kill(process.id)
        holders.drop(process.id)
        assert holders.process_of(second.pid) is successor
        assert successor.alive
        assert len(holders) == 1
    finally:
        second.kill()
        second.wait()


def _process_with_pid(pid: int) -> subprocess.Popen[bytes]:
    """Others start processes on this machine too, so a number is not always free to be taken at the first try."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        started = subprocess.Popen(["sleep", "1000"])
        if started.pid == pid:
            return started
        started.kill()
        started.wait()
    pytest.fail(f"pid {pid} could not be had again")


def test_one_object_for_one_process_even_when_it_was_forgotten(holders: Holders) -> None:
    with child() as program:
        program.line()
        process = holders.process_by_pid(program.popen.pid)
        holders._recent.clear()
        assert holders.process_of(program.popen.pid) is process


def test_processes_that_hold_nothing_are_forgotten(holders: Holders) -> None:
    gc.collect()  # what earlier tests left gives its descriptors back now, not between two counts
    with pipe_of_cats(REMEMBERED + 20) as pids:
        before = len(os.listdir("/proc/self/fd"))
        for pid in pids:
            assert holders.process_of(pid)
        assert len(os.listdir("/proc/self/fd")) - before == REMEMBERED
        holders.close()
        assert len(os.listdir("/proc/self/fd")) == before - 1


@contextlib.contextmanager
def pipe_of_cats(count: int) -> Iterator[list[int]]:
    """Processes that all wait on one pipe, and end when it is closed."""
    reader, writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_CLOSE, writer)]
    pids = [os.posix_spawn("/bin/cat", ["cat"], os.environ, file_actions=actions) for _ in range(count)]
    os.close(reader)
    try:
        yield pids
    finally:
        os.close(writer)
        for pid in pids:
            os.waitpid(pid, 0)


async def test_two_thousand_holders_die(holders: Holders) -> None:
    raise_descriptor_limit()
    dead: list[ProcessId] = []
    all_dead = trio.Event()

    def on_death(process: ProcessId) -> None:
        dead.append(process)
        holders.drop(process)
        if len(dead) == 2000:
            all_dead.set()

    holders.on_death = on_death
    async with trio.open_nursery() as nursery:
        await nursery.start(holders.run)
        with pipe_of_cats(2000) as pids:
            held = [holders.process_by_pid(pid) for pid in pids]
            for process in held:
                holders.hold(process)
            assert len(holders) == 2000
            assert holders.process_of(pids[0]) is held[0]
        with trio.fail_after(60):
            await all_dead.wait()
        nursery.cancel_scope.cancel()
    assert set(dead) == {process.id for process in held} and len(dead) == 2000
    assert len(holders) == 0
    del process
    held.clear()  # this frame is in a cycle with on_death: 2000 descriptors must not wait for the collector
    dead.clear()


async def test_a_death_is_reported_once_and_a_failing_callback_hurts_nobody(
    holders: Holders, caplog: pytest.LogCaptureFixture
) -> None:
    dead: list[ProcessId] = []

    def on_death(process: ProcessId) -> None:
        dead.append(process)
        raise RuntimeError("no")

    holders.on_death = on_death
    with pipe_of_cats(3) as pids:
        processes = [holders.process_by_pid(pid) for pid in pids]
        for process in processes:
            holders.hold(process)
            holders.hold(process)
        holders.drop(processes[2].id)
        holders.drop(processes[2].id)
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(holders.run)
            while len(dead) < 2:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert set(dead) == {process.id for process in processes[:2]} and len(dead) == 2
    assert [record.name for record in caplog.records] == ["pinfs.holders"] * 2
    for process in processes[:2]:
        holders.drop(process.id)
        holders.drop(process.id)


async def test_a_holder_that_the_death_before_let_go_is_not_reported(holders: Holders) -> None:
    with pipe_of_cats(2) as pids:
        processes = [holders.process_by_pid(pid) for pid in pids]
        for process in processes:
            holders.hold(process)
    dead: list[ProcessId] = []

    def on_death(process: ProcessId) -> None:
        dead.append(process)
        for each in processes:
            holders.drop(each.id)

    holders.on_death = on_death
    holders.report_deaths()
    assert len(dead) == 1
    assert len(holders) == 0


def test_no_descriptor_left_is_edquot(holders: Holders) -> None:
    with child() as program:
        program.line()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError) as caught:
                holders.process_of(program.popen.pid)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EDQUOT
        assert holders.counters.out_of_descriptors == 1
        assert holders.process_of(program.popen.pid)


def test_the_descriptor_limit_goes_up_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        assert raise_descriptor_limit() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_start_time_and_status_are_those_of_proc(holders: Holders) -> None:
    with child(
        "open('/proc/self/comm', 'w').write('a) (b\\nTgid:\\t1'); print('ready', flush=True); input()"
    ) as program:
        program.line()
        process = holders.process_by_pid(program.popen.pid)
        holders.hold(process)
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert process.id.start_time == int(fields[19]) > 0
        assert process.uids == (os.getuid(),) * 3
        assert process.comm.startswith("a) (b")
        program.end()
        assert process.comm.startswith("a) (b")
        assert process.uids == (os.getuid(),) * 3
        holders.drop(process.id)


# ---- rights


@as_root
def test_who_may_act_for_whom(holders: Holders) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=NOBODY) as program:
        process = holders.process_by_pid(program.pid)
        holders.may_act_for(0, process)
        holders.may_act_for(NOBODY, process)
        with pytest.raises(PermissionError) as caught:
            holders.may_act_for(1000, process)
        assert caught.value.errno == errno.EPERM
        assert holders.signal(process.id, signal.SIGCONT, 7, NOBODY)
        assert not holders.signal(process.id, signal.SIGCONT, 7, 1000)
        program.communicate()
        with pytest.raises(PermissionError):
            holders.may_act_for(NOBODY, process)


SWITCHES = {
    "effective only": ("os.seteuid(65534)", False),
    "real only": ("os.setreuid(65534, 0)", False),
    "saved only": ("os.setresuid(0, 0, 65534)", False),
    "all": ("os.setresuid(65534, 65534, 65534)", True),
}


@as_root
@pytest.mark.parametrize(("switch", "allowed"), SWITCHES.values(), ids=SWITCHES)
def test_all_three_uids_must_agree(holders: Holders, switch: str, allowed: bool) -> None:
    with child(f"import os; {switch}; print('ready', flush=True); input()") as program:
        program.line()
        process = holders.process_by_pid(program.popen.pid)
        with contextlib.nullcontext() if allowed else pytest.raises(PermissionError):
            holders.may_act_for(NOBODY, process)


# ---- signals

RECEIVER = """
import ctypes, os, signal, struct
{switch}
wanted = [signal.SIGIO, signal.SIGRTMIN + 1]
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
mask, info = ctypes.create_string_buffer(128), ctypes.create_string_buffer(128)
libc = ctypes.CDLL(None)
libc.sigemptyset(mask)
for number in wanted:
    libc.sigaddset(mask, int(number))
print("ready", flush=True)
while True:
    libc.sigwaitinfo(mask, info)
    signo, _, code, _, pid, uid, value = struct.unpack_from("iiiiiIQ", info)
    print(signo, code, pid, uid, value, flush=True)
"""


@pytest.mark.parametrize("signo", [signal.SIGIO, signal.SIGRTMIN + 1])
def test_a_signal_carries_the_pin(holders: Holders, signo: int) -> None:
    with child(RECEIVER.format(switch="")) as program:
        program.line()
        process = holders.process_by_pid(program.popen.pid)
        assert holders.signal(process.id, signo, 2**63 + 7, os.getuid())
        assert program.line() == f"{int(signo)} -1 {os.getpid()} {os.getuid()} {2**63 + 7}"
        assert (holders.counters.signals_sent, holders.counters.signals_refused) == (1, 0)


SIGNALLED = {
    "the same user": ("os.setresuid(65534, 65534, 65534)", NOBODY, True),
    "root may": ("os.setresuid(65534, 65534, 65534)", 0, True),
    "another user": ("os.setresuid(65534, 65534, 65534)", 1000, False),
    "became root": ("", NOBODY, False),
    "real uid": ("os.setresuid(65534, 0, 0)", NOBODY, True),
    "saved uid": ("os.setresuid(0, 0, 65534)", NOBODY, True),
    "runs with the rights of the owner": ("os.setresuid(0, 65534, 0)", NOBODY, True),
}


@as_root
@pytest.mark.parametrize(("switch", "uid", "told"), SIGNALLED.values(), ids=SIGNALLED)
def test_only_who_could_signal_is_signalled_for(holders: Holders, switch: str, uid: int, told: bool) -> None:
    with child(RECEIVER.format(switch=switch)) as program:
        program.line()
        process = holders.process_by_pid(program.popen.pid)
        assert holders.signal(process.id, signal.SIGIO, 7, uid) is told
        assert (holders.counters.signals_sent, holders.counters.signals_refused) == (int(told), int(not told))


@pytest.mark.parametrize("uid", [0, NOBODY])
def test_the_dead_are_not_signalled(holders: Holders, uid: int) -> None:
    with child() as program:
        program.line()
        process = holders.process_by_pid(program.popen.pid)
        program.end()
        assert not holders.signal(process.id, signal.SIGIO, 7, uid)
        assert not holders.kill(process.id)


def test_kill(holders: Holders) -> None:
    with child() as program:
        program.line()
        assert holders.kill(holders.process_by_pid(program.popen.pid).id)
        assert program.popen.wait() == -signal.SIGKILL


def test_system_call_numbers_and_layout_are_those_of_this_machine() -> None:
    assert syscalls._SIGINFO.size == 128
    assert platform.machine() in ("x86_64", "aarch64")


# ---- names


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("IO", signal.SIGIO),
        ("SIGIO", signal.SIGIO),
        ("io", signal.SIGIO),
        ("29", 29),
        ("USR1", signal.SIGUSR1),
        ("POLL", signal.SIGIO),
        ("RTMIN", signal.SIGRTMIN),
        ("SIGRTMIN+1", signal.SIGRTMIN + 1),
        ("RTMAX", 64),
        ("RTMAX-2", 62),
        ("RTMIN+30", 64),
        ("64", 64),
        ("none", None),
    ],
)
def test_signals_by_name(text: str, number: int | None) -> None:
    assert parse_signal(text) == number


NO_SIGNALS = [
    "",
    "0",
    "32",
    "33",
    "65",
    "-1",
    "+1",
    " 29",
    "29 ",
    "1e1",
    "\u0662\u0669",
    "029",
    "SIG",
    "FOO",
    "_IGN",
    "BLOCK",
]
NO_REALTIME = [
    "RTMIN+31",
    "RTMAX-31",
    "RTMAX-50",
    "RTMIN-1",
    "RTMAX+1",
    "RTMIN+",
    "RTMIN+\u0663",
    "NONE",
    "9" * 5000,
    "I\0O",
    "SIGSIGIO",
]


@pytest.mark.parametrize("text", NO_SIGNALS + NO_REALTIME, ids=repr)
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(ValueError, match="no such signal"):
        parse_signal(text)


@pytest.mark.parametrize("number", [*range(1, 32), *range(34, 65), None])
def test_names_are_read_back(number: int | None) -> None:
    assert parse_signal(signal_name(number)) == number


def test_names_as_documented() -> None:
    assert [signal_name(n) for n in (29, 35, None)] == ["IO", "RTMIN+1", "none"]


def test_a_process_that_is_left_at_the_interpreters_end() -> None:
    """What an earlier module holds goes when the names of the later one, pinfs.enforce.processes, have gone already."""
    code = "import sys, types; sys.earlier = sys.modules['earlier'] = earlier = types.ModuleType('earlier');"
    code += "import os; from pinfs.enforce import processes; status = processes.Status(os.getpid(), '', (0, 0, 0));"
    code += "who = processes.ProcessId(os.getpid(), 1);"
    code += "earlier.kept = processes, processes.Process(who, status, os.pidfd_open(os.getpid()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
