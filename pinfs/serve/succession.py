"""From one daemon of a mount to the next (SPEC 13): what this one leaves, and what it has taken over."""

import logging
import os
import time
from collections.abc import Callable, Iterable

from pinfs.bridge.once import Once
from pinfs.config.options import MountOptions
from pinfs.fs.recorder import Recorder
from pinfs.journal.records import EXPORT_GENERATION, LEFT, TextId
from pinfs.journal.slots import JournalFullError, Slots
from pinfs.linux.proc import age_s
from pinfs.serve.assembly import FileSystem
from pinfs.serve.descriptorstore import DescriptorStore
from pinfs.serve.history import End, Survival, takeover
from pinfs.serve.takeover import CONNECTION, JOURNAL, SOURCE, Identity, Left, TakeOver, new_journal

log = logging.getLogger("pinfs.daemon")


class Succession:
    """Of one daemon. `store`: what holds descriptors while there is none (None: the mount ends with this daemon).
    `left`: what the daemon before has left (None: this is the first). `ends_because`: why there is no store."""

    def __init__(
        self, store: DescriptorStore | None, fs: FileSystem, left: Left | None = None, ends_because: str = ""
    ) -> None:
        self._store = store
        self._fs = fs
        self._left = left
        self._takeover: TakeOver | None = None
        self._journal_fd = -1
        self._ends_because = ends_because
        self._is_kept = left is not None
        fs.life.survival = self._survival
        if store is not None:
            fs.upgrade.request = store.ask_to_hand_over

    @property
    def is_certain(self) -> bool:
        """Whether another daemon can take over now."""
        if self._store is None or self._store.lost_because or not self._is_kept:
            return False
        recorder = self._fs.recorder
        return not self.has_begun if recorder is None else not recorder.broken_because

    @property
    def has_begun(self) -> bool:
        """Whether this daemon has changed anything of the mount: not if it is to take over and has not yet."""
        return self._left is None or self._takeover is not None

    def fail(self, why: str) -> None:
        """This daemon ends, and the mount does not."""
        if self._store is not None:
            self._store.failed(why)

    def _survival(self) -> Survival:
        store, recorder = self._store, self._fs.recorder
        if store is None or recorder is None:
            return Survival(None, self._ends_because or "the mount has just begun", None)
        why = store.lost_because or recorder.broken_because
        return Survival(store.kind, why, recorder.slots, store.status())

    # Leaving

    def begin(self) -> None:
        """Write down what the next daemon needs, from before the first request on."""
        if self._store is None:
            return
        if self._fs.backing.threads is not None:  # threads work on it, and one writes the journal
            self._end_with_this("the source is served by another program or machine")
            return
        try:
            self._journal_fd, slots = new_journal()
        except (OSError, JournalFullError) as e:
            self._end_with_this(f"there is no journal: {e}")
            return
        if self._fs.operations.exports is not None:
            slots.words[EXPORT_GENERATION] = self._fs.operations.exports.own_generation
        self._fs.record(self._recorder(slots, self._store))
        self._fs.write_texts()

    def _recorder(self, slots: Slots, store: DescriptorStore) -> Recorder:
        return Recorder(slots, store, self._fs.inodes.device, self._fs.guard.book.files.__contains__)

    def keep(self, mount: Identity, source_fd: int, connection: int) -> Once | None:
        """The mount is usable: give the store all that the next daemon begins with. None: the mount ends with this
        one. The descriptors stay the caller's, and open."""
        recorder, store = self._fs.recorder, self._store
        if recorder is None or store is None:
            return None
        if not mount.negotiated.resends:
            self._end_with_this("the kernel does not send requests again (Linux 6.9)")
            return None
        assert self._fs.streams is not None  # as there is a recorder
        self._fs.streams.text(TextId.IDENTITY, mount.to_json())
        kept = {SOURCE: source_fd, JOURNAL: self._journal_fd, CONNECTION: connection}
        if not all(store.keep(name, fd) for name, fd in kept.items()):
            self._end_with_this("there is no room for its descriptors")
            return None
        store.mounted(mount.mountpoint, mount.device)
        self._is_kept = True
        return Once(recorder, self._fs.operations, self._fs.parts)

    def _end_with_this(self, why: str) -> None:
        log.info("the mount ends with this daemon: %s", why)
        self._ends_because = why
        self._fs.record(None)
        self._fs.upgrade.request = None
        for name in (SOURCE, JOURNAL, CONNECTION):
            if self._store is not None:
                self._store.drop(name)

    async def leave(self) -> None:
        """Before this daemon ends and the mount does not: what was sent to the store has arrived."""
        self._fs.write_texts()
        if self._fs.recorder is not None:
            self._fs.recorder.slots.words[LEFT] = time.monotonic_ns()
        if self._store is not None:
            await self._store.barrier()

    def close(self) -> None:
        """The mount is over."""
        if self._store is not None:
            self._store.ended()
        recorder = self._fs.recorder
        if recorder is not None:
            self._fs.record(None)
            recorder.close()
        if self._journal_fd >= 0:
            os.close(self._journal_fd)
            self._journal_fd = -1

    # Taking over

    @property
    def passthrough_unavailable_because(self) -> str:
        """As the daemon before has found it: the kernel does not let that change."""
        return "" if self._left is None else self._left.identity.passthrough_unavailable_because

    def take_over(self, resume_seal: Callable[[], None], wake_pollers: Callable[[Iterable[int]], None]) -> Once:
        """Before the first request: restore all that the daemon before knew."""
        left, store, fs = self._left, self._store, self._fs
        assert left is not None
        assert store is not None
        if fs.operations.exports is not None:
            fs.operations.exports.own_generation = left.slots.words[EXPORT_GENERATION]
        recorder = self._recorder(left.slots, store)
        over = self._takeover = TakeOver(fs, recorder, left)
        over.begin(resume_seal)
        wake_pollers(over.restored.pollers)
        fs.life.history.add(takeover(self._end_before(left, store), over.restored.counts, over.restored.lost))
        fs.write_texts()
        store.mounted(left.identity.mountpoint, left.identity.device)
        return Once(recorder, fs.operations, fs.parts, over.restored, over.pending)

    def _end_before(self, left: Left, store: DescriptorStore) -> End:
        """How the daemon before ended: by its last word, by the keeper's, or by what must have been."""
        left_at, left.slots.words[LEFT] = left.slots.words[LEFT] / 1e9, 0
        before = store.predecessor
        at = before.died_at_s or left_at or time.monotonic() - age_s()
        if left_at:
            return End("handed over", at)
        return End("hung" if before.has_hung else "died", at, before.why)

    async def wait_restored(self) -> None:
        """Returns when all pins of the daemon before are in the book."""
        if self._takeover is not None:
            await self._takeover.pending.wait_for_all()

    async def finish(self, kernel_knows: Callable[[int], bool]) -> None:
        """What need not be done before the first request. `kernel_knows`: whether the kernel has an inode with this
        node id."""
        if self._takeover is not None:
            await self._takeover.finish(kernel_knows)


def ends_because(options: MountOptions) -> str:
    """Why the mount ends with its daemon, where there is no store."""
    if options.bridge == "off":
        return "the bridge is switched off (bridge=off)"
    if options.survive == "off":
        return "switched off (survive=off)"
    return "in the foreground, and without a service manager that keeps descriptors (survive=on changes that)"
