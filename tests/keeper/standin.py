"""Stands in for a daemon: a process without pinfs that says to its keeper what the test tells it to, and tells the test
what the keeper says. `standin.py CONTROL [first WORD...] [die]`; CONTROL is the test's listening socket.

`first`: makes the socketpair, forks, and becomes the keeper (its further words), as pinfs/serve/kept.py does.
`die`: ends with status 9 as soon as it is told to take over; `die-at-once`: before it can.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from pathlib import Path

KEEPER = str(Path(__file__).parents[2] / "pinfs" / "keeper" / "keeper.py")
KIND = socket.SOCK_SEQPACKET


def keeper_command(sock: int, pidfd: int, pid: int, words: list[str]) -> list[str]:
    told = [f"socket={sock}", f"pidfd={pidfd}", f"pid={pid}", *words]
    return [sys.executable, "-I", "-S", "-E", KEEPER, *told]


def become_keeper(words: list[str]) -> socket.socket:
    """In the parent; the child returns with its end of the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, KIND)
    pid = os.fork()
    if pid:
        pidfd = os.pidfd_open(pid)
        os.set_inheritable(pidfd, True)
        theirs.set_inheritable(True)
        command = keeper_command(theirs.fileno(), pidfd, pid, words)
        os.execv(command[0], command)
    theirs.close()
    return ours


def content(fd: int) -> str:
    """Of a file that is kept; where it is no file, what it is."""
    try:
        return os.pread(fd, 100, 0).decode()
    except OSError:
        return os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]


class StandIn:
    def __init__(self, control: str, keeper: socket.socket, manner: str) -> None:
        self.manner = manner
        self.keeper = keeper
        self.open: list[int] = []
        self.test = socket.socket(socket.AF_UNIX, KIND)
        self.test.connect(control)
        self.tell({"pid": os.getpid(), "ppid": os.getppid(), "sid": os.getsid(0)})

    def tell(self, what: dict[str, object]) -> None:
        self.test.send(json.dumps(what).encode())

    def serve(self) -> None:
        waiter = select.poll()
        waiter.register(self.keeper, select.POLLIN)
        waiter.register(self.test, select.POLLIN)
        while True:
            happened = dict(waiter.poll())
            if self.keeper.fileno() in happened:
                self.from_keeper(waiter)
            if self.test.fileno() in happened:
                self.from_test()

    def from_keeper(self, waiter: select.poll) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.keeper, 65536, 253)
        except ConnectionError:
            data, fds = b"", []
        if not data:
            waiter.unregister(self.keeper)
            self.tell({"EOF": 1})
            return
        said: dict[str, object] = {}
        said.update(line.partition("=")[::2] for line in data.decode().split("\n"))
        if "TAKE" in said and self.manner == "die":
            os._exit(9)
        names = str(said.get("FDNAMES", "")).split(":")
        if "FDNAMES" in said and len(fds) < 20:
            said["contents"] = {name: content(fd) for name, fd in zip(names, fds, strict=True)}
        said["count"] = len(fds)
        for fd in fds:
            os.close(fd)
        self.tell(said)

    def from_test(self) -> None:
        asked = json.loads(self.test.recv(65536) or b'{"exit": 0}')
        if "exit" in asked:
            os._exit(asked["exit"])
        fds = []
        if "path" in asked:
            fds = [os.open(asked["path"], os.O_WRONLY if asked["path"].endswith("fuse") else os.O_RDONLY)]
        try:
            for message in asked["say"]:
                socket.send_fds(self.keeper, [message.encode()], fds)
        except ConnectionError:
            self.tell({"broken": 1})
        for fd in fds:
            os.close(fd)
        self.tell({"done": 1})


def main() -> None:
    control, *words = sys.argv[1:]
    manner = words[0] if words else ""
    if manner == "first":
        sock = become_keeper(words[1:])
    elif manner == "die-at-once":
        sys.exit(3)
    else:
        sock = socket.socket(fileno=int(os.environ.pop("PINFS_KEEPER")))
    stand_in = StandIn(control, sock, manner)
    if manner != "first":
        sock.send(b"SPARE=1")
    stand_in.serve()


if __name__ == "__main__":
    main()
