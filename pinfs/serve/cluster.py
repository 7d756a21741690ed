"""A mount among other hosts (SPEC 14): what it needs to join, and how it goes on when a daemon takes over."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from pinfs.bridge.mount import MountError
from pinfs.cluster.membership import Limits
from pinfs.config.cluster import ClusterError, ClusterOptions
from pinfs.enforce.hosts import OtherHosts
from pinfs.fs import identity

if TYPE_CHECKING:
    from pinfs.cluster.etcd import Etcd

log = logging.getLogger("pinfs.cluster")

LEAVE_S: Final = 3.0
"""What the other hosts may take to hear that this one leaves; without that they wait until its times to live are
over."""


class Cluster:
    """`hosts`: what the guard and the verbs of pins have of it. Raises MountError: the source has no name, or files of
    the options cannot be read."""

    def __init__(self, options: ClusterOptions, source_fd: int, hosts: OtherHosts) -> None:
        from pinfs.cluster.host import Host  # needs h11, which mounts without other hosts do not

        self._options = options
        self._hosts = hosts
        self._state: dict[str, Any] | None = None
        try:
            self._name = options.name or identity.cluster_name(source_fd, create=True)
            self._place = identity.place(source_fd)
            self._connect()  # the first one is for its errors
        except (OSError, ClusterError) as e:
            raise MountError(f"cluster: {e}") from e
        prefix = f"/pinfs/{self._name}/"
        self.host = Host(self._connect, prefix, options.host, options.timing, Limits(), hosts)
        hosts.host = self.host
        hosts.options = options.state()

    def _connect(self) -> "Etcd":
        from pinfs.cluster.etcd import Etcd

        options = self._options
        return Etcd(options.endpoints, tls=options.tls(), credentials=options.credentials())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on in the place of the daemon before."""
        self._state = state

    async def run(self, restored: Callable[[], Awaitable[None]]) -> None:
        """Until it is cancelled. `restored` returns when all pins of the daemon before are in the book."""
        async with trio.open_nursery() as nursery:
            if self._state is not None:
                await restored()
                await self._resume(self._state)
            nursery.start_soon(self._hosts.run)
            await self.host.run()

    async def _resume(self, state: dict[str, Any]) -> None:
        """What the daemon before has begun is over: it has ended, with all its threads."""
        pins = await self._hosts.former_pins()
        files = {token: file for token, file, _ in pins}
        self.host.resume(state | {"is_settled": True}, pins, partial(self._hosts.resumed, files))

    async def leave(self) -> None:
        """The mount ends, and all its pins."""
        await self.host.leave(LEAVE_S)

    def status(self) -> dict[str, Any]:
        """For `.pinfs/status`."""
        return {"name": self._name, **self.host.status()}
