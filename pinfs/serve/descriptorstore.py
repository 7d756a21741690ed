"""What outlives the daemon: descriptors by name, held by the service manager or by the keeper (pinfs/keeper).

Both understand sd_notify(3): FDSTORE=1 with FDNAME=NAME and FDPOLL=0 keeps a descriptor, FDSTOREREMOVE=1 drops it. The
next daemon finds them in `inherited`. Names of pinfs: `fuse` (the connection), `source` (the locked directory),
`journal`, and `n<nodeid>`, `d<fh>` for what no name leads to any more.
"""

import array
import errno
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from pinfs.runtime.errors import logged

log = logging.getLogger("pinfs.store")

KEEPER: Final = "pinfs"
SYSTEMD: Final = "systemd"

RETRY_S: Final = 0.05  # when a message did not go out, and nothing tells when it would
BARRIER_S: Final = 5.0
LAST_WORD_S: Final = 1.0  # what the last messages of a process may take
MAX_NAME: Final = 255  # FDNAME= of sd_pid_notify_with_fds(3)


class StoreLostError(Exception):
    """Nothing holds the descriptors any more; the text says why."""


class Link(Protocol):
    """The way to what holds the descriptors."""

    kind: str
    limit: int
    """How many it holds."""

    def send(self, text: str, fds: Sequence[int] = ()) -> None:
        """One message. OSError: it did not go out. Raises StoreLostError."""

    async def wait_writable(self) -> None:
        """Until `send` may be tried again."""

    async def receive(self) -> dict[str, str]:
        """The next message. Raises StoreLostError."""

    async def renew(self) -> None:
        """After StoreLostError: have something else hold them, which has nothing yet. Raises StoreLostError."""

    def fileno(self) -> int:
        """To be polled for POLLOUT; -1: cannot be."""

    def close(self) -> None:
        """Send and receive no more."""


@dataclass(slots=True, frozen=True)
class Predecessor:
    """What is known of the daemon before."""

    why: str = ""
    """How it ended, in the keeper's words; empty: only systemd knows."""
    died_at_s: float = 0.0
    """When (CLOCK_MONOTONIC, as time.monotonic()); 0: not known."""
    has_hung: bool = False
    """Whether the keeper killed it because it did not beat."""
    refused: str = ""
    """Why the program of the last upgrade could not take over; empty: it could."""


@dataclass(slots=True)
class Inheritance:
    """What this process was given at its start."""

    descriptors: dict[str, int] = field(default_factory=dict)
    predecessor: Predecessor = field(default_factory=Predecessor)


