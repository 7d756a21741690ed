"""RDMA into files, by soft-RoCE and examples/rdma_*.c, in a machine of its own. Only with `-m vm`:

    make test TESTS=tests/vm PYTEST_ARGS="-m vm -s"

Needs what `test_dax.py` needs. Two minutes a kernel, after the machine has been built. With -s it prints a report.
"""

from __future__ import annotations

from typing import Any

import pytest

from vm import report
from vm.machine import Seen, boot, disk, newest_kernel, nvdimms, of

pytestmark = pytest.mark.vm

BREAK_TIMEOUT_S = 8
PROMPT_S = 5.0
"""For a break that is answered, on an emulated processor: a tenth of a second is usual."""
KINDS = ("tmpfs", "disk", "ext4", "xfs")
REGION_KB = 64
ALL_BUSY = {"truncate": "EBUSY", "punch_hole": "EBUSY", "open_trunc": "EBUSY"}


@pytest.fixture(scope="module", params=["6.", "7."])
def seen(request: pytest.FixtureRequest, root: None, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    base = tmp_path_factory.mktemp("vm")
    with nvdimms(base) as devices:
        source = disk(base / "disk", 512 << 20)
        found = boot(newest_kernel(request.param), base, "guest_rdma.py", *devices, *source, machine="q35,nvdimm=on")
        (base / "disk").unlink()
    print(f"\n{report.rdma(found)}")
    return found


def one(seen: Seen, **wanted: object) -> dict[str, Any]:
    (found,) = of(seen, **wanted)
    return found


def test_the_example_explains_itself(seen: Seen) -> None:
    usage = one(seen, what="usage")
    assert usage["codes"] == [2, 2]
    assert [text.split()[:2] for text in usage["texts"]] == [["usage:", "rdma_region"], ["usage:", "rdma_peer"]]
    assert "not a file of a pinfs mount" in one(seen, what="elsewhere")["registered"]
    by_hand = one(seen, what="by hand")
    assert by_hand["lines"] == [
        "region: 65536 bytes", 'neither "write OFFSET TEXT" nor "read OFFSET LENGTH"',
        "not 1 to 4096 bytes within the region of 65536", "write: success", "read: hello",
    ]  # fmt: skip
    assert (by_hand["code"], by_hand["arrived"]) == (0, True)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", KINDS)
class TestWhatTheKernelAllows:
    def _of(self, seen: Seen, kind: str, native: bool, access: str) -> dict[str, Any]:
        return of(seen, what="allowed", kind=kind, native=native, access=access)[0]

    def test_page_pins_are_what_the_status_says(self, seen: Seen, kind: str, native: bool) -> None:
        """Refusals come with a hint in words."""
        for access, sufficient in (("write", {"yes"}), ("read", {"yes", "reading"})):
            found = self._of(seen, kind, native, access)
            if found["page_pins"] in sufficient:
                assert found["registered"] == "registered: 65536 bytes"
                assert found["completed"] == ("success" if access == "write" else "AAAAA")
                assert found["locked_kb"] >= REGION_KB
            else:
                refusal = "Operation not supported" if found["page_pins"] == "no" else "Bad address"
                assert found["registered"] == f"ibv_reg_mr: {refusal}"
                assert "--on-demand" in found["hint"]
            assert found["at_once"] is (found["completed"] == "success")

    def test_the_status_knows_the_kind(self, seen: Seen, kind: str, native: bool) -> None:
        expected = {"tmpfs": "yes", "disk": "reading", "ext4": "no", "xfs": "no"}[kind]
        assert self._of(seen, kind, native, "write")["page_pins"] == expected

    def test_on_demand_paging_needs_no_page_pins(self, seen: Seen, kind: str, native: bool) -> None:
        found = self._of(seen, kind, native, "write on demand")
        if found["kernel"].startswith("6."):  # rxe has none there
            assert found["registered"] == "ibv_reg_mr: Operation not supported"
            assert "on demand" in found["hint"]
        else:
            assert (found["registered"], found["completed"]) == ("registered: 65536 bytes, on demand", "success")
            assert found["at_once"]
            assert found["locked_kb"] < REGION_KB


def test_without_passthrough_the_pages_are_those_of_fuse(seen: Seen) -> None:
    """What is written there on demand comes into the file when the mapping goes."""
    write, read, on_demand = of(seen, what="allowed", kind="tmpfs", native=False)[-3:]
    assert write["page_pins"] == "reading"
    assert (write["registered"], read["completed"]) == ("ibv_reg_mr: Bad address", "AAAAA")
    if on_demand["completed"]:
        assert (on_demand["at_once"], on_demand["in_the_end"]) == (False, True)


@pytest.mark.parametrize("op", ["truncate", "punch_hole"])
def test_without_pinfs_what_is_written_is_lost(seen: Seen, op: str) -> None:
    """The adapter writes into, and reads from, pages that belong to no file, and reports success."""
    lost = one(seen, what="lost", op=op)
    assert (lost["before"], lost["removed"]) == (["success", True], "done")
    assert (lost["written"], lost["arrived"], lost["read"]) == ("success", False, "after!")


def test_a_deny_pin_refuses_while_the_peer_writes(seen: Seen) -> None:
    deny = one(seen, what="deny")
    assert deny["removals"] == ALL_BUSY
    assert (deny["written"], deny["arrived"], deny["size"]) == (["success", "success"], True, 65536)
    ended = one(seen, what="deny ended")
    assert (ended["lines"], ended["ended"]) == (["deregistered", "released"], "done")


def test_a_killed_holder_leaves_nothing(seen: Seen) -> None:
    killed = one(seen, what="killed")
    assert (killed["before"], killed["ended"]) == ("EBUSY", "done")


def test_a_lease_is_let_go_in_order_and_registered_again(seen: Seen) -> None:
    lease = one(seen, what="lease")
    assert (lease["ended"], lease["size"]) == ("done", 0)
    assert lease["took_s"] < PROMPT_S
    assert lease["server"][2:] == [
        "breaking: a removal waits for this file", "the peer has stopped", "deregistered", "released",
        "waiting until the file has bytes that can be pinned",
    ]  # fmt: skip
    assert lease["peer"][2:] == ["region: withdrawn", "region: 131072 bytes", "write: success"]
    assert (lease["written"], lease["arrived"]) == (["success", "success"], True)


def test_a_silent_holder_keeps_its_bytes(seen: Seen) -> None:
    silent = one(seen, what="silent")
    assert (silent["waits"], silent["ended"], silent["size"]) == ("hangs", "EBUSY", 65536)
    assert BREAK_TIMEOUT_S <= silent["took_s"] < BREAK_TIMEOUT_S + PROMPT_S
    assert (silent["written"], silent["arrived"]) == (["success", "success"], True)


def test_a_silent_peer_does_not_hold_up_the_break(seen: Seen) -> None:
    silent = one(seen, what="silent peer")
    assert silent["ended"] == "done"
    assert 1 <= silent["took_s"] < BREAK_TIMEOUT_S
    assert silent["server"][3].startswith("the peer has not stopped")
    steps = [line for line in silent["server"][4:] if not line.startswith("waiting")]
    assert steps == ["deregistered", "released", "registered: 100 bytes"]
    assert (silent["late"], silent["arrived"]) == ("success", True)
    assert (silent["again"], silent["written"]) == ("done", "success")
    assert silent["server_then"][:2] == ["breaking: a removal waits for this file", "the peer has stopped"]


class TestOnDemand:
    @pytest.fixture(autouse=True)
    def newer(self, seen: Seen) -> None:
        if seen[0]["kernel"].startswith("6."):
            pytest.skip("on-demand paging of soft-RoCE came after Linux 6.12")

    @pytest.mark.parametrize("native", [True, False])
    @pytest.mark.parametrize("kind", KINDS)
    def test_without_a_pin_a_truncate_breaks_the_connection(self, seen: Seen, kind: str, native: bool) -> None:
        cut = one(seen, what="on demand", kind=kind, native=native)
        assert (cut["first"], cut["cut"], cut["second"]) == (["success", True], "done", "remote access error")
        assert (cut["third"], cut["arrived"]) == ("success", True)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_deny_pin_keeps_it(self, seen: Seen, kind: str) -> None:
        pinned = one(seen, what="on demand pinned", kind=kind)
        assert pinned["removals"] == ALL_BUSY
        assert (pinned["written"], pinned["arrived"]) == (["success", "success"], True)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_lease_keeps_it_through_a_truncate(self, seen: Seen, kind: str) -> None:
        lease = one(seen, what="on demand lease", kind=kind)
        assert (lease["ended"], lease["size"]) == ("done", 100)
        assert lease["took_s"] < PROMPT_S
        assert (lease["written"], lease["arrived"]) == (["success", "success"], True)


def test_the_daemons_are_quiet(seen: Seen) -> None:
    for log in of(seen, what="log"):
        lines = str(log["text"]).splitlines()
        assert not [line for line in lines if " WARNING: " in line or " ERROR: " in line or "Traceback" in line]
