"""A mount in the foreground, or as a daemon(7) whose parent waits until the file system is usable."""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import trio

from pinfs.bridge.mount import AlreadyServedError, MountError, StaleMountError
from pinfs.config.options import Config
from pinfs.serve.daemon import serve

log = logging.getLogger("pinfs.daemon")

_USABLE: Final = "usable"
_ERRORS: Final = {kind.__name__: kind for kind in (MountError, StaleMountError, AlreadyServedError)}


class _Started:
    """A trio.TaskStatus that calls a function."""

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


def _become_daemon(pipe: int, serve_until_end: Callable[..., None]) -> NoReturn:
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
        serve_until_end(on_usable=usable)
    except MountError as e:
        tell(f"{type(e).__name__}:{e}")
        os._exit(1)
    except BaseException:
        log.exception("the daemon ends")
        os._exit(1)
    os._exit(0)
