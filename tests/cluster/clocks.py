"""Clocks that are set: CLOCK_REALTIME of programs that run under `prefix`, and nothing else on this machine."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from pathlib import Path

_LIBRARY = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_s;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("PINFS_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *page = mmap(0, sizeof *offset_s, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED)
        offset_s = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && offset_s)
        now->tv_sec += *offset_s;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    return now ? *now = precise.tv_sec : precise.tv_sec;
}
"""


class Clock:
    """The wall clock of one machine. `library`: of `built`."""

    def __init__(self, path: Path, library: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._page = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)
        self.prefix = ("env", f"LD_PRELOAD={library}", f"PINFS_TEST_CLOCK={path}")

    def step(self, offset_s: int) -> None:
        """From now on it is so many seconds ahead of this machine's."""
        struct.pack_into("=q", self._page, 0, offset_s)


def built(directory: Path) -> Path:
    """The library that programs load."""
    source, library = directory / "clock.c", directory / "clock.so"
    source.write_text(_LIBRARY)
    if library.exists():  # programs may have loaded it
        return library
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library
