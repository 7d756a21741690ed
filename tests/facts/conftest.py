"""Fixtures for the facts: the raw end of /dev/fuse, a plain pyfuse3 file system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from facts.raw import RawFuse
from facts.tiny import Tiny


@pytest.fixture
def raw(base: Path) -> Iterator[RawFuse]:
    """A connection to answer by hand."""
    with RawFuse(base) as raw:
        yield raw


@pytest.fixture
def through(base: Path) -> Iterator[RawFuse]:
    """The same with passthrough for every open."""
    with RawFuse(base, passthrough=True) as raw:
        yield raw


@pytest.fixture
def tiny(base: Path) -> Iterator[Tiny]:
    """A plain pyfuse3 file system in a process of its own."""
    with Tiny(base) as tiny:
        yield tiny
