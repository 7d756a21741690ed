"""The CUDA runtime as a registrar, by ctypes: `pinfs.register(file, cuda.Runtime().registrar())`.

Any CUDA library of the program (PyTorch, CuPy, code in C) then copies to and from the registered memory at the speed of
page-locked memory. For HIP, hipHostRegister and hipHostUnregister make a `pinfs.Registrar` in the same way.
"""

import ctypes
import ctypes.util
import glob
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pinfs.client.registered import Registrar

REGISTER_PORTABLE = 1
"""cudaHostRegisterPortable: page-locked for all devices of the process."""

HINTS = {
    1: "the range is not mapped, or the kernel does not pin pages of this file",
    304: "the kernel refused to pin the pages",
    801: "this device or this file does not support it",
}
"""cudaErrorInvalidValue, cudaErrorOperatingSystem, cudaErrorNotSupported. docs/devices.md: on which files."""


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed; `code` is its cudaError_t."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__("; ".join(filter(None, (f"{call}: {text} ({code})", HINTS.get(code)))))
        self.call = call
        self.code = code


class NoCudaError(RuntimeError):
    """There is no CUDA runtime, or no device that it can use; the text says which."""


class Runtime:
    """libcudart, and a device that can be used. Raises NoCudaError.

    `path`: of the library. By default the one that the process has loaded already (PyTorch's, say), else one that the
    dynamic linker finds, else those below /usr/local/cuda and of the Python packages `nvidia-cuda-runtime`.
    """

    def __init__(self, path: str | None = None) -> None:
        self._library = ctypes.CDLL(path) if path else _loaded_library()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        try:
            count = ctypes.c_int()
            self.call("cudaGetDeviceCount", ctypes.byref(count))
        except CudaError as error:
            raise NoCudaError(f"no GPU can be used: {error}") from error
        if not count.value:
            raise NoCudaError("no GPU can be used: the CUDA runtime finds no device")

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the runtime that answers a cudaError_t; pointers and sizes as ctypes values.

        Raises CudaError. (The error is taken back from the runtime then: it would be reported once more to the next
        caller of cudaGetLastError in the program.)
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            text = self._library.cudaGetErrorString(code) or b"unknown error"
            self._library.cudaGetLastError()
            raise CudaError(name, code, text.decode())

    def registrar(self, quiesce: Callable[[], object] | None = None) -> Registrar:
        """For memory that the current device (cudaGetDevice) reads and writes.

        `quiesce`: waits for the streams that use the memory, from any thread; by default all of the device are waited
        for (cudaDeviceSynchronize).
        """
        device = self.current_device()

        def register(address: int, length: int) -> None:
            self.call(
                "cudaHostRegister", ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_uint(REGISTER_PORTABLE)
            )

        def unregister(address: int) -> None:
            with self._on(device):
                self.call("cudaHostUnregister", ctypes.c_void_p(address))

        def synchronize() -> None:
            with self._on(device):
                self.call("cudaDeviceSynchronize")

        return Registrar(register, unregister, quiesce or synchronize)

    def current_device(self) -> int:
        """The device of this thread."""
        device = ctypes.c_int()
        self.call("cudaGetDevice", ctypes.byref(device))
        return device.value

    @contextmanager
    def _on(self, device: int) -> Iterator[None]:
        """The current device is a thread's own, and callbacks of breaks run in threads of their own."""
        before = self.current_device()
        self.call("cudaSetDevice", device)
        try:
            yield
        finally:
            self.call("cudaSetDevice", before)


def _loaded_library() -> ctypes.CDLL:
    tried = []
    for candidate in _candidates():
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            tried.append(str(error))
    raise NoCudaError("; ".join(["no CUDA runtime (libcudart.so) is found", *tried]))


def _candidates() -> Iterator[str]:
    yield from re.findall(r"\S*/libcudart[^/\s]*\.so\S*", Path("/proc/self/maps").read_text())
    if linked := ctypes.util.find_library("cudart"):
        yield linked
    patterns = [f"{home}/lib64/libcudart.so" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    patterns += [f"{path}/nvidia/*/lib/libcudart.so.*" for path in sys.path if path]
    for pattern in patterns:
        yield from sorted(glob.glob(pattern), reverse=True)
