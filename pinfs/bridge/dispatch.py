"""The dispatcher: reads requests from /dev/fuse and answers them.

Most requests are answered by a plain function (`pinfs.bridge.fast`). For all others one handler runs straight from the
request to the reply, with no task and no scheduling in between. A handler that waits for a OneShot is kept, and resumed
when the event is set; a handler that needs a thread or another trio primitive goes on in a task of its own. An
INTERRUPT ends either.

A request can fail, the connection cannot: whatever a handler raises or returns, its caller gets an errno, and the next
request is served.
"""

import errno
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final, NamedTuple, cast

import trio

from pinfs.bridge import wire
from pinfs.bridge.channel import Channel
from pinfs.bridge.connection import (
    MAX_FAILED_READS,
    NOT_AWAITED,
    RESENT,
    Ended,
    NoResendError,
    Request,
    ask_again,
    check_read,
    in_order,
    read_again,
    send_reply,
)
from pinfs.bridge.exporting import ExportHandlers
from pinfs.bridge.fast import FastHandlers, Flag, Loop
from pinfs.bridge.gate import Gate
from pinfs.bridge.handlers import NO_ROUTE, UNANSWERED, Handlers, PollWake, Route, Work
from pinfs.bridge.negotiate import BUFFER_SIZE, Init, Negotiated, Requested, negotiate
from pinfs.bridge.once import Once
from pinfs.bridge.resent import Resent
from pinfs.bridge.wire import IN_SIZE, OUT_SIZE
from pinfs.fs.inode import FOREIGN_IDS
from pinfs.fs.operations import Operations
from pinfs.fs.types import Caller, make_caller, os_error
from pinfs.runtime.errors import errno_of, logged
from pinfs.runtime.parking import OneShot, Parked, fast_path, known_trap, rest_of, run_deferred, run_straight

log = logging.getLogger("pinfs.bridge")

# How long the fast path may go on, and wait on the descriptor itself, before trio gets a turn: going back to trio costs
# as much as an answer. A timeout that is shorter than the kernel's tick (4 ms) means setting a timer, which costs as
# much as a system call or two; but while requests wait in tasks, their threads should not wait as well.
TURN_MS: Final = 5
TURN_WITH_TASKS_MS: Final = 1

FAILED_READ_S: Final = 0.1  # the pause after each read that failed

GIVES_LOOKUP: Final = frozenset(
    {wire.LOOKUP, wire.MKNOD, wire.MKDIR, wire.SYMLINK, wire.LINK, wire.CREATE, wire.TMPFILE}
)
GIVES_HANDLE: Final = frozenset({wire.OPEN, wire.CREATE, wire.TMPFILE, wire.OPENDIR})


class _Woken(trio.abc.Instrument):
    """Notes that a task has become runnable: trio gets its turn at once then, not when requests run out."""

    def __init__(self) -> None:
        self.flag = Flag()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.flag.yes = True


class _Waiting(NamedTuple):
    """A request whose handler waits for an event."""

    opcode: int
    work: Work
    event: OneShot


