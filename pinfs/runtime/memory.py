"""Keeping the search for cyclic garbage short."""

import gc
from typing import Final

GC_THRESHOLDS: Final = (5_000, 3, 1_000_000)  # young objects are searched, a few at a time; all of them never


def settle_memory() -> None:
    """Keep the search for cyclic garbage from all pins: with a million of them it would stop the daemon for seconds.

    Requests and breaks leave no cycles behind. So what two searches have found in use counts as lasting, and is not
    searched again: reference counts still free it.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.callbacks.append(_keep_survivors)


def _keep_survivors(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 1:
        gc.freeze()
