"""Owners of pins, as values: they can be compared, written to a journal and sent to another host (SPEC 4)."""

from typing import NamedTuple, NewType, TypeAlias


class ProcessId(NamedTuple):
    """A process for good: its number alone is used again, its number and the time of its start are not."""

    pid: int
    """As the daemon's pid namespace numbers it."""
    start_time: int
    """Clock ticks after boot (proc_pid_stat(5), field 22)."""
    namespace: int = 0
    """The daemon's pid namespace, by its inode number (pid_namespaces(7))."""
    incarnation: int = 0
    """Tells processes apart that got the same number within one clock tick: the inode number of their pidfd, which is
    each process's own since Linux 6.9 (pidfs); before, it is the same for all."""


HandleId = NewType("HandleId", int)
"""An open file description, by the number that the kernel knows it under (`fh`); never used again on one mount."""

Owner: TypeAlias = ProcessId | HandleId
