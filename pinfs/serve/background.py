"""A mount in the foreground, or as a daemon(7) whose parent waits until the file system is usable."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, NoReturn

import trio

from pinfs.bridge.mount import AlreadyServedError, MountError, StaleMountError
from pinfs.config.options import Config
from pinfs.serve.daemon import serve
from pinfs.serve.descriptorstore import DescriptorStore
from pinfs.serve.kept import Kept, manager_store, split_off, wait_for_turn

log = logging.getLogger("pinfs.daemon")

_USABLE: Final = "usable"
_ERRORS: Final = {kind.__name__: kind for kind in (MountError, StaleMountError, AlreadyServedError)}


class _Started:
    """A trio.TaskStatus that calls a function."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def started(self, value: None = None) -> None:
        self._call()


def run(config: Config, source: str, mountpoint: str, kept: Kept) -> None:
    """Serve until the end, for a starter that waits for the end: a terminal, a service manager. Raises MountError."""
    store = None
    survive = config.mount.survive
    if _can_survive(config):
        store = manager_store(os.environ)
        if store is None and survive == "on" and "NOTIFY_SOCKET" in os.environ:
            raise MountError(
                "survive=on, but the service manager keeps no descriptors: the unit needs FileDescriptorStoreMax=N, "
                "and before systemd 254 Environment=FDSTORE=N with the same number"
            )
        if store is None and survive == "on":
            store = split_off(replace(kept, session=False))
            os.setsid()  # Ctrl-C is for the keeper, which passes it on
    _serve(config, source, mountpoint, store)


def run_in_turn(config: Config, source: str, mountpoint: str, kept: Kept) -> None:
    """Serve until the end, in a process that a keeper has started. Raises MountError."""
    store = wait_for_turn(os.environ, kept)
    try:
        _serve(config, source, mountpoint, store)
    except MountError as e:
        log.error("cannot serve: %s", e)  # no starter reads what is printed
        store.failed(str(e))
        raise


def run_in_background(config: Config, source: str, mountpoint: str, kept: Kept) -> None:
    """Start a daemon, and its keeper where the mount is to survive it; return when the file system is usable.

    Raises what run() raises, for the same reasons.
    """
    source, mountpoint = os.path.abspath(source), os.path.abspath(mountpoint)
    keeper = kept if _can_survive(config) else None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_daemon(writing, keeper, partial(_serve, config, source, mountpoint))
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        answer = pipe.read().decode()
    if answer != _USABLE:
        kind, _, text = answer.partition(":")
        raise _ERRORS.get(kind, MountError)(text or "the daemon ended before the file system was usable")


def _can_survive(config: Config) -> bool:
    """Raises MountError where the options contradict each other."""
    survive, bridge = config.mount.survive, config.mount.bridge
    if survive == "on" and bridge == "off":
        raise MountError("survive=on needs the bridge, and bridge=off switches it off")
    return survive != "off" and bridge != "off"


def _serve(
    config: Config,
    source: str,
    mountpoint: str,
    store: DescriptorStore | None,
    on_usable: Callable[[], None] = lambda: None,
) -> None:
    """`on_usable` is called when programs may use the file system. Raises MountError."""
    trio.run(partial(serve, config, source, mountpoint, store=store, task_status=_Started(on_usable)))


def _become_daemon(pipe: int, keeper: Kept | None, serve_until_end: Callable[..., None]) -> NoReturn:
    """Be a daemon(7): a session of its own, no terminal, no directory kept busy. The pipe tells the parent the outcome.

    The process group is the caller's until the mount is there: on an automount point (x-systemd.automount) the kernel's
    autofs blocks processes of other groups until it is mounted, the one that is to mount it included.
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
        serve_until_end(split_off(keeper) if keeper else None, on_usable=usable)
    except MountError as e:
        tell(f"{type(e).__name__}:{e}")
        os._exit(1)
    except BaseException:
        log.exception("the daemon ends")
        os._exit(1)
    os._exit(0)
