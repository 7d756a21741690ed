"""For the tests of programs that use pinfs: scratch mounts, and pins that another process holds.

The pytest plugin (`plugin`) offers these as the fixtures `pinfs_mount` and `pinfs_pin`; these classes serve other uses,
such as a mount for a whole module:

    with ScratchMount(["break_timeout=2"]) as mount: ...
"""

from pinfs.testing.held import HeldPin, HolderError
from pinfs.testing.scratch import ScratchError, ScratchMount

__all__ = ["HeldPin", "HolderError", "ScratchError", "ScratchMount"]
