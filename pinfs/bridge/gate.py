"""While a take-over still restores pins: requests that concern a file whose pins are to come wait for them; all others
are answered (SPEC 13)."""

from collections.abc import Iterator
from typing import Final

from pinfs.bridge import wire
from pinfs.bridge.handlers import UNANSWERED, Route
from pinfs.fs.control import CONTROL_ID
from pinfs.fs.inode import FOREIGN_IDS
from pinfs.fs.operations import Operations
from pinfs.fs.pendingpins import PendingPins
from pinfs.fs.types import Caller

_TAKES_A_NAME: Final = frozenset({wire.UNLINK, wire.RENAME, wire.RENAME2, wire.CREATE})


class Gate:
    """Stands before the handlers of a dispatcher until `pending` is empty."""

    def __init__(self, pending: PendingPins, ops: Operations) -> None:
        self._pending = pending
        self._ops = ops

    def before(self, opcode: int, route: Route) -> Route:
        """The route of an opcode, with the gate before it."""
        if opcode in UNANSWERED:
            return route
        handler, shortest = route

        async def gated(nodeid: int, ctx: Caller, body: memoryview) -> bytes | None:
            for concerned in self._concerned(opcode, nodeid, body):
                if concerned in self._pending.files:
                    body = memoryview(bytes(body))  # the buffer is the next request's while this one waits
                    await self._pending.wait_for(concerned)
            if CONTROL_ID <= nodeid < FOREIGN_IDS and self._pending.files:
                body = memoryview(bytes(body))
                await self._pending.wait_for_all()
            return await handler(nodeid, ctx, body)

        return Route(gated, shortest)

    def _concerned(self, opcode: int, nodeid: int, body: memoryview) -> Iterator[int]:
        """The files that a request may take bytes from, or asks for."""
        yield nodeid
        if opcode == wire.COPY_FILE_RANGE or opcode == wire.COPY_FILE_RANGE_64:
            yield wire.COPY_FILE_RANGE_IN.unpack_from(body)[3]
        elif opcode in _TAKES_A_NAME:
            for parent, name in _names(opcode, nodeid, body):
                inode = self._ops.known_by_name(parent, name)
                if inode is not None:
                    yield inode


def _names(opcode: int, nodeid: int, body: memoryview) -> Iterator[tuple[int, bytes]]:
    if opcode == wire.UNLINK:
        yield nodeid, wire.name_of(body)
    elif opcode == wire.CREATE:
        yield nodeid, wire.name_of(body, wire.CREATE_IN.size)
    else:
        name, new_name = wire.names_of(body, 8 if opcode == wire.RENAME else wire.RENAME2_IN.size)
        yield nodeid, name
        yield wire.U64.unpack_from(body)[0], new_name
