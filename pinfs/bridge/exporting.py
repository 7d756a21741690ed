"""The handlers of a mount whose inodes can be found by file handle (mount option `nfs_export`)."""

from collections.abc import Callable

from pinfs.bridge import wire
from pinfs.bridge.handlers import Handlers
from pinfs.fs.exports import DOTS, Exports
from pinfs.fs.operations import Operations
from pinfs.fs.types import Caller, Entry


class ExportHandlers(Handlers):
    """Entries come with generations, and "." and ".." are looked up. Other mounts pay for neither."""

    def __init__(self, ops: Operations, notify: Callable[[bytes], None]) -> None:
        super().__init__(ops, notify)
        assert isinstance(ops.exports, Exports)
        self._exports = ops.exports
        self._entry_out = self._entry_with_generation

    def _entry_with_generation(self, entry: Entry, entry_valid: tuple[int, int], attr_valid: tuple[int, int]) -> bytes:
        generation = self._exports.generation(entry.nodeid)
        return wire.with_generation(wire.entry_out(entry, entry_valid, attr_valid), generation)

    async def lookup(self, nodeid: int, ctx: Caller, body: memoryview) -> bytes:
        name = wire.name_of(body)
        if name not in DOTS:
            return await super().lookup(nodeid, ctx, body)
        entry = await self._exports.lookup(nodeid, name)
        return self._entry_out(entry, self.entry_valid, self._valid(entry.nodeid))
