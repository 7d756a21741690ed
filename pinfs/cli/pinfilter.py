"""Which pins a listing shows: by user, process, path and state."""

import pwd
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Final

import click

from pinfs.core.policy import Rule

Pin = dict[str, Any]


def users(_ctx: click.Context, _param: click.Parameter, values: Iterable[str]) -> frozenset[int]:
    """The values of `--user`, for click: uids."""
    return frozenset(_uid(value) for value in values)


def _uid(value: str) -> int:
    if value.isascii() and value.isdigit():
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except KeyError:
        raise click.BadParameter(f"there is no user {value!r}") from None


def globs(_ctx: click.Context, _param: click.Parameter, values: Iterable[str]) -> tuple[str, ...]:
    """The values of `--path`, for click."""
    for value in values:
        if any(part in ("", ".", "..") for part in value.removeprefix("/").split("/")) or "\0" in value:
            raise click.BadParameter(f"{value!r} matches no file (all files of a directory: 'DIR/**')")
    return tuple(values)


@dataclass(frozen=True)
class PinFilter:
    """A pin is shown if each kind of filter that there is has one that matches."""

    users: frozenset[int]
    processes: tuple[str, ...]
    paths: tuple[str, ...]
    state: str | None = None

    def __bool__(self) -> bool:
        return bool(self.users or self.processes or self.paths or self.state)

    @property
    def needs_holders(self) -> bool:
        """Whether pins whose holder the caller may not see are left out for that alone."""
        return bool(self.users or self.processes)

    def shown(self, pins: Iterable[Pin]) -> list[Pin]:
        """Those of `pins` that match."""
        is_there = self._matcher()
        return [pin for pin in pins if self._has_holder(pin) and is_there(pin.get("path"))]

    def _has_holder(self, pin: Pin) -> bool:
        return (
            (not self.users or pin.get("uid") in self.users)
            and (not self.processes or any(_is_of(pin, process) for process in self.processes))
            and (self.state is None or pin["state"] == self.state)
        )

    def _matcher(self) -> Callable[[str | None], bool]:
        rules = [Rule(path) for path in self.paths]

        @cache  # many pins are of one file
        def is_there(path: str | None) -> bool:
            return not rules or (path is not None and any(rule.matches(path) for rule in rules))

        return is_there


NO_FILTER: Final = PinFilter(frozenset(), (), ())


def _is_of(pin: Pin, process: str) -> bool:
    """Whether `process` is the number of the pin's holder, or a glob that its program's name matches."""
    return str(pin.get("pid")) == process or (pin.get("comm") is not None and fnmatchcase(pin["comm"], process))
