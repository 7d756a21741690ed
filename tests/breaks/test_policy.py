"""Policy at run time (SPEC 8): refused whole, logged, by rule, and without effect on breaks that have begun."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.actor import eventually
from support.mounts import REPO, Mount

from breaks import acts
from breaks.acts import ORIGINAL, PAGE
from breaks.conftest import PATIENT
from breaks.seeing import pin_of, waiting

SHARED_MOUNT_OPTIONS = ("break_timeout=100",)
LEASE = f"{PAGE}:{PAGE},mode=lease,signal=none"
DENY = f"{PAGE}:{PAGE}"

BAD = {
    "conflict = \n": ("", 1),
    'break_timeout = 1\nconflict = "maybe"\n': ("conflict", 2),
    "break_timeout = 1\nbreak_timeout_ = 1\n": ("break_timeout_", 2),
    "break_timeout = -1\n": ("break_timeout", 1),
    "break_timeout = true\n": ("break_timeout", 1),
    "break_timeout = inf\n": ("break_timeout", 1),
    "break_timeout = nan\n": ("break_timeout", 1),
    "max_pins = 1.5\n": ("max_pins", 1),
    "max_waiting = 100000000000\n": ("max_waiting", 1),
    '\n[[rule]]\nunlink = "deny"\n': ("path", 2),
    '[[rule]]\npath = "a"\n[[rule]]\npath = "b"\nmax_pins = 1\n': ("max_pins", 5),
    '[[rule]]\npath = "a"\nown = "no"\n': ("own", 3),
    '[[rule]]\npath = "../a"\n': ("path", 2),
    '[rule]\npath = "a"\n': ("rule", 1),
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_bad_policy_is_refused_whole_with_key_and_line(patient: Mount, text: str) -> None:
    key, line = BAD[text]
    before = patient.policy()
    patient.expect_log(r"WARNING.*policy from uid 0 refused, the old one stays in force: ")
    with pytest.raises(OSError, match="Invalid argument"):
        patient.policy(text)
    why = patient.control("policy.error").read_text()
    assert f"line {line}: {key}" in why
    assert why in patient.log()
    assert patient.policy() == before
    patient.policy(PATIENT)
    assert patient.control("policy.error").read_text() == ""


def test_every_change_is_logged(patient: Mount) -> None:
    patient.policy(PATIENT + 'own = "allow"\nmax_pins = 7\n[[rule]]\npath = "a/*"\nunlink = "deny"\n')
    patient.policy(PATIENT)
    log = patient.log()
    for line in (
        "own: deny -> allow",
        "max_pins: 2500000 -> 7",
        "rule added: path='a/*' unlink=deny",
        "own: allow -> deny",
        "max_pins: 7 -> 2500000",
        "rule gone: path='a/*' unlink=deny",
    ):
        assert f"policy from uid 0: {line}" in log


def test_what_is_shown_can_be_put_in_force_again(patient: Mount) -> None:
    patient.policy('errno = "ETXTBSY"\n[[rule]]\npath = "with \\"quotes\\"/**"\nbreak_timeout = 0.25\n')
    shown = patient.control("policy").read_text()
    before = patient.policy()
    patient.policy(PATIENT)
    assert patient.policy(shown) == before


def test_the_last_rule_that_matches_decides(patient: Mount, shared_dir: Path) -> None:
    name = shared_dir.name
    patient.policy(
        PATIENT
        + f'[[rule]]\npath = "{name}/**"\nerrno = "ETXTBSY"\n'
        + '[[rule]]\npath = "*.log"\nconflict = "break"\non_timeout = "revoke"\nbreak_timeout = 0.05\n'
        + f'[[rule]]\npath = "/{name}/deep/*/k*"\nown = "allow"\n'
    )
    wanted = {"f": errno.ETXTBSY, "f.log": None, "deep/x/k.log": errno.EBUSY, "deep/x/y/k": errno.ETXTBSY}
    holder, breaker = patient.actor(), patient.actor()
    for place, answer in wanted.items():
        path = shared_dir / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ORIGINAL)
        holder.pin(path, "p", DENY)
        assert breaker.errno(os.truncate, str(path), 0) == answer, place
        assert _explained(path)["policy"]["errno"] == ("ETXTBSY" if answer == errno.ETXTBSY else "EBUSY")
    assert holder.errno(os.truncate, str(shared_dir / "deep/x/k.log"), 0) is None  # own, by the third rule


def _explained(path: Path) -> dict[str, Any]:
    """`pinfs policy explain`."""
    command = [sys.executable, "-m", "pinfs.cli.main", "policy", "explain", "--json", str(path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_file_goes_to_another_rule_with_its_name(patient: Mount, file: Path) -> None:
    patient.policy(PATIENT + '[[rule]]\npath = "text.*"\nerrno = "ETXTBSY"\n')
    patient.actor().pin(file, "p", DENY)
    breaker = patient.actor()
    assert breaker.errno(os.truncate, str(file), 0) == errno.EBUSY
    named = file.rename(file.parent / "text.file")
    assert breaker.errno(os.truncate, str(named), 0) == errno.ETXTBSY
    assert _explained(named)["rule"] == {"number": 1, "path": "text.*"}


def test_a_break_goes_on_under_the_policy_that_it_began_with(patient: Mount, file: Path) -> None:
    """Its deadline has been told to the holder."""
    holder = patient.actor()
    holder.pin(file, "p", LEASE)
    cut = patient.actor().start(os.truncate, str(file), 0)
    waiting(patient)
    patient.policy('break_timeout = 0\non_timeout = "kill"\nconflict = "deny"')
    second = file.parent / "second"
    second.write_bytes(ORIGINAL)
    victim = patient.actor()
    victim.pin(second, "p", LEASE)
    assert patient.actor().errno(os.truncate, str(second), 0) == errno.EBUSY  # the new one holds for what is new
    assert pin_of(patient, file)["remaining_s"] > 50
    holder.release(file, "p")
    assert cut.error() is None


def test_a_timeout_of_zero_asks_and_goes_on_at_once(patient: Mount, file: Path) -> None:
    patient.policy('break_timeout = 0\non_timeout = "revoke"')
    patient.actor().pin(file, "p", LEASE)
    assert patient.actor().errno(os.truncate, str(file), 0) is None


def test_kill_ends_the_holder_and_nobody_else(patient: Mount, file: Path) -> None:
    patient.policy('break_timeout = 0.1\non_timeout = "kill"')
    holder, bystander = patient.actor(), patient.actor()
    holder.pin(file, "p", LEASE)
    bystander.pin(file, "p", "0:1,mode=lease,signal=none")
    assert patient.actor().errno(os.truncate, str(file), acts.INSIDE) is None
    assert holder.process.wait(20) == -signal.SIGKILL
    assert bystander(os.getpid) == bystander.pid
    assert pin_of(patient, file)["pid"] == bystander.pid


def test_lower_limits_leave_the_pins_that_stand(patient: Mount, file: Path) -> None:
    holder = patient.actor()
    for number in range(3):
        holder.pin(file, f"p{number}", DENY)
    patient.policy(PATIENT + "max_pins = 1")
    assert len(patient.pins()) == 3
    assert holder.errno(os.setxattr, str(file), "user.pinfs.pin.new", DENY.encode()) == errno.EDQUOT


def test_mount_options_and_sighup(new_mount: Any, base: Path) -> None:
    """-o goes before the file, SIGHUP reads the file again, and a bad one changes nothing."""
    file = base / "policy.toml"
    file.write_text('errno = "ETXTBSY"\nown = "allow"\n')
    mount = new_mount(f"policy={file}", "own=deny")
    assert (mount.policy()["errno"], mount.policy()["own"]) == ("ETXTBSY", "deny")
    file.write_text('unlink = "deny"\nown = "allow"\n')
    mount.process.send_signal(signal.SIGHUP)
    eventually(lambda: mount.policy()["unlink"] == "deny")
    assert (mount.policy()["errno"], mount.policy()["own"]) == ("EBUSY", "deny")
    mount.expect_log(f"WARNING.*policy from SIGHUP refused.*{file}: line 2: own: must be one of")
    file.write_text('unlink = "break"\nown = "maybe"\n')
    mount.process.send_signal(signal.SIGHUP)
    eventually(lambda: "policy from SIGHUP refused" in mount.log())
    assert mount.policy()["unlink"] == "deny"
