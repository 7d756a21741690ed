"""pinfs beside other programs: backups and logrotate on a pinned file, podman's quadlet, the schemas of Kubernetes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.mounts import REPO
from support.packages import in_debian, run

pytestmark = [pytest.mark.packages, pytest.mark.usefixtures("fuse", "root")]
KUBERNETES = "1.31"


def test_backups_and_logrotate(packages: Path) -> None:
    """tests/packaging/integrations.sh has the steps."""
    binds = {packages: "/packages", REPO / "tests/packaging": "/tests"}
    said = in_debian("sh", "/tests/integrations.sh", binds=binds, packages="restic borgbackup logrotate")
    print(said)
    assert said.endswith("== all is well\n")


def test_quadlet(tmp_path: Path) -> None:
    """podman makes a unit of containers/pinfs.container, and systemd finds nothing wrong with it. It is not started."""
    (tmp_path / "pinfs.container").write_bytes((REPO / "containers/pinfs.container").read_bytes())
    command = """
        export QUADLET_UNIT_DIRS=/quadlet
        /usr/libexec/podman/quadlet --dryrun
        mkdir -p /run/units && /usr/libexec/podman/quadlet /run/units && systemd-analyze verify /run/units/pinfs.service
    """
    said = in_debian("sh", "-ec", command, binds={tmp_path: "/quadlet"}, packages="podman systemd")
    start = next(line for line in said.splitlines() if line.startswith("ExecStart="))
    for word in ("--device /dev/fuse", "-v /srv/shared:/share:rshared", "--pid=host", "-v pinfs-state:/var/lib/pinfs"):
        assert word in start
    assert "--cap-add sys_admin" in start.lower()
    assert start.endswith("localhost/pinfs mount /share/source /share/mnt -o replace_stale,survive=on")
    assert "rror" not in said


def test_kubernetes_takes_the_example(tmp_path: Path) -> None:
    """By the schemas that kubernetes-validate has, from PyPI; unknown keys are errors. Nothing is run."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/pip", "--quiet", "install", "kubernetes-validate")
    example = REPO / "containers/kubernetes.yaml"
    validate = tmp_path / "venv/bin/kubernetes-validate"
    run(validate, "--strict", "-k", KUBERNETES, example)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(example.read_text().replace("mountPropagation", "mountPropagated"))
    done = subprocess.run([validate, "--strict", "-k", KUBERNETES, wrong], check=False, capture_output=True)
    assert done.returncode != 0


def test_the_plugin_in_a_project_outside(tmp_path: Path) -> None:
    """The sample program is installed beside pinfs from the sdist; its tests mount, pin and break with our fixtures."""
    project = tmp_path / "project"
    shutil.copytree(REPO / "examples/sample-app", project)
    run(sys.executable, "-P", "-m", "build", "--no-isolation", "--sdist", "--outdir", tmp_path, REPO)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    sdist = next(tmp_path.glob("*.tar.gz"))
    run("env", "PINFS_PURE=1", python, "-m", "pip", "--quiet", "install", sdist, "pytest>=8", "numpy")
    run(python, "-m", "pip", "--quiet", "install", "--no-deps", project)
    said = run("env", f"--chdir={project}", python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert re.search(r"^\d+ passed in ", said, re.MULTILINE), said
