"""The life of a mount, from the lock on its source to the last unmount, on one stack."""

import errno
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

import trio

import pinfs
from pinfs.bridge.mount import (
    MountError,
    MountFlags,
    check_mountpoint,
    check_not_nested,
    device_of,
    has_acls,
    mount,
    open_source,
    unmount,
    users,
    warn_of_cluster,
)
from pinfs.bridge.negotiate import Negotiated, Requested
from pinfs.bridge.once import Once
from pinfs.bridge.passthrough import Passthrough, stack_depth
from pinfs.bridge.sealprobe import seal_unavailable_because
from pinfs.bridge.transports import Bridged, Transport
from pinfs.config.options import Config, MountOptions
from pinfs.config.policies import PolicyBox
from pinfs.core.policy import PolicyError
from pinfs.enforce.holders import raise_descriptor_limit
from pinfs.fs import exports
from pinfs.fs.events import ReadLimit
from pinfs.fs.seal import SEALED_BY_NO_HOST
from pinfs.fs.seallist import list_path
from pinfs.linux.abi import UnsupportedABIError, require_supported_abi
from pinfs.linux.calls import call_at_once_here
from pinfs.linux.filesystems import PagePins, page_pins
from pinfs.pure import is_compiled
from pinfs.runtime import descriptors
from pinfs.runtime.errors import logged
from pinfs.runtime.memory import settle_memory
from pinfs.runtime.signals import received
from pinfs.runtime.tasktree import task_tree
from pinfs.serve.assembly import FileSystem, assemble
from pinfs.serve.cluster import Cluster
from pinfs.serve.descriptorstore import DescriptorStore
from pinfs.serve.notify import Notifier
from pinfs.serve.scrape import MetricsPort, NoPort
from pinfs.serve.succession import Succession, ends_because
from pinfs.serve.takeover import Identity, Left, left_in

log = logging.getLogger("pinfs.daemon")

PLAIN_READ_S: Final = 10.0  # what a read of events may wait without the bridge, where nothing can interrupt it
PLAIN_READERS: Final = 32  # such reads at a time
FAILED: Final = 70
"""The exit status of a daemon that has failed, and leaves its mount to the next one (EX_SOFTWARE of sysexits.h)."""
UNMOUNT_S: Final = 5.0  # what a plain unmount may take before the mount is detached
HANDED_OVER: Final = 14  # the exit status of a daemon that has left its mount to the next (docs/exit-codes.md)