class DescriptorStore:
    """The daemon's side. Descriptors stay the caller's: each must stay open until it is dropped, since all of them are
    sent once more when the keeper was killed and another one takes its place. Nothing here waits."""

    def __init__(self, link: Link, inheritance: Inheritance | None = None) -> None:
        self._link = link
        self._inheritance = inheritance or Inheritance()
        self._held = dict(self._inheritance.descriptors)
        self.words: tuple[str, ...] = ()
        """What follows the program in the next daemon's command."""
        self._settings: dict[str, str] = {}
        """The last value of each own assignment (PINFS_ARGV...), for another keeper."""
        self._outbox: deque[tuple[str, str]] = deque()
        """Messages that could not be sent yet, and the name whose descriptor goes with them."""
        self._news = trio.Event()
        self._leave = trio.Event()
        self._is_over = False
        self.lost_because = ""
        """Why nothing outlives this daemon any more; empty: all that is held does."""
        self.refused = 0
        """How many descriptors were not kept, because the store is full or lost."""
        self.upgrade_refused = self._inheritance.predecessor.refused
        """Why the last upgrade did not come about."""

    # Its content

    def inherited(self) -> dict[str, int]:
        """What the daemon before has left, by name; empty at a first start. They are this process's to close."""
        return dict(self._inheritance.descriptors)

    @property
    def predecessor(self) -> Predecessor:
        """What is known of the daemon before."""
        return self._inheritance.predecessor

    def keep(self, name: str, fd: int) -> bool:
        """Have `fd` held under `name`, in place of what has that name. The caller leaves it open until `drop(name)`.

        False: it is not held, and the next daemon will lack it. The message may go out a little later; `barrier` waits.
        """
        is_new = name not in self._held
        if self.lost_because or (is_new and len(self._held) >= self._link.limit) or len(name) > MAX_NAME:
            self.refused += 1
            if self.refused == 1:
                why = self.lost_because or f"{self._link.limit} descriptors are held already"
                log.warning("a descriptor will not outlive this daemon: %s", why)
            return False
        if not is_new:
            self.drop(name)
        self._held[name] = fd
        self._send("FDSTORE=1\nFDPOLL=0", name)
        return True

    def drop(self, name: str) -> None:
        """Hold it no longer."""
        if self._held.pop(name, None) is not None:
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    async def barrier(self) -> bool:
        """Wait until all that was sent before has been done. False: no answer within BARRIER_S."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            with trio.move_on_after(BARRIER_S):
                while self._outbox:
                    self._flush()
                    await trio.sleep(RETRY_S if self._outbox else 0)
                self._link.send("BARRIER=1", [writing])
                os.close(writing)
                writing = -1
                await trio.lowlevel.wait_readable(reading)  # the other end is closed: sd_notify_barrier(3)
                return True
        except (OSError, StoreLostError) as e:
            log.info("no barrier: %s", e)
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)
        return False

    # The life of the mount

    @property
    def kind(self) -> str:
        """What holds them: pinfs, systemd."""
        return self._link.kind

    @property
    def is_own(self) -> bool:
        """Whether a keeper of pinfs holds them, which understands more than sd_notify(3) and starts the next daemon."""
        return self._link.kind == KEEPER

    def tell(self, *assignments: str) -> None:
        """READY=1, STOPPING=1, WATCHDOG=1 and their like, as sd_notify(3)."""
        self._send("\n".join(assignments))

    def set(self, **settings: str) -> None:
        """Assignments that only a keeper of pinfs knows (pinfs/keeper/keeper.py); another one is told them as well."""
        self._settings |= settings
        if self.is_own:
            self._send(_lines(settings))

    def mounted(self, mountpoint: str, device: int) -> None:
        """Tell what is to be detached when no daemon can take over. `device`: as os.makedev."""
        self.set(PINFS_MOUNT=f"{device}:{os.fsencode(mountpoint).hex()}")

    def ready(self, watchdog_s: float) -> None:
        """The mount is usable. From now on the daemon beats (WATCHDOG=1) within every `watchdog_s`; 0: it does not."""
        self.set(WATCHDOG_USEC=str(int(watchdog_s * 1e6)), READY="1")

    def failed(self, why: str) -> None:
        """This process cannot serve, and ends; the mount does not."""
        if self.is_own:
            self._last_word([f"PINFS_FAILED={' '.join(why.split())}"])

    def ended(self) -> None:
        """The mount is over: nothing is held any more, and nothing takes over. Call it when `run` has been left."""
        self._is_over = True
        self._outbox.clear()
        self._last_word(["PINFS_ENDED=1", *(f"FDSTOREREMOVE=1\nFDNAME={name}" for name in self._held)])
        self._held.clear()
        self._link.close()

    def ask_to_hand_over(self, program: Sequence[str] = ()) -> None:
        """Have the next daemon started; `run` calls `on_leave` when it is ready to take over. `program`: the words that
        run another `pinfs`.

        A service manager starts the next one only after this one's end, by the unit's own command.
        """
        self.upgrade_refused = ""
        if not self.is_own:
            self._leave.set()
            return
        if program:
            self._send(f"PINFS_ARGV={encoded([*program, *self.words])}")
        self._send("PINFS_HANDOVER=1")

    def status(self) -> dict[str, Any]:
        """For `.pinfs/status`."""
        return {
            "keeper": self._link.kind,
            "keeper_pid": getattr(self._link, "pid", None),
            "descriptors": len(self._held),
            "not_kept": self.refused,
            "upgrade_refused": self.upgrade_refused or None,
        }

    # Its task

    async def run(self, on_leave: Callable[[], Awaitable[None]]) -> None:
        """Send what could not be sent at once, and do what the keeper says."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_later)
            nursery.start_soon(self._leave_when_asked, on_leave)
            while True:
                try:
                    self._on_message(await self._link.receive())
                except StoreLostError as lost:
                    if self._is_over or not await self._renewed(str(lost)):
                        break

    async def _leave_when_asked(self, on_leave: Callable[[], Awaitable[None]]) -> None:
        await self._leave.wait()
        with logged("handing over"):
            await on_leave()

    def _on_message(self, said: Mapping[str, str]) -> None:
        if "LEAVE" in said:
            self._leave.set()
        if "REFUSED" in said:
            self.upgrade_refused = said["REFUSED"]
            log.error("the next daemon cannot take over, so this one goes on: %s", said["REFUSED"])

    async def _renewed(self, why: str) -> bool:
        log.warning("%s: another one is started", why)
        try:
            await self._link.renew()
        except StoreLostError as lost:
            self.lost_because = str(lost)
            log.error("the mount will not outlive this daemon: %s", lost)
            return False
        self._outbox.clear()
        if self._settings:
            self._outbox.append((_lines(self._settings), ""))
        self._outbox.extend(("FDSTORE=1\nFDPOLL=0", name) for name in self._held)
        self._news.set()
        return True

    async def _send_later(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            while self._outbox:
                self._flush()
                if self._outbox:
                    await self._link.wait_writable()

    def _send(self, text: str, name: str = "") -> None:
        if self.lost_because:
            return
        self._outbox.append((text, name))
        self._flush()
        if self._outbox:
            self._news.set()

    def _flush(self) -> None:
        """Send what can be sent."""
        while self._outbox:
            text, name = self._outbox[0]
            if name and name not in self._held:  # dropped before it could be sent
                self._outbox.popleft()
                continue
            try:
                self._link.send(f"{text}\nFDNAME={name}" if name else text, [self._held[name]] if name else [])
            except StoreLostError:
                self._outbox.clear()  # another keeper is told everything
                return
            except OSError as e:
                if e.errno != errno.EBADF:
                    return
                log.error("%s was closed before it was dropped", name)
                del self._held[name]
            self._outbox.popleft()

    def _last_word(self, messages: list[str]) -> None:
        """Messages after which this process ends; so it waits for room a moment."""
        waiter, until = select.poll(), time.monotonic() + LAST_WORD_S
        if self._link.fileno() >= 0:
            waiter.register(self._link.fileno(), select.POLLOUT)
        while messages and time.monotonic() < until:
            try:
                self._link.send(messages[0])
            except BlockingIOError:
                waiter.poll(RETRY_S * 1000)
            except (OSError, StoreLostError):
                return
            else:
                del messages[0]


class ManagerLink:
    """The descriptor store of systemd, by NOTIFY_SOCKET. It needs FileDescriptorStoreMax= and NotifyAccess=main."""

    kind = SYSTEMD

    def __init__(self, address: str, limit: int) -> None:
        self._address = address
        self.limit = limit

    def send(self, text: str, fds: Sequence[int] = ()) -> None:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as sending:
            _sendmsg(sending, text, fds, self._address)

    async def wait_writable(self) -> None:
        await trio.sleep(RETRY_S)

    async def receive(self) -> dict[str, str]:
        await trio.sleep_forever()
        raise AssertionError

    async def renew(self) -> None:
        raise StoreLostError("the service manager has gone")

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Each message has a socket of its own."""


def _sendmsg(sending: socket.socket, text: str, fds: Sequence[int], address: str | None = None) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    to = () if address is None else (address,)
    sending.sendmsg([text.encode(errors="replace")], ancillary, socket.MSG_NOSIGNAL, *to)


def _lines(settings: Mapping[str, str]) -> str:
    return "\n".join(f"{key}={value}" for key, value in settings.items())


def encoded(argv: Sequence[str]) -> str:
    """A command as PINFS_ARGV carries it: hexadecimal, with NUL between the words."""
    return b"\0".join(map(os.fsencode, argv)).hex()
