"""Two breakers meet two pins (SPEC 3.1, 3.4, 3.5): who is told what, and who is served first.

One of two breakers of a file is an open with O_TRUNC: the kernel holds back a second truncate or fallocate before the
daemon sees it. Each order of service leaves another file.
"""

from __future__ import annotations

import errno
import select
import signal
from pathlib import Path
from typing import Any

import pytest
from support import acts as common
from support.actor import Pending
from support.mounts import Mount

from breaks import acts
from breaks.acts import HOLE, INSIDE, ORIGINAL, PAGE, SIZE
from breaks.seeing import Channel, waiting

SHARED_MOUNT_OPTIONS = ("break_timeout=100",)
FIRST, MIDDLE, LAST = (f"{start}:{PAGE},mode=lease,signal=none" for start in (0, PAGE, 2 * PAGE))
WHOLE = ("open_trunc", 0, None)
"""What an event says of a breaker: operation, and the bytes that it takes."""
TAIL = ("truncate", INSIDE, None)
PUNCHED = ("punch_hole", INSIDE, INSIDE + HOLE)

Told = tuple[str, int, int | None]


class Holder:
    """A process with leases called p, and an event channel."""

    def __init__(self, mount: Mount, *places: tuple[Path, str]) -> None:
        self._actor = mount.actor()
        self._channel = Channel(mount, self._actor)
        self._events: list[dict[str, Any]] = []
        for path, value in places:
            self._actor.pin(path, "p", value)

    def told(self) -> list[str]:
        """The kinds of all events so far."""
        while self._actor(common.poll, self._channel.fd, select.POLLIN, 0):
            self._events += self._channel.next()
        return [event["event"] for event in self._events]

    def breaks(self) -> list[Told]:
        """What each break said that it has been told of."""
        self.told()
        return [(event["op"], event["from"], event["to"]) for event in self._events if event["event"] == "break"]

    def release(self, path: Path) -> None:
        self._actor.release(path, "p")


def breaker(mount: Mount, operation: str, file: Path, *, waits: int) -> Pending[None]:
    """A process that does one of the operations of acts. Returns when `waits` breakers wait in all."""
    pending = mount.actor().start(acts.operate, operation, str(file.parent))
    waiting(mount, waits)
    return pending


@pytest.mark.parametrize("last_one_first", [True, False])
def test_a_truncate_and_an_open_behind_it(patient: Mount, file: Path, last_one_first: bool) -> None:
    """The open wants both pins, the truncate one of them. It is served first, whichever holder lets go first."""
    first, last = Holder(patient, (file, FIRST)), Holder(patient, (file, LAST))
    truncating = breaker(patient, "truncate", file, waits=1)
    assert (first.breaks(), last.breaks()) == ([], [TAIL])
    opening = breaker(patient, "open_trunc", file, waits=2)
    assert (first.breaks(), last.breaks()) == ([WHOLE], [TAIL])
    if last_one_first:
        last.release(file)
        assert truncating.error() is None
        assert (file.stat().st_size, opening.done()) == (INSIDE, False)
        first.release(file)
    else:
        first.release(file)
        waiting(patient, 2)
        assert file.stat().st_size == SIZE
        last.release(file)
        assert truncating.error() is None
    assert opening.error() is None
    assert file.stat().st_size == 0  # the truncate, had it been second, would have made the file longer
    assert first.told() == last.told() == ["break", "released"]


def test_an_open_and_a_truncate_behind_it(patient: Mount, file: Path) -> None:
    """The truncate joins the break of its pin, and waits for the open when this pin has gone."""
    first, last = Holder(patient, (file, FIRST)), Holder(patient, (file, LAST))
    opening = breaker(patient, "open_trunc", file, waits=1)
    truncating = breaker(patient, "truncate", file, waits=2)
    last.release(file)
    waiting(patient, 2)
    assert (opening.done(), truncating.done(), file.stat().st_size) == (False, False, SIZE)
    first.release(file)
    assert (opening.error(), truncating.error()) == (None, None)
    assert file.stat().st_size == INSIDE  # cut to nothing first, and then made longer
    assert first.breaks() == last.breaks() == [WHOLE]
    assert first.told() == last.told() == ["break", "released"]


def test_a_punched_hole_and_an_open_behind_it(patient: Mount, file: Path) -> None:
    middle, last = Holder(patient, (file, MIDDLE)), Holder(patient, (file, LAST))
    punching = breaker(patient, "punch_hole", file, waits=1)
    opening = breaker(patient, "open_trunc", file, waits=2)
    assert (middle.breaks(), last.breaks()) == ([PUNCHED], [WHOLE])
    middle.release(file)
    assert punching.error() is None
    assert not opening.done()
    assert file.read_bytes() == ORIGINAL[:INSIDE] + bytes(HOLE) + ORIGINAL[INSIDE + HOLE :]
    last.release(file)
    assert opening.error() is None
    assert file.stat().st_size == 0
    assert middle.told() == last.told() == ["break", "released"]


def test_two_files_crosswise(patient: Mount, shared_dir: Path) -> None:
    """Two holders have each a lease of both files. The breaker of one file does not wait for that of the other."""
    files = [shared_dir / name / "f" for name in ("one", "two")]
    for path in files:
        path.parent.mkdir()
        path.write_bytes(ORIGINAL)
    one, two = files
    left, right = (Holder(patient, (one, value), (two, value)) for value in (MIDDLE, LAST))
    cuts = [breaker(patient, "truncate", path, waits=waits) for waits, path in enumerate(files, 1)]
    assert left.breaks() == right.breaks() == [TAIL, TAIL]
    left.release(one)
    right.release(two)
    waiting(patient, 2)
    assert [cut.done() for cut in cuts] == [False, False]
    left.release(two)
    assert cuts[1].error() is None  # it came later
    assert (cuts[0].done(), one.stat().st_size, two.stat().st_size) == (False, SIZE, INSIDE)
    right.release(one)
    assert cuts[0].error() is None
    assert one.stat().st_size == INSIDE
    assert left.told() == right.told() == ["break", "break", "released", "released"]


def test_at_the_deadline_both_are_refused_and_each_holder_is_told_once(patient: Mount, file: Path) -> None:
    """The open joins the truncate's break, and with it a deadline that is earlier than its own."""
    patient.policy("break_timeout = 1")
    first, last = Holder(patient, (file, FIRST)), Holder(patient, (file, LAST))
    truncating = breaker(patient, "truncate", file, waits=1)
    opening = breaker(patient, "open_trunc", file, waits=2)
    assert (truncating.error(), opening.error()) == (errno.EBUSY, errno.EBUSY)
    assert first.told() == last.told() == ["break", "withdrawn"]
    assert [pin["state"] for pin in patient.pins()] == ["held", "held"]
    assert file.read_bytes() == ORIGINAL


def test_the_second_goes_on_without_the_first(patient: Mount, file: Path) -> None:
    """A killed breaker leaves its break to the one behind it; nobody is told again."""
    first, last = Holder(patient, (file, FIRST)), Holder(patient, (file, LAST))
    doomed = patient.actor()
    doomed.start(acts.operate, "truncate", str(file.parent))
    waiting(patient)
    opening = breaker(patient, "open_trunc", file, waits=2)
    doomed.signal(signal.SIGKILL)
    waiting(patient, 1)
    for holder in (last, first):
        assert not opening.done()
        holder.release(file)
    assert opening.error() is None
    assert file.stat().st_size == 0
    assert (first.breaks(), last.breaks()) == ([WHOLE], [TAIL])
    assert first.told() == last.told() == ["break", "released"]
