"""What runs inside the machine: pinfs over ext4, exported by the kernel's NFS server, and two clients of it.

One client speaks NFS 4.2, the other 3: to the server, and to the kernel's caches, they are two machines. Prints one
JSON object a line: what was done, by which client, and what was seen. `test_nfs.py` judges. Needs the standard library
only, and pinfs beside it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vm.guest_base import HERE, Child, libc, run
from vm.guest_removals import PUNCH_HOLE_KEEP_SIZE

SOURCE, MOUNT, DEVICE = "/src", "/mnt", "/dev/vdb"
CLIENTS = {"4.2": "/c4", "3": "/c3"}
BREAK_TIMEOUT_S = 6
SIZE = 65536
THREADS = 4
GRACE_S = 10


def say(what: str, **seen: object) -> None:
    print(json.dumps({"kernel": os.uname().release, "what": what, **seen}), flush=True)


def set_up() -> None:
    run("modprobe", "-a", "fuse", "ext4", "nfsd", "nfs", "nfsv3", "nfsv4")
    run("ip", "link", "set", "lo", "up")
    run("mkfs.ext4", "-q", "-F", DEVICE)
    for directory in (SOURCE, MOUNT, *CLIENTS.values()):
        os.makedirs(directory, exist_ok=True)
    run("mount", DEVICE, SOURCE)
    run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    os.makedirs("/run/rpc_pipefs")
    run("mount", "-t", "rpc_pipefs", "sunrpc", "/run/rpc_pipefs")
    run("rpcbind", "-w")
    run("nfsdcld")  # remembers the clients of NFS 4 for the grace period after a restart


def serve(*options: str) -> subprocess.Popen[bytes]:
    log = open("/run/pinfs.log", "ab")  # noqa: SIM115
    command = (sys.executable, str(HERE / "mount.py"), SOURCE, MOUNT, "-o", ",".join(options))
    daemon = subprocess.Popen(command, stdout=log, stderr=log)
    while not os.path.ismount(MOUNT) and daemon.poll() is None:
        time.sleep(0.05)
    return daemon


def export() -> None:
    run("exportfs", "-o", "rw,fsid=7,no_subtree_check,no_root_squash,insecure", f"127.0.0.1:{MOUNT}")


def start_nfsd() -> None:
    export()
    run("rpc.nfsd", "--grace-time", str(GRACE_S), "--lease-time", str(GRACE_S), str(THREADS))


def mount_clients() -> None:
    for version, point in CLIENTS.items():
        options = f"vers={version},actimeo=0" + (",nolock" if version == "3" else "")
        run("mount", "-t", "nfs", "-o", options, f"127.0.0.1:{MOUNT}", point)


def drop_caches() -> None:
    """Of the clients and the server alike, twice: what was let go of the first time goes with the second."""
    run("exportfs", "-f")
    for _ in range(2):
        Path("/proc/sys/vm/drop_caches").write_text("2")


class Pinned:
    """A process on the server that pins a file, until it is told to release it."""

    def __init__(self, name: str, value: str) -> None:
        self._told, self._ready = os.pipe(), os.pipe()
        self.path = f"{MOUNT}/{name}"
        self.fd = os.open(f"{SOURCE}/{name}", os.O_RDONLY)
        self.child = Child(partial(self._hold, value))
        os.close(self._ready[1])
        assert os.read(self._ready[0], 1) == b"x", self.child.wait(1)

    def _hold(self, value: str) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # it does not answer
        fd = os.open(self.path, os.O_RDONLY)
        os.setxattr(fd, "user.pinfs.pin.p", value.encode())
        os.write(self._ready[1], b"x")
        os.read(self._told[0], 1)
        os.getxattr(fd, "user.pinfs.release.p")  # removexattr(2) waits for the lock that a waiting truncate has

    def release(self) -> str:
        os.write(self._told[1], b"x")
        return self.child.wait(20)


def file(name: str, size: int = SIZE) -> None:
    Path(MOUNT, name).write_bytes(b"A" * size)


def is_whole(fd: int) -> bool:
    data = os.pread(fd, SIZE, 0)
    return len(data) == SIZE and set(data) <= set(b"AB")


def punch(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    if libc.fallocate(fd, PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(4096)):
        raise OSError(ctypes.get_errno(), "fallocate")


def write_in_place(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"B" * 4096, 4096)
    os.fsync(fd)
    os.close(fd)


CALLS: dict[str, Callable[[str], object]] = {
    "truncate": lambda path: os.truncate(path, 0),
    "open_trunc": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "punch_hole": punch,
    "unlink": os.unlink,
    "rename_over": lambda path: os.rename(f"{os.path.dirname(path)}/other", path),
    "write": write_in_place,
    "grow": lambda path: os.truncate(path, 2 * SIZE),
    "read": lambda path: Path(path).read_bytes(),
}


def deny() -> None:
    for version, point in CLIENTS.items():
        for op, call in CALLS.items():
            file("pinned")
            file("other")
            pinned = Pinned("pinned", f"0:{SIZE}")
            client = Child(partial(call, f"{point}/pinned"))
            ended = client.wait(60)
            say("deny", client=version, op=op, ended=ended, took_s=client.took_s,
                kept=is_whole(pinned.fd), holder=pinned.release(),
                afterwards=Child(partial(call, f"{point}/pinned")).wait(30))  # fmt: skip


def errnos() -> None:
    """Which refusals the kernel's log has a warning of (WARN_ONCE in nfserrno()): the silent ones first."""
    for number in ("ETXTBSY", "EBUSY"):
        Path(MOUNT, ".pinfs/policy").write_text(f'errno = "{number}"\n')
        for version, point in CLIENTS.items():
            file("pinned")
            pinned = Pinned("pinned", f"0:{SIZE}")
            ended = Child(partial(os.truncate, f"{point}/pinned", 0)).wait(60)
            log = subprocess.run(["dmesg"], check=True, capture_output=True, text=True).stdout
            say("errno", client=version, errno=number, ended=ended, warned="nfsd: non-standard errno" in log,
                holder=pinned.release())  # fmt: skip


