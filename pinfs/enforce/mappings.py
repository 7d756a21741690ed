"""Which processes have which bytes of a file mapped, for policy `mapped = deny`: found in /proc/PID/maps.

A mapping that goes through the mount is shown with the mount's device number and the file's inode number there, also
where passthrough has put the backing file behind it (proc_pid_maps(5); the kernel shows the file the user opened).

The whole text of a process is searched by one regular expression: most processes map nothing of the mount, and for
these that is one read and one search. (PROCMAP_QUERY, Linux 6.11, answers one mapping a call and would be slower here.)
A mapping that appears while the search runs can be missed: this is a safety net, not a pin.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pinfs.core.events import Mapper
from pinfs.linux.proc import pinned_bytes, processes, read_comm


@dataclass(frozen=True, slots=True)
class Mapping:
    """Bytes [start, end) of the file, mapped by a process."""

    pid: int
    start: int
    end: int


def mappings_of(device: int, inode: int, start: int, end: int) -> Iterator[Mapping]:
    """Mappings of the file (st_dev and st_ino as the mount shows them) that share a byte with [start, end).

    May take milliseconds for each process with a large address space: call it in a thread.
    """
    pattern = _pattern(device, inode)
    for pid in processes():
        for mapping in _of_process(pid, pattern):
            if mapping.start < end and mapping.end > start:
                yield mapping


def mappers_of(device: int, inode: int, start: int, end: int) -> tuple[Mapper, ...]:
    """The processes that have such mappings; those with the most memory pinned for devices first."""
    pids = {mapping.pid for mapping in mappings_of(device, inode, start, end)}
    mappers = (Mapper(pid, read_comm(pid) or "?", pinned_bytes(pid)) for pid in pids)
    return tuple(sorted(mappers, key=lambda mapper: (-mapper.pinned_bytes, mapper.pid)))


def _pattern(device: int, inode: int) -> re.Pattern[bytes]:
    where = f"{os.major(device):02x}:{os.minor(device):02x} {inode} "
    return re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) " + where.encode(), re.MULTILINE)


def _of_process(pid: int, pattern: re.Pattern[bytes]) -> Iterator[Mapping]:
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            text = maps.read()
    except OSError:
        return  # it has ended, or is not ours to look at
    for match in pattern.finditer(text):
        low, high, offset = (int(group, 16) for group in match.groups())
        yield Mapping(pid, offset, offset + high - low)
