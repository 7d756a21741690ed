"""What a machine has seen, for readers: printed with pytest -s, and shown in docs/devices.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vm.machine import Seen, of

FILE_SYSTEMS = {"tmpfs": "tmpfs", "disk": "ext4 on a disk", "ext4": "ext4 on DAX", "xfs": "xfs on DAX"}


WAYS = ("NFS", "one", "cluster", "re-export")


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
    yield f"Linux {native['kernel']}, {FILE_SYSTEMS[kind]}: truncate of a file of which a process holds a page"
    yield f"  without pinfs  {native['waits']} (watched for {native['waited_s']} s), and so does a read of the file;"
    yield f"                 the holder is not told; SIGKILL ends the truncate: {native['ended']}"
    yield f"  pinfs, no pin  {deadline['ended']} after {deadline['took_s']:.1f} s"
    yield f"  deny pin       {deny['ended']} after {deny['took_s']:.2f} s"
    yield f"  lease          {lease['ended']} after {lease['took_s']:.2f} s: the holder was told, and let go of it"


def rdma(seen: Seen) -> str:
    """Which registrations the kernel allows, and what becomes of writes when a file is cut."""
    return "\n".join((*_allowed(seen), *_cut(seen)))


def times(seen: Seen) -> str:
    """Milliseconds on an emulated processor: the columns are to be compared, and nothing else."""
    took = [_one(seen, what="times", way=way)["took_ms"] for way in WAYS]
    lines = [f"Linux {seen[0]['kernel']}, ms: NFS, pinfs over it, hosts of a cluster, an NFS client of a pinfs host"]
    for call in ("ftruncate", "truncate", "unlink", "first pin", "further pin", "release", "refused"):
        lines.append(f"  {call:12}" + "".join(f"{ms[call]:9.1f}" if call in ms else "        -" for ms in took))
    return "\n".join(lines)


def _allowed(seen: Seen) -> Iterator[str]:
    yield f"Linux {seen[0]['kernel']}, soft-RoCE: ibv_reg_mr of a mapped file, natively / through pinfs"
    for kind, name in FILE_SYSTEMS.items():
        for access in ("write", "read", "write on demand"):
            rows = of(seen, what="allowed", kind=kind, access=access)
            native, through = (next(row for row in rows if row["native"] is native) for native in (True, False))
            yield f"  {name:15} {access:16} {_answer(native):24} / {_answer(through)}"


def _answer(one: dict[str, Any]) -> str:
    return "ok" if one["completed"] else str(one["registered"]).removeprefix("ibv_reg_mr: ")


def _cut(seen: Seen) -> Iterator[str]:
    lost, deny = _one(seen, what="lost", op="truncate"), _one(seen, what="deny")
    lease, silent = _one(seen, what="lease"), _one(seen, what="silent")
    yield "A registered file on tmpfs is truncated, and a peer goes on writing"
    yield f"  without pinfs  truncate: {lost['removed']}; {_next_write(lost, lost['written'])}"
    yield f"  deny pin       truncate: {deny['removals']['truncate']}; {_next_write(deny, deny['written'][-1])}"
    yield f"  lease          truncate: {lease['ended']} after {lease['took_s']:.2f} s; then, registered again,"
    yield f"                 {_next_write(lease, lease['written'][-1])}"
    yield f"  silent holder  truncate: {silent['ended']} after {silent['took_s']:.1f} s;"
    yield f"                 {_next_write(silent, silent['written'][-1])}"
    for one in of(seen, what="on demand", native=True):
        pinned = _one(seen, what="on demand pinned", kind=one["kind"])
        yield f"The same with on-demand paging, {FILE_SYSTEMS[one['kind']]}"
        yield f"  no pin         truncate: {one['cut']}; the next WRITE: {one['second']}, the connection is broken"
        refused, written = pinned["removals"]["truncate"], pinned["written"][-1]
        yield f"  deny pin       truncate: {refused}; {_next_write(pinned, written)}"


def _next_write(one: dict[str, Any], completed: str) -> str:
    return f"the next WRITE: {completed}, {'in' if one['arrived'] else 'not in'} the file"
