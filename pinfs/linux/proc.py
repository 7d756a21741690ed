"""What /proc tells of processes (proc_pid_status(5), proc_pid_stat(5), pid_namespaces(7))."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_STATUS: Final = re.compile(rb"Name:\t(.*)\n(?:.*\n)*?Tgid:\t(\d+)\n(?:.*\n)*?Uid:\t(\d+)\t(\d+)\t(\d+)\t")
_PF_KTHREAD: Final = 0x00200000  # linux/sched.h
_PINNED: Final = re.compile(rb"^VmPin:\s+(\d+) kB$", re.MULTILINE)
_GROUPS: Final = re.compile(rb"^Groups:\t((?:\d+ )*)", re.MULTILINE)
_INNERMOST: Final = re.compile(rb"^NSpid:.*\t(\d+)$", re.MULTILINE)


class Status(NamedTuple):
    """What /proc/PID/status tells."""

    tgid: int
    comm: str
    uids: tuple[int, int, int]
    """Real, effective, saved."""


def _read(path: str) -> bytes:
    """The first 4 KiB of a file of /proc, which come in one read."""
    with open(path, "rb", buffering=0) as file:
        return file.read(4096)


def read_status(tid: int) -> Status | None:
    """None when there is no such thread, or /proc hides it (hidepid)."""
    try:
        match = _STATUS.match(_read(f"/proc/{tid}/status"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if match is None:
        return None
    comm, tgid, *uids = match.groups()
    real, effective, saved = map(int, uids)
    return Status(int(tgid), comm.decode(errors="surrogateescape"), (real, effective, saved))


def read_start_time(pid: int) -> int:
    """Clock ticks after boot (field 22 of proc_pid_stat(5)), 0 when there is no such process or it is hidden from us.

    comm may hold anything, so fields count from the last ')'. Raises OSError EMFILE and its like.
    """
    try:
        return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0


def age_s() -> float:
    """How long this process has been running."""
    start_s = read_start_time(os.getpid()) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_s


def read_state(pid: int) -> tuple[str | None, int]:
    """The state of a process (one letter) and the processor time that it has used, in clock ticks: fields 3, 14 and 15
    of proc_pid_stat(5). (None, 0) where there is no such process."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None, 0
    return fields[0].decode(), int(fields[11]) + int(fields[12])


def is_kernel_thread(pid: int) -> bool:
    """Whether a process is a thread of the kernel, such as those of its NFS server (PF_KTHREAD in field 9 of
    proc_pid_stat(5)). False where it cannot be seen."""
    try:
        return bool(int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[6]) & _PF_KTHREAD)
    except OSError:
        return False


def read_comm(pid: int) -> str | None:
    """The name of the program as ps shows it; None when there is no such process."""
    try:
        fd = os.open(b"/proc/%d/comm" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        name = os.read(fd, 64)
    except OSError:
        return None
    finally:
        os.close(fd)
    return name.rstrip(b"\n").decode(errors="replace")


def pinned_bytes(pid: int) -> int:
    """The memory that a process has pinned for devices (VmPin of proc_pid_status(5)); 0 where it cannot be seen."""
    with contextlib.suppress(OSError):
        match = _PINNED.search(_read(f"/proc/{pid}/status"))
        return 0 if match is None else int(match[1]) * 1024
    return 0


def supplementary_groups(tid: int) -> frozenset[int]:
    """Of a thread; empty where it cannot be seen."""
    with contextlib.suppress(OSError):
        match = _GROUPS.search(_read(f"/proc/{tid}/status"))
        return frozenset() if match is None else frozenset(map(int, match[1].split()))
    return frozenset()


def processes() -> Iterator[int]:
    """The numbers of all processes that can be seen here; none without a descriptor to look with. Each may end before
    it is looked at."""
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def used_paths(pid: int) -> Iterator[str]:
    """What keeps a mount busy for a process: its directory, root, open files and mapped files, as far as they can be
    seen. Reads links only, and so waits for no mount."""
    process = Path("/proc", str(pid))
    for link in (process / "cwd", process / "root", *_listed(process / "fd"), *_listed(process / "map_files")):
        try:
            yield os.readlink(link)
        except OSError:
            continue  # closed meanwhile, or not visible to this process


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def pid_namespace(tid: int | str) -> int | None:
    """The inode number of the pid namespace of a thread (or of "self"); None where it cannot be seen."""
    try:
        return os.stat(f"/proc/{tid}/ns/pid").st_ino
    except OSError:
        return None


def in_our_namespaces(tid: int) -> bool:
    """Whether a thread sees the same mounts, processes and users as this process, and has the same root directory.
    False also where that cannot be seen. Looks at links only: a root may lie on a mount that waits for this process."""
    names = ("ns/mnt", "ns/pid", "ns/user", "root")
    theirs, ours = ([_link(f"/proc/{process}/{name}") for name in names] for process in (tid, "self"))
    return theirs == ours and None not in ours


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def find_in_namespace(pid: int, namespace: int) -> int:
    """This namespace's number of the process that is `pid` in `namespace`, a pid namespace below; 0: there is none.

    Looks at every process, so call it in a thread.
    """
    for candidate in processes():
        if pid_namespace(candidate) == namespace:
            with contextlib.suppress(OSError):
                match = _INNERMOST.search(_read(f"/proc/{candidate}/status"))
                if match is not None and int(match[1]) == pid:
                    return candidate
    return 0
