"""Policy `mapped`: bytes that a process has mapped through the mount count as pinned by a deny pin (SPEC 8)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from itertools import product
from pathlib import Path

import pytest
from support import acts as common
from support.actor import eventually
from support.mounts import Mount

from breaks import acts
from breaks.cases import ERRNOS, OWN, UNLINK
from breaks.oracle import OPERATIONS, Operation, Rules

SHARED_MOUNT_OPTIONS = ("mapped=deny", "break_timeout=60", "log_level=warning")
TAKING = [operation for operation in OPERATIONS.values() if operation.takes and operation.name != "zero_range"]
MAPPERS = ("other", "own")


def expected(operation: Operation, mapper: str, rules: Rules) -> int | None:
    """A deny pin that nobody registered."""
    if not operation.takes or (operation.named and rules.unlink == "defer"):
        return None
    return None if mapper == "own" and rules.own == "allow" else rules.number


def test_every_case_of_mappings(shared_mount: Mount) -> None:
    """Each taking operation on a file whose middle page is mapped, by a process that has closed the file since."""
    cases = [
        (operation, mapper, Rules(own=own, unlink=unlink, errno=number))
        for operation in TAKING
        for mapper, own, unlink, number in product(MAPPERS, OWN, UNLINK if operation.named else UNLINK[:1], ERRNOS)
    ]
    shared_mount.policy(_policy())
    breaker, other = shared_mount.actor(), shared_mount.actor()
    places = []
    for number, (operation, mapper, rules) in enumerate(cases):
        place = f"{rules.own}-{rules.unlink}-{rules.errno}/{number}"
        acts.lay_out(operation.name, f"{shared_mount.source}/{place}")
        who = breaker if mapper == "own" else other
        who(common.map_file, f"{shared_mount.path}/{place}/f", acts.PAGE, acts.PAGE)
        places.append((operation.name, f"{shared_mount.path}/{place}"))
    wanted = [(*case, expected(*case)) for case in cases]
    seen = [(*case, answer) for case, answer in zip(cases, breaker(acts.perform, places, 4), strict=True)]
    assert [(w, s) for w, s in zip(wanted, seen, strict=True) if w != s] == []
    for (name, place), (*_, answer) in zip(places, seen, strict=True):
        source = place.replace(str(shared_mount.path), str(shared_mount.source))
        assert acts.is_untouched(source) if answer else acts.IS_DONE[name](source), (name, place)


def _policy() -> str:
    lines = ['mapped = "deny"', "break_timeout = 60"]
    for own, unlink, number in product(OWN, UNLINK, ERRNOS):
        lines += ["[[rule]]", f'path = "{own}-{unlink}-{number}/**"']
        lines += [f'own = "{own}"', f'unlink = "{unlink}"', f'errno = "{number}"']
    return "\n".join(lines)


@pytest.mark.mount("mapped=deny")
def test_what_takes_no_mapped_byte_goes_on(mount: Mount) -> None:
    mapper = mount.actor()
    harmless = [o.name for o in OPERATIONS.values() if not o.takes and not o.unsupported]
    for name in harmless:
        acts.lay_out(name, f"{mount.source}/{name}")
        mapper(common.map_file, f"{mount.path}/{name}/f", acts.PAGE, acts.PAGE)
    answers = mount.actor()(acts.perform, [(name, f"{mount.path}/{name}") for name in harmless], 4)
    assert dict(zip(harmless, answers, strict=True)) == dict.fromkeys(harmless)


@pytest.mark.mount("mapped=deny")
def test_the_end_of_a_mapping_frees_the_bytes(mount: Mount) -> None:
    """By munmap(2), exec(2) or death."""
    path = mount.path / "f"
    for end in ("munmap", "exec", "death"):
        path.write_bytes(acts.ORIGINAL)
        mapper = mount.actor()
        address = mapper(common.map_file, str(path), acts.SIZE)
        assert mount.actor().errno(os.truncate, str(path), 0) == errno.EBUSY
        if end == "munmap":
            mapper(common.unmap, address, acts.SIZE)
        elif end == "death":
            mapper.kill()
        else:
            with pytest.raises(ProcessLookupError):
                mapper(os.execv, "/bin/true", ["true"])
        os.truncate(path, 0)


@pytest.mark.mount("mapped=deny")
def test_a_copy_of_a_mapping_counts(mount: Mount) -> None:
    """fork(2) copies mappings: the last copy counts."""
    path = mount.path / "f"
    path.write_bytes(acts.ORIGINAL)
    mapper = mount.actor()
    mapper(common.map_file, str(path), acts.SIZE)
    child = mapper(common.fork_child)
    mapper.kill()
    assert mount.actor().errno(os.truncate, str(path), 0) == errno.EBUSY
    os.kill(child, signal.SIGKILL)
    eventually(lambda: mount.actor().errno(os.truncate, str(path), 0) is None)


@pytest.mark.mount("mapped=deny")
def test_a_program_that_runs_from_the_mount_is_mapped(mount: Mount) -> None:
    """Most kernels refuse this themselves, with ETXTBSY."""
    program = mount.path / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    running = subprocess.Popen([program, "60"])
    try:
        assert mount.actor().errno(os.truncate, str(program), 0) in (errno.EBUSY, errno.ETXTBSY)
    finally:
        running.kill()
        running.wait()


@pytest.mark.mount("mapped=deny", "break_timeout=60")
def test_a_refusal_names_who_has_mapped(mount: Mount) -> None:
    path = mount.path / "f"
    path.write_bytes(acts.ORIGINAL)
    mapper = mount.actor()
    mapper(common.map_file, str(path), acts.SIZE)
    assert mount.actor().errno(os.truncate, str(path), 0) == errno.EBUSY
    assert mount.metrics()['pinfs_refusals_total{op="truncate",why="mapped"}'] == 1
    assert f"[0, {acts.SIZE}) of 'f' is mapped by pid {mapper.process.pid}" in mount.log()