class Dispatcher:
    """Serves one connection. `fd` must not block; it stays the caller's.

    `on_negotiated` is called once, when the kernel has the reply to INIT, and returns what makes sure that requests are
    executed once (None: the mount ends with its daemon). `counts` counts requests by the path they took: fast, parked,
    or sent again by the kernel. `busy_poll_us`: see `Channel`.
    """

    def __init__(
        self,
        fd: int,
        ops: Operations,
        requested: Requested,
        on_negotiated: Callable[[Negotiated], Once | None],
        counts: Counter[str],
        busy_poll_us: int = 0,
    ) -> None:
        self.negotiated: Negotiated | None = None
        self.refused_because = ""
        """Why the kernel's INIT was refused; the connection is of no use then."""
        self._counts = counts
        self._fd = fd
        self._ops = ops
        self._requested = requested
        self._on_negotiated = on_negotiated
        self._handlers = (ExportHandlers if requested.nfs_export else Handlers)(ops, self._to_kernel)
        self._routes = self._handlers.routes()
        self._routes[wire.INTERRUPT] = Route(self._interrupt, IN_SIZE + 8)
        self._tasks: dict[int, trio.CancelScope] = {}
        """Requests whose handlers go on in tasks, by their numbers."""
        self._waiting: dict[int, _Waiting] = {}
        """Requests whose handlers wait for events, by their numbers."""
        self._resumable: deque[int] = deque()
        """Those of them whose events have been set."""
        self._turn_with_tasks_ms = 0 if ops.in_threads else TURN_WITH_TASKS_MS
        self._in_turn = False
        self._woken = _Woken()
        self._buffer = bytearray(BUFFER_SIZE)
        self._channel = Channel(fd, self._buffer, busy_poll_us)
        self._loop = Loop(
            self._channel, self._answer, _read_failed, self._woken.flag, self._resumable, self._resume_waiting
        )
        self._fast: FastHandlers | None = None
        if ops.fast is not None:
            self._fast = FastHandlers(
                self._channel, ops.fast, self._handlers, self._fast_failed, self._fast_undelivered, self._fast_parked
            )

    @property
    def parked(self) -> int:
        """Requests that wait right now."""
        return len(self._tasks) + len(self._waiting)

    def _take_fresh_buffer(self) -> None:
        """A handler keeps the one that its request came in."""
        self._buffer = bytearray(BUFFER_SIZE)
        self._channel.use(self._buffer)

    # The loop

    async def run(self, resumed: Negotiated | None = None) -> bool:
        """Serve until the connection ends. True: it was aborted, or cannot be used; False: unmounted.

        `resumed`: what the daemon before has negotiated, whose connection this is.
        """
        resent = None if resumed is None else self._resume(resumed)
        async with trio.open_nursery() as self._nursery:
            trio.lowlevel.add_instrument(self._woken)
            try:
                if resent is not None:
                    self._take_over(resent)
                await self._serve()
            except Ended as end:
                return end.aborted
            finally:
                trio.lowlevel.remove_instrument(self._woken)
                self._nursery.cancel_scope.cancel()
                while self._waiting:
                    with logged("a request at the end of the connection"):
                        self._waiting.popitem()[1].work.close()
                run_deferred()
        raise AssertionError("the loop ends by Ended only")

    async def _serve(self) -> None:
        failed_reads = read_before = 0
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            try:
                while self._turn():
                    # Twice: trio runs what is runnable in any order, so only after the first had every task its turn.
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
            except OSError as e:  # of a read: what belongs to one request is caught there
                read = self._counts.total()
                failed_reads = failed_reads + 1 if read == read_before else 1
                read_before = read
                log.error("a request could not be read: %s", e)
                if failed_reads == MAX_FAILED_READS:
                    raise Ended(True) from e
                await trio.sleep(FAILED_READ_S)

    def _turn(self) -> bool:
        """Answer requests until there are no more (False) or trio should get a turn (True)."""
        self._in_turn = True
        woken, loop = self._woken.flag, self._loop
        woken.yes = False
        try:
            with fast_path:
                more = loop.run(self._turn_with_tasks_ms if self._tasks else TURN_MS)
                if not woken.yes:
                    run_deferred()
                return more
        finally:
            self._channel.settle()
            self._in_turn = False
            self._counts["fast"] += loop.answered_fast
            loop.answered_fast = 0

    def _answer(self, size: int) -> None:
        """Answer the request in the buffer, by the handler of its opcode."""
        buffer, view = self._buffer, memoryview(self._buffer)
        length, opcode, unique, nodeid, uid, gid, pid, extensions, _ = wire.IN_HEADER.unpack_from(buffer)
        handler, shortest = self._routes.get(opcode, NO_ROUTE)
        end = size - extensions * 8
        if length != size or end < shortest:
            self._answer_without_handler(opcode, unique, size, view)
            return
        counts = self._counts
        counts["fast"] += 1
        try:
            work = handler(nodeid, make_caller((uid, gid, pid, 0, unique)), view[IN_SIZE:end])
            if nodeid >= FOREIGN_IDS:
                work = self._handlers.on_foreign(opcode, nodeid, work)
            try:
                trap = known_trap(work, work.send(None))
                if not isinstance(trap, OneShot):  # a task, which keeps the buffer
                    self._take_fresh_buffer()
                self._park(opcode, unique, work, trap)
                counts["parked"] += 1
                counts["fast"] -= 1
            except StopIteration as answer:
                self._reply(opcode, unique, answer.value)
        except (Exception, GeneratorExit) as e:
            self._failed(opcode, unique, e)

    def _fast_failed(self, e: BaseException) -> None:
        self._failed(self._channel.opcode, self._channel.unique, e)

    def _fast_undelivered(self) -> None:
        channel = self._channel
        self._undelivered(os_error(channel.error), channel.opcode, channel.unique, channel.reply)

    def _fast_parked(self, work: object, event: OneShot) -> None:
        self._park(self._channel.opcode, self._channel.unique, cast(Work, work), event)
        self._counts["parked"] += 1
        self._counts["fast"] -= 1

    def _answer_without_handler(self, opcode: int, unique: int, size: int, request: memoryview) -> None:
        """INIT, and what is not a request that a handler could answer."""
        if not size:  # never on /dev/fuse: what stands in for the kernel has closed its end
            raise Ended(False)
        if size < IN_SIZE:
            log.warning("a request of %d bytes is shorter than its header: dropped", size)
        elif opcode == wire.INIT:
            self._init(unique, request[IN_SIZE:size])
        elif opcode in self._routes:
            self._refuse(opcode, unique, errno.EINVAL)
        else:
            self._refuse(opcode, unique, errno.ENOSYS)

    def _step(self, opcode: int, unique: int, work: Work, failure: BaseException | None = None) -> None:
        """Resume a handler that waited."""
        try:
            try:
                self._reply(opcode, unique, run_straight(work, failure))
            except Parked as parked:
                self._park(opcode, unique, work, parked.trap)
        except (Exception, GeneratorExit) as e:
            self._failed(opcode, unique, e)
        finally:
            if failure is not None:  # its traceback has the frames that hold it: a cycle
                failure.__traceback__ = None

    # INIT

    def _init(self, unique: int, body: memoryview) -> None:
        """Negotiate. A second INIT is refused with EIO, as libfuse does."""
        if self.negotiated is not None:
            self._refuse(wire.INIT, unique, errno.EIO)
            return
        try:
            negotiated, reply = negotiate(body, self._requested)
        except OSError as e:
            self._refuse(wire.INIT, unique, e.errno or errno.EIO)
            if e.errno == errno.EPROTO:  # the kernel will use the connection for nothing more (conn_error)
                self.refused_because = str(e.strerror)
                raise Ended(True) from None
            return
        self._reply(wire.INIT, unique, reply)
        self.negotiated = negotiated
        if negotiated is not None:
            with logged("the beginning of the connection"):
                self._begin(negotiated)

    def _begin(self, negotiated: Negotiated) -> Once | None:
        """Both sides have agreed: get ready for the first request."""
        self.negotiated = negotiated
        if Init.SETXATTR_EXT in negotiated.flags:
            self._routes[wire.SETXATTR] = self._handlers.route_of_setxattr_ext()
            if self._fast is not None:
                self._fast.setxattr_at = wire.SETXATTR_EXT_IN.size
        once = self._on_negotiated(negotiated)
        if once is not None:
            self._routes.update(once.routes(self._routes))
        if self._ops.fast is not None:
            self._ops.fast.intents = None if once is None else once.intents
        self._loop.fast = self._fast
        return once

    def _open_gate(self, routes: dict[int, Route]) -> None:
        """All pins are restored: no request has to wait for them any more."""
        self._routes.update(routes)
        self._loop.fast = self._fast

    # Taking over

    def _resume(self, negotiated: Negotiated) -> Resent | None:
        """Go on with a connection that another daemon has begun: the kernel gets no reply to INIT."""
        once = self._begin(negotiated)
        if once is None or once.restored is None:
            return None
        open_routes, gate = dict(self._routes), None
        if once.pending is not None and once.pending.files:
            gate = Gate(once.pending, self._ops)
            self._routes.update((opcode, gate.before(opcode, route)) for opcode, route in open_routes.items())
            once.pending.on_end = partial(self._open_gate, open_routes)
            self._loop.fast = None
        return Resent(once, once.restored, self._handlers, open_routes, gate)

    def _take_over(self, resent: Resent) -> None:
        """Answer what the daemon before has read and not answered."""
        try:
            ask_again(self._fd)
        except NoResendError as e:
            self.refused_because = str(e)
            raise Ended(True) from None
        requests = read_again(self._fd, self._buffer)
        resent.begin(requests)
        self._in_turn = True
        try:
            for request in in_order(requests):
                self._answer_again(resent, request)
                self._resume_waiting()
        finally:
            self._in_turn = False
        resent.finish(requests)
        run_deferred()

    def _answer_again(self, resent: Resent, request: Request) -> None:
        """What the hot loop does, for one request that was read before it began."""
        buffer, opcode, unique = request
        route, size = self._routes.get(opcode, NO_ROUTE), len(buffer)
        if size < IN_SIZE:
            self._answer_without_handler(opcode, unique, size, memoryview(buffer))
            return
        length, _, _, nodeid, uid, gid, pid, extensions, _ = wire.IN_HEADER.unpack_from(buffer)
        end = size - extensions * 8
        if length != size or end < route.shortest:
            self._answer_without_handler(opcode, unique, size, memoryview(buffer))
            return
        self._counts["resent" if request.is_resent else "fast"] += 1
        ctx, body = make_caller((uid, gid, pid, 0, unique & ~RESENT)), memoryview(buffer)[IN_SIZE:end]
        try:
            handler = resent.handler(opcode, route) if request.is_resent else route.handler
            work = handler(nodeid, ctx, body)
            if nodeid >= FOREIGN_IDS:
                work = self._handlers.on_foreign(opcode, nodeid, work)
        except Exception as e:
            self._failed(opcode, unique, e)
        else:
            self._step(opcode, unique, work)

    def wake_pollers(self, numbers: Iterable[int]) -> None:
        """Programs that poll these files look again. `numbers`: the kernel's (kh)."""
        for kh in numbers:
            PollWake(self._to_kernel, kh)()

    # Waiting requests

    def _park(self, opcode: int, unique: int, work: Work, trap: object) -> None:
        """A handler waits: keep it until its event is set, or let it go on in a task."""
        if isinstance(trap, OneShot):
            self._waiting[unique] = _Waiting(opcode, work, trap)
            trap.callback = partial(self._on_one_shot, unique)
            return
        scope = self._tasks[unique] = trio.CancelScope()
        self._nursery.start_soon(self._finish, opcode, unique, work, scope, name=f"request {unique}")

    def _on_one_shot(self, unique: int) -> None:
        """The event is set by a handler or a task that is still at work: resume after that."""
        self._resumable.append(unique)
        if not self._in_turn and len(self._resumable) == 1:
            self._nursery.start_soon(self._resume_soon)

    async def _resume_soon(self) -> None:
        self._resume_waiting()
        run_deferred()

    def _resume_waiting(self) -> None:
        """Go on with the handlers whose events have been set."""
        while self._resumable:
            unique = self._resumable.popleft()
            waiting = self._waiting.get(unique)
            if waiting is not None and waiting.event.is_set:  # else it was interrupted, and may wait for another event
                del self._waiting[unique]
                self._step(waiting.opcode, unique, waiting.work)

    async def _finish(self, opcode: int, unique: int, work: Work, scope: trio.CancelScope) -> None:
        """The rest of a handler, as a task."""
        try:
            body: bytes | None = None
            with scope:
                body = await rest_of(work)
            if scope.cancelled_caught:
                self._refuse(opcode, unique, errno.EINTR)
            else:
                self._reply(opcode, unique, body)
        except (Exception, GeneratorExit) as e:
            self._failed(opcode, unique, e)
        finally:
            del self._tasks[unique]

    async def _interrupt(self, nodeid: int, ctx: Caller, body: memoryview) -> None:
        """A signal has hit the caller of a request. A request that does not wait any more is answered already.

        An INTERRUPT cannot come too early: the kernel sends it only after we have read the request (FR_SENT).
        """
        (unique,) = wire.U64.unpack_from(body)
        waiting = self._waiting.pop(unique, None)
        if waiting is not None:
            error = InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            self._step(waiting.opcode, unique, waiting.work, error)
        elif unique in self._tasks:
            self._tasks[unique].cancel()

    # Replies

    def _reply(self, opcode: int, unique: int, body: bytes | None) -> None:
        if body is None:
            if opcode not in UNANSWERED:
                self._no_body(opcode, unique)
            return
        try:
            send_reply(self._fd, unique, body)
        except OSError as e:
            self._undelivered(e, opcode, unique, body)

    def _no_body(self, opcode: int, unique: int) -> None:
        log.error("opcode %d was answered with nothing: EIO", opcode)
        self._refuse(opcode, unique, errno.EIO)

    def _failed(self, opcode: int, unique: int, e: BaseException) -> None:
        """A handler has raised, or has returned what is not a reply."""
        error = e if isinstance(e, Exception) else RuntimeError(f"{type(e).__name__} out of a handler")
        self._refuse(opcode, unique, errno_of(error, f"opcode {opcode}"))

    def _refuse(self, opcode: int, unique: int, number: int) -> None:
        if opcode in UNANSWERED:
            log.warning("a malformed request (opcode %d) that gets no reply: dropped", opcode)
        else:
            self._to_kernel(wire.OUT_HEADER.pack(OUT_SIZE, -number, unique))

    def _to_kernel(self, message: bytes) -> None:
        try:
            os.write(self._fd, message)
        except OSError as e:
            self._report(e)

    def _report(self, e: OSError) -> None:
        if e.errno not in NOT_AWAITED:
            log.error("the kernel did not take a message: %s", e)  # no traceback: it would show the message

    def _undelivered(self, e: OSError, opcode: int, unique: int, body: bytes) -> None:
        """No caller got what this reply gives: release it, or it would stay open for ever."""
        self._report(e)
        if e.errno not in NOT_AWAITED:  # where the kernel could not even read whose reply this is, the caller waits on
            self._refuse(opcode, unique, errno.EIO)
        with logged(f"taking back the reply to opcode {opcode}"):
            if opcode == wire.READDIRPLUS:
                self._ops.forget([(nodeid, 1) for nodeid in wire.looked_up(body)])
            elif opcode in GIVES_LOOKUP:
                (nodeid,) = wire.U64.unpack_from(body)
                self._ops.forget([(nodeid, 1)] if nodeid else [])
        with logged(f"taking back the reply to opcode {opcode}"):
            if opcode in GIVES_HANDLE:
                fh, _, _ = wire.OPEN_OUT.unpack_from(body, len(body) - wire.OPEN_OUT.size)
                release = self._ops.releasedir if opcode == wire.OPENDIR else self._ops.release
                self._nursery.start_soon(_logged, release(fh), f"the release of handle {fh}")


def _read_failed(number: int) -> None:
    """Returns where there is nothing to do; else raises Ended, or the error."""
    check_read(os_error(number))


async def _logged(work: Coroutine[Any, Any, None], what: str) -> None:
    with logged(what):
        await work
