"""Boots the machine of `image.py` with a program of this directory in it, and reads what that has seen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.mounts import REPO

from vm.image import image

Seen = list[dict[str, Any]]
BOOT_LIMIT_S = 900
ACCELERATOR = os.environ.get("PINFS_VM_ACCEL", "tcg")
"""tcg emulates the processor, and boots on any machine. kvm is not looked for: a virtual machine may have a /dev/kvm
that opens, and then cannot run the kernels of a distribution."""
RUN = """cp -r /host/src /run/src
export PYTHONPATH=/run/src:/run/src/tests
python3 /run/src/tests/vm/{} > /host/seen 2> /host/errors
"""
APPEND = "console=ttyS0 root=/dev/vda rw init=/sbin/vm-init quiet panic=-1 mitigations=off nokaslr no_timer_check"


def newest_kernel(series: str) -> str:
    """The newest kernel of the image whose version begins with `series`."""
    missing = [name for name in ("qemu-system-x86_64", "debootstrap") if not shutil.which(name)]
    assert not missing, "apt-get install qemu-system-x86 debootstrap"
    return [kernel for kernel in image().kernels() if kernel.startswith(series)][-1]


def disk(path: Path, size: int) -> tuple[str, str]:
    """An empty disk of `size` bytes, as arguments of qemu: /dev/vdb in the machine."""
    with path.open("wb") as file:
        file.truncate(size)
    return "-drive", f"file={path},format=raw,if=virtio"


@contextmanager
def nvdimms(base: Path) -> Iterator[tuple[str, ...]]:
    """Two NVDIMMs of 512 MiB, as arguments of qemu; the machine is `q35,nvdimm=on`."""
    files = [base / f"nvdimm{number}" for number in (0, 1)]
    arguments = ["-m", "1G,slots=2,maxmem=8G"]
    for file in files:
        arguments += ["-object", f"memory-backend-file,id={file.name},share=on,mem-path={file},size=512M"]
        arguments += ["-device", f"nvdimm,memdev={file.name}"]
    try:
        yield tuple(arguments)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def boot(
    kernel: str,
    base: Path,
    program: str,
    *devices: str,
    machine: str = "q35",
    carried: Mapping[str, Path] | None = None,
) -> Seen:
    """Run `program` under this kernel, and return what it has printed: one JSON object a line. `carried`: files and
    packages that it finds beside pinfs, by these names."""
    built, share = image(), _share(base / "host", program)
    for name, path in (carried or {}).items():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, share / "src" / name)
    command = [
        "nice", "qemu-system-x86_64", "-cpu", "max", "-smp", "2", "-M", f"{machine},accel={ACCELERATOR}", "-m", "1G",
        "-kernel", f"{built.path}/vmlinuz-{kernel}", "-initrd", f"{built.path}/initrd-{kernel}", "-append", APPEND,
        "-drive", f"file={built.root},format=raw,if=virtio,snapshot=on",
        "-virtfs", f"local,path={share},mount_tag=host,security_model=none,id=host",
        "-nic", "none", "-nographic", "-no-reboot", *devices,
    ]  # fmt: skip
    console = base / "console"
    with console.open("wb") as log:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=BOOT_LIMIT_S, check=True)
    seen = [json.loads(line) for line in (share / "seen").read_text().splitlines()]
    assert not (share / "errors").read_text(), f"{(share / 'errors').read_text()}\n{console.read_text()[-4000:]}"
    return seen


def _share(path: Path, program: str) -> Path:
    """What the machine sees as /host."""
    shutil.copytree(REPO / "pinfs", path / "src/pinfs", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(REPO / "mount.py", path / "src")
    shutil.copytree(REPO / "examples", path / "src/examples")
    (path / "src/tests/vm").mkdir(parents=True)
    for guest in Path(__file__).parent.glob("guest*.py"):
        shutil.copy(guest, path / "src/tests/vm")
    (path / "run").write_text(RUN.format(program))
    return path


def of(seen: Seen, **wanted: object) -> Seen:
    """What was seen with these values."""
    return [one for one in seen if all(one.get(key) == value for key, value in wanted.items())]
