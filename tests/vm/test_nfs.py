"""A mount that the kernel's NFS server exports to two clients, in a machine of its own (docs/nfs.md). Only with:

    make test TESTS=tests/vm PYTEST_ARGS="-m nfs"

Needs what `test_dax.py` needs. Two minutes a kernel, after the machine has been built.
"""

from __future__ import annotations

from typing import Any

import pytest

from vm.machine import Seen, boot, disk, newest_kernel, of

pytestmark = pytest.mark.nfs

BREAK_TIMEOUT_S = 6
PROMPT_S = 3.0
"""For a call that waits for nothing, on an emulated processor: a tenth of a second is usual."""
REMOVALS = ("truncate", "open_trunc", "punch_hole")
OTHERS = ("write", "grow", "read")


@pytest.fixture(scope="module", params=["6.", "7."])
def seen(request: pytest.FixtureRequest, root: None, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    base = tmp_path_factory.mktemp("vm")
    source = disk(base / "disk", 512 << 20)
    try:
        return boot(newest_kernel(request.param), base, "guest_nfs.py", *source)
    finally:
        (base / "disk").unlink()


def one(seen: Seen, **wanted: object) -> dict[str, Any]:
    (found,) = of(seen, **wanted)
    return found


def test_without_the_option_the_server_is_told(seen: Seen) -> None:
    off = one(seen, what="off")
    assert off["code"] == 1
    assert "does not support NFS export" in str(off["text"])
    status = one(seen, what="status")
    assert (status["nfs_export"], status["nfs_handles_last"]) == (True, True)


@pytest.mark.parametrize("client", ["3", "4.2"])
class TestClient:
    @pytest.mark.parametrize("op", REMOVALS)
    def test_a_removal_of_pinned_bytes_is_refused_at_once(self, seen: Seen, client: str, op: str) -> None:
        refused = one(seen, what="deny", client=client, op=op)
        if (client, op) == ("3", "punch_hole"):  # not in that version of the protocol
            assert (refused["ended"], refused["afterwards"]) == ("ENOTSUP", "ENOTSUP")
            return
        assert (refused["ended"], refused["kept"]) == ("EIO", True)
        assert refused["took_s"] < PROMPT_S
        assert (refused["holder"], refused["afterwards"]) == ("done", "done")

    @pytest.mark.parametrize("op", OTHERS)
    def test_all_else_goes_on(self, seen: Seen, client: str, op: str) -> None:
        done = one(seen, what="deny", client=client, op=op)
        assert (done["ended"], done["kept"], done["holder"], done["afterwards"]) == ("done", True, "done", "done")

    @pytest.mark.parametrize("op", ["unlink", "rename_over"])
    def test_a_name_goes_and_the_bytes_stay(self, seen: Seen, client: str, op: str) -> None:
        done = one(seen, what="deny", client=client, op=op)
        assert (done["ended"], done["kept"], done["afterwards"]) == ("done", True, "ENOENT")

    def test_a_lease_that_is_not_answered(self, seen: Seen, client: str) -> None:
        waited = one(seen, what="lease", client=client, answers=False)
        assert (waited["ended"], waited["size"], waited["holder"]) == ("EIO", 65536, "done")
        assert BREAK_TIMEOUT_S <= waited["took_s"] < BREAK_TIMEOUT_S + PROMPT_S

    def test_a_lease_that_is_released(self, seen: Seen, client: str) -> None:
        waited = one(seen, what="lease", client=client, answers=True)
        assert (waited["ended"], waited["size"], waited["holder"]) == ("done", 0, "done")
        assert 2 <= waited["took_s"] < 2 + PROMPT_S

    @pytest.mark.parametrize("answers", [True, False])
    def test_both_clients_go_on_meanwhile(self, seen: Seen, client: str, answers: bool) -> None:
        longest_s = one(seen, what="lease", client=client, answers=answers)["longest_s"]
        assert sorted(longest_s) == ["other_client", "same_client", "same_file"]
        assert max(longest_s.values()) < PROMPT_S

    def test_a_waiting_caller_can_be_killed(self, seen: Seen, client: str) -> None:
        killed = one(seen, what="interrupt", client=client)
        assert killed["ended"] == "signal 9"
        assert killed["took_s"] < PROMPT_S

    @pytest.mark.parametrize("what", ["forgotten", "restarted"])
    def test_open_files_and_directories_outlast(self, seen: Seen, client: str, what: str) -> None:
        """The server's caches are dropped; the daemon and the NFS server are started anew."""
        one_client = one(seen, what=what, client=client)
        assert (one_client["ended"], one_client["data"]) == ("done", "DATA")

    def test_a_handle_of_a_removed_file_never_shows_another(self, seen: Seen, client: str) -> None:
        assert one(seen, what="removed", client=client)["ended"] in ("ESTALE", "ENODATA")

    def test_events_take_no_thread_of_the_server(self, seen: Seen, client: str) -> None:
        files = {one_file["name"]: one_file for one_file in of(seen, what="control", client=client)}
        assert sorted(files) == ["events", "pins", "status", "trace"]
        assert (files["events"]["ended"], files["trace"]["ended"]) == ("EACCES", "EACCES")
        assert max(one_file["took_s"] for one_file in files.values()) < PROMPT_S

    def test_clients_cannot_pin(self, seen: Seen, client: str) -> None:
        tried = one(seen, what="remote_pin", client=client)
        assert (tried["ended"], tried["pins"]) == ("ENOTSUP", [])


@pytest.mark.parametrize("client", ["3", "4.2"])
def test_the_kernel_warns_of_an_errno_that_its_server_does_not_know(seen: Seen, client: str) -> None:
    """EBUSY, which is the default; the errno of the policy may be another one."""
    for number in ("ETXTBSY", "EBUSY"):
        refused = one(seen, what="errno", client=client, errno=number)
        assert (refused["ended"], refused["warned"]) == ("EIO", number == "EBUSY")


def test_as_many_waiting_removals_as_the_server_has_threads(seen: Seen) -> None:
    """All of the server waits, but no longer than the deadline."""
    crowd = one(seen, what="crowd")
    assert crowd["breakers"] == ["EIO"] * 4
    assert max(crowd["took_s"]) < BREAK_TIMEOUT_S + PROMPT_S
    assert crowd["stat"] == "done"
    assert crowd["stat_s"] < BREAK_TIMEOUT_S + PROMPT_S


def test_the_daemon_is_quiet(seen: Seen) -> None:
    log = str(one(seen, what="log")["text"])
    assert not [line for line in log.splitlines() if " WARNING: " in line or " ERROR: " in line or "Traceback" in line]
