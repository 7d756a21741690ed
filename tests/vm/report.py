"""What a machine has seen, for readers: printed with pytest -s, and shown in docs/devices.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vm.machine import Seen, of

FILE_SYSTEMS = {"tmpfs": "tmpfs", "disk": "ext4 on a disk", "ext4": "ext4 on DAX", "xfs": "xfs on DAX"}


def _one(seen: Seen, **wanted: object) -> dict[str, Any]:
    (found,) = of(seen, **wanted)
    return found


def dax(seen: Seen) -> str:
    """A truncate of a file whose page a process holds: without pinfs, and with it."""
    return "\n".join(line for kind in ("ext4", "xfs") for line in _dax(seen, kind))


def _dax(seen: Seen, kind: str) -> Iterator[str]:
    native = _one(seen, kind=kind, what="natively")
    deadline = _one(seen, kind=kind, what="deadline", op="truncate")
    deny = _one(seen, kind=kind, what="deny", op="truncate", held=True)
    lease = _one(seen, kind=kind, what="lease", op="truncate")
    yield f"Linux {native['kernel']}, {FILE_SYSTEMS[kind]}: a process holds a page of a file, another truncates the file"
    yield f"  without pinfs  {native['waits']} (watched for {native['waited_s']} s); a read of the file {native['reads']};"
    yield f"                 the holder is not told; SIGKILL of the truncate: {native['ended']}"
    yield f"  pinfs, no pin  {deadline['ended']} after {deadline['took_s']:.1f} s"
    yield f"  deny pin       {deny['ended']} after {deny['took_s']:.2f} s"
    yield f"  lease          {lease['ended']} after {lease['took_s']:.2f} s: the holder was told, and let go of the page"


def rdma(seen: Seen) -> str:
    """Which registrations the kernel allows, and what becomes of writes when a file is cut."""
    return "\n".join((*_allowed(seen), *_cut(seen)))


def _allowed(seen: Seen) -> Iterator[str]:
    yield f"Linux {seen[0]['kernel']}, soft-RoCE: what ibv_reg_mr answers for a mapping of a file, native / through pinfs"
    rows = [(kind, access) for kind in FILE_SYSTEMS for access in ("write", "read", "write on demand")]
    for kind, access in rows:
        native, through = (
            of(seen, what="allowed", kind=kind, access=access, native=native)[0] for native in (True, False)
        )
        yield f"  {FILE_SYSTEMS[kind]:15} {access:16} {_answer(native):24} / {_answer(through)}"


def _answer(one: dict[str, Any]) -> str:
    return "ok" if one["completed"] else str(one["registered"]).removeprefix("ibv_reg_mr: ")


def _cut(seen: Seen) -> Iterator[str]:
    lost, deny = _one(seen, what="lost", op="truncate"), _one(seen, what="deny")
    lease, silent = _one(seen, what="lease"), _one(seen, what="silent")
    yield "A file on tmpfs is registered, a peer writes, another process truncates the file"
    yield f"  without pinfs  truncate {lost['removed']}; the next WRITE: {lost['written']}, in the file: {lost['arrived']}"
    yield f"  deny pin       truncate {deny['removals']['truncate']}; {_next(deny)}"
    yield f"  lease          truncate {lease['ended']} after {lease['took_s']:.2f} s; registered again; {_next(lease)}"
    yield f"  silent holder  truncate {silent['ended']} after {silent['took_s']:.1f} s; {_next(silent)}"
    for one in of(seen, what="on demand", native=True):
        pinned = _one(seen, what="on demand pinned", kind=one["kind"])
        yield f"On-demand paging, {FILE_SYSTEMS[one['kind']]}"
        yield f"  without a pin  truncate {one['cut']}; the next WRITE: {one['second']}, the connection is broken"
        yield f"  deny pin       truncate {pinned['removals']['truncate']}; {_next(pinned)}"


def _next(one: dict[str, Any]) -> str:
    return f"the next WRITE: {one['written'][-1]}, in the file: {one['arrived']}"
