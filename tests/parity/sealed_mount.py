"""mount.py, with each regular file sealed from the first lookup to the last forget, as if it always had a pin: what
a seal must not change shows in every comparison with the backing."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pinfs.cli.main import main
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.seal import Seal
from pinfs.linux.calls import Stat
from pinfs.serve import assembly


class Table(InodeTable):
    """Tells the seals of each inode that comes, and that may go. A subclass, because a compiled method cannot be
    replaced."""

    sealing: Sealing

    def intern(self, parent: Inode, name: bytes, st: Stat) -> Inode:
        return self.sealing.interned(super().intern(parent, name, st))

    def intern_nameless(self, st: Stat, fd: int) -> Inode:
        return self.sealing.interned(super().intern_nameless(st, fd))

    def drop_if_unreferenced(self, inode: Inode) -> None:
        self.sealing.let_go(inode)
        super().drop_if_unreferenced(inode)


class Sealing(Seal):
    """Takes every file for a pinned one, and lets go of it when the kernel does."""

    def __init__(self, inodes: Table, *rest: Any) -> None:
        super().__init__(inodes, *rest)
        inodes.sealing = self

    def _has_pins(self, nodeid: int) -> bool:
        return True

    def interned(self, inode: Inode) -> Inode:
        if stat.S_ISREG(inode.kind):
            self.before_pin(inode)
        return inode

    def let_go(self, inode: Inode) -> None:
        record = self.files.get(inode.nodeid)
        if record is not None and not (inode.lookups or inode.file or record.lifters):
            self._drop(record, forget=False)


if __name__ == "__main__":
    vars(assembly).update(Seal=Sealing, InodeTable=Table)
    sys.argv[1:1] = ["mount"]
    main()
