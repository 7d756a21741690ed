"""Mounts the test double: serve_double.py SOURCE MOUNTPOINT WAY, where WAY is bridged, passthrough or plain.

Prints what is left at the end as one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter

import trio
from bridge.double import Double

from pinfs.bridge import mount
from pinfs.bridge.negotiate import Terms, Wishes
from pinfs.bridge.passthrough import Passthrough
from pinfs.bridge.ways import Bridged, Plain


async def open_gate_on_signal(double: Double) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            double.gate.set()


async def main(source: str, mountpoint: str, kind: str) -> None:
    fd = mount.mount(source, mountpoint, mount.MountFlags(allow_other=True))
    registry = Passthrough()
    double = Double(source, registry)
    source_fd = os.open(source, os.O_RDONLY)

    def agreed(terms: Terms) -> None:
        if terms.passthrough:
            registry.probe(fd, source_fd)

    if kind == "plain":
        way = Plain(fd, double, posix_acl=False)
    else:
        way = Bridged(fd, double, Wishes(passthrough=kind == "passthrough"), agreed, Counter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_gate_on_signal, double)
        async with trio.open_nursery() as serving:
            await serving.start(way.run)
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
    way.close()


trio.run(main, *sys.argv[1:])
