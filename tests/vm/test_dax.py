"""Real fs-dax, in a machine of its own: an emulated NVDIMM, ext4 and xfs, two kernels (SPEC 3.9). Only with `-m vm`:

    make test TESTS=tests/vm PYTEST_ARGS="-m vm -s"

Needs root, qemu-system-x86_64 and debootstrap, but no KVM. The first run builds the machine (`image.py`), in two
minutes; each kernel takes five minutes more. With -s it prints a report.
"""

from __future__ import annotations

import pytest

from vm import report
from vm.machine import Seen, boot, newest_kernel, nvdimms, of

pytestmark = pytest.mark.vm

LONGEST_STAT_S = 0.5
"""On one emulated processor; natively 50 ms."""
PROMPT_S = 5.0
"""For a removal that no deadline ends, there: a tenth of a second is usual."""


@pytest.fixture(scope="module", params=["6.", "7."])
def seen(request: pytest.FixtureRequest, root: None, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    base = tmp_path_factory.mktemp("vm")
    with nvdimms(base) as devices:
        found = boot(newest_kernel(request.param), base, "guest.py", *devices, machine="q35,nvdimm=on")
    print(f"\n{report.dax(found)}")
    return found


def _of(seen: Seen, kind: str, what: str) -> Seen:
    return of(seen, kind=kind, what=what)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
class TestPins:
    def test_status_and_doctor_say_that_pages_are_not_pinned(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "says")
        assert one["page_pins"] == "no"
        assert ["DAX" in text for text in one["doctor"]] == [True, True]

    def test_a_mapping_is_the_medium(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "medium")
        assert (one["in_file"], one["in_device"]) == (True, True)

    def test_without_pinfs_a_held_page_hangs_a_truncate(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "natively")
        assert (one["waits"], one["reads"], one["other_file"], one["holder"]) == ("hangs", "hangs", "done", "hangs")
        assert (one["ended"], one["reads_then"]) == ("signal 9", "done")
        assert (one["size"], one["let_go"]) == (65536, "done")

    @pytest.mark.parametrize("held", [False, True])
    def test_a_deny_pin_refuses_at_once(self, seen: Seen, kind: str, held: bool) -> None:
        found = [one for one in _of(seen, kind, "deny") if one["held"] is held]
        assert [one["op"] for one in found] == ["truncate", "punch_hole", "open_trunc", "zero_range"]
        for one in found:
            assert (one["ended"], one["size"]) == ("EBUSY", 65536)
            assert one["took_s"] < PROMPT_S
        (ended,) = [one for one in _of(seen, kind, "deny ended") if one["held"] is held]
        assert (ended["holder"], ended["ended"]) == ("done", "done")

    def test_a_lease_has_the_holder_let_go_of_the_page(self, seen: Seen, kind: str) -> None:
        found = _of(seen, kind, "lease")
        assert [one["op"] for one in found] == ["truncate", "punch_hole", "open_trunc", "zero_range"]
        for one in found:
            assert (one["ended"], one["holder"]) == ("done", "done")
            assert one["took_s"] < PROMPT_S


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
class TestDAX:
    def test_the_deadline_ends_a_removal(self, seen: Seen, kind: str) -> None:
        found = _of(seen, kind, "deadline")
        assert [one["op"] for one in found] == ["truncate", "punch_hole", "open_trunc"]
        for one in found:
            assert one["ended"] == "EBUSY"
            assert 8 <= one["took_s"] < 12
            assert one["longest_stat_s"] < LONGEST_STAT_S
            assert one["same_file"] == "done"
            assert one["size"] == 65536
            (shown,) = one["shown"]
            assert (shown["op"], shown["path"]) == (one["op"], one["op"])
            assert [mapper["pid"] for mapper in shown["mapped_by"]] == [one["holder_pid"]]
            assert (one["holder"], one["afterwards"]) == ("done", "done")

    def test_a_signal_ends_it_at_once(self, seen: Seen, kind: str) -> None:
        found = _of(seen, kind, "interrupt")
        assert [(one["signal"], one["ended"]) for one in found] == [("SIGINT", "signal 2"), ("SIGKILL", "signal 9")]
        for one in found:
            assert one["took_s"] < 2
            assert one["quiet_s"] < 2
            assert one["size"] == 65536

    def test_a_breaker_that_holds_the_page_itself_does_not_stop_the_mount(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "own")
        assert one["ended"] == "EBUSY"
        assert one["longest_stat_s"] < LONGEST_STAT_S

    def test_a_mapping_that_stays_when_the_page_is_let_go_does_not_hold_a_removal_beyond_the_deadline(
        self, seen: Seen, kind: str
    ) -> None:
        (one,) = _of(seen, kind, "refault")
        if one["kernel"].startswith("7.3"):
            assert one["without_page"] == "hangs"
        done = one["without_page"] == "done"
        assert (one["ended"], one["size"]) == (("done", 0) if done else ("EBUSY", 65536))
        assert one["took_s"] < 12
        assert one["let_go_s"] < 2
        assert one["longest_stat_s"] < LONGEST_STAT_S
        assert (one["holder"], one["afterwards"]) == ("done", "done")

    def test_a_device_that_writes_into_the_page_holds_a_removal_until_its_deadline(self, seen: Seen, kind: str) -> None:
        answers, silent, pinned = _of(seen, kind, "odirect")
        assert (answers["alone"], answers["ended"], answers["size"]) == ("hangs", "done", 0)
        assert (silent["alone"], silent["ended"], silent["size"], silent["reads"]) == ("hangs", "EBUSY", 65536, "hangs")
        assert (pinned["alone"], pinned["ended"], pinned["size"], pinned["reads"]) == ("EBUSY",) * 2 + (65536, "hangs")
        assert answers["took_s"] < 8 <= silent["took_s"] < 12
        for one in (answers, silent, pinned):
            assert one["reader"] == "done"
            assert one["longest_stat_s"] < LONGEST_STAT_S

    def test_an_eviction_that_waits_does_not_stop_the_mount(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "evict")
        assert (one["other_file"], one["holder"]) == ("done", "done")
        assert one["over_s"] is not None
        if one["kernel"].startswith("7."):
            assert one["seen_s"] is not None

    def test_the_daemon_ends_in_order_meanwhile(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "end")
        assert (one["ended"], one["code"], one["mounted"], one["size"]) == ("EBUSY", 0, False, 65536)
        assert one["took_s"] < 10


SEALED, OPEN, CUT = {"sealed": True, "size": 65536}, {"sealed": False, "size": 65536}, {"sealed": True, "size": 16384}
"""A file with its seal, one that has none while a removal beside its pin waits, and after that removal."""


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
class TestSeals:
    def test_files_are_sealed_unless_the_kernel_could_not_open_them_then(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "seals")
        if one["kernel"].startswith("6."):
            assert one["seal"] is True
        assert one["seal"] or "passthrough" in one["because"]

    def test_the_seal_is_lifted_for_a_removal_that_waits_and_set_again_at_its_deadline(
        self, seen: Seen, kind: str
    ) -> None:
        (one,) = _of(seen, kind, "seal deadline")
        assert (one["before"], one["during"], one["after"], one["beside"]) == (SEALED, OPEN, SEALED, True)
        assert (one["ended"], one["why"]) == ("EBUSY", ["kernel"])
        assert 8 <= one["took_s"] < 12
        assert one["longest_stat_s"] < LONGEST_STAT_S
        assert one["pinned"] == "done"
        assert one["behind"] == "EPERM"
        assert (one["holder"], one["afterwards"], one["in_the_end"]) == ("done", "done", CUT)
        assert one["lifted_s"] is not None

    def test_it_is_set_again_after_an_interrupt(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "seal interrupt")
        assert (one["during"], one["ended"], one["after"]) == (OPEN, "signal 2", SEALED)
        assert (one["chmod"], one["mode"]) == ("done", 0o640)

    def test_it_is_set_again_after_the_last_of_several_removals(self, seen: Seen, kind: str) -> None:
        (one,) = _of(seen, kind, "seal let go")
        assert (one["during"], one["ended"], one["after"]) == (OPEN, ["done", "done"], CUT)

    def test_seals_stay_when_the_daemon_is_killed_while_a_removal_waits_and_are_found_again(
        self, seen: Seen, kind: str
    ) -> None:
        """The file of the removal has none, as it was lifted; its bytes are there."""
        (one,) = _of(seen, kind, "seal kill")
        assert one["ended"] in ("ECONNABORTED", "ENOTCONN", "EIO")
        assert (one["after"], one["beside"], one["behind"]) == (OPEN, True, "EPERM")
        (found,) = one["doctor"]
        assert "still sealed" in found
        assert (one["after_mount"], one["beside_after_mount"], one["code"]) == (OPEN, False, 0)
