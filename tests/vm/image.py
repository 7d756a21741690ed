"""The machine of the tests in this directory: a Debian root with two kernels, made once and kept.

Needs root, debootstrap, mkfs.ext4, 2 GB of disk and some 500 MB from a mirror; takes two minutes. The image is named
after what it is made from: another version of this file makes another one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SUITE = "trixie"
MIRROR = os.environ.get("PINFS_VM_MIRROR", "http://deb.debian.org/debian")
CACHE = Path(os.environ.get("PINFS_VM_CACHE", "/var/tmp/pinfs-vm"))
PACKAGES = (
    "linux-image-amd64", "initramfs-tools", "kmod", "udev", "ndctl", "e2fsprogs", "xfsprogs", "util-linux",
    "python3", "python3-trio", "python3-click", "python3-rich", "python3-prometheus-client",
    "nfs-kernel-server", "nfs-common", "iproute2", "gcc", "libc6-dev", "librdmacm-dev", "ibverbs-providers",
)  # fmt: skip
SMALL = """
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
force-unsafe-io
"""
INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
/usr/lib/systemd/systemd-udevd --daemon 2>/dev/null
modprobe -a 9p 9pnet_virtio
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 host /host
sh /host/run; echo "run ended with $?"
sync; umount /host; echo o > /proc/sysrq-trigger; sleep 30
"""


class Image(NamedTuple):
    """A built machine."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path / "root.img"

    def kernels(self) -> list[str]:
        """The versions of the kernels, oldest first."""
        return sorted(path.name.removeprefix("vmlinuz-") for path in self.path.glob("vmlinuz-*"))


def image() -> Image:
    """The machine, built if there is none of this version."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    path = CACHE / version
    if not path.exists():
        work = CACHE / f"{version}.new"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _build(work)
        work.rename(path)
    return Image(path)


def _build(work: Path) -> None:
    root = work / "root"
    _run("debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(root), MIRROR)
    _configure(root)
    with _usable(root):
        _install(root)
    for kernel in (root / "boot").glob("vmlinuz-*"):
        version = kernel.name.removeprefix("vmlinuz-")
        shutil.copy(kernel, work)
        shutil.copy(root / "boot" / f"initrd.img-{version}", work / f"initrd-{version}")
    image = work / "root.img"
    with image.open("wb") as file:
        file.truncate(3 << 30)
    _run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(root), str(image))
    shutil.rmtree(root)


def _configure(root: Path) -> None:
    (root / "etc/dpkg/dpkg.cfg.d/small").write_text(SMALL)
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    sources = f"deb {MIRROR} {SUITE} main\ndeb {MIRROR} {SUITE}-backports main\n"
    (root / "etc/apt/sources.list").write_text(sources)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    initramfs = root / "etc/initramfs-tools"
    (initramfs / "conf.d").mkdir(parents=True)
    (initramfs / "conf.d/vm").write_text("MODULES=list\nCOMPRESS=gzip\n")
    (initramfs / "modules").write_text("virtio_pci\nvirtio_blk\next4\n")
    (root / "host").mkdir()
    (root / "sbin/vm-init").write_text(INIT)
    (root / "sbin/vm-init").chmod(0o755)


@contextmanager
def _usable(root: Path) -> Iterator[None]:
    _run("mount", "-t", "proc", "proc", str(root / "proc"))
    try:
        yield
    finally:
        _run("umount", str(root / "proc"))


def _install(root: Path) -> None:
    """The stable kernel, and the one of backports: what waits for held pages has changed between them."""
    apt = ("chroot", str(root), "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "-y")
    options = ("--no-install-recommends", "-o", "Dpkg::Options::=--force-confold", "install")
    _run(*apt, "update")
    _run(*apt, *options, *PACKAGES)
    _run(*apt, "-t", f"{SUITE}-backports", *options, "linux-image-amd64")
    _run(*apt, "clean")


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-4000:]}")
