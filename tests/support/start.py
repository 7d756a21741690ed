"""The circumstances of a run: known values, the same for every starter (a terminal, `make test &`, nohup, cron, a git
hook, a service manager, CI). Children inherit them, so that the daemons and actors of the tests start from them too.

What stays as the starter chose it: priority and CPU affinity (`nice make test` is a wish), the session and its
terminal, namespaces, capabilities, and the variables in `KEPT`.
"""

from __future__ import annotations

import locale
import os
import pwd
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

REPO = Path(__file__).parents[2]
UMASK = 0o022
LOCALE = "C.UTF-8"
TEMPORARY = "/tmp"
KNOWN = {"LANG": LOCALE, "LC_ALL": LOCALE, "TZ": "UTC", "TMPDIR": TEMPORARY}
KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "ALL_PROXY", "NO_PROXY")
KEPT_PREFIXES = (
    *("PINFS_", "PYTEST_", "HYPOTHESIS_", "COV_", "COVERAGE_"),  # what the run shall do
    *("HTTP_", "HTTPS_", "FTP_", "SSL_", "PIP_", "UV_"),  # how this machine reaches a package registry
    *("CONTAINER", "STORAGE_", "REGISTRY_", "BUILDAH_", "SE_"),  # podman, Selenium
    *("CUDA_", "NVIDIA_", "ROCR_", "HIP_"),
)
KEPT_OF_PYTHON = ("PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONHASHSEED", "PYTHONTRACEMALLOC")
"""Not PYTHONDONTWRITEBYTECODE, with which each of a thousand daemons compiles the same modules again: a fifth of its
start."""
READ_BY_PYTHON = ("PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONMALLOC", "PYTHONIOENCODING")
RESTARTED = "PINFS_TESTS_RESTARTED"
DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Of programs. The PATH of cron and of `su` lacks those with mkfs."""

INFINITE = resource.RLIM_INFINITY
LIMITS = {
    resource.RLIMIT_NOFILE: (20_000, 20_000),  # a daemon's caches take a share of these
    resource.RLIMIT_CORE: (0, INFINITE),
    resource.RLIMIT_FSIZE: (INFINITE, INFINITE),
    resource.RLIMIT_DATA: (INFINITE, INFINITE),
    resource.RLIMIT_AS: (INFINITE, INFINITE),
    resource.RLIMIT_CPU: (INFINITE, INFINITE),
    resource.RLIMIT_STACK: (8 << 20, INFINITE),
    resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20),
}
"""Soft and hard, in bytes, seconds or descriptors. A user without CAP_SYS_RESOURCE keeps lower hard limits."""

IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def settle_process() -> None:
    """Signals, timers, descriptors 0 to 2, umask, limits."""
    for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}):
        if signal.getsignal(number) is signal.SIG_IGN and number not in IGNORED_BY_PYTHON:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for timer in TIMERS:  # they run on across exec(2)
        signal.setitimer(timer, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(UMASK)
    _open_standard_descriptors()
    for what, (soft, hard) in LIMITS.items():
        _limit(what, soft, hard)


def _open_standard_descriptors() -> None:
    """One that was closed would be the number of the next file that a process opens."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _limit(what: int, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(what, (soft, hard))
    except (OSError, ValueError):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (_lower(soft, hard), hard))


def _lower(one: int, other: int) -> int:
    return min((one, other), key=lambda limit: float("inf") if limit == INFINITE else limit)


def settle_environment() -> None:
    """Variables, locale, time zone, directory for temporary files, working directory."""
    environment = known_environment(os.environ)
    for name in [name for name in os.environ if name not in environment]:
        del os.environ[name]
    os.environ.update(environment)
    locale.setlocale(locale.LC_ALL, LOCALE)
    time.tzset()
    tempfile.tempdir = None
    os.chdir(REPO)


def known_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the tests see of the variables that the run was started with."""
    kept = {name: value for name, value in environment.items() if is_kept(name)}
    path = kept.get("PATH", "").split(":")
    kept["PATH"] = ":".join([*filter(None, path), *(place for place in DIRECTORIES if place not in path)])
    if not Path(kept.get("HOME", "/nonexistent")).is_dir():
        kept["HOME"] = _home()
    return kept | KNOWN


def is_kept(name: str) -> bool:
    return name.upper() in KEPT or name.upper().startswith(KEPT_PREFIXES) or name in KEPT_OF_PYTHON


def _home() -> str:
    with suppress(KeyError):
        home = pwd.getpwuid(os.geteuid()).pw_dir
        if Path(home).is_dir():
            return home
    return TEMPORARY


def is_misread() -> bool:
    """Whether this interpreter has taken its encoding or its warnings, from variables at its
    start. (Options on the command line are a wish.)"""
    if os.environ.pop(RESTARTED, None):
        return False
    if sys.getfilesystemencoding() != "utf-8" or locale.getpreferredencoding(False).lower() != "utf-8":
        return True
    return any(os.environ.get(name) for name in READ_BY_PYTHON)


def restart() -> NoReturn:
    """Begins this program once more, with known variables."""
    os.execve(sys.executable, sys.orig_argv, known_environment(os.environ) | {RESTARTED: "1"})
