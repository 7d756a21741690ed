"""What a process has at one moment, and what it has more than it should after many rounds of the same."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Census:
    """Of this process: descriptors, blocks of memory, and objects that the collector knows, by type."""

    descriptors: int
    blocks: int
    objects: Counter[str]


def take() -> Census:
    """Objects are counted before cyclic garbage is searched for: with the collector off, what a cycle keeps counts.

    The daemon counts on leaving no cycles behind (serve/daemon.py freezes what two searches have found in use).
    """
    gc.unfreeze()
    objects = Counter(sys.intern(f"{type(one).__module__}.{type(one).__qualname__}") for one in gc.get_objects())
    gc.collect()  # the free lists of the interpreter count as blocks
    return Census(len(os.listdir("/proc/self/fd")), sys.getallocatedblocks(), objects)


def growth(before: Census, after: Census, rounds: int) -> dict[str, int]:
    """What has grown by more than caches and chance can do; empty where nothing leaks.

    An object or a descriptor in ten rounds is a leak. So is a block of memory in four: a number or a string that is
    never taken out of some table again.
    """
    grown: dict[str, int] = dict(after.objects - before.objects)
    grown["descriptors"] = after.descriptors - before.descriptors
    grown["blocks"] = after.blocks - before.blocks
    limits = {"descriptors": max(8, rounds // 10), "blocks": max(500, rounds // 4)}
    return {name: count for name, count in grown.items() if count > limits.get(name, max(100, rounds // 10))}
