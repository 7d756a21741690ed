"""The table of all pins: by inode, by id, by owner; and how much each user may pin (SPEC 4)."""

import errno
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from pinfs.core.files import Files
from pinfs.core.owners import HandleId, Owner, ProcessId
from pinfs.core.pins import OwnKey, Pin, PinRequest
from pinfs.core.policy import Limits
from pinfs.core.ranges import END

K = TypeVar("K")
L = TypeVar("L")


class Usage:
    """What one uid has pinned: pins, and bytes as they were at registration."""

    __slots__ = ("bytes", "pins")

    def __init__(self) -> None:
        self.pins = 0
        self.bytes = 0


_NONE: Final = Usage()


class PinTable:
    """Finds pins and counts them; decides nothing but the limits. `on_limit` hears which limit is reached, and when."""

    def __init__(self, files: Files, limits: Limits, on_limit: Callable[[str, float], None]) -> None:
        self.limits = limits
        self.by_id: dict[int, Pin] = {}
        self.by_owner: dict[Owner, dict[OwnKey, Pin]] = {}
        self.usage: dict[int, Usage] = {}
        self._files = files
        self._on_limit = on_limit
        self._by_proxy: dict[tuple[int, bytes, int], dict[int, Pin]] = {}
        self._of_handles: dict[ProcessId | None, dict[int, Pin]] = {}
        """The pins that belong to handles, by the process that registered them (None: not visible)."""
        self._last_id = 0

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def pinned_bytes(self) -> int:
        """As they were at registration; bytes that two users pin count twice."""
        return sum(usage.bytes for usage in self.usage.values())

    @property
    def registered(self) -> int:
        """How many pins there have been; a replaced one is the same pin."""
        return self._last_id

    # -- finding

    def of_file(self, inode: int) -> Iterator[Pin]:
        """The pins of one inode, deny pins first, each kind by rising start."""
        file = self._files.get(inode)
        return iter(()) if file is None else file.overlapping(0, END)

    def count_of_file(self, inode: int) -> int:
        """How many pins one inode has."""
        file = self._files.get(inode)
        return 0 if file is None else sum(map(len, file.trees()))

    def of_owner(self, owner: Owner) -> list[Pin]:
        """The pins of one owner, oldest first."""
        return list(self.by_owner.get(owner, {}).values())

    def find(self, inode: int, owner: Owner, name: bytes) -> Pin | None:
        """The pin that this owner calls `name` on this inode (SPEC 5: a name belongs to its process)."""
        owned = self.by_owner.get(owner)
        return None if owned is None else owned.get((inode, name))

    def find_proxy(self, inode: int, name: bytes, uid: int) -> Pin | None:
        """The pin called `name` that `uid` registered for another process, if there is exactly one on this inode."""
        pins = list(self._by_proxy.get((inode, name, uid), {}).values())
        return pins[0] if len(pins) == 1 else None

    def of_breaker(self, process: ProcessId | None, handle: HandleId | None) -> Iterator[Pin]:
        """The pins that `process` has registered and those of `handle`, of whatever file; some may come twice."""
        if process is not None:
            yield from self.by_owner.get(process, {}).values()
            yield from self._of_handles.get(process, {}).values()
        if handle is not None:
            yield from self.by_owner.get(handle, {}).values()

    # -- changing

    def insert(self, request: PinRequest, charge: int, now: float) -> Pin:
        """A new pin, charged with `charge` bytes. OSError EDQUOT."""
        self._check_limits(request.uid, charge, None, now)
        self._last_id += 1
        key = self._last_id if request.name is None else (request.inode, request.name)
        pin = Pin(self._last_id, request, now, charge, key)
        self._put(pin)
        return pin

    def replace(self, pin: Pin, request: PinRequest, charge: int, now: float) -> None:
        """The pin stands as `request` says from now on; it keeps its id. OSError EDQUOT: it stays as it was."""
        self._check_limits(request.uid, charge, pin, now)
        self.remove(pin)
        pin.process, pin.uid, pin.spec, pin.proxy_uid = request.process, request.uid, request.spec, request.proxy_uid
        pin.charged = charge
        self._put(pin)

    def remove(self, pin: Pin) -> None:
        """Its inode stays in `files`: the caller drops it when it is empty."""
        self._files[pin.inode].take(pin)
        del self.by_id[pin.id]
        discard(self.by_owner, pin.owner, pin.own_key)
        if pin.proxy_uid is not None and pin.name is not None:
            discard(self._by_proxy, (pin.inode, pin.name, pin.proxy_uid), pin.id)
        if pin.process is not pin.owner and pin.process != pin.owner:
            discard(self._of_handles, pin.process, pin.id)
        usage = self.usage[pin.uid]
        usage.pins -= 1
        usage.bytes -= pin.charged
        if not usage.pins:
            del self.usage[pin.uid]

    def _put(self, pin: Pin) -> None:
        self._files.of(pin.inode).add(pin)
        self.by_id[pin.id] = pin
        owned = self.by_owner.get(pin.owner)
        if owned is None:
            self.by_owner[pin.owner] = {pin.own_key: pin}
        else:
            owned[pin.own_key] = pin
        if pin.proxy_uid is not None and pin.name is not None:
            self._by_proxy.setdefault((pin.inode, pin.name, pin.proxy_uid), {})[pin.id] = pin
        if pin.process is not pin.owner and pin.process != pin.owner:
            self._of_handles.setdefault(pin.process, {})[pin.id] = pin
        usage = self.usage.get(pin.uid)
        if usage is None:
            usage = self.usage[pin.uid] = Usage()
        usage.pins += 1
        usage.bytes += pin.charged

    # -- after a take-over

    def restore(self, pin: Pin) -> None:
        """A pin that stood in the table of the daemon before. No limit counts: it was let in once."""
        self._put(pin)
        self.count_on(pin.id)

    def count_on(self, last_id: int) -> None:
        """Ids up to `last_id` have been given."""
        self._last_id = max(self._last_id, last_id)

    # -- limits

    def _check_limits(self, uid: int, charge: int, old: Pin | None, now: float) -> None:
        """EDQUOT. Root is a user like any other here; a pin that does not grow is never refused."""
        limits, usage = self.limits, self.usage.get(uid, _NONE)
        if old is None and len(self.by_id) >= limits.max_pins:
            self._refuse("max_pins", now)
        if old is None or old.uid != uid:
            if usage.pins >= limits.max_pins_per_user:
                self._refuse("max_pins_per_user", now)
        else:
            charge -= old.charged
        if charge > 0 and usage.bytes + charge > limits.max_pinned_bytes_per_user:
            self._refuse("max_pinned_bytes_per_user", now)

    def _refuse(self, limit: str, now: float) -> None:
        self._on_limit(limit, now)
        raise OSError(errno.EDQUOT, f"{limit} is reached")


def discard(index: dict[K, dict[L, Pin]], key: K, pin: L) -> None:
    """Take a pin out of an index of pins, if it is still there; an empty entry goes as well."""
    pins = index[key]
    pins.pop(pin, None)
    if not pins:
        del index[key]
