"""The kinds of mounts that a test can be asked to hold on (fixture `each_mount`)."""

from __future__ import annotations

import pytest

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tmpfs": ("tmpfs", ()),
    "disk": ("disk", ()),
    "through the daemon": ("tmpfs", ("passthrough=off",)),
    "plain pyfuse3": ("tmpfs", ("bridge=off",)),
}
"""What is below, and the options of the mount."""


def on(*kinds: str) -> pytest.MarkDecorator:
    """The test runs on each of these kinds, and not on tmpfs and disk, as it would without."""
    return pytest.mark.parametrize("_each_mount", kinds, indirect=True, scope="module")
