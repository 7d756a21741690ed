"""A mount among other hosts (SPEC 14): what it needs to join, and how it goes on when a daemon takes over."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from pinfs.bridge.mount import MountError
from pinfs.cluster.keys import ALL_CLUSTERS
from pinfs.cluster.membership import Limits
from pinfs.cluster.messages import Done, Put, Range, Txn, absent
from pinfs.config.cluster import ClusterError, ClusterOptions
from pinfs.enforce.hosts import OtherHosts
from pinfs.fs import identity
from pinfs.linux.filesystems import DELEGATED_NAMES, DELEGATED_NAMES_FIX, keeps_delegated_names
from pinfs.serve.sharing import Sharing, name_of

if TYPE_CHECKING:
    from pinfs.cluster.etcd import Etcd

log = logging.getLogger("pinfs.cluster")

ANSWER_S: Final = 3.0
"""What etcd may take before the mount begins without it."""
ASK_AGAIN_S: Final = 1.0
LEAVE_S: Final = 3.0
"""What the other hosts may take to hear that this one leaves; without that they wait until its times to live are
over."""


class Cluster:
    """`hosts`: what the guard and the verbs of pins have of it. Raises MountError: the source has no name, or files of
    the options cannot be read."""

    def __init__(self, options: ClusterOptions, source_fd: int, hosts: OtherHosts) -> None:
        from pinfs.cluster.host import Host  # needs h11, which mounts without other hosts do not

        self._options = options
        self._source_fd = source_fd
        self._hosts = hosts
        self._state: dict[str, Any] | None = None
        self._refused_because = ""
        self._is_place_known = False
        self._name = name_of(options, source_fd)
        try:
            self._place = identity.place(source_fd)
            self._connect()  # the first one is for its errors
        except (OSError, ClusterError) as e:
            raise MountError(f"cluster: {e}") from e
        self.host = Host(self._connect, f"{ALL_CLUSTERS}{self._name}/", options.host, options.timing, Limits(), hosts)
        self._sharing = Sharing(source_fd, options.host, self.host.status)
        hosts.host = self.host

    def _connect(self) -> "Etcd":
        from pinfs.cluster.etcd import Etcd

        options = self._options
        return Etcd(options.endpoints, tls=options.tls(), credentials=options.credentials())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on in the place of the daemon before."""
        self._state = state
        self._is_place_known = True

    async def check(self) -> None:
        """Before the mount is usable. MountError: hosts of this name serve another directory, or the kernel does not
        ask the server for names. Where etcd does not answer, the mount begins all the same, and pins and removals fail
        until it does."""
        if self._is_place_known:
            return
        if keeps_delegated_names(self._source_fd):
            raise MountError(f"cluster: {DELEGATED_NAMES}; {DELEGATED_NAMES_FIX} (docs/hosts.md)")
        with trio.move_on_after(ANSWER_S):
            await self._check_place()
        if self._refused_because:
            raise MountError(f"cluster: {self._refused_because}")
        if not self._is_place_known:
            endpoints = ", ".join(map(str, self._options.endpoints))
            log.error("etcd does not answer (%s): pins and removals fail until it does", endpoints)

    async def _check_place(self) -> None:
        """Returns when etcd has answered."""
        from pinfs.cluster.store import Store

        store = Store(self._connect, ALL_CLUSTERS)
        key = f"{self._name}.place"
        try:
            while not self._is_place_known and not self._refused_because:
                done = await store.ask(Txn((absent(key),), (Put(key, self._place),), (Range(key),)))
                if not isinstance(done, Done):
                    await trio.sleep(ASK_AGAIN_S)
                elif done.succeeded or done.ranges[0][0].value == self._place:
                    self._is_place_known = True
                else:
                    self._refused_because = (
                        f"the hosts of cluster {self._name} serve another directory than this one (a copy, or another "
                        f"export): give this cluster a name of its own (cluster_name=), or, in a copy, remove "
                        f"{identity.DIRECTORY}"
                    )
        finally:
            with trio.CancelScope(shield=True):
                await store.aclose()

    async def run(self, restored: Callable[[], Awaitable[None]]) -> None:
        """Until it is cancelled. `restored` returns when all pins of the daemon before are in the book."""
        await self._check_place()
        if self._refused_because:
            log.error("this host does not join: %s", self._refused_because)
            return
        if self._state is not None:
            await restored()
            await self._resume(self._state)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hosts.run)
            nursery.start_soon(self._sharing.run)
            await self.host.run()

    async def _resume(self, state: dict[str, Any]) -> None:
        """What the daemon before has begun is over: it has ended, with all its threads."""
        pins = await self._hosts.former_pins()
        files = {token: file for token, file, _ in pins}
        self.host.resume(state | {"is_settled": True}, pins, partial(self._hosts.resumed, files))

    async def leave(self) -> None:
        """The mount is over, and with it all its pins."""
        await self.host.leave(LEAVE_S)
        await self._sharing.leave()

    def status(self) -> dict[str, Any]:
        """For `.pinfs/status`."""
        shown = {"name": self._name, **self.host.status(), "not_seen": list(self._sharing.not_seen)}
        refused = {"state": "refused"} if self._refused_because else {}
        return shown | refused | {"refused_because": self._refused_because or None}
