"""Every cell of SPEC 2 and 3 on a real mount with real processes, against an oracle that knows the contract only."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import NewMount
from support.actor import eventually
from support.mounts import Mount, Trace

from breaks import acts
from breaks.cases import BATCHES, DISK_BATCHES, Batch, directory, policy
from breaks.oracle import Case, Outcome, expected
from breaks.seeing import drained
from breaks.table import GENERATED, is_current, shown_cases

QUICK_S = 0.2
PATIENT_S = 60
WORKERS = 96
QUIET = {"pinned", "proceeded", "refused", "policy"}
SHARED_MOUNT_OPTIONS = ("log_level=warning",)


@dataclass
class Trial:
    """A case, where it takes place, and what the breaker got."""

    case: Case
    place: str
    inode: int
    errno: int | None = None


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"{batch.conflict}-{batch.on_timeout}")
def test_every_case(shared_mount: Mount, batch: Batch) -> None:
    assert _mistakes(shared_mount, batch) == []


def test_every_case_of_zero_range(new_mount: NewMount) -> None:
    """On a disk: tmpfs has no FALLOC_FL_ZERO_RANGE."""
    mount = new_mount(*SHARED_MOUNT_OPTIONS, backing="disk")
    assert [_mistakes(mount, batch) for batch in DISK_BATCHES] == [[]] * len(DISK_BATCHES)


def test_the_table_in_the_documentation_is_current() -> None:
    assert is_current(GENERATED.read_text()), "python -m tests.breaks.table"


def test_the_table_shows_what_is_tested() -> None:
    tested = {case for batch in (*BATCHES, *DISK_BATCHES) for case in batch.cases()}
    assert set(shown_cases()) <= tested


def _mistakes(mount: Mount, batch: Batch) -> list[tuple[Case, Outcome, Outcome]]:
    """Does all cases of a batch. Returns (case, expected, seen) where that differs."""
    trials = _laid_out(mount, batch)
    mount.policy(policy(batch, [trial.case for trial in trials], QUICK_S, PATIENT_S))
    with mount.trace() as trace:
        breaker, nest = mount.actor(), mount.actor()
        mount.actor()(acts.answer_breaks, str(mount.path), _held_by(mount, trials, "answers"))
        for fate in ("silent", "stopped", "dead"):  # who is killed for one case must not hold the pin of another
            hatch = acts.hatch_one_each if batch.kills and fate != "dead" else acts.hatch
            nest(hatch, fate, _held_by(mount, trials, fate))
        breaker(acts.pin_all, _held_by(mount, trials, "own"))
        work = [(trial.case.operation.name, f"{mount.path}/{trial.place}") for trial in trials]
        for trial, errno in zip(trials, breaker(acts.perform, work, WORKERS), strict=True):
            trial.errno = errno
        eventually(lambda: all(pin["state"] == "held" for pin in mount.pins()))
        standing = Counter(pin["inode"] for pin in mount.pins())
        events = _events(trace)
        nest(acts.cull)
        mount.dismiss()
    eventually(lambda: not mount.pins())
    seen = [_seen(mount, trial, events[trial.inode], standing) for trial in trials]
    wanted = [expected(trial.case) for trial in trials]
    return [(t.case, w, s) for t, w, s in zip(trials, wanted, seen, strict=True) if w != s]


def _laid_out(mount: Mount, batch: Batch) -> list[Trial]:
    trials = []
    for number, case in enumerate(batch.cases()):
        place = f"{directory(case)}/{batch.conflict}-{batch.on_timeout}-{number}"
        trials.append(Trial(case, place, acts.lay_out(case.operation.name, f"{mount.source}/{place}")))
    return trials


def _held_by(mount: Mount, trials: list[Trial], holder: str) -> list[acts.Place]:
    pinned = ((f"{mount.path}/{trial.place}/f", trial.case.pinned) for trial in trials)
    return [(path, pin.owner, pin.mode) for path, pin in pinned if pin is not None and pin.holder == holder]


def _events(trace: Trace) -> dict[int, list[dict[str, Any]]]:
    """All that has happened so far, by inode."""
    by_inode: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in drained(trace):
        by_inode[event.get("inode", 0)].append(event)
    return by_inode


def _seen(mount: Mount, trial: Trial, events: list[dict[str, Any]], standing: Counter[int]) -> Outcome:
    """The outcome as events, the table of pins and the source show it; what contradicts itself is a failure here."""
    told = []
    for event in events:
        if event["event"] not in QUIET and not (event["event"] == "released" and event["by"] in ("death", "close")):
            told.append(f"{event['event']} by {event['by']}" if "by" in event else event["event"])
    source = f"{mount.source}/{trial.place}"
    if trial.errno is None:
        assert acts.IS_DONE[trial.case.operation.name](source), trial
    else:
        assert acts.is_untouched(source), trial
    return Outcome(trial.errno, tuple(told), bool(standing[trial.inode]))
