"""Mounts the test double: serve_double.py SOURCE MOUNTPOINT KIND, where KIND is bridged, passthrough or plain.

Prints what is left at the end as one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from typing import cast

import trio
from bridge.double import Double

from pinfs.bridge import mount
from pinfs.bridge.negotiate import Negotiated, Requested
from pinfs.bridge.passthrough import Passthrough
from pinfs.bridge.pyfuse3_adapter import Plain
from pinfs.bridge.transports import Bridged
from pinfs.fs.operations import Operations


async def open_gate_on_signal(double: Double) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            double.gate.set()


async def main(*words: str) -> None:
    source, mountpoint, kind = words
    fd = mount.mount(source, mountpoint, mount.MountFlags(allow_other=True))
    registry = Passthrough()
    double = Double(source, registry)
    operations = cast(Operations, double)
    transport: Plain | Bridged
    source_fd = os.open(source, os.O_RDONLY)

    def on_negotiated(negotiated: Negotiated) -> None:
        if negotiated.passthrough:
            registry.probe(fd, source_fd)

    if kind == "plain":
        transport = Plain(fd, operations, posix_acl=False)
    else:
        requested = Requested(passthrough=kind == "passthrough")
        transport = Bridged(fd, operations, requested, on_negotiated, Counter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_gate_on_signal, double)
        async with trio.open_nursery() as serving:
            await serving.start(transport.run)
        nursery.cancel_scope.cancel()
    left = {"handles": len(double.handles), "registered": registry.registered, "calls": double.calls}
    print(
        json.dumps(
            {
                **left,
                "why_no_passthrough": registry.unavailable_because,
                "descriptors": len(os.listdir("/proc/self/fd")),
            }
        )
    )
    transport.close()


trio.run(main, *sys.argv[1:])
