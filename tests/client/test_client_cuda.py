"""The CUDA runtime's calls, answered by functions of a test. With a real GPU: tests/devices/test_gpu.py."""

import threading
from typing import Any

import pytest

from pinfs.client import cuda


class FakeLibrary:
    """libcudart with two devices; each thread has a current one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, int] = {}
        self.devices = 2
        self._thread = threading.local()
        self.cudaGetErrorString = self._error_string  # a function of its own, which takes a restype

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, *(getattr(argument, "value", argument) for argument in arguments)))
            return self.failing.get(name, 0)

        return call

    _error_string = staticmethod(lambda code: b"what went wrong")

    def cudaGetDeviceCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return self.failing.get("cudaGetDeviceCount", 0)

    def cudaGetDevice(self, device: Any) -> int:
        device._obj.value = getattr(self._thread, "device", 0)
        return 0

    def cudaSetDevice(self, device: int) -> int:
        self.calls.append(("cudaSetDevice", device))
        self._thread.device = device
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    library = FakeLibrary()
    monkeypatch.setattr(cuda, "_loaded_library", lambda: library)
    return library


def test_a_registrar_calls_the_runtime_for_its_device(library: FakeLibrary) -> None:
    library.cudaSetDevice(1)
    registrar = cuda.Runtime().registrar()
    registrar.register(4096, 8192)
    assert library.calls.pop() == ("cudaHostRegister", 4096, 8192, cuda.REGISTER_PORTABLE)
    library.calls.clear()

    def break_() -> None:
        assert registrar.quiesce
        registrar.quiesce()
        registrar.unregister(4096)

    thread = threading.Thread(target=break_)
    thread.start()
    thread.join()
    on, back = ("cudaSetDevice", 1), ("cudaSetDevice", 0)
    assert library.calls == [on, ("cudaDeviceSynchronize",), back, on, ("cudaHostUnregister", 4096), back]


def test_the_program_may_wait_for_less(library: FakeLibrary) -> None:
    waited: list[int] = []
    registrar = cuda.Runtime().registrar(quiesce=lambda: waited.append(1))
    assert registrar.quiesce
    registrar.quiesce()
    assert waited == [1]
    assert library.calls == []


def test_an_error_says_what_failed_and_is_taken_back(library: FakeLibrary) -> None:
    library.failing["cudaHostRegister"] = 304
    with pytest.raises(
        cuda.CudaError, match=r"cudaHostRegister: what went wrong \(304\); the kernel refused"
    ) as failed:
        cuda.Runtime().registrar().register(4096, 4096)
    assert (failed.value.call, failed.value.code) == ("cudaHostRegister", 304)
    assert library.calls[-1] == ("cudaGetLastError",)


def test_no_device(library: FakeLibrary) -> None:
    library.failing["cudaGetDeviceCount"] = 100
    with pytest.raises(cuda.NoCudaError, match=r"no GPU can be used: cudaGetDeviceCount: what went wrong \(100\)"):
        cuda.Runtime()
    library.failing.clear()
    library.devices = 0
    with pytest.raises(cuda.NoCudaError, match="finds no device"):
        cuda.Runtime()


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_candidates", lambda: iter(["/nowhere/libcudart.so.99"]))
    with pytest.raises(cuda.NoCudaError, match=r"libcudart.so\) is found; /nowhere/libcudart.so.99: cannot open"):
        cuda.Runtime()


def test_candidates_are_libraries() -> None:
    for candidate in cuda._candidates():
        assert "libcudart" in candidate
