"""Integration tests: the program on a real pinfs. The fixtures pinfs_mount and pinfs_pin come with pinfs."""

import errno
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from vectors import Index, NotReadyError, Vectors, publish

EAST, NORTH = np.eye(2, dtype=np.float32)
AHEAD = np.stack([EAST, NORTH])
BACK = np.stack([NORTH, EAST])


@pytest.fixture
def file(pinfs_mount) -> Path:
    path = pinfs_mount.path / "vectors.npy"
    np.save(path, AHEAD)
    return path


@pytest.fixture
def index(file):
    index = Index(file)
    yield index
    index.close()


def other_process(*words: object) -> subprocess.CompletedProcess[str]:
    """Another process: a removal of one's own pinned bytes would be refused in any case."""
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60, check=False)


def republish(path: Path, vectors: Vectors) -> subprocess.CompletedProcess[str]:
    code = "import sys, json, numpy, vectors; vectors.publish(sys.argv[1], numpy.array(json.loads(sys.argv[2]), 'f'))"
    return other_process(sys.executable, "-c", code, path, vectors.tolist())


def test_answers(index):
    assert index.nearest(EAST, count=2) == [0, 1]
    assert index.nearest(NORTH, count=2) == [1, 0]


def test_the_mapped_file_is_leased(index, pinfs_mount):
    assert pinfs_mount.pins() == []
    index.nearest(EAST)
    assert [(pin.mode, pin.note) for pin in pinfs_mount.pins()] == [("lease", "vectors")]
    index.close()
    assert pinfs_mount.pins() == []


def test_a_truncate_is_refused_during_a_batch(index, file):
    with index.batch():
        cut = other_process("truncate", "-s", "0", file)
        assert cut.returncode == 1
        assert "Device or resource busy" in cut.stderr
        assert "Device or resource busy" in republish(file, BACK).stderr
        assert index.nearest(EAST) == [0]
    assert republish(file, BACK).returncode == 0


def test_a_lease_is_broken_and_the_new_vectors_are_read(index, file):
    assert index.nearest(EAST) == [0]
    assert republish(file, BACK).stderr == ""
    assert not index.mapped, "the mapping was dropped before the first byte went"
    assert index.nearest(EAST) == [1]


def test_while_nothing_is_there_to_map(index, file):
    index.nearest(EAST)
    assert other_process("truncate", "-s", "0", file).stderr == ""
    with pytest.raises(NotReadyError):
        index.nearest(EAST)
    publish(file, AHEAD)
    assert index.nearest(EAST) == [0]


def test_answers_are_right_while_others_publish(index, file):
    """A reader that asks without pause, and a publisher: no answer is torn, neither dies or waits for ever."""
    answers = set()
    done = threading.Event()

    def ask():
        while not done.is_set():
            with suppress(NotReadyError):
                answers.add(tuple(index.nearest(EAST, count=2)))

    asking = threading.Thread(target=ask)
    asking.start()
    results = [republish(file, vectors).stderr for vectors in (BACK, AHEAD, BACK)]
    done.set()
    asking.join()
    assert results == ["", "", ""]
    assert answers <= {(0, 1), (1, 0)}
    assert index.nearest(EAST) == [1]


def test_publish_waits_for_a_reader_that_lets_go(file, pinfs_pin):
    lease = pinfs_pin(file, mode="lease")
    publish(file, BACK)
    assert lease.next_break()["op"] == "truncate"
    assert np.load(file)[0].tolist() == NORTH.tolist()


@pytest.mark.pinfs(options=["break_timeout=0.5"])
def test_publish_gives_up_on_a_reader_that_does_not(file, pinfs_pin):
    pinfs_pin(file, mode="lease", lets_go=False)
    with pytest.raises(OSError) as refused:
        publish(file, BACK)
    assert refused.value.errno == errno.EBUSY
    assert np.load(file)[0].tolist() == EAST.tolist()


def test_publish_is_refused_where_a_device_writes(file, pinfs_pin):
    pinfs_pin(file, 0, 16)
    with pytest.raises(OSError) as refused:
        publish(file, BACK)
    assert refused.value.errno == errno.EBUSY


def test_elsewhere_it_works_without_pins(tmp_path):
    path = tmp_path / "vectors.npy"
    publish(path, AHEAD)
    index = Index(path)
    with index.batch():
        assert index.nearest(NORTH) == [1]
    index.close()
