"""The daemon's search for cyclic garbage: it finds the young, and never goes through all pins."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, weakref
from pinfs.runtime.memory import GC_THRESHOLDS, settle_memory

class Node:
    pass

settle_memory()
searches_of_all, frozen = gc.get_stats()[2]["collections"], gc.get_freeze_count()
young = Node()
young.itself = young
gone = weakref.ref(young)
del young
pins = [[] for _ in range(200_000)]
assert gone() is None, "a young cycle was not found"
assert gc.get_stats()[2]["collections"] == searches_of_all, "everything was searched"
searched_again = 200_000 + frozen - gc.get_freeze_count()
assert searched_again <= (GC_THRESHOLDS[1] + 2) * (GC_THRESHOLDS[0] + 1), searched_again
"""


def test_lasting_objects_are_not_searched_again() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
