"""podman with runc, on storage of its own: needs no registry, leaves the machine's own images and containers alone.

The first use makes a Debian root with debootstrap and builds the images of containers/Containerfile on it. Both are
kept in CACHE, so that later runs only build what has changed.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.actor import Actor
from support.mounts import REPO

CACHE = Path(os.environ.get("PINFS_CACHE", "/var/cache/pinfs-test-rootfs"))
SUITE = "bookworm"
LIMIT_S = 120.0
BUILD_LIMIT_S = 1200.0
CAN_MOUNT = ("--device", "/dev/fuse", "--cap-add", "SYS_ADMIN")
"""What a container needs that mounts a pinfs itself."""

_CA = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATES = [f"{_CA}:{_CA}:ro"] if _CA.exists() else []
"""For `-v`: a container that fetches packages trusts whom the host trusts."""

# As in Debian's own images: what nobody reads in a container stays out, and installing does not wait for the disk.
_DPKG = """force-unsafe-io
path-exclude /usr/share/doc/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""


class Podman:
    """`podman(...)` runs a podman command. Needs the programs podman, runc and debootstrap, and root."""

    def __init__(self) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        self.session = f"pinfs-{os.getpid()}"
        self.settings = {
            "CONTAINERS_CONF": str(_write(CACHE / "containers.conf", _containers_conf())),
            "CONTAINERS_STORAGE_CONF": str(_write(CACHE / "storage.conf", _storage_conf())),
        }
        self.command = ["env", *(f"{key}={value}" for key, value in self.settings.items()), "podman"]
        self._names = 0

    def __call__(self, *words: object, check: bool = True, limit_s: float = LIMIT_S) -> str:
        """What a podman command prints; AssertionError with what it said when it fails (and `check`)."""
        result = subprocess.run(
            [*self.command, *map(str, words)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False,
        )  # fmt: skip
        assert not check or not result.returncode, (
            f"podman {words}: {result.returncode}\n{result.stdout}{result.stderr}"
        )
        return result.stdout + result.stderr

    # --- images

    def debian(self, suite: str) -> str:
        """The image of a Debian root; made when it is not there."""
        image = f"localhost/pinfs-debian:{suite}"
        with _locked():
            if f"{image}\n" not in self("images", "--format", "{{.Repository}}:{{.Tag}}\n"):
                self._bootstrap(suite, image)
        return image

    def _bootstrap(self, suite: str, image: str) -> None:
        mirror = os.environ.get("PINFS_DEBIAN_MIRROR", "http://deb.debian.org/debian")
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="root-") as root:
            words = ["debootstrap", "--variant=minbase", "--include=ca-certificates", suite, root, mirror]
            _checked(words)
            _checked(["find", f"{root}/var/cache/apt/archives", f"{root}/var/lib/apt/lists", "-type", "f", "-delete"])
            _write(Path(root, "etc/dpkg/dpkg.cfg.d/small"), _DPKG)
            with tempfile.NamedTemporaryFile(dir=CACHE, suffix=".tar") as tar:
                _checked(["tar", "--numeric-owner", "-C", root, "-cf", tar.name, "."])
                self("import", tar.name, image)

    def build(self, tag: str, file: Path, context: Path, *words: str) -> str:
        """The id of an image, built from a Containerfile. Network, certificates and pip's cache are the host's.

        The tag keeps its layers for the next run.
        """
        volumes = [*CERTIFICATES, f"{_made(Path.home() / '.cache/pip')}:/root/.cache/pip"]
        mounts = [word for volume in volumes for word in ("-v", volume)]
        with _locked(), tempfile.NamedTemporaryFile() as answer:
            self(
                "build", "--network=host", "--iidfile", answer.name, "--tag", f"localhost/pinfs-test:{tag}",
                *mounts, *words, "-f", file, context,
                limit_s=BUILD_LIMIT_S,
            )  # fmt: skip
            return Path(answer.name).read_text()

    # --- containers

    def name(self) -> str:
        """A name for a container of this run."""
        self._names += 1
        return f"{self.session}-{self._names}"

    def options(self, name: str) -> list[str]:
        """What every container of ours is started with."""
        return ["--name", name, "--label", f"session={self.session}"]

    def run(self, image: str, *command: object, options: Sequence[object] = (), check: bool = True) -> str:
        """What a command in a container of its own prints."""
        return self("run", "--rm", *self.options(self.name()), *options, "--entrypoint=", image, *command, check=check)

    def start(self, image: str, *command: object, options: Sequence[object] = ()) -> Container:
        """A container in the background."""
        name = self.name()
        self("run", "--detach", *self.options(name), *options, image, *command)
        return Container(self, name)

    def actor(self, image: str, *options: str) -> BoxedActor:
        """A directed process (support/actor.py) in a container of its own."""
        return BoxedActor(self, image, options)

    def clear(self) -> None:
        """Ends and removes all containers of this run."""
        self("rm", "--force", "--time", "0", "--filter", f"label=session={self.session}", check=False)

    def prune(self) -> None:
        """Forgets the images of checkouts that are a day old."""
        self("image", "prune", "--force", "--filter", "until=24h", check=False)


