"""The findings of `pinfs doctor` about a cluster of hosts: its etcd, and the directory that they share."""

import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import trio

from pinfs.cli.findings import Finding, bad, ok, warn
from pinfs.cluster.etcd import (
    Code,
    Credentials,
    Done,
    Endpoint,
    Etcd,
    Found,
    Outcome,
    Range,
    Refused,
    Status,
    below,
)
from pinfs.cluster.keys import ALL_CLUSTERS
from pinfs.config.cluster import ClusterError, ClusterOptions
from pinfs.fs.identity import cluster_name, enclosing_cluster, handles_are_alike, read_tokens
from pinfs.linux.filesystems import DELEGATED_NAMES, DELEGATED_NAMES_FIX, keeps_delegated_names

OLDEST: Final = (3, 4)
MANY_REVISIONS: Final = 100_000
QUOTA_BYTES: Final = 2 << 30
"""Of an etcd that was told nothing else (--quota-backend-bytes)."""

_GUIDE: Final = "docs/etcd.md"
_RIGHTS: Final = "user and password, and a certificate without CommonName"
_COMPACT: Final = "start etcd with --auto-compaction-retention=1h"
_COHERENT: Final = ("ceph", "lustre", "gfs2", "ocfs2", "gpfs")
_BY_MANUAL: Final = ("9p", "virtiofs", "cifs", "smb3", "afs")
_CLOSE_TO_OPEN: Final = (
    "close-to-open: a program sees what another host wrote when that host has closed or synced the file and the "
    "program opens it; names and sizes may be late by acregmax and acdirmax (nfs(5))"
)
_NFS: Final = ("nfs", "nfs4")


@dataclass(frozen=True, slots=True)
class Looked:
    """What one node has answered. `old`: to a read of its first revision, which has been compacted in a healthy one."""

    login: Outcome[None]
    status: Outcome[Status]
    old: Outcome[Found]


def check_cluster(options: ClusterOptions) -> Iterator[Finding]:
    """Findings about the endpoints, each asked by itself."""
    try:
        tls, credentials = options.tls(), options.credentials()
    except (OSError, ClusterError) as error:
        yield bad("etcd", f"the files of TLS or of the password cannot be used: {error}", _GUIDE)
        return
    yield from _in_the_clear(options)
    looked = trio.run(_look_at_all, options.endpoints, tls, credentials)
    is_any_there = any(isinstance(one.status, Done) for one in looked)
    for endpoint, one in zip(options.endpoints, looked, strict=True):
        yield from _findings(str(endpoint), one, is_any_there)
    if len(options.endpoints) == 1:
        yield warn("etcd", "one endpoint: when its node is down, nothing can be pinned or cut", "three nodes")
    yield ok("clocks", "hosts compare no clocks with each other: pins need no time synchronisation")


async def _look_at_all(
    endpoints: tuple[Endpoint, ...], tls: ssl.SSLContext | None, credentials: Credentials | None
) -> list[Looked]:
    looked: dict[Endpoint, Looked] = {}

    async def look(endpoint: Endpoint) -> None:
        async with Etcd((endpoint,), tls=tls, credentials=credentials) as etcd:
            login = await etcd.login()
            status = await etcd.status()
            looked[endpoint] = Looked(
                login, status, await etcd.range(Range(below(ALL_CLUSTERS.encode()), revision=1, count_only=True))
            )

    async with trio.open_nursery() as nursery:
        for endpoint in endpoints:
            nursery.start_soon(look, endpoint)
    return [looked[endpoint] for endpoint in endpoints]


def _in_the_clear(options: ClusterOptions) -> Iterator[Finding]:
    for why in options.warnings():
        yield warn("etcd", why, _GUIDE)
    far = [one for one in options.endpoints if not one.is_encrypted and not _is_local(one.host)]
    if far and options.user is None:
        text = f"{', '.join(map(str, far))}: any machine on the way, and any that reaches etcd, can end and forge pins"
        yield warn("etcd", text, f"https, client certificates, users: {_GUIDE}")


