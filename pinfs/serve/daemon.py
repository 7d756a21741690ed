"""The life of a mount, from the lock on its source to the last unmount, on one stack."""

import errno
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, NoReturn

import trio

import pinfs
from pinfs.bridge.mount import (
    AlreadyServedError,
    MountError,
    MountFlags,
    StaleMountError,
    check_mountpoint,
    check_not_nested,
    device_of,
    has_acls,
    mount,
    open_source,
    unmount,
    users,
)
from pinfs.bridge.negotiate import Terms, Wishes
from pinfs.bridge.passthrough import Passthrough, stack_depth
from pinfs.bridge.ways import LOST_WITHOUT_BRIDGE, SPARE_TASKS, Bridged, Plain, Way
from pinfs.config.options import Config, MountOptions
from pinfs.config.policies import PolicyBox
from pinfs.core.policy import PolicyError
from pinfs.enforce.holders import raise_descriptor_limit
from pinfs.fs.events import ReadLimit
from pinfs.linux.abi import UnsupportedABIError, require_supported_abi
from pinfs.serve.assembly import FileSystem, assemble
from pinfs.serve.notify import Notifier
from pinfs.serve.scrape import MetricsPort, NoPort

log = logging.getLogger("pinfs.daemon")

PLAIN_READ_S: Final = 10.0  # what a read of events may wait without the bridge, where nothing can interrupt it
ENDING: Final = (signal.SIGTERM, signal.SIGINT)
UNMOUNT_S: Final = 5.0  # what a plain unmount may take before the mount is detached
GC_THRESHOLDS: Final = (5_000, 3, 1_000_000)  # young objects are searched, a few at a time; all of them never