class Container:
    """A container that runs in the background."""

    def __init__(self, podman: Podman, name: str) -> None:
        self._podman = podman
        self.name = name

    def exec(self, *command: object, check: bool = True) -> str:
        """What a command in this container prints."""
        return self._podman("exec", self.name, *command, check=check)

    def kill(self, signal: str) -> None:
        """Signals the container's first process."""
        self._podman("kill", "--signal", signal, self.name)

    def restart(self) -> None:
        """Shuts it down, and boots it again with the files that it has."""
        self._podman("restart", "--time", "30", self.name)

    def wait(self) -> int:
        """Waits for its end. Returns the exit status."""
        return int(self._podman("wait", self.name))

    def log(self) -> str:
        """What it has printed."""
        return self._podman("logs", self.name)

    @property
    def pid(self) -> int:
        """The number of its first process on the host."""
        return int(self._podman("inspect", "--format", "{{.State.Pid}}", self.name))


class BoxedActor(Actor):
    """An actor in a container of its own, with mounts and namespaces as `options` say; runs this checkout."""

    def __init__(self, podman: Podman, image: str, options: Sequence[str]) -> None:
        name = podman.name()
        self.box = Container(podman, name)
        words = ["run", "--rm", "--interactive", *podman.options(name), "-v", f"{REPO}:{REPO}:ro", *options]
        super().__init__(prefix=[*podman.command, *words, "--entrypoint=", image])


@contextmanager
def shared_directory() -> Iterator[Path]:
    """A directory on the host whose mounts containers can share: a mount of its own that propagates."""
    path = Path(tempfile.mkdtemp(prefix="pinfs-share-", dir="/var/tmp"))
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        subprocess.run(["mount", "--make-rshared", path], check=True)
        yield path
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", path], check=True)
        shutil.rmtree(path)


def _containers_conf() -> str:
    """Limits that need no raising, which podman's own would, and not everybody may."""
    descriptors = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)
    return f"""[containers]
default_ulimits = ["nofile={descriptors}:{descriptors}", "nproc=4096:4096"]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


def _storage_conf() -> str:
    on = subprocess.run(["stat", "-fc", "%T", CACHE], capture_output=True, text=True, check=True).stdout.strip()
    driver = "vfs" if on == "overlayfs" else "overlay"  # there is no overlay on an overlay
    return f"""[storage]
driver = "{driver}"
graphroot = "{CACHE}/storage"
runroot = "/run/pinfs-test-containers/{zlib.crc32(bytes(CACHE)):08x}"
"""


def _checked(words: Sequence[str]) -> None:
    assert shutil.which(words[0]), f"these tests need {words[0]}: apt-get install podman runc debootstrap"
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=BUILD_LIMIT_S)
    assert result.returncode == 0, f"{words}: {result.stdout[-2000:]}{result.stderr[-2000:]}"


@contextmanager
def _locked() -> Iterator[None]:
    """One run at a time builds."""
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
