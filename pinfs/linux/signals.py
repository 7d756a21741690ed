"""Signals by name, as people write them (signal(7)). The one parser: for attributes, ioctls and the command line."""

import re
import signal
from functools import cache
from typing import Final

RTMIN: Final = int(signal.SIGRTMIN)
RTMAX: Final = int(signal.SIGRTMAX)
_NUMBERS = {name.removeprefix("SIG"): int(number) for name, number in signal.Signals.__members__.items()}
_REALTIME = re.compile(r"RT(?:MIN(?:\+(\d{1,2}))?|MAX(?:-(\d{1,2}))?)", re.ASCII)


def is_signal(number: int) -> bool:
    """Whether a program can be sent this signal. 32 and 33 belong to the C library's threads (signal(7)), which would
    come to harm."""
    return 0 < number < 32 or RTMIN <= number <= RTMAX


def parse_signal(text: str) -> int | None:
    """`IO`, `SIGIO`, `io`, `29`, `RTMIN+1`, `RTMAX-1`; None for `none`. Raises ValueError for what is no signal."""
    if text == "none":
        return None
    name = text.upper().removeprefix("SIG") if text.isascii() else ""
    if re.fullmatch(r"\d{1,2}", text, re.ASCII):
        number = int(text)
    elif realtime := _REALTIME.fullmatch(name):
        plus, minus = realtime.groups()
        number = RTMAX - int(minus or 0) if name.startswith("RTMAX") else RTMIN + int(plus or 0)
        number = number if number >= RTMIN else 0  # RTMAX-50 is not SIGALRM
    else:
        number = _NUMBERS.get(name, 0)
    if not is_signal(number):
        raise ValueError(f"no such signal: {text[:64]!r}")
    return number


@cache
def signal_name(number: int | None) -> str:
    """The name that `parse_signal` takes, without SIG: `IO`, `RTMIN+1`, `none`."""
    if number is None:
        return "none"
    if number < 32:
        return signal.Signals(number).name.removeprefix("SIG")
    return f"RTMIN+{number - RTMIN}" if number > RTMIN else "RTMIN"
