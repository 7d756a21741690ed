"""/proc and system calls, asked about this process and its children."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from support.actor import Actors

from pinfs.linux.proc import is_kernel_thread, processes, read_comm, supplementary_groups, used_paths
from pinfs.linux.syscalls import file_system_magic, is_thread_of, queue_signal, umount2


def test_processes_are_those_that_live() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert {os.getpid(), child.pid} <= set(processes())
        child.kill()
    assert child.pid not in set(processes())
    assert read_comm(child.pid) is None


def test_threads_of_the_kernel_are_told_from_programs() -> None:
    assert not is_kernel_thread(os.getpid())
    assert not is_kernel_thread(0)
    if read_comm(2) == "kthreadd":  # in the initial pid namespace
        assert is_kernel_thread(2)


def test_what_keeps_a_mount_busy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with (tmp_path / "file").open() as file, subprocess.Popen(["sleep", "60"], cwd=tmp_path, stdin=file) as child:
        assert {str(tmp_path), str(tmp_path / "file")} <= set(used_paths(child.pid))
        child.kill()
    assert list(used_paths(child.pid)) == []


def test_threads_of_a_process() -> None:
    ids, end = [], threading.Event()

    def run() -> None:
        ids.append(threading.get_native_id())
        started.set()
        end.wait()

    started = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        assert is_thread_of(os.getpid(), ids[0])
        assert not is_thread_of(os.getppid(), ids[0])
    finally:
        end.set()
        thread.join()


def test_a_signal_to_a_process_that_has_ended() -> None:
    with subprocess.Popen(["true"]) as child:
        pidfd = os.pidfd_open(child.pid)
    try:
        assert not queue_signal(pidfd, signal.SIGIO, 1)
    finally:
        os.close(pidfd)


def test_groups_of_a_process(root: None, actors: Actors) -> None:
    assert supplementary_groups(actors.actor(uid=1000, gid=1000, groups=(7, 42000)).pid) == {7, 42000}
    assert supplementary_groups(actors.actor(uid=1000, gid=1000).pid) == frozenset()
    assert supplementary_groups(0) == frozenset()


def test_file_systems_tell_their_kind() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    try:
        assert file_system_magic(fd) == 0x9FA0  # PROC_SUPER_MAGIC
    finally:
        os.close(fd)


def test_errors_name_the_path(root: None, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument") as failure:
        umount2(str(tmp_path), 0)
    assert failure.value.filename == str(tmp_path)