def _is_local(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _findings(name: str, one: Looked, is_any_there: bool) -> Iterator[Finding]:
    if isinstance(one.status, Refused):
        yield bad("etcd", f"{name} refuses: {one.status.reason}", f"{_RIGHTS}: {_GUIDE}")
        return
    if not isinstance(one.status, Done):
        level = warn if is_any_there else bad
        yield level("etcd", f"{name} does not answer: {one.status.reason}", "start it, or correct the endpoint")
        return
    if not isinstance(one.login, Done):
        yield bad("etcd", f"{name}: {one.login.reason}", f"{_RIGHTS}: {_GUIDE}")
        return
    yield from _node(name, one.status.value)
    yield from _keys(name, one.old)


def _node(name: str, status: Status) -> Iterator[Finding]:
    version = _version(status.version)
    if version < OLDEST:
        yield bad("etcd", f"{name} is etcd {status.version}", "etcd 3.4 or later")
        return
    if not status.leader:
        yield bad("etcd", f"{name} knows no leader: most nodes are down, or cut off", "start the other nodes")
        return
    if status.errors:
        yield bad(
            "etcd",
            f"{name} has an alarm: {', '.join(status.errors)}",
            f"make room, then etcdctl alarm disarm: {_GUIDE}",
        )
    if status.db_bytes > QUOTA_BYTES * 3 // 4:
        yield warn("etcd", f"{name} holds {status.db_bytes >> 20} MiB; at its quota (2 GiB by default) it refuses pins",
                   f"etcdctl compact, etcdctl defrag; {_COMPACT}")  # fmt: skip
    yield ok("etcd", f"{name} answers: etcd {status.version}, {status.db_bytes >> 10} KiB")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdecimal())


def _keys(name: str, old: Outcome[Found]) -> Iterator[Finding]:
    """Whether keys may be read, and whether old revisions go."""
    match old:
        case Done(_, revision) if revision > MANY_REVISIONS:
            yield warn("etcd", f"{name} has kept all of its {revision:,} revisions: nothing compacts them", _COMPACT)
        case Refused(_, Code.OUT_OF_RANGE):
            yield ok("etcd", f"{name} has compacted old revisions")
        case Refused(reason):
            yield bad("etcd", f"{name}: keys below {ALL_CLUSTERS} cannot be read: {reason}",
                      f"etcdctl role grant-permission ROLE --prefix=true readwrite {ALL_CLUSTERS}")  # fmt: skip


def check_shared(directory: str, kind: str) -> Iterator[Finding]:
    """Findings about a directory that several hosts are to serve. `kind`: its file system, as in /proc/mounts."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _kind(directory, kind)
        if keeps_delegated_names(fd):
            yield bad("cluster", DELEGATED_NAMES, DELEGATED_NAMES_FIX)
        if not handles_are_alike(fd):
            text = f"{kind}: hosts know files by their inode numbers alone, which have to be the same on all of them"
            yield warn("cluster", text, f"compare `stat -c %i` of some files of {directory} on two hosts")
        if above := enclosing_cluster(fd):
            yield bad(
                "cluster", f"{directory} lies inside {above}, which belongs to a cluster", f"mount {above} instead"
            )
        yield from _name(directory, fd)
    except PermissionError as error:
        yield warn("cluster", f"{error.filename or directory}: {error.strerror}", "as root: pinfs doctor")
    finally:
        os.close(fd)


def _kind(directory: str, kind: str) -> Finding:
    if kind in _NFS:
        return ok("cluster", f"{kind}: {_CLOSE_TO_OPEN}")
    if kind in _COHERENT:
        return ok("cluster", f"{kind} is coherent: hosts see each other's changes at once")
    if kind.startswith("fuse") or kind in _BY_MANUAL:
        return warn("cluster", f"{kind}: when other hosts see what one has written is up to it", "see its manual")
    text = f"{kind} is a file system of this host: no other host has {directory}"
    return warn("cluster", text, "a shared file system: NFS, CephFS, GFS2, OCFS2, Lustre")


def _name(directory: str, fd: int) -> Iterator[Finding]:
    try:
        name = cluster_name(fd, create=False)
    except FileNotFoundError:
        yield ok("cluster", f"{directory} has no cluster yet: its first mount with cluster=... makes one")
        return
    hosts = ", ".join(sorted(read_tokens(fd))) or "none"
    yield ok("cluster", f"{directory} belongs to cluster {name}; hosts that have left a token: {hosts}")