def lease() -> None:
    for version, point in CLIENTS.items():
        for answers in (True, False):
            break_lease(version, point, answers)


def break_lease(version: str, point: str, answers: bool) -> None:
    """What both clients see while a truncate of one of them waits. `answers`: the holder releases after 2 s."""
    file("leased")
    file("other")
    pinned = Pinned("leased", f"0:{SIZE},mode=lease")
    client = Child(partial(os.truncate, f"{point}/leased", 0))
    other = next(path for path in CLIENTS.values() if path != point)
    paths = {"same_client": f"{point}/other", "other_client": f"{other}/other", "same_file": f"{other}/leased"}
    longest_s = dict.fromkeys(paths, 0.0)
    holder = None
    while client.wait(0.05) == "hangs" and time.monotonic() < client.began + 60:
        for where, path in paths.items():
            one = Child(partial(os.stat, path))
            one.wait(30)
            longest_s[where] = max(longest_s[where], one.took_s)
        if answers and holder is None and time.monotonic() > client.began + 2:
            holder = pinned.release()
    say("lease", client=version, answers=answers, ended=client.wait(0), took_s=client.took_s, longest_s=longest_s,
        size=os.stat(f"{SOURCE}/leased").st_size, holder=holder or pinned.release())  # fmt: skip


def interrupt() -> None:
    for version, point in CLIENTS.items():
        file("leased")
        pinned = Pinned("leased", f"0:{SIZE},mode=lease")
        client = Child(partial(os.truncate, f"{point}/leased", 0))
        client.wait(1)
        os.kill(client.pid, signal.SIGKILL)
        began = time.monotonic()
        ended = client.wait(30)
        say("interrupt", client=version, ended=ended, took_s=time.monotonic() - began, holder=pinned.release())


def crowd() -> None:
    """As many waiting truncates as the server has threads, and one stat."""
    names = [f"crowd{n}" for n in range(THREADS)]
    pins = []
    for name in names:
        file(name)
        pins.append(Pinned(name, f"0:{SIZE},mode=lease"))
    breakers = [Child(partial(os.truncate, f"/c4/{name}", 0)) for name in names]
    time.sleep(1)
    stat = Child(partial(os.stat, "/c3/other"))
    ended = stat.wait(60)
    say("crowd", stat=ended, stat_s=stat.took_s, breakers=[one.wait(60) for one in breakers],
        took_s=[one.took_s for one in breakers])  # fmt: skip
    for pin in pins:
        pin.release()


