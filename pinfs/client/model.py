"""A pin and an event, as the mount's JSON tells of them (docs/interfaces.md). Unknown fields are ignored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

Mode = Literal["deny", "lease"]
State = Literal["held", "breaking", "gone"]
T = TypeVar("T")


@dataclass(frozen=True)
class PinInfo:
    """A pin as it stood when the mount was asked.

    `start` and `length` are bytes, length 0 means to the end of the file wherever that moves; `deadline` and `since`
    are Unix seconds; `path` is relative to the root of the mount, None when the last name is gone. Users other than the
    owner and root see that a range is pinned, and how, but not by which process: for them `name`, `pid`, `uid`, `comm`,
    `signal`, `note` and `eventfd` (whether there is one) are None (SPEC 4). So are they in the answer to
    PINFS_IOC_QUERY, which does not carry them.
    """

    id: int
    start: int
    length: int
    mode: Mode
    state: State
    owner: Literal["process", "handle"] = "process"
    deadline: float | None = None
    remaining_s: float | None = None
    dirty: bool = False
    inode: int | None = None
    path: str | None = None
    since: float | None = None
    name: str | None = None
    pid: int | None = None
    uid: int | None = None
    comm: str | None = None
    signal: str | int | None = None
    note: str | None = None
    eventfd: bool | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened to a pin of this process.

    `event`: `break` (let go, there is time until `deadline`), `withdrawn` (the breaker gave up, the pin stands),
    `released` (`by` holder, death or close), `revoked` (`by` policy, root or kill: the pin is gone), `overflow` (`lost`
    events did not fit). `seq` counts 1, 2, 3 for each process; 0 where the client itself found out. `from_` and `to`
    are the bytes the removal takes away, `to` None: to the end. `op` names the removal; None where that is not known.
    `host`: where the removal comes from, on a mount that is in a cluster; None: from this host.
    """

    event: str
    seq: int = 0
    pin: int | None = None
    name: str | None = None
    inode: int | None = None
    path: str | None = None
    start: int = 0
    length: int = 0
    mode: Mode = "lease"
    op: str | None = None
    from_: int = 0
    to: int | None = None
    deadline: float | None = None
    remaining_s: float | None = None
    by: str | None = None
    lost: int = 0
    host: str | None = None


def _known(cls: type[T], values: Mapping[str, Any]) -> T:
    """JSON values only ever gain fields: take those that this version knows."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in values.items() if key in known})


def pin_info(values: Mapping[str, Any]) -> PinInfo:
    return _known(PinInfo, values)


def parse_pin(line: bytes | str) -> PinInfo:
    """One pin: the value of `user.pinfs.pin.NAME`, or a line of `.pinfs/pins`."""
    return pin_info(json.loads(line))


def parse_event(line: bytes | str) -> Event:
    """One line of `.pinfs/events`. (`from` is a keyword in Python.)"""
    values = json.loads(line)
    return _known(Event, values | {"from_": values.get("from", 0)})


def break_of(info: PinInfo) -> Event:
    """The break of a pin that was found breaking, where the event itself was lost."""
    return Event(
        "break", pin=info.id, name=info.name, inode=info.inode, path=info.path, start=info.start, length=info.length,
        mode=info.mode, deadline=info.deadline, remaining_s=info.remaining_s,
    )  # fmt: skip
