"""Two hosts of a cluster over a directory of the kernel's NFS server, in a machine of its own (docs/hosts.md):

    make test TESTS=tests/vm/test_hosts.py PYTEST_ARGS="-m nfs -s"

Needs what `test_dax.py` needs, and etcd (`cluster/binaries.py`). With -s it prints what calls take.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h11
import pytest
from cluster.binaries import etcd

from vm import report
from vm.machine import Seen, boot, disk, newest_kernel, of

pytestmark = pytest.mark.nfs

BREAK_TIMEOUT_S, PIN_TTL_S, MARGIN_S = 8, 20, 8
PROMPT_S = 5.0
"""For a call that waits for no holder, on an emulated processor: a fifth of a second is usual."""
BEAT_S = 5.0
SIZE = 65536
VERSIONS = ("4.2", "3")


@pytest.fixture(scope="module", params=["6.", "7."])
def seen(request: pytest.FixtureRequest, root: None, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    base = tmp_path_factory.mktemp("vm")
    source = disk(base / "disk", 512 << 20)
    carried = {"etcd": etcd("3.4"), "h11": Path(h11.__file__).parent}
    try:
        found = boot(newest_kernel(request.param), base, "guest_hosts.py", *source, carried=carried)
    finally:
        (base / "disk").unlink()
    print(f"\n{report.times(found)}")
    return found


def one(seen: Seen, **wanted: object) -> dict[str, Any]:
    (found,) = of(seen, **wanted)
    return found


def test_a_kernel_that_keeps_names_of_delegated_directories_is_not_let_in(seen: Seen) -> None:
    """With a pin on the other host `unlink` and rename over took its file once in fifty times, and no longer after it
    is switched off."""
    found = one(seen, what="delegations")
    if found["refused"] is None:
        assert found["kernel"].startswith("6.12.")  # has no such delegations
        return
    status, log, (_, doctor) = found["refused"]
    assert status == 6
    assert "directory_delegations" in log
    assert any(
        each["level"] == "fail" and "directory_delegations" in each["fix"] for each in json.loads(doctor)["findings"]
    )


@pytest.mark.parametrize("version", VERSIONS)
class TestNfs:
    def test_both_are_let_in_and_call_files_the_same(self, seen: Seen, version: str) -> None:
        joined = one(seen, what="joined", version=version)
        assert (joined["states"], joined["members"]) == (["joined"] * 2, [["a", "b"]] * 2)
        here, there = joined["names"]
        assert here == there
        assert "." in here  # with the handle, not the number alone
        assert joined["without_cluster"] == 6  # on the same host; others' locks are not seen

    def test_their_tokens_are_seen(self, seen: Seen, version: str) -> None:
        """The last is asked for minutes after the mounts, when a token that is not seen would be missed."""
        assert one(seen, what="joined", version=version)["tokens_s"] < 90
        code, text = one(seen, what="commands", version=version)["status"]
        shown = json.loads(text)["cluster"]
        assert (code, shown["state"], shown["not_seen"]) == (0, "joined", [])
        assert {member["host"] for member in shown["members"]} == {"a", "b"}  # a in two lives, until the first is over

    def test_doctor_has_nothing_against_it(self, seen: Seen, version: str) -> None:
        _, text = one(seen, what="commands", version=version)["doctor"]
        found = [(each["level"], each["text"]) for each in json.loads(text)["findings"] if each["check"] == "cluster"]
        assert {level for level, _ in found} == {"ok"}
        assert found[0][1].startswith("nfs")
        assert found[-1][1].endswith("hosts that have left a token: a, b")

    @pytest.mark.parametrize("op", ["truncate", "open_trunc", "punch_hole", "unlink", "rename_over"])
    def test_a_removal_of_what_the_other_host_has_pinned_is_refused(self, seen: Seen, version: str, op: str) -> None:
        refused = one(seen, what="deny", version=version, op=op)
        if (version, op) == ("3", "punch_hole"):  # not in that version of the protocol
            assert refused["ended"] in ("ENOTSUP", "EBUSY")
            return
        assert (refused["ended"], refused["size"], refused["holder"]) == ("EBUSY", SIZE, "done")
        assert refused["took_s"] < PROMPT_S
        assert refused["afterwards"] == "done"

    @pytest.mark.parametrize("op", ["write", "grow"])
    def test_what_takes_no_bytes_goes_on(self, seen: Seen, version: str, op: str) -> None:
        done = one(seen, what="deny", version=version, op=op)
        assert (done["ended"], done["holder"]) == ("done", "done")

    def test_bytes_beside_a_pin_go(self, seen: Seen, version: str) -> None:
        beside = one(seen, what="beside", version=version)
        assert (beside["ended"], beside["size"], beside["holder"]) == (["done", "EBUSY"], 4096, "done")

    @pytest.mark.parametrize("way", ["rename", "remove", "link"])
    @pytest.mark.parametrize("op", ["open", "truncate", "unlink", "rename_over"])
    def test_a_name_that_the_kernel_remembers_wrongly(self, seen: Seen, version: str, op: str, way: str) -> None:
        """The other host has put another file under it, and pinned that one: it is found, and its bytes stay."""
        for found in of(seen, what="replaced", version=version, op=op, way=way):
            assert (found["pinned"], found["look"]) == (True, "done"), found
            if op in ("open", "truncate"):
                assert found["size"] == SIZE, found
            elif found["policy"] == "deny":
                assert (found["ended"], found["size"]) == ("EBUSY", SIZE), found
            else:
                assert (found["ended"], found["kept"]) == ("done", 1), found
            if not found["is_open"]:  # else the other one is still on the server, and the kernel may believe in it
                assert found["ended"] == {"open": "done", "truncate": "EBUSY"}.get(op, found["ended"]), found

    def test_one_name_for_one_file_after_the_other(self, seen: Seen, version: str) -> None:
        """The server gives each the number of the one before."""
        assert one(seen, what="again", version=version)["ended"] == ["done"] * 4

    def test_a_lease_is_broken_from_the_other_host(self, seen: Seen, version: str) -> None:
        lease = one(seen, what="lease", version=version, answers=True)
        assert (lease["waits"], lease["ended"], lease["size"], lease["holder"]) == ("hangs", "done", 0, "done")
        silent = one(seen, what="lease", version=version, answers=False)
        assert (silent["waits"], silent["ended"], silent["size"]) == ("hangs", "EBUSY", SIZE)
        assert BREAK_TIMEOUT_S <= silent["took_s"] < BREAK_TIMEOUT_S + PROMPT_S

    @pytest.mark.parametrize("is_open", [True, False])
    def test_a_pin_knows_the_size_that_the_other_host_has_just_given(
        self, seen: Seen, version: str, is_open: bool
    ) -> None:
        cut = one(seen, what="fresh", version=version, op="cut", is_open=is_open)
        assert cut["ended"] == [["done", "ENXIO"]] * 4
        grown = one(seen, what="fresh", version=version, op="grown", is_open=is_open)
        assert grown["ended"] == [["done", "done"]] * 4

    def test_a_removed_name_keeps_the_bytes_for_a_mapping_of_the_other_host(self, seen: Seen, version: str) -> None:
        kept = one(seen, what="removed", version=version, pinned=True)
        assert (kept["removal"], kept["held"], kept["is_there"], kept["look"]) == ("done", 1, False, "done")

    def test_without_pinfs_the_mapping_is_lost(self, seen: Seen, version: str) -> None:
        """NFS 3 has no opens: the server does not know that a file is in use. The server of 4.2 keeps it until then."""
        lost = one(seen, what="removed", version=version, pinned=False)
        assert lost["look"] == ("signal 7" if version == "3" else "done")

    def test_a_host_that_is_cut_off(self, seen: Seen, version: str) -> None:
        """It tells its holders before others take the bytes, and joins again."""
        cut_off = one(seen, what="cut_off", version=version)
        assert cut_off["first"] == "EBUSY"
        (told_s,) = cut_off["told_s"]
        assert told_s < cut_off["done_s"]
        assert PIN_TTL_S - BEAT_S < cut_off["done_s"] < PIN_TTL_S + 15
        assert (cut_off["again_s"] < 60, cut_off["pin"]) == (True, "done")

    def test_the_pins_of_a_dead_host_end_after_its_time_to_live(self, seen: Seen, version: str) -> None:
        dead = one(seen, what="dead", version=version)
        assert dead["first"] == "EBUSY"
        assert PIN_TTL_S - dead["silent_s"] - 1 < dead["done_s"] < PIN_TTL_S + 15
        assert (dead["b"], dead["pinned_s"] < 60) == ("joined", True)


def test_what_calls_take(seen: Seen) -> None:
    """An emulated processor that others use as well: no bound but that of round trips to etcd, three and one."""
    took = {way: one(seen, what="times", way=way)["took_ms"] for way in ("NFS", "one", "cluster", "re-export")}
    assert took["cluster"]["first pin"] > took["cluster"]["further pin"]


def test_the_daemons_say_nothing_unexpected(seen: Seen) -> None:
    """a was cut off once for each version of the protocol, and warned of that."""
    for log in of(seen, what="log"):
        lines = str(log["text"]).splitlines()
        assert not [line for line in lines if " ERROR: " in line or "Traceback" in line]
        warnings = [line for line in lines if " WARNING: " in line]
        assert len(warnings) == (log["host"] == "a"), warnings
