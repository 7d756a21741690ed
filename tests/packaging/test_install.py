"""packaging/install, and mount(8) on this machine, in a mount namespace that has what was installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.mounts import REPO

PINFS = Path(sys.executable).with_name("pinfs")
LIMIT_S = 60.0

# The mount, the daemon and what is laid over the machine's own directories end with the namespace.
SCRIPT = """
set -e
mount --make-rprivate /
{installed}
{mount}
findmnt -no SOURCE,FSTYPE mnt
df --output=source,fstype mnt | tail -n 1
grep -c "$PWD/mnt fuse.pinfs rw," /proc/mounts
grep -o '^break_timeout = 7' mnt/.pinfs/policy
cat mnt/file
umount mnt
! grep "$PWD/mnt " /proc/mounts
"""


INSTALLED = """
mount -t overlay overlay -o lowerdir=stage/usr/bin:/usr/bin /usr/bin
mount -t overlay overlay -o lowerdir=stage/usr/sbin:/usr/sbin /usr/sbin
for helper in $(which -a mount.fuse mount.fuse3); do mount --bind /bin/false $helper; done
"""
FSTAB = "echo '{source} {point} {kind} {options} 0 0' >fstab; mount -T fstab -a"


@pytest.fixture
def directories(base: Path) -> None:
    """What is mounted, and where."""
    for name in ("source", "mnt"):
        (base / name).mkdir()
    (base / "source/file").write_text("weights\n")


@pytest.fixture
def stage(base: Path, directories: None) -> Path:
    """Where packaging/install has put everything."""
    environment = {"DESTDIR": str(base / "stage"), "PATH": "/usr/bin:/bin"}
    subprocess.run([REPO / "packaging/install", PINFS], env=environment, check=True, timeout=LIMIT_S)
    return base / "stage"


def test_what_is_installed(stage: Path) -> None:
    found = [path.relative_to(stage) for path in stage.rglob("*") if not path.is_dir()]
    pages = {path.name for path in found if path.parent == Path("usr/share/man/man1")}
    assert {"pinfs.1", "pinfs-mount.1"} <= pages
    assert sorted(str(path) for path in found if path.name not in pages) == [
        "lib/systemd/system/pinfs@.service",
        "usr/bin/pinfs",
        "usr/sbin/mount.fuse.pinfs",
        "usr/sbin/mount.pinfs",
        "usr/share/bash-completion/completions/pinfs",
        "usr/share/fish/vendor_completions.d/pinfs.fish",
        "usr/share/zsh/site-functions/_pinfs",
    ]
    assert (stage / "usr/bin/pinfs").readlink() == PINFS


def test_bash_completes_verbs(stage: Path) -> None:
    """The installed script, as bash runs it after `pinfs re<Tab>`."""
    script = """
        . stage/usr/share/bash-completion/completions/pinfs
        COMP_WORDS=(pinfs re) COMP_CWORD=1
        "$(complete -p pinfs | sed 's/.*-F \\([^ ]*\\).*/\\1/')" pinfs
        echo "${COMPREPLY[@]}"
    """
    said = subprocess.run(
        ["bash", "-c", script],
        cwd=stage.parent,
        env={"PATH": f"{stage}/usr/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (said.stdout, said.stderr) == ("release revoke\n", "")


@pytest.mark.parametrize("how", ["mount -t {kind} {source} {point} -o {options}", FSTAB], ids=["mount -t", "fstab"])
@pytest.mark.parametrize("kind", ["fuse.pinfs", "pinfs"])
def test_mount8_after_the_installation(base: Path, stage: Path, kind: str, how: str) -> None:
    """Also where the machine has no mount.fuse3."""
    check_mount(base, how, kind, f"{base}/source", INSTALLED)


@pytest.mark.parametrize("how", ["mount -t {kind} {source} {point} -o {options}", FSTAB], ids=["mount -t", "fstab"])
def test_mount8_before_the_installation(base: Path, directories: None, how: str) -> None:
    """mount.fuse3 takes the program's path from the source."""
    check_mount(base, how, "fuse", f"{PINFS}#{base}/source", "")


def check_mount(base: Path, how: str, kind: str, source: str, installed: str) -> None:
    options = "rw,nofail,_netdev,x-systemd.automount,x-systemd.requires=a.mount,break_timeout=7"
    command = how.format(kind=kind, source=source, point=base / "mnt", options=options)
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT.format(mount=command, installed=installed)],
        cwd=base,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert result.stderr == ""
    assert result.stdout.split() == [f"{base}/source", "fuse.pinfs"] * 2 + ["1", "break_timeout", "=", "7", "weights"]
