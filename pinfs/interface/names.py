"""Names by which programs find pinfs."""

from typing import Final

FSTYPE: Final = "fuse.pinfs"
"""The type of a mount in /proc/self/mountinfo."""

CONTROL: Final = ".pinfs"
"""The control directory in the root of a mount (SPEC 7)."""
