"""What runs inside the machine: two hosts of a cluster over one directory of the kernel's NFS server (docs/hosts.md).

Each host is a network namespace with a host name, an NFS mount and a daemon of its own: to the server, and to the
kernel's caches, they are two machines. An etcd runs beside the server. Prints one JSON object a line; `test_hosts.py`
judges. Needs the standard library, and pinfs, h11 and etcd beside it.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from pinfs.fs.identity import file_name
from vm.guest_base import HERE, PAGE, PINFS, SIZE, Child, run
from vm.guest_nfs import CALLS, say
from vm.guest_times import across_hosts, one_host, plainly, re_exported

SOURCE, DEVICE = "/src", "/dev/vdb"
SERVER = "10.9.0.1"
ETCD = f"{SERVER}:2379"
PIN_TTL_S, MARGIN_S, MEMBER_TTL_S = 20, 8, 30
"""An emulated processor stalls for seconds, when the machine that emulates it is busy."""
BREAK_TIMEOUT_S = 8
LIMIT_S = 120
CLUSTER = (
    f"cluster={ETCD}", f"cluster_pin_ttl={PIN_TTL_S}", f"cluster_margin={MARGIN_S}",
    f"cluster_member_ttl={MEMBER_TTL_S}", "cluster_pin_timeout=30", f"break_timeout={BREAK_TIMEOUT_S}",
)  # fmt: skip


def eventually(holds: Callable[[], object], limit_s: float = LIMIT_S) -> float:
    """How long it took, in seconds; infinity if it does not come true."""
    began = time.monotonic()
    while time.monotonic() < began + limit_s:
        with suppress(OSError):
            if holds():
                return time.monotonic() - began
        time.sleep(0.1)
    return float("inf")


class Host:
    """`nfs` is its NFS mount, `path` that of pinfs over it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.nfs, self.path = f"/nfs/{name}", f"/mnt/{name}"
        self.log = f"/run/{name}.log"
        self._wire = f"to-{name}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", self._wire, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", self._wire, "master", "switch", "up")
        for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            run("ip", "-n", name, *command.split())
        os.makedirs(self.nfs)
        os.makedirs(self.path)

    def command(self, *command: str) -> tuple[str, ...]:
        """The command, as it runs on this host. The mounts of all hosts are in one namespace."""
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name)
        return ("nsenter", f"--net=/run/netns/{self.name}", *named, *command)

    def mount_nfs(self, version: str, exported: str = SOURCE) -> None:
        options = f"vers={version}" + (",nolock" if version == "3" else "")
        run(*self.command("mount", "-t", "nfs", "-o", options, f"{SERVER}:{exported}", self.nfs))

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = (sys.executable, str(HERE / "mount.py"), self.nfs, self.path, "-o", ",".join(options))
        with open(self.log, "ab") as log:
            return subprocess.Popen(self.command(*command), stdout=log, stderr=log)

    def serve(self, *options: str) -> None:
        self.daemon = self.start(*options)
        eventually(lambda: os.path.ismount(self.path) or self.daemon.poll() is not None)

    def join(self) -> float:
        """Serve as a host of the cluster: how long it took, in seconds."""
        began = time.monotonic()
        self.serve(*CLUSTER, f"cluster_host={self.name}")
        eventually(lambda: self.cluster()["state"] == "joined")
        return time.monotonic() - began

    def leave(self) -> int:
        run("umount", self.path)
        return self.daemon.wait(60)

    def cluster(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(Path(self.path, ".pinfs/status").read_text())["cluster"]
        return shown

    def policy(self, text: str) -> None:
        Path(self.path, ".pinfs/policy").write_text(f"{text}\n")

    def set_link(self, state: str) -> None:
        """`up`, or `down`: neither the server nor etcd can be reached."""
        run("ip", "link", "set", self._wire, state)

    def pinfs(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            self.command(*PINFS, *arguments), cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            text=True,
        )  # fmt: skip
        return done.returncode, done.stdout


class Holder:
    """A process that maps a file, pins it, and does one thing when it is told to: `release`, or `look` at all of it."""

    def __init__(self, host: Host, name: str, value: str, *, nfs: bool = False) -> None:
        self._told, self._ready = os.pipe(), os.pipe()
        self.path = f"{host.nfs if nfs else host.path}/{name}"
        self.child = Child(partial(self._hold, value))
        os.close(self._ready[1])
        self.ino = int(os.read(self._ready[0], 32) or 0)
        assert self.ino, self.child.wait(1)

    def _hold(self, value: str) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fd = os.open(self.path, os.O_RDONLY)
        mapping = mmap.mmap(fd, SIZE, prot=mmap.PROT_READ)
        assert mapping[::PAGE] == b"A" * (SIZE // PAGE)
        if value:
            os.setxattr(fd, "user.pinfs.pin.p", value.encode())
        os.write(self._ready[1], b"%d" % os.fstat(fd).st_ino)
        if os.read(self._told[0], 1) == b"l":
            mapping.madvise(mmap.MADV_DONTNEED)
            Path("/proc/sys/vm/drop_caches").write_text("1")  # now the bytes are the server's
            assert mapping[::PAGE] == b"A" * (SIZE // PAGE)
        if value:
            os.getxattr(fd, "user.pinfs.release.p")  # removexattr(2) waits for the lock that a waiting truncate has

    def release(self) -> str:
        os.write(self._told[1], b"r")
        return self.child.wait(60)

    def look(self) -> str:
        """And release. `signal 7`: a page is not there any more."""
        os.write(self._told[1], b"l")
        return self.child.wait(60)


def set_up() -> None:
    run("modprobe", "-a", "fuse", "ext4", "nfsd", "nfs", "nfsv3", "nfsv4", "veth", "bridge")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "switch", "type", "bridge")
    run("ip", "addr", "add", f"{SERVER}/24", "dev", "switch")
    run("ip", "link", "set", "switch", "up")
    run("mkfs.ext4", "-q", "-F", DEVICE)
    os.makedirs(SOURCE)
    run("mount", DEVICE, SOURCE)
    run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    os.makedirs("/run/rpc_pipefs")
    run("mount", "-t", "rpc_pipefs", "sunrpc", "/run/rpc_pipefs")
    for command in ("rpcbind -w", "nfsdcld", "rpc.mountd"):
        run(*command.split())
    run("exportfs", "-o", "rw,fsid=7,no_subtree_check,no_root_squash,insecure", f"*:{SOURCE}")
    run("rpc.nfsd", "--grace-time", "10", "--lease-time", "10", "8")


def start_etcd() -> None:
    peer = f"http://{SERVER}:2380"
    arguments = (
        "--data-dir=/run/etcd", f"--listen-client-urls=http://{ETCD}", f"--advertise-client-urls=http://{ETCD}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        "--logger=zap", "--log-level=error",
    )  # fmt: skip
    with open("/run/etcd.log", "wb") as log:
        subprocess.Popen((str(HERE / "etcd"), *arguments), stdout=log, stderr=log)


def file(host: Host, name: str, size: int = SIZE) -> None:
    Path(host.path, name).write_bytes(b"A" * size)


def has_tokens(host: Host) -> bool:
    return {"host-a", "host-b"} <= {*os.listdir(f"{host.nfs}/.pinfs-cluster")}


DELEGATIONS = Path("/sys/module/nfsv4/parameters/directory_delegations")


def delegations(a: Host) -> None:
    """A kernel that has directories delegated to it is let in when that is switched off."""
    refused = None
    if DELEGATIONS.exists():
        doctor = a.pinfs("doctor", a.nfs, "-o", f"cluster={ETCD},cluster_host=a", "--json")
        daemon = a.start(*CLUSTER, "cluster_host=a")
        refused = daemon.wait(60), Path(a.log).read_text(), doctor
        DELEGATIONS.write_text("N")
    say("delegations", refused=refused)


def joined(version: str, a: Host, b: Host) -> None:
    """Both are let in, find each other's tokens, and have the same names for files and the same lock."""
    took_s = [a.join(), b.join()]
    file(a, "one")
    fds = [os.open(f"{host.nfs}/one", os.O_PATH) for host in (a, b)]
    tokens_s = max(eventually(partial(has_tokens, host)) for host in (a, b))
    alone = a.start("survive=off")
    say("joined", version=version, took_s=took_s, names=[file_name(fd) for fd in fds],
        tokens_s=tokens_s, without_cluster=alone.wait(60),
        states=[host.cluster()["state"] for host in (a, b)],
        members=[sorted(one["host"] for one in host.cluster()["members"]) for host in (a, b)])  # fmt: skip
    for fd in fds:
        os.close(fd)


def commands(version: str, a: Host) -> None:
    status = a.pinfs("cluster", "status", a.path)
    doctor = a.pinfs("doctor", a.nfs, "-o", f"cluster={ETCD},cluster_host=a", "--json")
    say("commands", version=version, status=status, doctor=doctor)


def deny(version: str, a: Host, b: Host) -> None:
    b.policy('unlink = "deny"')
    for op in ("truncate", "open_trunc", "punch_hole", "unlink", "rename_over", "write", "grow"):
        name = f"pinned-{op}"
        file(a, name)
        file(b, "other")
        holder = Holder(a, name, f"0:{SIZE}")
        child = Child(partial(CALLS[op], f"{b.path}/{name}"))
        ended = child.wait(60)
        say("deny", version=version, op=op, ended=ended, took_s=child.took_s,
            size=os.stat(f"{SOURCE}/{name}").st_size, holder=holder.look() if op != "write" else holder.release(),
            afterwards=Child(partial(CALLS[op], f"{b.path}/{name}")).wait(60))  # fmt: skip
    b.policy('unlink = "defer"')


def replaced(version: str, a: Host, b: Host) -> None:
    """a puts another file under a name that b's kernel has just looked up, and pins that one; b comes by the name."""
    file(b, "other")
    for policy in ("deny", "defer"):
        b.policy(f'unlink = "{policy}"')
        ops = ("unlink", "rename_over") if policy == "deny" else ("unlink", "rename_over", "open", "truncate")
        for op, way, is_open in product(ops, ("rename", "remove"), (True, False)):
            seen = replace(f"replaced-{version}-{policy}-{op}-{way}-{is_open}", a, b, op, way == "remove", is_open)
            say("replaced", version=version, policy=policy, op=op, way=way, is_open=is_open, **seen)
        for op in ("unlink", "rename_over"):
            seen = replace_link(f"replaced-{version}-{policy}-{op}", a, b, op)
            say("replaced", version=version, policy=policy, op=op, way="link", is_open=False, **seen)


def replace(name: str, a: Host, b: Host, op: str, by_removal: bool, is_open: bool) -> dict[str, object]:
    """`by_removal`: the server gives the new file the number of the removed one, unless `is_open`: a program on a has
    that open, and so the server too, where the protocol has opens."""
    file(a, name)
    kept = os.open(f"{a.path}/{name}", os.O_RDONLY) if is_open else -1
    file(b, "other")
    os.stat(f"{b.path}/{name}")
    if by_removal:
        Path(a.path, name).unlink()
        file(a, name)
    else:
        file(a, "new")
        os.rename(f"{a.path}/new", f"{a.path}/{name}")
    seen = taken(name, a, b, op)
    if is_open:
        os.close(kept)
    return seen


def replace_link(name: str, a: Host, b: Host, op: str) -> dict[str, object]:
    """The same of a symbolic link."""
    os.symlink("other", f"{a.path}/{name}")
    file(b, "other")
    os.lstat(f"{b.path}/{name}")
    file(a, "new")
    os.rename(f"{a.path}/new", f"{a.path}/{name}")
    return taken(name, a, b, op)


def taken(name: str, a: Host, b: Host, op: str) -> dict[str, object]:
    """a pins the file, and b comes by the name."""
    there = Path(SOURCE, name)
    ino = there.stat().st_ino
    holder = Holder(a, name, f"0:{SIZE}")
    is_it = holder.ino == os.stat(f"{a.path}/{name}").st_ino  # not `ino`: a file that got an old number shows another
    ended = Child(partial(CALLS["read" if op == "open" else op], f"{b.path}/{name}")).wait(60)
    size = there.stat().st_size if there.exists() else 0
    kept = held(ino)
    return {"ended": ended, "size": size, "kept": kept, "pinned": is_it, "look": holder.look()}


def again(version: str, a: Host, b: Host) -> None:
    """One name, again and again for another file, and its number too."""
    ended = []
    for n in range(4):
        file(a, "again", SIZE)
        ended.append(Child(partial(os.truncate, f"{b.path}/again", n)).wait(60))
        Path(b.path if n % 2 else a.path, "again").unlink()
    say("again", version=version, ended=ended)


def beside(version: str, a: Host, b: Host) -> None:
    """Bytes that are not pinned go."""
    file(a, "beside")
    holder = Holder(a, "beside", f"0:{PAGE}")
    ended = [Child(partial(os.truncate, f"{b.path}/beside", size)).wait(60) for size in (PAGE, PAGE - 1)]
    fd = os.open(f"{a.path}/beside", os.O_RDONLY)
    say("beside", version=version, ended=ended, size=os.fstat(fd).st_size, holder=holder.release())
    os.close(fd)


def size_when_opened(path: str) -> int:
    """What stat(2) says may be some seconds old (close-to-open)."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_size


def held(ino: int) -> int:
    """How many names keep the bytes of this inode."""
    directory = Path(SOURCE, ".pinfs-cluster/held")
    found = 0
    for name in directory.iterdir() if directory.exists() else ():
        with suppress(FileNotFoundError):  # a host has just taken it back
            found += name.stat().st_ino == ino
    return found


def lease(version: str, a: Host, b: Host) -> None:
    for answers in (True, False):
        name = f"leased-{answers}"
        file(a, name)
        holder = Holder(a, name, f"0:{SIZE},mode=lease")
        child = Child(partial(os.truncate, f"{b.path}/{name}", 0))
        is_told = eventually(lambda: '"breaking"' in Path(a.path, ".pinfs/pins").read_text(), 30)
        waits = child.wait(0)
        released = holder.release() if answers else None
        ended = child.wait(60)
        say("lease", version=version, answers=answers, told_s=is_told, waits=waits, ended=ended, took_s=child.took_s,
            size=size_when_opened(f"{a.path}/{name}"), holder=released or holder.release())  # fmt: skip


def fresh(version: str, a: Host, b: Host) -> None:
    """A pin on a, whose kernel believes what it knows of the file, right after b has changed its size."""
    for is_open in (True, False):
        for op, before, after in (("cut", SIZE, 0), ("grown", 0, SIZE)):
            ended = []
            for n in range(4):
                name = f"{op}{n}"
                file(a, name, before)
                os.stat(f"{a.path}/{name}")
                fd = os.open(f"{a.path}/{name}", os.O_RDWR) if is_open else -1
                changed = Child(partial(os.truncate, f"{b.path}/{name}", after)).wait(60)
                pin = Child(partial(os.setxattr, f"{a.path}/{name}", "user.pinfs.pin.p", b"0:4096")).wait(60)
                ended.append((changed, pin))
                if is_open:
                    os.close(fd)
            say("fresh", version=version, op=op, is_open=is_open, ended=ended)


def removed(version: str, a: Host, b: Host) -> None:
    """b removes the name of what a program on a has mapped: through pinfs, and on the NFS mounts themselves."""
    file(a, "natively")
    natively = Holder(a, "natively", "", nfs=True)
    Path(b.nfs, "natively").unlink()
    say("removed", version=version, pinned=False, look=natively.look())
    file(a, "kept")
    holder = Holder(a, "kept", f"0:{SIZE}")
    ino = os.stat(f"{SOURCE}/kept").st_ino
    removal = Child(partial(os.unlink, f"{b.path}/kept")).wait(60)
    is_there = os.path.lexists(f"{SOURCE}/kept")
    say("removed", version=version, pinned=True, removal=removal, held=held(ino), is_there=is_there, look=holder.look())


def cut_off(version: str, a: Host, b: Host) -> None:
    """The cable of a is pulled: it reaches neither the server nor etcd."""
    file(a, "cut-off")
    holder = Holder(a, "cut-off", f"0:{SIZE}")
    events = os.open(f"{a.path}/.pinfs/trace", os.O_RDONLY | os.O_NONBLOCK)
    a.set_link("down")
    began = time.monotonic()
    told: list[float] = []

    def look() -> bool:
        with suppress(BlockingIOError):
            if b'"revoked"' in os.read(events, 65536) and not told:
                told.append(time.monotonic() - began)
        return Child(partial(os.truncate, f"{b.path}/cut-off", 0)).wait(30) == "done"

    first = Child(partial(os.truncate, f"{b.path}/cut-off", 0)).wait(30)
    eventually(look)
    done_s = time.monotonic() - began
    a.set_link("up")
    again_s = eventually(lambda: a.cluster()["state"] == "joined")
    os.close(events)
    file(b, "again")
    pin = Child(partial(os.setxattr, f"{a.path}/again", "user.pinfs.pin.p", b"0:4096")).wait(60)
    say("cut_off", version=version, first=first, told_s=told, done_s=done_s, holder=holder.release(),
        again_s=again_s, pin=pin)  # fmt: skip


def dead(version: str, a: Host, b: Host) -> None:
    """kill -9 of a's daemon and its holder. Then a comes back."""
    file(a, "orphan")
    holder = Holder(a, "orphan", f"0:{SIZE}")
    silent_s = max(one["silent_s"] for one in b.cluster()["members"] if one["host"] == "a")
    for pid in (a.daemon.pid, holder.child.pid):
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    first = Child(partial(os.truncate, f"{b.path}/orphan", 0)).wait(30)
    eventually(lambda: Child(partial(os.truncate, f"{b.path}/orphan", 0)).wait(30) == "done")
    done_s = time.monotonic() - began
    a.daemon.wait()
    run("umount", "-l", a.path)
    a.join()
    file(b, "orphan")
    pin = partial(os.setxattr, f"{a.path}/orphan", "user.pinfs.pin.p", b"0:4096")
    pinned_s = eventually(lambda: Child(pin).wait(60) == "done")
    say("dead", version=version, first=first, done_s=done_s, silent_s=silent_s, pinned_s=pinned_s,
        b=b.cluster()["state"])  # fmt: skip


def times(a: Host, b: Host) -> None:
    """What calls take, the four ways side by side: times of an emulated processor, to be compared with each other."""
    say("times", way="NFS", took_ms=plainly(a.nfs))
    a.serve("entry_timeout=0,attr_timeout=0")
    say("times", way="one", took_ms=one_host(a.path))
    a.leave()
    a.join()
    b.join()
    say("times", way="cluster", took_ms=across_hosts(a.path, b.path))


def other_way(a: Host) -> None:
    """One host serves the directory to NFS clients, and all pins are there."""
    os.makedirs("/served")
    with open("/run/served.log", "ab") as log:
        command = (sys.executable, str(HERE / "mount.py"), SOURCE, "/served", "-o", "nfs_export=on,errno=ETXTBSY")
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    eventually(lambda: os.path.ismount("/served"))
    run("exportfs", "-o", "rw,fsid=8,no_subtree_check,no_root_squash,insecure", "*:/served")
    a.mount_nfs("4.2", "/served")
    say("times", way="re-export", took_ms=re_exported("/served", a.nfs))
    run("umount", a.nfs)
    run("rpc.nfsd", "0")
    run("exportfs", "-ua")
    run("umount", "/served")
    daemon.wait(60)


def main() -> None:
    set_up()
    start_etcd()
    a, b = Host("a", "10.9.0.11"), Host("b", "10.9.0.12")
    a.mount_nfs("4.2")
    delegations(a)
    run("umount", a.nfs)
    for version in ("4.2", "3"):
        for host in (a, b):
            host.mount_nfs(version)
        if version == "4.2":
            Path(a.nfs, "ready").write_text("")  # after the server's grace period
            times(a, b)
            for host in (a, b):
                host.leave()
        joined(version, a, b)
        for part in (deny, replaced, again, beside, lease, fresh, removed, cut_off, dead):
            part(version, a, b)
        commands(version, a)
        for host in (a, b):
            host.leave()
            run("umount", host.nfs)
            say("log", version=version, host=host.name, text=Path(host.log).read_text())
            Path(host.log).unlink()
    other_way(a)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        for log in Path("/run").glob("*.log"):
            sys.stderr.write(f"{log}:\n{log.read_text()[-3000:]}\n")
        raise