async def serve(
    config: Config,
    source: str,
    mountpoint: str,
    store: DescriptorStore | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount `source` on `mountpoint` and serve it until it is unmounted or a signal ends it; or go on where the daemon
    before has ended, if `store` has what it left.

    Started when the file system is usable. Raises MountError when there is nothing to serve.
    """
    _require_known_machine()
    async with AsyncExitStack() as stack:
        daemon = _begin(config, source, mountpoint, store, stack)
        stack.callback(daemon.close)
        stack.push(daemon.on_failure)
        if daemon.cluster is not None:
            await daemon.cluster.check()
        scraped = daemon.metrics_port()
        stack.callback(scraped.close)
        # From here on a signal ends us in good order, however early it comes: no mount is left behind.
        signals = stack.enter_context(received(*daemon.on_signal))
        stack.callback(daemon.detach)
        transport = daemon.connect()
        stack.callback(transport.close)
        stack.push(daemon.on_failure)
        nursery = await stack.enter_async_context(_cancelled_at_end())
        nursery.start_soon(daemon.handle_signals, signals)
        if store is not None:
            nursery.start_soon(store.run, daemon.hand_over)
        daemon.fs.guard.clock.follow_system()
        if daemon.fs.backing.threads is None:
            call_at_once_here()
        await nursery.start(daemon.fs.guard.run)
        await nursery.start(daemon.fs.backing.seal.run)
        await nursery.start(daemon.fs.holders.run)
        nursery.start_soon(daemon.fs.operations.submounts.run)
        with daemon.serving:
            async with trio.open_nursery() as serving:
                await serving.start(transport.run)
                if transport.usable and not daemon.lost(transport):
                    nursery.start_soon(scraped.run)  # a daemon that takes over has its counters from now on
                    nursery.start_soon(daemon.fs.counters.run)
                    if daemon.cluster is not None:
                        nursery.start_soon(daemon.cluster.run, daemon.succession.wait_restored)
                    daemon.announce(nursery)
                    task_status.started()
                else:
                    serving.cancel_scope.cancel()
        if daemon.cluster is not None:
            await daemon.cluster.leave()
    if lost := daemon.lost(transport):
        raise MountError(lost)


def _begin(
    config: Config, source: str, mountpoint: str, store: DescriptorStore | None, stack: AsyncExitStack
) -> "Daemon":
    """A daemon over the locked source. Raises MountError."""
    left = None if store is None else left_in(store)
    if left is not None:
        left.identity.warn_of_other_places(source, mountpoint)
        place = Place(left.identity.source, left.source_fd, left.identity.mountpoint)
        return Daemon(left.identity.config_of(config), place, store, left)
    source_fd = open_source(source, shared=config.cluster is not None)
    stack.callback(os.close, source_fd)
    point = check_mountpoint(mountpoint, source_fd, replace_stale=config.mount.replace_stale)
    check_not_nested(os.path.realpath(source))
    if config.cluster is None:
        warn_of_cluster(source_fd)
    _require_export(config.mount, source_fd)
    return Daemon(config, Place(os.path.realpath(source), source_fd, point), store)


def _require_known_machine() -> None:
    try:
        require_supported_abi()
    except UnsupportedABIError as e:
        raise MountError(str(e.strerror)) from e


def _require_export(options: MountOptions, source_fd: int) -> None:
    """MountError: nfs_export=on, and the source cannot be exported."""
    if options.nfs_export and options.bridge == "off":
        raise MountError("nfs_export=on needs the bridge, and bridge=off switches it off")
    if options.nfs_export and (why := exports.unavailable_because(source_fd)):
        raise MountError(f"nfs_export=on, but {why}")


@asynccontextmanager
async def _cancelled_at_end() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


class Place(NamedTuple):
    """What is served, and where. `source_fd`: the source, locked."""

    source: str
    source_fd: int
    mountpoint: str


class Daemon:
    """One mount while it is served: what was negotiated, its state, its end."""

    def __init__(
        self,
        config: Config,
        place: Place,
        store: DescriptorStore | None = None,
        left: Left | None = None,
    ) -> None:
        self.config = config
        self.store = store
        self.left = left
        self.source, self.mountpoint = place.source, place.mountpoint
        self.ending = False
        self.passthrough = Passthrough()
        self.bridge_unavailable_because = ""
        self.negotiated: list[str] = []
        self.serving = trio.CancelScope()
        self.on_signal: dict[int, Callable[[], Awaitable[None]]] = {
            signal.SIGTERM: self.end,
            signal.SIGINT: self.end,
            signal.SIGHUP: self.reload,
            signal.SIGUSR1: self.log_report,
            signal.SIGUSR2: self.ask_to_hand_over,
        }
        self.manager = Notifier(os.environ, store, config.mount.watchdog)
        self._since = time.monotonic()
        self._source_fd = place.source_fd
        self._page_pins = page_pins(place.source_fd)
        self._fd = -1
        self._device: int | None = None
        self.policies = PolicyBox(config.policies)
        self.fs: FileSystem = assemble(
            os.dup(place.source_fd), config, self.policies, self.passthrough, self.status, raise_descriptor_limit()
        )
        self.fs.backing.lower_privileges()
        self.cluster: Cluster | None = None
        if self.fs.hosts is not None and config.cluster is not None:
            self.cluster = Cluster(config.cluster, place.source_fd, self.fs.hosts)
            self.fs.forgetting.request = self.cluster.host.forget
            if left is not None and left.cluster is not None:
                self.cluster.restore(left.cluster)
        self.succession = Succession(store, self.fs, left, ends_because(config.mount))

    # Its beginning

    def connect(self) -> Transport:
        """Mount, or take over; what serves the connection. Raises MountError."""
        self.transport = self._mount() if self.left is None else self._take_over(self.left)
        return self.transport

    def _requested(self) -> Requested:
        return Requested(
            passthrough=self.config.mount.passthrough != "off" and os.geteuid() == 0,
            stack_depth=stack_depth(self._source_fd),
            posix_acl=has_acls(self._source_fd),
            nfs_export=self.config.mount.nfs_export,
        )

    def _mount(self) -> Transport:
        options = self.config.mount
        if options.bridge == "off" and options.passthrough == "on":
            raise MountError("passthrough=on needs the bridge, and bridge=off switches it off")
        self._fd = mount(options.fsname or self.source, self.mountpoint, _flags(options))
        self._device = device_of(self.mountpoint)
        if self._device is not None:
            self.fs.guard.mount_device = self._device
        if options.bridge == "off":
            return self._without_bridge()
        self.succession.begin()
        requested = self._requested()
        return self._bridged(requested, self._on_negotiated)

    def _take_over(self, left: Left) -> Transport:
        """Go on with the connection of the daemon before. Nothing is mounted or locked again."""
        if self.config.mount.bridge == "off":
            raise MountError("the mount was served by the bridge, which takes over from the bridge only (bridge=off)")
        self._fd, self._device = left.connection, left.identity.device
        os.set_blocking(self._fd, False)  # the daemon before may have been in a read that blocks
        self.fs.guard.mount_device = left.identity.device
        return self._bridged(self._requested(), self._on_resumed, left.identity.negotiated)

    def _bridged(
        self,
        requested: Requested,
        on_negotiated: Callable[[Negotiated], Once | None],
        resumed: Negotiated | None = None,
    ) -> Bridged:
        counts, busy_poll_us = self.fs.stats.requests, self._busy_poll_us()
        return Bridged(self._fd, self.fs.operations, requested, on_negotiated, counts, resumed, busy_poll_us)

    def _busy_poll_us(self) -> int:
        """On a machine with one processor the daemon would take it from the caller."""
        wanted = self.config.mount.busy_poll
        if wanted and os.cpu_count() == 1:
            log.info("busy_poll has no effect: this machine has one processor")
            return 0
        return wanted

    def _on_resumed(self, negotiated: Negotiated) -> Once:
        """Before the first request: restore all that the daemon before knew."""
        gc.disable()  # what is built here lasts; `settle_memory` switches it on again
        self.negotiated = negotiated.names
        if why := self.succession.passthrough_unavailable_because:
            self.passthrough.refuse(why)
        else:
            self.passthrough.use(self._fd)
        return self.succession.take_over(self._resume_seal, self.transport.wake_pollers)

    def _without_bridge(self) -> Transport:
        acls = has_acls(self._source_fd)
        try:
            from pinfs.bridge import pyfuse3_adapter  # not above: the bridge does not need pyfuse3

            transport = pyfuse3_adapter.Plain(self._fd, self.fs.operations, posix_acl=acls)
        except (ImportError, OSError, RuntimeError) as e:
            with suppress(OSError):  # libfuse may have closed it
                os.close(self._fd)
            raise MountError(f"pyfuse3 cannot serve the mount (bridge=off): {e}") from e
        log.info("serving by pyfuse3 alone: %s", pyfuse3_adapter.LOST_WITHOUT_BRIDGE)
        self.bridge_unavailable_because = "switched off (bridge=off)"
        self.passthrough.refuse("there is none without the bridge")
        self._start_seal()
        self.fs.hub.read_limit = ReadLimit(PLAIN_READ_S, PLAIN_READERS)
        return transport

    def _on_negotiated(self, negotiated: Negotiated) -> Once | None:
        self.negotiated = negotiated.names
        log.info("negotiated (protocol 7.%d): %s", negotiated.kernel_minor, ", ".join(negotiated.names))
        if negotiated.passthrough:
            self.passthrough.probe(self._fd, self._source_fd)
        else:
            self.passthrough.refuse(self._passthrough_unavailable_because())
        log.info("passthrough: %s", self.passthrough.unavailable_because or "yes")
        self._start_seal()
        mount = Identity(
            self.source,
            self.mountpoint,
            self._device or 0,
            negotiated.kernel_minor,
            negotiated.offered,
            negotiated.flags,
            self.passthrough.unavailable_because,
            None if self.config.cluster is None else self.config.cluster.state(),
        )
        return self.succession.keep(mount, self._source_fd, self._fd)

    def _resume_seal(self) -> None:
        seal = self.fs.backing.seal
        seal.resume(self._seal_unavailable_because(), list_path(self._source_fd), self.source)

    def _start_seal(self) -> None:
        seal = self.fs.backing.seal
        seal.start(self._seal_unavailable_because(), list_path(self._source_fd), self.source)
        log.info("seal: %s", seal.unavailable_because or "yes")

    def _seal_unavailable_because(self) -> str:
        passthrough = not self.passthrough.unavailable_because
        depth = stack_depth(self._source_fd)
        if self.config.cluster is not None:
            return SEALED_BY_NO_HOST
        if self.fs.backing.threads is not None:  # ioctls of seals are made on the event loop
            return "the source is served by another program or machine"
        return seal_unavailable_because(self._source_fd, passthrough=passthrough, stack_depth=depth)

    def _passthrough_unavailable_because(self) -> str:
        if self.config.mount.passthrough == "off":
            return "switched off (passthrough=off)"
        return "only root may register backing files" if os.geteuid() else "the kernel does not offer it (Linux 6.9)"

    def lost(self, transport: Transport) -> str:
        """What the mount needs, or its options insist on, and it has not got; empty where nothing is missing."""
        if transport.unusable_because:
            return f"{transport.unusable_because}. Mount with -o bridge=off to serve it by pyfuse3 alone"
        if transport.usable and self.config.mount.passthrough == "on" and self.passthrough.unavailable_because:
            return f"passthrough=on, but {self.passthrough.unavailable_because}"
        return ""

    def announce(self, nursery: trio.Nursery) -> None:
        """Tell the log and systemd that the mount is usable."""
        log.info("%s is mounted on %s", self.source, self.mountpoint)
        settle_memory()
        if self.store is not None:
            self.store.ready(self.config.mount.watchdog)
        self.manager.tell("READY=1", f"STATUS={self.status_line()}")
        nursery.start_soon(self.manager.keep_telling, self.status_line)
        nursery.start_soon(self.succession.finish, self.transport.knows)

    # Its state

    def status(self) -> dict[str, Any]:
        """`.pinfs/status`."""
        book = self.fs.guard.book
        return {
            "v": 1,
            "version": pinfs.__version__,
            "compiled": is_compiled(),
            "source": self.source,
            "mountpoint": self.mountpoint,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._since, 3),
            "passthrough": not self.passthrough.unavailable_because,
            "passthrough_unavailable_because": self.passthrough.unavailable_because or None,
            "page_pins": PagePins.READING if self.passthrough.unavailable_because else self._page_pins,
            "bridge": not self.bridge_unavailable_because,
            "bridge_unavailable_because": self.bridge_unavailable_because or None,
            "seal": not self.fs.backing.seal.unavailable_because,
            "seal_unavailable_because": self.fs.backing.seal.unavailable_because or None,
            "sealed_files": self.fs.backing.seal.count,
            "nfs_export": self.fs.operations.exports is not None,
            "nfs_handles_last": self.fs.operations.exports is not None and self.fs.operations.exports.handles_last,
            "poll": self.fs.operations.polling.answered,
            "poll_mode": self.fs.operations.polling.mode,
            "negotiated": self.negotiated,
            "pins": len(book.table),
            "waiting": book.waiting,
            "evictions": len(self.fs.backing.evictions),
            "source_calls": None if self.fs.backing.threads is None else len(self.fs.backing.threads),
            "descriptors": descriptors.in_use(),
            "cluster": None if self.cluster is None else self.cluster.status(),
            **self.fs.life.shown(),
        }

    def metrics_port(self) -> MetricsPort | NoPort:
        """Take the port before anything is mounted. MountError: it cannot be had."""
        port = self.config.mount.metrics_port
        return MetricsPort(port, self.fs.metrics) if port else NoPort()

    def status_line(self) -> str:
        """For `systemctl status`."""
        book = self.fs.guard.book
        return f"{self.source} on {self.mountpoint}: pins {len(book.table)}, waiting {book.waiting}"

    # Its signals

    async def handle_signals(self, signals: AsyncIterator[int]) -> None:
        """Do what signals ask for, in their order."""
        async for number in signals:
            name = signal.Signals(number).name
            log.info("signal %s", name)
            with logged(name):
                await self.on_signal[number]()

    async def reload(self) -> None:
        """Read the policy file again; a file that cannot be read leaves the old policy in force."""
        with suppress(PolicyError):  # it is in the log
            self.policies.reload(self.config.read_policy, "SIGHUP")

    async def log_report(self) -> None:
        """Log the state, and where every task stands."""
        state = (f"{key}: {value}" for key, value in self.status().items())
        log.info("\n".join(["state and tasks", *state, *task_tree(trio.lowlevel.current_root_task())]))

    # Its end

    async def ask_to_hand_over(self) -> None:
        """Have the next daemon started; it takes over when this one has left."""
        if self.store is None:
            log.warning("nothing would take over (survive=off): this daemon goes on")
        else:
            self.store.ask_to_hand_over()

    async def hand_over(self) -> None:
        """Leave the mount to the next daemon: nothing is unmounted, unsealed or released, and the kernel sends that one
        the requests that wait."""
        log.info("handing over %s", self.mountpoint)
        await self.succession.leave()
        logging.shutdown()
        os._exit(HANDED_OVER)

    def on_failure(self, kind: type[BaseException] | None, failure: BaseException | None, _: object) -> None:
        """What ends the daemon does not end the mount, where another one can take over."""
        if failure is None or self.ending or not self.succession.is_certain:
            return
        if self.left is not None or self.transport.usable:
            log.error("the daemon has failed; the next one takes over", exc_info=failure)
            self.succession.fail(_words(failure))
            logging.shutdown()
            os._exit(FAILED)

    def close(self) -> None:
        """The mount is over."""
        self.fs.close()
        self.succession.close()

    async def end(self) -> None:
        """Answer waiting breakers, unmount, stop serving. What still uses the mount gets ENOTCONN then."""
        log.info("unmounting %s", self.mountpoint)
        self.ending = True
        try:
            self.manager.tell("STOPPING=1", f"STATUS=unmounting {self.mountpoint}")
            with logged("answering the waiting breakers"):
                self.fs.guard.close()
            with trio.move_on_after(UNMOUNT_S):
                await trio.to_thread.run_sync(self._unmount, abandon_on_cancel=True)
        finally:
            self.serving.cancel()

    def _unmount(self) -> None:
        """Not on the event loop: the kernel may write back pages through us."""
        try:
            unmount(self.mountpoint)
        except OSError as e:
            if e.errno != errno.EBUSY:
                return  # it is unmounted already
            used_by = ", ".join(users(self.mountpoint)) or "processes that cannot be seen from here"
            log.info("%s is detached while in use by %s", self.mountpoint, used_by)

    def detach(self) -> None:
        """Leave nothing of this mount behind, whatever happened."""
        if self.left is not None and not self.succession.has_begun:
            return
        if self._device is not None and device_of(self.mountpoint) == self._device:
            try:
                unmount(self.mountpoint, lazy=True)
            except (OSError, MountError) as e:
                log.error("%s cannot be unmounted: %s", self.mountpoint, e)


def _words(failure: BaseException) -> str:
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return str(failure) if isinstance(failure, MountError) else f"{type(failure).__name__}: {failure}"


def _flags(options: MountOptions) -> MountFlags:
    return MountFlags(
        allow_other=options.allow_other,
        read_only=options.read_only,
        suid=options.suid,
        dev=options.dev,
        exec_=options.exec_,
        atime=options.atime,
    )
