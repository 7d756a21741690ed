"""The daemon before, of the same member: what it has written down, and its pins as etcd has them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from pinfs.cluster.etcd import Restored
from pinfs.cluster.keys import MemberId, PinKey, PinValue, Unreadable, read_key
from pinfs.cluster.messages import Done, KeyValue, Range, Txn
from pinfs.cluster.store import Store

LocalPin: TypeAlias = tuple[int, str, PinValue]
"""A pin that the journal has: a token of the daemon's, what all hosts call the file, and the pin."""
PINS: Final = "p/"


boottime: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""CLOCK_BOOTTIME in seconds: it goes on in suspend, as the clocks of the other hosts do. Every removal looks at it, and
a function in Python would take as long as the rest of its question to the cluster."""


def boot_id() -> str:
    """Which life of the machine this is (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True)
class State:
    """What the next daemon has to know. `fence`: CLOCK_BOOTTIME, which begins anew with each boot."""

    member: MemberId
    life: int
    fence: float
    prefix: str
    boot: str
    is_settled: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Strings and numbers."""
        host, incarnation = self.member
        fields = asdict(self)
        del fields["member"], fields["is_settled"]
        return {"host": host, "incarnation": incarnation, **fields}


def read_state(state: dict[str, Any], host: str, prefix: str) -> State | None:
    """None: it is of another host or cluster, of the machine's life before, or cannot be read."""
    try:
        member = MemberId(str(state["host"]), str(state["incarnation"])).check()
        read = State(
            member,
            int(state["life"]),
            float(state["fence"]),
            str(state["prefix"]),
            str(state["boot"]),
            bool(state.get("is_settled", False)),
        )
    except (KeyError, ValueError, TypeError):
        return None
    is_ours = (member.host, read.prefix, read.boot) == (host, prefix, boot_id())
    return read if is_ours else None


async def all_pins(
    store: Store, fence: float, clock: Callable[[], float], retry_s: float
) -> tuple[KeyValue, ...] | None:
    """Of the whole cluster, for keys are ordered by file; asks until etcd has answered. None: `fence`, that of the
    daemon before, has come by `clock`, or etcd was restored."""
    while (left_s := fence - clock()) > 0:
        with trio.move_on_after(left_s):
            answer = await store.ask(Txn((), (Range(PINS, prefix=True),)))
            if isinstance(answer, Done):
                return answer.ranges[0]
            if isinstance(answer, Restored):
                return None
            await trio.sleep(retry_s)
    return None


@dataclass(frozen=True, slots=True)
class Match:
    """`tokens` of pins that are the same to all other hosts, and as many keys, or more."""

    value: PinValue
    tokens: tuple[int, ...]
    keys: tuple[PinKey, ...]


def matches(found: Iterable[KeyValue], member: MemberId, pins: Iterable[LocalPin]) -> Iterator[Match]:
    """Pins without a key are left out, and keys without a pin."""
    keys: defaultdict[tuple[str, PinValue], list[PinKey]] = defaultdict(list)
    tokens: defaultdict[tuple[str, PinValue], list[int]] = defaultdict(list)
    for item in found:
        try:
            key = read_key(item.key)
            if isinstance(key, PinKey) and key.member == member:
                keys[key.file, PinValue.read(item.value)].append(key)
        except Unreadable:  # the member reads everything once more, and ends by that
            continue
    for token, file, value in pins:
        tokens[file, value].append(token)
    for (file, value), theirs in tokens.items():
        ours = keys[file, value]
        if ours:
            yield Match(value, tuple(theirs[: len(ours)]), tuple(ours))
