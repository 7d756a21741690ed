"""The dispatcher: reads requests from /dev/fuse and answers them.

The short way: one handler runs straight from the request to the reply, with no task and no scheduling in between.
A handler that waits for a moment is kept, and gone on with when it has come; one that wants a thread or another of
trio's primitives goes on in a task of its own. An INTERRUPT ends either. What pyfuse3 carries and is rare takes the
long way.
"""

import errno
import logging
import os
import select
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final

import trio

from pinfs.bridge import wire
from pinfs.bridge.handlers import LONG_WAY, NO_ROUTE, UNANSWERED, Handlers, Route, Work
from pinfs.bridge.longway import LongWay
from pinfs.bridge.negotiate import BUFFER_SIZE, Init, Terms, Wishes, agree
from pinfs.bridge.wire import IN_SIZE, OUT_SIZE
from pinfs.fs.operations import Operations
from pinfs.fs.types import Caller, make_caller
from pinfs.runtime.errors import errno_of
from pinfs.runtime.parking import OneShot, Parked, fast_path, known_trap, rest_of, run_deferred, run_straight

log = logging.getLogger("pinfs.bridge")

# How long the short way may go on, and wait on the descriptor itself, before trio gets a turn: going back to trio costs
# as much as an answer. A timeout that is shorter than the kernel's tick (4 ms) means setting a timer, which costs as
# much as a system call or two; but while requests wait in tasks, their threads should not wait as well.
PATIENCE_MS: Final = 5
PATIENCE_WITH_TASKS_MS: Final = 1
LARGE: Final = 4096  # bytes; from here on a second buffer for writev is cheaper than a copy


class Ended(Exception):
    """The connection is over. `aborted`: not by an unmount."""

    def __init__(self, aborted: bool) -> None:
        self.aborted = aborted


class _Woken(trio.abc.Instrument):
    """Knows whether something has become runnable: trio gets its turn at once then, not when requests run out."""

    def __init__(self) -> None:
        self.yes = False

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.yes = True


