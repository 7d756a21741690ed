"""The breaks under way."""

from pinfs.core.deadlines import Deadlines
from pinfs.core.files import Files
from pinfs.core.owners import Owner, ProcessId
from pinfs.core.pins import Break, Pin
from pinfs.core.removals import Removal
from pinfs.core.table import discard


class Breaks:
    """Each breaking pin has one break and one deadline, and is found by its file, its owner and its process."""

    def __init__(self, files: Files, deadlines: Deadlines) -> None:
        self.of_owner: dict[Owner, dict[int, Pin]] = {}
        """The breaking pins of each owner, by id."""
        self.of_handles: dict[ProcessId | None, dict[int, Pin]] = {}
        """Those that belong to handles, by the process that registered them."""
        self.killed: dict[Owner | None, dict[int, Pin]] = {}
        """Processes that have been sent SIGKILL, and the breaking pins for which, by id."""
        self._files = files
        self._deadlines = deadlines

    def begin(self, pin: Pin, removal: Removal, now: float) -> Break:
        """Start the break of a pin that is not breaking, for `break_timeout` seconds (SPEC 3.4)."""
        policy = removal.policy
        breaking = Break(pin, policy, now, removal.request.op, removal.start, removal.end)
        breaking.host = removal.request.host
        self._add(breaking, now + policy.break_timeout)
        return breaking

    def restore(self, breaking: Break, deadline: float) -> None:
        """A break that the daemon before had begun: its holder has been notified, and its time goes on."""
        self._add(breaking, deadline)
        if breaking.killed:
            self.killed.setdefault(breaking.pin.process, {})[breaking.pin.id] = breaking.pin

    def _add(self, breaking: Break, deadline: float) -> None:
        pin = breaking.pin
        pin.breaking = breaking
        self._deadlines.set(breaking, deadline)
        owned = self.of_owner.get(pin.owner)
        if owned is None:
            self.of_owner[pin.owner] = {pin.id: pin}
        else:
            owned[pin.id] = pin
        if pin.process is not pin.owner and pin.process != pin.owner:
            self.of_handles.setdefault(pin.process, {})[pin.id] = pin
        self._files[pin.inode].add_breaking(pin)

    def end(self, breaking: Break) -> None:
        """The break of a pin that has left the table is over."""
        pin = breaking.pin
        pin.breaking = None
        self._deadlines.drop(breaking)
        discard(self.of_owner, pin.owner, pin.id)
        if pin.process is not pin.owner and pin.process != pin.owner:
            discard(self.of_handles, pin.process, pin.id)
        if breaking.killed:
            discard(self.killed, pin.process, pin.id)

    def keep(self, breaking: Break) -> None:
        """The break is over and the pin stays."""
        file = self._files[breaking.pin.inode]
        file.take_breaking(breaking.pin)
        self.end(breaking)

    def of_process(self, process: ProcessId) -> list[Pin]:
        """The breaking pins of a process and of handles for which it registered pins, oldest break first."""
        pins = [*self.of_owner.get(process, {}).values(), *self.of_handles.get(process, {}).values()]
        return sorted(pins, key=lambda pin: pin.breaking.seq if pin.breaking is not None else 0)

    def kill(self, breaking: Break, deadline: float) -> None:
        """The holder is sent SIGKILL, and has until `deadline` to end."""
        breaking.killed = True
        self.killed.setdefault(breaking.pin.process, {})[breaking.pin.id] = breaking.pin
        self._deadlines.set(breaking, deadline)

    def is_waited_for(self, pin: Pin) -> bool:
        """Does a removal or an orphan wait for this pin to go?"""
        file = self._files[pin.inode]
        for reservation in file.reserved_over(pin):  # noqa: SIM110 - cpdef methods have no generators
            if reservation.breaks_pins:
                return True
        return False
