"""The cluster in words and numbers, for an operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from pinfs.cluster.keys import MemberId
from pinfs.cluster.membership import State
from pinfs.cluster.view import Peer

STATES: Final = {
    State.JOINING: "joining",
    State.JOINED: "joined",
    State.LEAVING: "leaving",
    State.ENDED: "fenced",
    State.LEFT: "left",
}


def describe_members(members: Mapping[MemberId, Peer], own: Collection[MemberId], now: float) -> list[dict[str, Any]]:
    """By name. `own`: of this host. `silent_s`: since its last beat was seen; above `pin_ttl_s` its pins are gone,
    and above `member_ttl_s` all that it had begun."""
    return [
        {
            "host": member.host,
            "incarnation": member.incarnation,
            "own": member in own,
            "silent_s": round(now - peer.since, 3),
            "promise": peer.value.promise,
            "pin_ttl_s": peer.value.pin_ttl_ms / 1000,
            "member_ttl_s": peer.value.member_ttl_ms / 1000,
        }
        for member, peer in sorted(members.items(), key=lambda item: item[0])
    ]
