"""Small ways to look at what a mount says, for these tests."""

from __future__ import annotations

import json
import os
from typing import Any

from support.mounts import Trace


def drained(trace: Trace) -> list[dict[str, Any]]:
    """All events that have come so far, without waiting for more."""
    while True:
        try:
            lines = os.read(trace.fd, 1 << 20)
        except BlockingIOError:
            return trace.seen
        trace.seen.extend(json.loads(line) for line in lines.splitlines())
