"""Whether answers tell of one history of the store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Header:
    """Of each answer. `revision` is 0 where etcd tells none."""

    cluster_id: int
    revision: int


class History:
    """The cluster id and the highest revision that were seen. etcd that was restored from a snapshot goes back to the
    snapshot's revision, with another cluster id or with the same one.

    Answers of calls that overlap come in any order: an answer is compared with what had been seen when its call
    began (`revision`, read by the caller then).
    """

    def __init__(self) -> None:
        self._cluster_id: int | None = None
        self.revision = 0
        self.broken_because = ""

    def note(self, header: Header, at_least: int = 0) -> str:
        """Why this header does not belong to this history; "" if it does. `at_least` is for calls that etcd answers
        with the newest revision there is: others may show an older one, of a node that lags."""
        if self.broken_because:
            return self.broken_because
        if self._cluster_id is None:
            self._cluster_id = header.cluster_id
        if header.cluster_id != self._cluster_id:
            self.broken_because = f"the cluster id was {self._cluster_id:x} and is {header.cluster_id:x} now"
        elif header.revision < at_least:
            self.broken_because = f"the revision went back from {at_least} to {header.revision}"
        else:
            self.revision = max(self.revision, header.revision)
        return self.broken_because