def forgotten(again: Callable[[], None], what: str) -> None:
    """A client goes on with a file and a directory that it has open, after the server's kernel forgot the inodes."""
    for version, point in CLIENTS.items():
        os.makedirs(f"{point}/deep/er", exist_ok=True)
        path = f"{point}/deep/er/file"
        Path(path).write_text("data")
        held, directory = os.open(path, os.O_RDWR), os.open(f"{point}/deep/er", os.O_RDONLY)
        again()

        def act(held: int = held, directory: int = directory) -> None:
            assert os.pread(held, 10, 0) == b"data"
            os.pwrite(held, b"DATA", 0)
            os.fsync(held)
            assert os.fstat(held).st_size == 4
            assert os.listdir(directory) == ["file"]

        ended = Child(act).wait(60)
        say(what, client=version, ended=ended, data=Path(SOURCE, "deep/er/file").read_text())
        os.close(held)
        os.close(directory)


def removed_on_the_server() -> None:
    for version, point in CLIENTS.items():
        file("going")
        held = os.open(f"{point}/going", os.O_RDONLY)
        ino = os.stat(f"{SOURCE}/going").st_ino
        os.unlink(f"{MOUNT}/going")
        drop_caches()
        for n in range(200):
            Path(MOUNT, f"new{n}").write_text("secret")
            if os.stat(f"{SOURCE}/new{n}").st_ino == ino:
                break
        reused = any(os.stat(f"{SOURCE}/{name}").st_ino == ino for name in os.listdir(SOURCE))

        def act(held: int = held) -> None:
            data = os.pread(held, 10, 0)
            raise OSError(errno.EUCLEAN if b"secret" in data else errno.ENODATA, "read")

        say("removed", client=version, reused=reused, ended=Child(act).wait(60))
        os.close(held)


def pins_of_clients() -> None:
    file("remote")
    for version, point in CLIENTS.items():
        call = partial(os.setxattr, f"{point}/remote", "user.pinfs.pin.c", b"0:4096")
        ended = Child(call).wait(60)
        pins = Path(MOUNT, ".pinfs/pins").read_text().splitlines()
        say("remote_pin", client=version, ended=ended, pins=pins)


def read_control(path: str) -> None:
    """Around the client's page cache, which takes a file of size 0 for empty."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    if not os.preadv(fd, [mmap.mmap(-1, 4096)], 0):
        raise OSError(errno.ENODATA, "read")


def control_files() -> None:
    for version, point in CLIENTS.items():
        for name in ("status", "pins", "events", "trace"):
            cached = Child(partial(os.stat, f"{point}/.pinfs/{name}")).wait(20)
            read = Child(partial(read_control, f"{point}/.pinfs/{name}"))
            say("control", client=version, name=name, stat=cached, ended=read.wait(20), took_s=read.took_s)


def main() -> None:
    set_up()
    daemon = serve("nfs_export=off")
    done = subprocess.run(
        ["exportfs", "-o", "rw,fsid=7,no_subtree_check", f"127.0.0.1:{MOUNT}"], check=False, capture_output=True
    )
    say("off", code=done.returncode, text=done.stderr.decode())
    run("exportfs", "-ua")
    run("umount", MOUNT)
    daemon.wait(20)
    daemon = serve("nfs_export=on", f"break_timeout={BREAK_TIMEOUT_S}")
    say("status", **json.loads(Path(MOUNT, ".pinfs/status").read_text()))
    run("rpc.mountd")
    start_nfsd()
    mount_clients()
    for point in CLIENTS.values():
        Path(point, "other").write_text("other")  # after the server's grace period
    say("ready")
    for part in (errnos, deny, lease, interrupt, crowd, removed_on_the_server, pins_of_clients, control_files):
        part()
    forgotten(drop_caches, "forgotten")

    def restart() -> None:
        nonlocal daemon
        run("rpc.nfsd", "0")
        run("exportfs", "-ua")
        run("umount", MOUNT)
        daemon.wait(20)
        drop_caches()
        daemon = serve("nfs_export=on", f"break_timeout={BREAK_TIMEOUT_S}")
        start_nfsd()

    forgotten(restart, "restarted")
    say("log", text=Path("/run/pinfs.log").read_text())


if __name__ == "__main__":
    main()
