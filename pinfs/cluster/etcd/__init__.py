"""A client of etcd (3.4 and later) for trio: its JSON gateway over HTTP/1.1.

Calls have outcomes, not exceptions (`outcomes.py`): what became of a change may be unknown, and the caller has to say
what that means. Start with `client.py`.
"""

from pinfs.cluster.etcd.calls import (
    Compare,
    Delete,
    Deleted,
    Event,
    Found,
    Grant,
    Item,
    Keys,
    LeaseLife,
    Operation,
    Put,
    Range,
    Status,
    Stored,
    TxnResult,
    below,
    one,
)
from pinfs.cluster.etcd.client import Etcd, tls_context
from pinfs.cluster.etcd.endpoints import Endpoint, EndpointError, parse_endpoints
from pinfs.cluster.etcd.login import Credentials
from pinfs.cluster.etcd.outcomes import Code, Done, Outcome, Refused, Restored, Unknown, Unreachable
from pinfs.cluster.etcd.transport import Limits
from pinfs.cluster.etcd.watch import Batch, CompactedError, DeniedError, RestoredError, Watch, WatchError

__all__ = [
    "Batch",
    "Code",
    "CompactedError",
    "Compare",
    "Credentials",
    "Delete",
    "Deleted",
    "DeniedError",
    "Done",
    "Endpoint",
    "EndpointError",
    "Etcd",
    "Event",
    "Found",
    "Grant",
    "Item",
    "Keys",
    "LeaseLife",
    "Limits",
    "Operation",
    "Outcome",
    "Put",
    "Range",
    "Refused",
    "Restored",
    "RestoredError",
    "Status",
    "Stored",
    "TxnResult",
    "Unknown",
    "Unreachable",
    "Watch",
    "WatchError",
    "below",
    "one",
    "parse_endpoints",
    "tls_context",
]
