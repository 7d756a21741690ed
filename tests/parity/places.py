"""Places for the corner tests: a directory on a mount, and the same one seen from behind.

PINFS_NATIVE=1 takes plain directories instead of mounts: what a test asks for must be what the backing gives.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from support import mounts
from support.actor import Actor

NATIVE = os.environ.get("PINFS_NATIVE") == "1"
ALICE, BOB, SHARED_GROUP = 41001, 41002, 42000


@dataclass
class Place:
    """`path` on the mount, `source` the same directory behind it; both open to every uid."""

    path: Path
    source: Path
    mount: mounts.Mount | None
    closing: ExitStack = field(default_factory=ExitStack)

    def actor(self, uid: int = 0, gid: int | None = None, groups: tuple[int, ...] = ()) -> Actor:
        """A process that the test directs."""
        actor = Actor(uid=uid, gid=gid, groups=groups)
        self.closing.callback(actor.close)
        return actor

    def alice(self) -> Actor:
        """An ordinary user with a supplementary group."""
        return self.actor(ALICE, ALICE, (SHARED_GROUP,))

    def bob(self) -> Actor:
        """Another one, in her group."""
        return self.actor(BOB, SHARED_GROUP)


NewPlace = Callable[..., Place]


def make_place(stack: ExitStack, backing: str, source: Path | None = None) -> Place:
    base = mounts.new_base(backing)
    stack.callback(shutil.rmtree, base)
    if NATIVE:
        plain = source or base
        return Place(plain, plain, None)
    mount = stack.enter_context(mounts.Mount(base, source=source))
    return Place(mount.path, mount.source, mount)
