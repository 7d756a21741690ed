"""What the keeper does: the states of a mount whose daemons come and go."""

import _signal
import _socket
import os
import select
import time

from .log import Log, printable
from .peer import FDS_A_MESSAGE, MAX_LINE, Peer
from .system import close_all_but, detach, raise_descriptor_limit, started

MAX_NAME = 255
DEATHS = 5
DEATHS_WITHIN_S = 60.0
START_S = 120.0  # what a daemon may take to load, and to take over, unless it beats meanwhile
LEAVE_S = 30.0  # what a daemon that was told to leave may take
LATE_S = 1.0  # a wait that ends so late was a stop of the whole machine (or of its freezer), not of the daemon
# The pause after a daemon that died before it was ready; doubled each time. Callers wait meanwhile.
RETRY_S, MAX_RETRY_S = 0.25, 2.0
SOON_S = 0.01
FUSE = b"fuse"
ENDING = (_signal.SIGTERM, _signal.SIGINT)
PASSED_ON = (*ENDING, _signal.SIGHUP, _signal.SIGUSR1, _signal.SIGUSR2)


class Keeper:
    """One mount, from its first daemon to its end."""

    def __init__(self, first: Peer, log: Log) -> None:
        self.log = log
        self.serving: Peer | None = first
        self.spare: Peer | None = None
        """The next daemon, from its start until it takes over."""
        self.argv: list[bytes] = []
        self.proven: list[bytes] = []
        """The last command whose daemon became ready."""
        self.store: dict[bytes, int] = {}
        self.max_stored = raise_descriptor_limit()
        self.mount: tuple[int, bytes] | None = None
        self.max_deaths = DEATHS
        self.keeps_spare = False
        self.deaths: list[float] = []
        self.failures = 0
        """Daemons in a row that died before they were ready."""
        self.not_before = 0.0
        """When the next one may be started (time.monotonic)."""
        self.is_handing_over = self.is_ending = self.has_ended = self.was_ready = False
        self.why, self.died_ns, self.has_hung, self.refused = "", 0, False, ""
        self.status: int | None = None
        self.wakeup, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in PASSED_ON:
            _signal.signal(number, lambda number, frame: None)
        self.greet(first)

    def run(self) -> int:
        """Until the mount is over; the exit status."""
        while self.status is None:
            self.wait()
            if self.status is None:
                self.arrange()
        return self.status

    # What the state asks for

    def arrange(self) -> None:
        if self.serving is None and (self.is_ending or self.is_over()):
            self.end(0)
        elif self.spare is None:
            if self.wants_next() and time.monotonic() >= self.not_before:
                self.start()
        elif self.spare.is_loaded and not self.spare.is_dismissed:
            if self.serving is None:
                self.hand_over(self.spare)
            elif self.is_handing_over and not self.serving.is_leaving:
                self.serving.is_leaving = True
                self.serving.limit(LEAVE_S)
                self.serving.send(b"LEAVE=1")

    def wants_next(self) -> bool:
        """Whether there has to be a process that can take over."""
        if self.is_ending or self.has_ended:
            return False
        return self.serving is None or self.is_handing_over or (self.keeps_spare and self.serving.is_ready)

    def is_over(self) -> bool:
        """Whether the mount is unmounted, or its connection aborted (fuse_dev_poll: EPOLLERR)."""
        if self.has_ended or FUSE not in self.store:
            return True
        waiter = select.poll()
        waiter.register(self.store[FUSE], 0)
        return bool(waiter.poll(0))

    def start(self) -> None:
        try:
            self.spare = started(self.argv)
        except OSError as e:
            self.failed(f"the daemon cannot be started: {e.strerror}", self.argv)
            return
        self.spare.limit(START_S)
        self.greet(self.spare)

    def greet(self, peer: Peer) -> None:
        peer.send(b"KEEPER=%d\nFDSTORE=%d" % (os.getpid(), self.max_stored))

    def hand_over(self, peer: Peer) -> None:
        """Give everything to the next daemon. The one before has ended: two must not read requests."""
        names = list(self.store)
        parts = [names[at : at + FDS_A_MESSAGE] for at in range(0, len(names), FDS_A_MESSAGE)]
        told = f"\nDIED_NS={self.died_ns}\nWHY={printable(self.why)}\nREFUSED={printable(self.refused)}".encode()
        told += b"\nHUNG=1" * self.has_hung
        for number, part in enumerate(parts, 1):
            left = len(parts) - number
            text = b"TAKE=1\nFDNAMES=%s\nLEFT=%d" % (b":".join(part), left)
            peer.send(text if left else text + told, [self.store[name] for name in part])
        peer.limit(START_S)
        self.serving, self.spare = peer, None
        self.is_handing_over, self.refused = False, ""

    # What happens

    def wait(self) -> None:
        """For a message, a signal, a death, or a deadline; and do what it asks for."""
        waiter = select.poll()
        waiter.register(self.wakeup, select.POLLIN)
        limit_s = self.next_deadline() - time.monotonic()
        for peer in self.peers():
            waiter.register(peer.pidfd, select.POLLIN)
            if not peer.flush():
                limit_s = min(limit_s, SOON_S)
            elif peer.is_open:
                waiter.register(peer, select.POLLIN | (select.POLLOUT if peer.outbox else 0))
        if self.serving is None and FUSE in self.store:
            waiter.register(
                self.store[FUSE], 0
            )  # it may be unmounted. While a daemon serves, each request would wake us
        limit_s = max(0.0, min(limit_s, 3600.0))
        began = time.monotonic()
        happened = dict(waiter.poll(limit_s * 1000))
        self.on_late(time.monotonic() - began - limit_s)
        if self.wakeup in happened:
            self.on_signals(os.read(self.wakeup, 64))
        for peer in self.peers():
            if peer.is_open and peer.fileno() in happened:
                self.read(peer)
            if peer.pidfd in happened:
                self.on_death(peer)
        self.check_beats()

    def peers(self) -> list[Peer]:
        return [peer for peer in (self.serving, self.spare) if peer is not None]

    def next_deadline(self) -> float:
        deadlines = [peer.beat + peer.limit_s for peer in self.peers() if peer.limit_s]
        if self.spare is None and self.wants_next():
            deadlines.append(self.not_before)
        return min(deadlines, default=float("inf"))

    def on_late(self, late_s: float) -> None:
        """When this process did not run, the daemon did not either."""
        if late_s > LATE_S:
            for peer in self.peers():
                peer.beat += late_s

    def check_beats(self) -> None:
        now = time.monotonic()
        for peer in self.peers():
            if not peer.limit_s or now < peer.beat + peer.limit_s:
                continue
            if peer.is_traced():
                peer.beat = now
            elif peer.kill():
                limit = f"{peer.limit_s:g}"
                self.log("warning", f"the daemon (pid {peer.pid}) does not beat for {limit} s: it is killed [P901]")

    def on_signals(self, numbers: bytes) -> None:
        """A signal to the keeper is meant for the mount."""
        for number in numbers:
            self.is_ending = self.is_ending or number in ENDING
            if self.serving is not None and number in PASSED_ON:
                self.serving.signal(number)
        if self.serving is not None and self.is_ending:
            self.serving.signal(_signal.SIGCONT)

    # What a daemon says

    def read(self, peer: Peer) -> None:
        """All that has come."""
        while (message := peer.receive()) is not None:
            said, fds = message
            try:
                if peer is self.spare:
                    self.on_spare(peer, said)
                else:
                    self.on_message(peer, said, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def on_spare(self, peer: Peer, said: dict[bytes, bytes]) -> None:
        if b"SPARE" in said:
            peer.is_loaded, peer.limit_s = True, 0.0

    def on_message(self, peer: Peer, said: dict[bytes, bytes], fds: list[int]) -> None:
        if b"FDSTORE" in said and fds:
            self.keep(said.get(b"FDNAME", b"stored"), fds)
        if b"FDSTOREREMOVE" in said:
            self.drop(said.get(b"FDNAME", b""))
        self.on_life(peer, said)
        self.on_settings(said)
        if b"PINFS_HANDOVER" in said:
            self.is_handing_over, self.not_before = True, 0.0
            if self.spare is not None and self.spare.argv != self.argv:
                self.spare.dismiss()

    def on_life(self, peer: Peer, said: dict[bytes, bytes]) -> None:
        if said.get(b"WATCHDOG_USEC", b"").isdigit():
            peer.watchdog_s = int(said[b"WATCHDOG_USEC"]) / 1e6
        if b"READY" in said:
            peer.is_ready = self.was_ready = True
            self.failures = 0
            self.proven = peer.argv or self.argv
        if b"WATCHDOG" in said or b"READY" in said:
            peer.limit(peer.watchdog_s if peer.is_ready else peer.limit_s)
        peer.failed_because = said.get(b"PINFS_FAILED", b"")[:MAX_LINE]
        if b"STOPPING" in said:
            self.is_ending, peer.limit_s = True, 0.0
        if b"PINFS_ENDED" in said:
            self.has_ended = True
            self.let_go()

    def on_settings(self, said: dict[bytes, bytes]) -> None:
        if argv := _decoded(said.get(b"PINFS_ARGV", b"")):
            self.argv = argv
            self.proven = self.proven or argv
        if said.get(b"PINFS_DEATHS", b"").isdigit():
            self.max_deaths = int(said[b"PINFS_DEATHS"])
        if b"PINFS_SPARE" in said:
            self.keeps_spare = said[b"PINFS_SPARE"] == b"1"
        device, _, point = said.get(b"PINFS_MOUNT", b"").partition(b":")
        if device.isdigit() and (path := _decoded(point)):
            self.mount = int(device), path[0]

    def keep(self, name: bytes, fds: list[int]) -> None:
        """Take one of the descriptors into the store. Beyond the limit it is closed: the daemon knows that limit."""
        if len(name) <= MAX_NAME and (name in self.store or len(self.store) < self.max_stored):
            self.drop(name)
            self.store[name] = fds.pop(0)

    def drop(self, name: bytes) -> None:
        fd = self.store.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    # Deaths

    def on_death(self, peer: Peer) -> None:
        """What it said before it died counts."""
        self.read(peer)
        status, how = peer.reap()
        if peer is self.spare:
            self.spare = None
            if not peer.is_dismissed:
                self.failed(f"the next daemon (pid {peer.pid}) {how} before it took over{peer.last_words}", peer.argv)
            return
        self.serving = None
        how = f"the daemon (pid {peer.pid}) {how}{peer.last_words}"
        self.died_ns, self.why = time.monotonic_ns(), how
        self.has_hung = peer.was_killed
        if peer.is_leaving and not peer.was_killed:
            self.why = "handed over"
        if self.has_ended or self.is_ending:
            self.end(max(status, 0))
        elif not self.was_ready:  # the first one, which has told its starter why
            self.end(status if status > 0 else 1)
        elif FUSE not in self.store:
            self.log("error", f"{how}, and has left no connection: the mount is over [P905]")
            self.end(1)
        elif not peer.is_leaving and not self.is_over():
            self.failed(how, None if peer.is_ready else peer.argv)

    def failed(self, how: str, argv: list[bytes] | None) -> None:
        """A daemon died. `argv`: the command of one that never was ready, or could not be started."""
        now = time.monotonic()
        self.deaths = [*(at for at in self.deaths if now - at < DEATHS_WITHIN_S), now]
        if argv is not None:
            self.failures += 1
            self.not_before = now + min(RETRY_S * 2 ** min(self.failures - 1, 16), MAX_RETRY_S)
            self.on_upgrade_failed(how, argv)
        if self.serving is not None:
            self.log("warning", f"{how} [P903]")
        elif self.max_deaths and len(self.deaths) >= self.max_deaths:
            died = f"{len(self.deaths)} daemons have died within {DEATHS_WITHIN_S:g} s"
            self.log("error", f"{how}; {died}: the mount is given up, and its callers get ENOTCONN [P904]")
            self.end(1)
        else:
            self.log("warning", f"{how}; the next one takes over [P902]")

    def on_upgrade_failed(self, how: str, argv: list[bytes]) -> None:
        """A program that cannot take over: the daemon before it goes on, or is started again."""
        if self.is_handing_over or argv != self.proven:
            self.refused, self.argv = how, self.proven
        if self.serving is not None and self.is_handing_over and not self.serving.is_leaving:
            self.is_handing_over = False
            self.serving.send(b"REFUSED=%s" % printable(how).encode())

    # The end

    def let_go(self) -> None:
        """Close everything that was kept: with its last descriptor a connection ends."""
        if self.spare is not None:
            self.spare.dismiss()
        while self.store:
            os.close(self.store.popitem()[1])

    def end(self, status: int) -> None:
        self.let_go()
        if self.mount is not None and not self.has_ended and not detach(*self.mount):
            self.log("error", f"{os.fsdecode(self.mount[1])} cannot be unmounted [P906]")
        self.status = status


def _decoded(value: bytes) -> list[bytes]:
    """The words of PINFS_ARGV; none where it is missing or malformed."""
    try:
        text = bytes.fromhex(value.decode("ascii"))
    except ValueError:
        return []
    return text.split(b"\0") if text else []


def main(words: list[str]) -> int:
    """`socket=FD pidfd=FD pid=N`: the daemon, its end of the socket, a pidfd of it. `log=`, `level=`, `json=1`: where
    and how to log. `session=1`: in a session of its own. `detach=1`: as no child of the starter. `mount=`: for ps."""
    told = {key: value for key, _, value in (word.partition("=") for word in words)}
    sock, pidfd = int(told["socket"]), int(told["pidfd"])
    if told.get("detach") and os.fork():
        return 0
    close_all_but({0, 1, 2, sock, pidfd})
    for fd in (sock, pidfd):
        os.set_inheritable(fd, False)
    if told.get("session"):
        os.setsid()
    os.chdir("/")
    with open("/proc/self/comm", "w") as comm:
        comm.write("pinfs-keeper")
    first = Peer(int(told["pid"]), pidfd, _socket.socket(fileno=sock), [])
    return Keeper(first, Log(told.get("log", ""), told.get("level", ""), told.get("json") == "1")).run()
