"""A GPU for tests, by the CUDA runtime alone: memory, a stream, and copies whose speed is measured."""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import time
from collections.abc import Callable

from pinfs.client.cuda import Runtime

TO_DEVICE, FROM_DEVICE = 1, 2  # cudaMemcpyKind
SIZE = 1 << 30
RUNS = 7


class Gpu:
    """The device's memory is `SIZE` bytes; copies go to and from its begin."""

    def __init__(self) -> None:
        self.runtime = Runtime()
        self.stream = ctypes.c_void_p()
        self.runtime.call("cudaStreamCreate", ctypes.byref(self.stream))
        self.memory = ctypes.c_void_p()
        self.runtime.call("cudaMalloc", ctypes.byref(self.memory), ctypes.c_size_t(SIZE))

    def close(self) -> None:
        self.runtime.call("cudaFree", self.memory)
        self.runtime.call("cudaStreamDestroy", self.stream)

    def fill(self, byte: int) -> None:
        """Set all memory of the device."""
        self.runtime.call("cudaMemset", self.memory, byte, ctypes.c_size_t(SIZE))
        self.runtime.call("cudaDeviceSynchronize")

    def queue(self, address: int, length: int, kind: int) -> None:
        """Queue a copy between the device and host memory."""
        host = ctypes.c_void_p(address)
        to, source = (self.memory, host) if kind == TO_DEVICE else (host, self.memory)
        self.runtime.call("cudaMemcpyAsync", to, source, ctypes.c_size_t(length), kind, self.stream)

    def wait(self) -> None:
        """Returns when all queued copies are made."""
        self.runtime.call("cudaStreamSynchronize", self.stream)

    def copy(self, address: int, length: int, kind: int) -> None:
        """Copy, and wait for it."""
        self.queue(address, length, kind)
        self.wait()

    def speed(self, address: int, length: int, kind: int) -> float:
        """GB/s, the median of `RUNS` copies after one that is not counted."""
        self.copy(address, length, kind)
        return length / statistics.median(seconds(self.copy, address, length, kind) for _ in range(RUNS)) / 1e9

    def page_locked(self, length: int) -> ctypes.c_void_p:
        """Anonymous memory of the host that the driver has allocated."""
        memory = ctypes.c_void_p()
        self.runtime.call("cudaMallocHost", ctypes.byref(memory), ctypes.c_size_t(length))
        return memory


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def card() -> str:
    """The name of the card and the version of its driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
