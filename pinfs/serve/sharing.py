"""Whether the hosts of a cluster serve one directory: its name, and the tokens that they leave for each other there
(`pinfs.fs.identity`). Whatever asks the source does so in a thread, because its server may not answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import trio

from pinfs.bridge.mount import MountError
from pinfs.config.cluster import ClusterOptions
from pinfs.fs import identity
from pinfs.fs.identity import SHARED_WITHIN_S

log = logging.getLogger("pinfs.cluster")

LOOK_S: Final = 10.0
"""How often the tokens of the other hosts are looked for."""
FIRST_LOOK_S: Final = 1.0
"""The same until this host has left its own."""
LEAVE_S: Final = 2.0
T = TypeVar("T")


class InThread(Protocol):
    """`in_thread`, or what a test puts in its place."""

    async def __call__(self, call: Callable[[], T], /) -> T: ...


async def in_thread(call: Callable[[], T], /) -> T:
    """A cancelled caller does not wait for the end of it."""
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


def name_of(options: ClusterOptions, source_fd: int) -> str:
    """The name of the cluster: what the operator says, else the UUID in the source, which gets one if it has none. May
    wait for the server of the source. Raises MountError."""
    if options.name is not None:
        return options.name
    try:
        return identity.cluster_name(source_fd, create=True)
    except OSError as e:
        raise MountError(
            f"the cluster has no name: {identity.DIRECTORY} in the source cannot be used ({e.strerror}); "
            "give all its hosts the same cluster_name=NAME"
        ) from e


class Sharing:
    """`host`: this one. `status`: of the cluster, as `.pinfs/status` shows it (state, incarnation, members)."""

    def __init__(
        self, source_fd: int, host: str, status: Callable[[], Mapping[str, Any]], call: InThread = in_thread
    ) -> None:
        self.not_seen: Sequence[str] = ()
        """Hosts that are members, and whose token has not been here for SHARED_WITHIN_S."""
        self._source_fd = source_fd
        self._host = host
        self._status = status
        self._call = call
        self._written = ""
        self._missing_since: dict[str, float] = {}
        self._failure = ""
        self._has_namesake = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled. A source that cannot be looked at is no reason to stop."""
        task_status.started()
        while True:
            try:
                await self._look()
                self._failure = ""
            except OSError as e:
                if (why := e.strerror or str(e)) != self._failure:
                    self._failure = why
                    log.warning("whether the source is shared cannot be seen: %s: %s", identity.DIRECTORY, why)
            await trio.sleep(LOOK_S if self._written else FIRST_LOOK_S)

    async def leave(self) -> None:
        """Take the own token along."""
        if self._written:
            with trio.move_on_after(LEAVE_S, shield=True), suppress(OSError):
                await self._call(partial(identity.remove_token, self._source_fd, self._host, self._written))

    async def _look(self) -> None:
        status = self._status()
        own = status["incarnation"]
        tokens = await self._call(partial(identity.read_tokens, self._source_fd))
        if status["state"] == "joined" and tokens.get(self._host) != own:
            if self._written == own:
                self._note_lost(tokens.get(self._host))
            await self._call(partial(identity.write_token, self._source_fd, self._host, own))
            self._written = own
        self._judge(identity.not_seen(status["members"], self._host, tokens))

    def _note_lost(self, there: str | None) -> None:
        """The own token has gone (`there` is None), or is another one."""
        if there is not None and not self._has_namesake:
            self._has_namesake = True
            log.warning(
                "another machine calls itself %s in this cluster: give each a name of its own (cluster_host=)",
                self._host,
            )

    def _judge(self, missing: Sequence[str]) -> None:
        now = trio.current_time()
        self._missing_since = {host: self._missing_since.get(host, now) for host in missing}
        late = [host for host, since in self._missing_since.items() if now - since >= SHARED_WITHIN_S]
        for host in late:
            if host not in self.not_seen:
                log.warning(
                    "host %s is in the cluster, but has left no token here for %d s: it serves another directory",
                    host,
                    SHARED_WITHIN_S,
                )
        for host in self.not_seen:
            if host not in late:
                log.info("host %s serves this directory, or has left", host)
        self.not_seen = late
