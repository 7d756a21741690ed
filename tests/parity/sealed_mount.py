"""mount.py, with each regular file sealed from the first lookup to the last forget, as if it always had a pin: what
a seal must not change shows in every comparison with the backing."""

import stat
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pinfs.cli.main import main
from pinfs.fs.inode import Inode
from pinfs.fs.inodes import InodeTable
from pinfs.fs.seal import Seal
from pinfs.serve import assembly


class Sealing(Seal):
    """Takes every file for a pinned one, and lets go of it when the kernel does."""

    def __init__(self, inodes: InodeTable, *rest: Any) -> None:
        super().__init__(inodes, *rest)
        self._table = inodes
        for name in ("intern", "intern_nameless"):
            setattr(inodes, name, self._then_sealing(getattr(inodes, name)))
        self._drop_inode = inodes.drop_if_unreferenced
        inodes.drop_if_unreferenced = self._let_go  # type: ignore[method-assign]

    def _has_pins(self, nodeid: int) -> bool:
        return True

    def _then_sealing(self, intern: Any) -> Any:
        def interned(*arguments: Any) -> Inode:
            inode: Inode = intern(*arguments)
            if stat.S_ISREG(inode.kind):
                self.before_pin(inode)
            return inode

        return interned

    def _let_go(self, inode: Inode) -> None:
        record = self.files.get(inode.nodeid)
        if record is not None and not (inode.lookups or inode.file or record.lifters):
            self._drop(record, forget=False)
        self._drop_inode(inode)


if __name__ == "__main__":
    vars(assembly)["Seal"] = Sealing
    sys.argv[1:1] = ["mount"]
    main()