async def serve(
    config: Config, source: str, mountpoint: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Mount `source` on `mountpoint` and serve it until it is unmounted or a signal ends it.

    Started when the file system is usable. Raises MountError when there is nothing to serve.
    """
    _require_known_machine()
    async with AsyncExitStack() as stack:
        source_fd = open_source(source)
        stack.callback(os.close, source_fd)
        point = check_mountpoint(mountpoint, source_fd, replace_stale=config.mount.replace_stale)
        check_not_nested(os.path.realpath(source))
        daemon = Daemon(config, os.path.realpath(source), source_fd, point)
        stack.callback(daemon.fs.close)
        scraped = daemon.metrics_port()
        stack.callback(scraped.close)
        # From here on a signal ends us in good order, however early it comes: no mount is left behind.
        signals = stack.enter_context(trio.open_signal_receiver(*ENDING, *daemon.on_signal))
        daemon.mount()
        stack.callback(daemon.detach)
        stack.callback(daemon.way.close)
        nursery = await stack.enter_async_context(_cancelled_at_end())
        nursery.start_soon(daemon.handle_signals, signals)
        nursery.start_soon(scraped.run)
        await nursery.start(daemon.fs.guard.run)
        await nursery.start(daemon.fs.holders.run)
        with daemon.serving:
            async with trio.open_nursery() as serving:
                await serving.start(daemon.way.run)
                if daemon.way.usable and daemon.is_as_wanted():
                    daemon.announce(nursery)
                    task_status.started()
                else:
                    serving.cancel_scope.cancel()
    if daemon.way.usable and not daemon.is_as_wanted():
        raise MountError(f"passthrough=on, but {daemon.passthrough.unavailable_because}")


def _require_known_machine() -> None:
    try:
        require_supported_abi()
    except UnsupportedABIError as e:
        raise MountError(str(e.strerror)) from e


@asynccontextmanager
async def _cancelled_at_end() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


def _settle_memory() -> None:
    """No search for cyclic garbage may go through all pins: with a million of them that stops everything for seconds.

    Requests and breaks leave no cycles behind. So what two searches have found in use counts as lasting, and is not
    searched again: reference counts still free it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.callbacks.append(_keep_survivors)


def _keep_survivors(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 1:
        gc.freeze()


class Daemon:
    """One mount while it is served: what was agreed on, its state, its end."""

    def __init__(self, config: Config, source: str, source_fd: int, mountpoint: str) -> None:
        self.config = config
        self.source = source
        self.mountpoint = mountpoint
        self.passthrough = Passthrough()
        self.bridge_unavailable_because = ""
        self.negotiated: list[str] = []
        self.way: Way
        self.serving = trio.CancelScope()
        self.on_signal: dict[int, Callable[[], None]] = {signal.SIGHUP: self.reload, signal.SIGUSR1: self.log_report}
        self.manager = Notifier(os.environ)
        self._since = time.monotonic()
        self._source_fd = source_fd
        self._fd = -1
        self._device: int | None = None
        self.policies = PolicyBox(config.policies)
        self.fs: FileSystem = assemble(
            os.dup(source_fd), config, self.policies, self.passthrough, self.status, raise_descriptor_limit()
        )
        self.fs.backing.lower_privileges()

    # Its beginning

    def mount(self) -> None:
        """Mount, and find the way to serve it. Raises MountError."""
        options = self.config.mount
        self._fd = mount(options.fsname or self.source, self.mountpoint, _flags(options))
        self._device = device_of(self.mountpoint)
        if self._device is not None:
            self.fs.guard.mount_device = self._device
        with ExitStack() as undo:
            undo.callback(self.detach)
            self.way = self._find_way()
            undo.pop_all()

    def _find_way(self) -> Way:
        wanted = self.config.mount.bridge
        if wanted == "off":
            return self._without_bridge("switched off (bridge=off)")
        try:
            return Bridged(self._fd, self.fs.operations, self._wishes(), self._on_agreed, self.fs.stats.requests)
        except (OSError, RuntimeError) as e:
            if wanted == "on":
                raise MountError(f"the bridge cannot run: {e}") from e
            log.warning("the bridge cannot run: %s", e)
            return self._without_bridge(str(e))

    def _without_bridge(self, unavailable_because: str) -> Way:
        log.info("serving by pyfuse3 alone: %s", LOST_WITHOUT_BRIDGE)
        self.bridge_unavailable_because = unavailable_because
        self.passthrough.refuse("there is none without the bridge")
        self.fs.hub.read_limit = ReadLimit(PLAIN_READ_S, SPARE_TASKS // 2)
        poll = self.config.mount.poll
        return Plain(self._fd, self.fs.operations, posix_acl=has_acls(self._source_fd), poll=poll)

    def _wishes(self) -> Wishes:
        passthrough = self.config.mount.passthrough != "off" and os.geteuid() == 0
        acls, poll = has_acls(self._source_fd), self.config.mount.poll
        return Wishes(passthrough, stack_depth(self._source_fd), acls, poll)

    def _on_agreed(self, terms: Terms) -> None:
        self.negotiated = terms.names
        log.info("agreed with the kernel (protocol 7.%d): %s", terms.kernel_minor, ", ".join(terms.names))
        if terms.passthrough:
            self.passthrough.probe(self._fd, self._source_fd)
        else:
            self.passthrough.refuse(self._passthrough_unavailable_because())
        log.info("passthrough: %s", self.passthrough.unavailable_because or "yes")

    def _passthrough_unavailable_because(self) -> str:
        if self.config.mount.passthrough == "off":
            return "switched off (passthrough=off)"
        return "only root may register backing files" if os.geteuid() else "the kernel does not offer it (Linux 6.9)"

    def is_as_wanted(self) -> bool:
        """Whether the mount has what its options insist on."""
        return self.config.mount.passthrough != "on" or not self.passthrough.unavailable_because

    def announce(self, nursery: trio.Nursery) -> None:
        """The mount is usable: say so, to the log and to systemd."""
        log.info("%s is mounted on %s", self.source, self.mountpoint)
        _settle_memory()
        self.manager.tell("READY=1", f"STATUS={self.status_line()}")
        nursery.start_soon(self.manager.keep_telling, self.status_line)

    # Its state

    def status(self) -> dict[str, Any]:
        """`.pinfs/status`."""
        book = self.fs.guard.book
        return {
            "v": 1,
            "version": pinfs.__version__,
            "source": self.source,
            "mountpoint": self.mountpoint,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._since, 3),
            "passthrough": not self.passthrough.unavailable_because,
            "passthrough_unavailable_because": self.passthrough.unavailable_because or None,
            "bridge": not self.bridge_unavailable_because,
            "bridge_unavailable_because": self.bridge_unavailable_because or None,
            "poll": self.config.mount.poll,
            "negotiated": self.negotiated,
            "pins": len(book.table),
            "waiting": book.waiting,
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    def metrics_port(self) -> MetricsPort | NoPort:
        """Before anything is mounted: MountError when the port cannot be had."""
        port = self.config.mount.metrics_port
        return MetricsPort(port, self.fs.metrics) if port else NoPort()

    def status_line(self) -> str:
        """For `systemctl status`."""
        book = self.fs.guard.book
        return f"{self.source} on {self.mountpoint}: pins {len(book.table)}, waiting {book.waiting}"

    def log_report(self) -> None:
        """State, and where every task stands."""
        state = (f"{key}: {value}" for key, value in self.status().items())
        log.info("\n".join(["state and tasks", *state, *_task_tree(trio.lowlevel.current_root_task())]))

    # Its end

    async def handle_signals(self, signals: AsyncIterator[int]) -> None:
        """Do what signals ask for, in their order."""
        async for number in signals:
            if number in ENDING:
                log.info("%s: unmounting %s", signal.Signals(number).name, self.mountpoint)
                await self.end()
            else:
                self.on_signal[number]()

    def reload(self) -> None:
        """Read the policy file again; what cannot be read leaves the old policy in force."""
        with suppress(PolicyError):  # it is in the log
            self.policies.reload(self.config.read_policy, "SIGHUP")

    async def end(self) -> None:
        """Answer waiting breakers, unmount, stop serving. Who still uses the mount gets ENOTCONN from now on."""
        self.manager.tell("STOPPING=1", f"STATUS=unmounting {self.mountpoint}")
        self.fs.guard.close()
        with trio.move_on_after(UNMOUNT_S):
            await trio.to_thread.run_sync(self._unmount, abandon_on_cancel=True)
        self.serving.cancel()

    def _unmount(self) -> None:
        """Not on the event loop: the kernel may write back pages through us."""
        try:
            unmount(self.mountpoint)
        except OSError as e:
            if e.errno != errno.EBUSY:
                return  # somebody else was faster
            who = ", ".join(users(self.mountpoint)) or "processes that cannot be seen from here"
            log.info("%s is detached while in use by %s", self.mountpoint, who)

    def detach(self) -> None:
        """Whatever happened: nothing of this mount stays behind."""
        if self._device is not None and device_of(self.mountpoint) == self._device:
            try:
                unmount(self.mountpoint, lazy=True)
            except OSError as e:
                log.error("%s cannot be unmounted: %s", self.mountpoint, e)


def _flags(options: MountOptions) -> MountFlags:
    return MountFlags(
        allow_other=options.allow_other,
        read_only=options.read_only,
        suid=options.suid,
        dev=options.dev,
        exec_=options.exec_,
        atime=options.atime,
    )


def _task_tree(task: trio.lowlevel.Task | None, depth: int = 0) -> Iterator[str]:
    """Every task with the functions and lines it waits in."""
    if task is None:
        return
    frames = [f"{frame.f_code.co_qualname}:{line}" for frame, line in task.iter_await_frames()]
    yield f"{'  ' * depth}{task.name} at {' > '.join(frames[-4:])}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _task_tree(child, depth + 1)


# Processes


class _Started:
    """What trio calls a task status, for a function to be called."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def started(self, value: None = None) -> None:
        self._call()


def run(config: Config, source: str, mountpoint: str, *, on_usable: Callable[[], None] = lambda: None) -> None:
    """Serve in this process until the end; `on_usable` is called when programs may use it. Raises MountError."""
    trio.run(partial(serve, config, source, mountpoint, task_status=_Started(on_usable)))


def run_in_background(config: Config, source: str, mountpoint: str) -> None:
    """Start a daemon, and return when the file system is usable. Raises what run() raises, for the same reasons."""
    source, mountpoint = os.path.abspath(source), os.path.abspath(mountpoint)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_daemon(writing, partial(run, config, source, mountpoint))
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        answer = pipe.read().decode()
    if answer != _USABLE:
        kind, _, text = answer.partition(":")
        raise _ERRORS.get(kind, MountError)(text or "the daemon ended before the file system was usable")


_USABLE: Final = "usable"
_ERRORS: Final = {kind.__name__: kind for kind in (MountError, StaleMountError, AlreadyServedError)}


def _become_daemon(pipe: int, serve_until_end: Callable[..., None]) -> NoReturn:
    """daemon(7): its own session, no terminal, no directory kept busy. The parent hears the outcome by the pipe.

    The process group is the caller's until the mount is there: on an automount point (x-systemd.automount) the kernel's
    autofs makes everybody of another group wait for the mount, also who is to make it.
    """

    def tell(outcome: str) -> None:
        os.write(pipe, outcome.encode(errors="replace"))
        os.close(pipe)

    def usable() -> None:
        os.setsid()
        tell(_USABLE)

    if os.fork():
        os._exit(0)
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    try:
        serve_until_end(on_usable=usable)
    except MountError as e:
        tell(f"{type(e).__name__}:{e}")
        os._exit(1)
    except BaseException:
        log.exception("the daemon ends")
        os._exit(1)
    os._exit(0)
