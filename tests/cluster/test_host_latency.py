"""How long it takes: printed (pytest -s), not judged."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from statistics import median, quantiles
from timeit import timeit

import pytest

from cluster.conftest import StartNodes
from cluster.hosts import Breaker, cluster, cut, lease, pin

ROUNDS = 100
FAST_PATHS = 1000


@pytest.mark.parametrize("names", ["a", pytest.param("abc", marks=pytest.mark.etcd)])
async def test_latencies(start_nodes: StartNodes, names: str) -> None:
    """Of two hosts in one loop."""
    took: defaultdict[str, list[float]] = defaultdict(list)

    async def timed(what: str, call: Callable[[], Awaitable[object]]) -> None:
        began = time.perf_counter()
        await call()
        took[what].append(1000 * (time.perf_counter() - began))

    nodes = start_nodes(names)
    async with cluster(b"/p/", *(node.endpoint for node in nodes)) as hosts:
        a, b = await hosts.start("a"), await hosts.start("b")
        a.daemon.on_told = lambda told: a.host.release(told.pins[0])

        async def removed(file: str, start: int, end: int) -> None:
            breaker = Breaker(b.host, cut(start, end), file)
            await breaker.answer()
            breaker.over()

        def has_been_told(times: int) -> bool:
            return len(a.daemon.toldings) >= times

        for number in range(ROUNDS):
            file = f"{number:x}.0"
            seconds = timeit(partial(b.host.must_ask, number), number=FAST_PATHS)
            took["removal of a file without a mark, by the fast path"].append(1000 * seconds / FAST_PATHS)
            await timed("the same by `removal`", partial(removed, file, 0, 4))
            await timed("first pin", partial(a.host.pin, file, pin(0, 4), 60))
            await timed("further pin", partial(b.host.pin, file, pin(0, 4), 60))
            await timed("removal refused by a deny pin", partial(removed, file, 0, 4))
            await timed("removal beside a pin", partial(removed, file, 8, 9))
            await a.host.pin(file, lease(20, 30), 60)
            told = len(a.daemon.toldings)
            began = time.perf_counter()
            breaker = Breaker(b.host, cut(20, 21), file)
            await a.daemon.until(partial(has_been_told, told + 1))
            took["holder's daemon told"].append(1000 * (time.perf_counter() - began))
            await breaker.answer()
            took["removal after a holder that lets go at once"].append(1000 * (time.perf_counter() - began))
            breaker.over()
    print(f"\n{len(nodes)} of etcd; ms: median, 95th percentile")
    for what, values in took.items():
        print(f"{what:52} {median(values):9.4f} {quantiles(values, n=20)[-1]:9.4f}")
