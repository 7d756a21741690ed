"""The scenes. Each shows the commands that it runs, and checks what it says.

`python -m demo --pause S` plays them for spectators: each on a cleared screen, which stands for S seconds at its end.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.stage import LIMIT_S, PATTERN, SIZE, Stage, wait_until

DEADLINE_S = 2
FIO_S = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo")
    parser.add_argument("--pause", type=float, default=0.0, metavar="S", help="seconds between scenes, for spectators")
    with Stage(parser.parse_args().pause) as stage:
        stage.tell(f"Everything happens in {stage.dir} (tmpfs). 'reader' is demo/reader.py.")
        for title, play in SCENES:
            stage.scene(title)
            play(stage)
        print(f"\n{stage.failures} things were not as they should be." if stage.failures else "\nAll as it should be.")
        stage.pause()
    return 1 if stage.failures else 0


def without_pinfs(stage: Stage) -> None:
    stage.write("plain/model.bin")
    reader = stage.reader("plain/model.bin")
    stage.expect(stage.run("truncate", "-s", "0", "plain/model.bin").code == 0, "the truncate succeeds")
    stage.expect(reader.ended() == -signal.SIGBUS, "and its reader is killed by SIGBUS")


def mounted(stage: Stage) -> None:
    """SystemExit: this machine or user cannot mount; the command has said why."""
    if not stage.mount(f"break_timeout={DEADLINE_S}"):
        raise SystemExit(1)


def deny_pin(stage: Stage) -> None:
    path = stage.write("mnt/model.bin")
    reader = stage.reader("mnt/model.bin", "--pin", "deny")
    stage.expect(stage.run("truncate", "-s", "0", "mnt/model.bin").busy, "the truncate is refused")
    if status(stage)["bridge"]:
        punch = stage.run("fallocate", "-p", "-o", "0", "-l", "4096", "mnt/model.bin")
        stage.expect(punch.busy, "so is a hole punched into it")
    stage.expect(path.stat().st_size == SIZE and reader.still_reads(), "and the reader goes on")
    stage.run("pinfs", "ls", "--table", "-o", "START,LENGTH,MODE,STATE,COMM,PID", "mnt/model.bin")
    reader.stop()
    stage.expect(stage.run("truncate", "-s", "0", "mnt/model.bin").code == 0, "when the reader has ended, it succeeds")


def lease_pin(stage: Stage) -> None:
    path = stage.write("mnt/model.bin")
    reader = stage.reader("mnt/model.bin", "--pin", "lease")
    cut = stage.run("truncate", "-s", "0", "mnt/model.bin")
    stage.expect("released the pin" in reader.line() and reader.ended() == 0, "the reader was signalled and let go")
    stage.expect(cut.code == 0 and path.stat().st_size == 0, "and then the truncate succeeded")


def no_answer(stage: Stage) -> None:
    stage.write("mnt/model.bin")
    reader = stage.reader("mnt/model.bin", "--pin", "lease", "--ignore")
    cut = stage.run("truncate", "-s", "0", "mnt/model.bin")
    stage.expect(cut.busy and cut.seconds >= DEADLINE_S, f"refused at the deadline (after {cut.seconds:.1f} seconds)")
    stage.expect(reader.still_reads(), "and the reader goes on")
    reader.stop()


def real_pins(stage: Stage) -> None:
    if missing := why_no_real_pins(stage):
        stage.tell(f"Not shown: {missing}.")
        return
    stage.tell("Without pinfs:")
    plain = device_writes(stage, "plain/buffer.bin", [])
    stage.expect(plain.cut == 0, "the truncate succeeds while the device writes, without an error anywhere")
    stage.expect(
        plain.lost, "what the device writes from then on is lost: it still owns pages, but the file has others"
    )
    stage.tell("With a pin, held while fio runs:")
    pinned = device_writes(stage, "mnt/buffer.bin", ["pinfs", "pin", "mnt/buffer.bin", "--"])
    stage.expect(pinned.cut != 0, "the truncate is refused")
    stage.expect(not pinned.lost, "and what the device writes is in the file")


def behind_the_mount(stage: Stage) -> None:
    if why := status(stage)["seal_unavailable_because"]:
        stage.tell(f"Not shown: this mount cannot seal files: {why}.")
        return
    path = stage.write("mnt/model.bin")
    reader = stage.reader("mnt/model.bin", "--pin", "deny")
    cut = stage.run("truncate", "-s", "0", "source/model.bin")
    stage.expect("not permitted" in cut.text, "the kernel itself refuses it: a pinned file is sealed (chattr +a)")
    removed = stage.run("rm", "-f", "source/model.bin")
    stage.expect("not permitted" in removed.text, "and will not remove it there")
    stage.expect(path.stat().st_size == SIZE and reader.still_reads(), "and the reader goes on")
    reader.stop()
    stage.until_done("truncate", "-s", "0", "source/model.bin")
    stage.expect(path.stat().st_size == 0, "when the reader has ended, the seal is lifted")


def daemon_dies(stage: Stage) -> None:
    if why := status(stage)["survives"]["unavailable_because"]:
        stage.tell(f"Not shown: this mount ends with its daemon: {why}.")
        return
    (stage.dir / "mnt/.pinfs/policy").write_text(f"break_timeout = {LIMIT_S:g}")
    stage.write("mnt/model.bin")
    reader = stage.reader("mnt/model.bin", "--pin", "lease", "--ignore")
    cut = stage.start("truncate", "-s", "0", "mnt/model.bin")
    wait_until(lambda: status(stage)["waiting"] == 1, "the truncate does not wait")
    pid = status(stage)["pid"]
    stage.run("kill", "-9", str(pid))
    wait_until(lambda: status(stage)["pid"] != pid, "no daemon has taken over")
    now = status(stage)
    pause_ms = now["last_takeover"]["pause_ms"]
    stage.tell(f"Process {now['pid']} serves the same mount, after a pause of {pause_ms:.0f} ms.")
    stage.expect(reader.still_reads(), "the reader goes on")
    stage.expect(
        now["pins"] == now["waiting"] == 1 and cut.poll() is None, "and holds its pin, for which the truncate waits"
    )
    reader.stop()
    stage.expect(cut.wait(LIMIT_S) == 0, "when the reader has ended, the truncate succeeds")


class DeviceRun:
    """A truncate below a writing device: its exit code, and whether the file lacks what the device wrote."""

    def __init__(self, cut: int, lost: bool) -> None:
        self.cut, self.lost = cut, lost


def device_writes(stage: Stage, name: str, holding: list[str]) -> DeviceRun:
    """fio reads x's into registered buffers that lie in a shared mapping of file `name`; meanwhile the file is
    truncated."""
    buffer = stage.write(name, 0)
    os.truncate(buffer, SIZE)
    stage.write("data", SIZE)
    fio = stage.start(
        *holding, "fio", "--name=device", "--filename=data", "--rw=read", "--bs=64k", "--iodepth=8", "--direct=0",
        "--ioengine=io_uring", "--fixedbufs=1", f"--iomem=mmapshared:{name}", "--time_based", f"--runtime={FIO_S}",
        "--output-format=terse",
    )  # fmt: skip
    wait_for_data(buffer, fio.pid)
    cut = stage.run("truncate", "-s", "0", name)
    if cut.code == 0:
        stage.run("truncate", "-s", str(SIZE), name)
    fio.communicate(timeout=LIMIT_S)
    stage.expect(fio.returncode == 0, "fio has seen no error")
    return DeviceRun(cut.code, PATTERN not in buffer.read_bytes())


def wait_for_data(buffer: Path, pid: int) -> None:
    """Wait until the device has written something into the file."""
    wait_until(lambda: PATTERN in buffer.read_bytes() or not Path(f"/proc/{pid}").exists(), "fio writes nothing")
    if PATTERN not in buffer.read_bytes():
        raise SystemExit("fio writes nothing")


def why_no_real_pins(stage: Stage) -> str:
    """What this machine lacks for real page pins; empty where nothing is missing."""
    if not shutil.which("fio"):
        return "there is no fio here"
    if not status(stage)["passthrough"]:
        return "this mount has no FUSE passthrough (it needs root and Linux 6.9)"
    return ""


def ended(stage: Stage) -> None:
    stage.umount()


SCENES: tuple[tuple[str, Callable[[Stage], None]], ...] = (
    ("Without pinfs: a file is truncated while another program has it mapped.", without_pinfs),
    (f"Mount it through pinfs. Leases have to be answered within {DEADLINE_S} seconds here (default: 45).", mounted),
    ("A deny pin: the reader does not let go.", deny_pin),
    ("A lease pin: the reader lets go when it is notified.", lease_pin),
    (
        f"A lease whose holder never answers: the truncate does not hang, it fails after {DEADLINE_S} seconds.",
        no_answer,
    ),
    ("Behind the mount: the file is truncated in the source directory, without pinfs.", behind_the_mount),
    ("Real page pins: a device (here: io_uring through fio) writes into the pages of a mapped file.", real_pins),
    ("kill -9 of pinfs, while a reader holds a lease and a truncate waits for it.", daemon_dies),
    ("The end.", ended),
)


def status(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stage.dir / "mnt/.pinfs/status").read_text())
    return found


if __name__ == "__main__":
    sys.exit(main())
