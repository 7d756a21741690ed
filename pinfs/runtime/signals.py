"""Signals of a daemon: received while it serves, and no reason to stop while it tidies up."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio


@contextmanager
def received(*numbers: int) -> Iterator[AsyncIterator[int]]:
    """The signals of these numbers as they come. Afterwards the process ignores them until it has ended, and those that
    were not taken are dropped.

    A daemon is told to end more than once: by an operator and by its keeper, or by a service manager that tells all
    processes of a unit. The second time must not kill it while it lifts seals.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # none is lost before trio has its handlers
    try:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # what trio puts back, and delivers the rest to
        receiver = trio.open_signal_receiver(*numbers)
        signals = receiver.__enter__()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield signals
    finally:
        receiver.__exit__(None, None, None)
