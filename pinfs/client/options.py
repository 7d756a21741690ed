"""The options of `pinfs.pin` that most programs leave alone (docs: `pinfs.pin`)."""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypedDict, cast

from pinfs.client.inode import HasFileno


class PinOptions(TypedDict, total=False):
    """Options that the plain and the trio form share."""

    signal: str | int | None
    dirty: bool
    note: str
    eventfd: int | HasFileno | None
    name: str | None
    missing_ok: bool


class OwnerOptions(PinOptions, total=False):
    """Options of the plain form: the owner of the pin."""

    pid: int | None
    owner: Literal["process", "handle"]


_DEFAULTS: Final[OwnerOptions] = {
    "signal": None,
    "dirty": False,
    "note": "",
    "eventfd": None,
    "name": None,
    "missing_ok": False,
    "pid": None,
    "owner": "process",
}


def all_options(given: Mapping[str, Any]) -> OwnerOptions:
    """The given options, and the defaults of the others. TypeError: there is no such option."""
    for option in given:
        if option not in _DEFAULTS:
            raise TypeError(f"pin() got an unexpected keyword argument {option!r}")
    return cast(OwnerOptions, {**_DEFAULTS, **given})
