"""The program of an actor: reads (function, args, kwargs), calls, writes (value, exception). See actor.py."""

import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]  # support.acts, and pinfs as programs import it


def main() -> None:
    calls = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a called function prints must not end up among the answers
    while True:
        try:
            function, args, kwargs = pickle.load(calls)
        except EOFError:
            return
        pickle.dump(answer(function, args, kwargs), answers)
        answers.flush()


def answer(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Exception | None]:
    try:
        return function(*args, **kwargs), None
    except Exception as failure:
        return None, failure


if __name__ == "__main__":
    import support.acts  # noqa: F401  (now, as root: another uid may be unable to read this directory)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
