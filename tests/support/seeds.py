"""The seed of a run: everything random in the tests begins with it.

PINFS_SEED=N repeats the run that printed N; without it each run draws a seed of its own. Continuous integration derives
N from the commit, so that a commit is judged by the same examples each time; long runs leave it free.
"""

from __future__ import annotations

import os
import random

VARIABLE = "PINFS_SEED"
SEED = int(os.environ.get(VARIABLE) or random.SystemRandom().randrange(1 << 32))
REPEAT = f"{VARIABLE}={SEED} pytest ... repeats it"

os.environ[VARIABLE] = str(SEED)  # for the processes of this run


def chance(purpose: str) -> random.Random:
    """A source of random numbers; each purpose has its own."""
    return random.Random(f"{SEED} {purpose}")