class Dispatcher:
    """Serves one connection. `fd` must not block; it stays the caller's. `counts` counts requests by their way."""

    def __init__(
        self, fd: int, ops: Operations, wishes: Wishes, on_agreed: Callable[[Terms], None], counts: Counter[str]
    ) -> None:
        self.terms: Terms | None = None
        self.long_way = LongWay(self._to_kernel, self._on_init, self._on_ready)
        self._counts = counts
        self._fd = fd
        self._ops = ops
        self._wishes = wishes
        self._on_agreed = on_agreed
        self._handlers = Handlers(ops, self._to_kernel)
        self._routes = self._handlers.routes()
        self._routes[wire.INTERRUPT] = Route(self._interrupt, IN_SIZE + 8)
        if not wishes.poll:
            del self._routes[wire.POLL]
        self._tasks: dict[int, trio.CancelScope] = {}
        self._waiting: dict[int, tuple[int, Work]] = {}
        """Opcode and handler of each request that waits for a moment, by its number."""
        self._come: deque[int] = deque()
        """Those whose moment has come."""
        self._turning = False
        self._woken = _Woken()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._take_fresh_buffer()

    @property
    def parked(self) -> int:
        """Requests that wait right now."""
        return len(self._tasks) + len(self._waiting)

    def _take_fresh_buffer(self) -> None:
        self._buffer = bytearray(BUFFER_SIZE)
        self._into = [self._buffer]
        self._view = memoryview(self._buffer)

    # The loop

    async def run(self) -> bool:
        """Serve until the connection ends. True: it was aborted; False: unmounted."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self.long_way.replies)
            trio.lowlevel.add_instrument(self._woken)
            try:
                await self._serve()
            except Ended as end:
                return end.aborted
            finally:
                trio.lowlevel.remove_instrument(self._woken)
                self._nursery.cancel_scope.cancel()
                while self._waiting:
                    self._waiting.popitem()[1][1].close()
                run_deferred()
        raise AssertionError("the loop ends by Ended only")

    async def _serve(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            while self._turn():
                # Twice: trio runs what is runnable in any order, so only after the first has everybody had a turn.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()

    def _turn(self) -> bool:
        """Answer what comes, until nothing more comes (False) or trio should get a turn (True)."""
        self._turning = True
        self._woken.yes = self.long_way.in_flight > 0
        try:
            with fast_path:
                return self._answer_while_they_come(PATIENCE_WITH_TASKS_MS if self._tasks else PATIENCE_MS)
        finally:
            self._turning = False

    def _answer_while_they_come(self, patience_ms: int) -> bool:
        # The hot loop. Between two requests the caller's program runs, and fills the caches with what is its own: each
        # step of the interpreter costs some 15 ns then. So all of it stands in one place, and in local variables.
        poll, readv, write, writev, fd = self._poll.poll, os.readv, os.write, os.writev, self._fd
        unpack, pack, route_of = wire.IN_HEADER.unpack_from, wire.OUT_HEADER.pack, self._routes.get
        woken, come, counts = self._woken, self._come, self._counts
        until = perf_counter() + patience_ms / 1000
        wait_ms = 0  # we come from trio, which may have somebody to wait for
        while more := bool(poll(wait_ms)):
            wait_ms = patience_ms
            try:
                size = readv(fd, self._into)
            except OSError as e:
                _check_end(e)
                continue
            length, opcode, unique, nodeid, uid, gid, pid, extensions, _ = unpack(self._buffer)
            handler, shortest = route_of(opcode, NO_ROUTE)
            end = size - extensions * 8
            if length != size or end < shortest:
                self._answer_otherwise(opcode, unique, size)
            else:
                counts["short"] += 1
                work = handler(nodeid, make_caller((uid, gid, pid, 0)), self._view[IN_SIZE:end])
                try:
                    self._park(opcode, unique, work, known_trap(work, work.send(None)))
                    counts["parked"] += 1
                    counts["short"] -= 1
                except StopIteration as answer:
                    body = answer.value
                    if body is not None:
                        try:
                            if len(body) < LARGE:
                                write(fd, pack(OUT_SIZE + len(body), 0, unique) + body)
                            else:
                                writev(fd, (pack(OUT_SIZE + len(body), 0, unique), body))
                        except OSError as e:
                            self._undelivered(e, opcode, body)
                except Exception as e:
                    self._refuse(opcode, unique, errno_of(e, f"opcode {opcode}"))
            if come:
                self._go_on()
            if woken.yes or perf_counter() > until:
                break
        if not woken.yes:
            run_deferred()
        return more

    def _answer_otherwise(self, opcode: int, unique: int, size: int) -> None:
        """What no handler answers."""
        if not size:  # never on /dev/fuse: whoever stands in for the kernel has gone
            raise Ended(False)
        if size < IN_SIZE:
            log.warning("a request of %d bytes is shorter than its header: dropped", size)
        elif opcode in self._routes or (opcode == wire.INIT and size < IN_SIZE + wire.INIT_IN.size):
            self._refuse(opcode, unique, errno.EINVAL)
        elif opcode in LONG_WAY:
            self._counts["pyfuse3"] += 1
            self.long_way.send(opcode, unique, self._view[:size])
            self._woken.yes = True  # trio has to carry the reply
        else:
            self._refuse(opcode, unique, errno.ENOSYS)

    def _step(self, opcode: int, unique: int, work: Work, failure: BaseException | None = None) -> None:
        """Go on with a handler that waited."""
        try:
            body = run_straight(work, failure)
        except Parked as parked:
            self._park(opcode, unique, work, parked.trap)
        except Exception as e:
            self._refuse(opcode, unique, errno_of(e, f"opcode {opcode}"))
        else:
            if body is not None:
                self._reply(opcode, unique, body)

    def _on_init(self, body: memoryview) -> bytes:
        self.terms, reply = agree(body, self._wishes)
        if Init.SETXATTR_EXT in self.terms.flags:
            self._routes[wire.SETXATTR] = self._handlers.route_of_setxattr_ext()
        return reply

    def _on_ready(self) -> None:
        if self.terms is not None:
            self._on_agreed(self.terms)

    # Waiting requests

    def _park(self, opcode: int, unique: int, work: Work, trap: object) -> None:
        """A handler waits: keep it for its moment, or let it go on in a task."""
        if isinstance(trap, OneShot):
            self._waiting[unique] = opcode, work
            trap.callback = partial(self._on_one_shot, unique)
            return
        scope = self._tasks[unique] = trio.CancelScope()
        self._take_fresh_buffer()  # the old one is the handler's
        self._nursery.start_soon(self._finish, opcode, unique, work, scope, name=f"request {unique}")

    def _on_one_shot(self, unique: int) -> None:
        """Whoever made the moment come is still at it: go on after that."""
        self._come.append(unique)
        if not self._turning and len(self._come) == 1:
            self._nursery.start_soon(self._go_on_soon)

    async def _go_on_soon(self) -> None:
        self._go_on()
        run_deferred()

    def _go_on(self) -> None:
        """Go on with the handlers whose moments have come."""
        while self._come:
            unique = self._come.popleft()
            if unique in self._waiting:  # else it was interrupted meanwhile
                opcode, work = self._waiting.pop(unique)
                self._step(opcode, unique, work)

    async def _finish(self, opcode: int, unique: int, work: Work, scope: trio.CancelScope) -> None:
        body: bytes | None = None
        try:
            with scope:
                body = await rest_of(work)
        except Exception as e:
            self._refuse(opcode, unique, errno_of(e, f"opcode {opcode}"))
        else:
            if scope.cancelled_caught:
                self._refuse(opcode, unique, errno.EINTR)
            elif body is not None:
                self._reply(opcode, unique, body)
        finally:
            del self._tasks[unique]

    async def _interrupt(self, nodeid: int, ctx: Caller, body: memoryview) -> None:
        """The caller of a request was hit by a signal. What does not wait any more is answered already.

        It cannot come too early: the kernel sends it only after we have read the request (FR_SENT).
        """
        (unique,) = wire.U64.unpack_from(body)
        if unique in self._waiting:
            opcode, work = self._waiting.pop(unique)
            self._step(opcode, unique, work, InterruptedError(errno.EINTR, os.strerror(errno.EINTR)))
        elif unique in self._tasks:
            self._tasks[unique].cancel()

    # Replies

    def _reply(self, opcode: int, unique: int, body: bytes) -> None:
        try:
            os.writev(self._fd, (wire.OUT_HEADER.pack(OUT_SIZE + len(body), 0, unique), body))
        except OSError as e:
            self._undelivered(e, opcode, body)

    def _refuse(self, opcode: int, unique: int, number: int) -> None:
        if opcode in UNANSWERED:
            log.warning("a malformed request (opcode %d) that gets no reply: dropped", opcode)
        else:
            self._to_kernel(wire.OUT_HEADER.pack(wire.OUT_SIZE, -number, unique))

    def _to_kernel(self, message: bytes | memoryview) -> None:
        try:
            os.write(self._fd, message)
        except OSError as e:
            self._report(e)

    def _report(self, e: OSError) -> None:
        """ENOENT: nobody waits any more. ENODEV and its like: the next read tells. EINVAL: a mistake of ours."""
        if e.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EPERM):
            log.error("the kernel did not take a reply", exc_info=e)

    def _undelivered(self, e: OSError, opcode: int, body: bytes) -> None:
        """Nobody got what this reply gives: release it, or it would stay open for ever."""
        self._report(e)
        if opcode in (wire.LOOKUP, wire.MKDIR, wire.SYMLINK, wire.LINK, wire.CREATE, wire.TMPFILE):
            (nodeid,) = wire.U64.unpack_from(body)
            self._ops.forget([(nodeid, 1)] if nodeid else [])
        if opcode in (wire.OPEN, wire.CREATE, wire.TMPFILE, wire.OPENDIR):
            fh, _, _ = wire.OPEN_OUT.unpack_from(body, len(body) - wire.OPEN_OUT.size)
            release = self._ops.releasedir if opcode == wire.OPENDIR else self._ops.release
            self._nursery.start_soon(release, fh)


def _check_end(e: OSError) -> None:
    """Tell "no request after all" from the end of the connection (Ended) and from what must not happen (raised)."""
    if e.errno in (errno.ENODEV, errno.ECONNABORTED):
        raise Ended(e.errno == errno.ECONNABORTED) from None
    if e.errno not in (errno.EAGAIN, errno.EINTR, errno.ENOENT):  # ENOENT: its caller gave up before we took it
        raise e
