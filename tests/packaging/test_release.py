"""One version in one place, and scripts/release refuses what must not be released."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from containers.podman import CERTIFICATES, SUITE, Podman
from support.mounts import REPO
from support.packages import run

import pinfs

LIMIT_S = 300.0
WHOLE_LIMIT_S = 3600.0
"""A whole release takes ten minutes, on a machine that has nothing else to do."""
GIT = ("git", "-c", "safe.directory=*", "-c", "user.name=tests", "-c", "user.email=tests@example.org")


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pinfs.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", pinfs.__version__)
    for directory in ("packaging", "containers", "scripts", ".github"):
        for path in (REPO / directory).rglob("*.*"):
            if path.is_file():
                assert pinfs.__version__ not in path.read_text(), path


def test_everything_tracked_is_in_the_sdist() -> None:
    """But for what serves the checkout itself."""
    manifest = (REPO / "MANIFEST.in").read_text().split()
    listed = run(*GIT, "-C", REPO, "ls-files").splitlines()
    tops = {name.partition("/")[0] for name in listed if not name.startswith(".")}
    added_by_setuptools = {"pyproject.toml", "setup.py", "README.md", "MANIFEST.in"}
    assert {top for top in tops if top not in manifest} <= added_by_setuptools


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with what the script reads before it builds, committed."""
    path = tmp_path / "checkout"
    shutil.copytree(REPO / "scripts", path / "scripts")
    (path / "pinfs").mkdir()
    for name in ("pinfs/__init__.py", "CHANGELOG.md"):
        shutil.copy(REPO / name, path / name)
    run(*GIT, "init", "--quiet", path)
    run(*GIT, "-C", path, "add", "--all")
    run(*GIT, "-C", path, "commit", "--quiet", "--message", "now")
    return path


def release(checkout: Path, *words: str, check: str = "true") -> str:
    """What scripts/release says as it refuses."""
    done = subprocess.run(
        [checkout / "scripts/release", *words, checkout.parent / "out"],
        check=False, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL,
        env={**os.environ, "PINFS_RELEASE_CHECK": check},
    )  # fmt: skip
    assert done.returncode == 1
    return done.stderr


def set_version(checkout: Path, version: str) -> None:
    path = checkout / "pinfs/__init__.py"
    path.write_text(path.read_text().replace(f'"{pinfs.__version__}"', f'"{version}"'))
    run(*GIT, "-C", checkout, "commit", "--quiet", "--all", "--message", version)


def test_a_tree_with_changes_is_refused(checkout: Path) -> None:
    (checkout / "new").write_text("")
    assert "refused: the tree has changes that are not committed:\n?? new\n" in release(checkout, "--rehearse")


def test_a_red_tree_is_refused(checkout: Path) -> None:
    """The check runs on a clone of what is committed, before anything is built."""
    said = release(checkout, "--rehearse", check="ls no-such-file")
    assert "no-such-file" in said
    assert "refused: the tests fail" in said
    assert list((checkout.parent / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("version", "reason"),
    [("7.0.0.dev1", "7.0.0.dev1 is a development version"), ("7.0.0", "CHANGELOG.md has no section '## 7.0.0'")],
)
def test_a_version_that_is_none_yet_is_refused(checkout: Path, version: str, reason: str) -> None:
    set_version(checkout, version)
    assert f"refused: {reason}" in release(checkout)


def test_a_version_that_was_released_is_refused(checkout: Path) -> None:
    set_version(checkout, "0.1.0")
    run(*GIT, "-C", checkout, "tag", "v0.1.0")
    assert "refused: the tag v0.1.0 is there already" in release(checkout)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A clone of what is committed here, with a release's version and changelog, and a bare clone as its origin."""
    origin, path = tmp_path / "origin.git", tmp_path / "checkout"
    run(*GIT, "clone", "--quiet", "--bare", REPO, origin)
    run(*GIT, "clone", "--quiet", origin, path)
    changes = path / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("## Unreleased", "## 7.0.0 - 2026-12-01", 1))
    set_version(path, "7.0.0")
    run("git", "-C", path, "config", "user.name", "tests")
    run("git", "-C", path, "config", "user.email", "tests@example.org")
    return path


@pytest.mark.packages
def test_a_release_from_end_to_end(scratch: Path, fuse: None, root: None) -> None:
    """All but `.ci/run`, which is a run of these tests. Nothing leaves the machine, and the script says so."""
    podman, out = Podman(), scratch.parent / "out"
    cache = Path.home() / ".cache/pip"
    cache.mkdir(parents=True, exist_ok=True)
    volumes = [word for volume in [*CERTIFICATES, f"{cache}:/root/.cache/pip"] for word in ("-v", volume)]
    image = ["--build-arg", f"BASE={podman.debian(SUITE)}", *volumes]
    environment = {"PINFS_RELEASE_CHECK": "true", "PINFS_IMAGE_OPTIONS": " ".join(image), **podman.settings}
    done = subprocess.run(
        [scratch / "scripts/release", out], env={**os.environ, **environment}, timeout=WHOLE_LIMIT_S,
        check=False, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0
    names = {path.name for path in out.iterdir()}
    assert {
        "pinfs-7.0.0.tar.gz",
        "pinfs-7.0.0-py3-none-any.whl",
        "pinfs_7.0.0-1_all.deb",
        "pinfs-7.0.0.oci.tar",
    } <= names
    run("env", f"--chdir={out}", "sha256sum", "--check", "--strict", "SHA256SUMS")
    assert len((out / "SHA256SUMS").read_text().splitlines()) == len(names) - 1
    assert done.stdout.count("pinfs, version 7.0.0 ") == 5, "each wheel, the sdist, pipx and the image were tried"
    assert "SHA256SUMS is not signed" in done.stdout
    assert "not done: git push origin v7.0.0 (would go through)" in done.stdout
    assert run(*GIT, "-C", scratch, "cat-file", "-t", "v7.0.0") == "tag\n"
    assert run(*GIT, "-C", scratch.parent / "origin.git", "tag") == ""
    podman("rmi", "localhost/pinfs:7.0.0")
