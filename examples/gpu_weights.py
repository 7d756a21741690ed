#!/usr/bin/env python3
"""Load model weights from a file of the mount to the GPU, and load them anew when the file is overwritten in place.

    python3 gpu_weights.py /mnt/model.safetensors       in another terminal:   cp new.safetensors /mnt/model.safetensors

The file (safetensors, or .npy) is mapped under a lease and registered with CUDA, so the GPU fetches it at the speed of
page-locked memory, and no truncate takes pages away that the GPU reads. At a break the program waits for its stream and
unregisters, the truncate goes on, and the new weights are loaded when all are there. Uses PyTorch if it is installed,
else the CUDA runtime alone (also with --plain). --check reads the weights back. --reloads N ends after N reloads.
"""

import argparse
import ast
import ctypes
import errno
import hashlib
import json
import math
import os
import struct
import sys
import time
from typing import NamedTuple

import pinfs
from pinfs.client import cuda

CHUNK = 64 << 20  # bytes that are queued at a time: a break waits for no more


class Tensor(NamedTuple):
    name: str
    dtype: str  # as the file spells it: BF16, <f4
    shape: list[int]
    start: int  # bytes from the begin of the data
    end: int


class Layout(NamedTuple):
    data: int  # where it begins in the file
    size: int  # how long it is
    tensors: list[Tensor]


class IncompleteError(Exception):
    """The file is being written, or is no file of weights."""


def read_layout(fd: int) -> Layout:
    """The header of a safetensors file or of a .npy file, once all that it announces is there."""
    head = os.pread(fd, 12, 0)
    try:
        layout = _npy(fd, head) if head.startswith(b"\x93NUMPY") else _safetensors(fd, head)
    except (ValueError, TypeError, KeyError, struct.error, SyntaxError) as error:
        raise IncompleteError("the header is not all there") from error
    if os.fstat(fd).st_size < layout.data + layout.size:
        raise IncompleteError("the data is not all there")
    return layout


def _safetensors(fd: int, head: bytes) -> Layout:
    (length,) = struct.unpack_from("<Q", head)
    header = json.loads(os.pread(fd, length, 8)) if length < 100 << 20 else {}
    header.pop("__metadata__", None)
    tensors = [Tensor(name, row["dtype"], row["shape"], *row["data_offsets"]) for name, row in header.items()]
    if not tensors:
        raise ValueError("no tensors")
    return Layout(8 + length, max(tensor.end for tensor in tensors), tensors)


def _npy(fd: int, head: bytes) -> Layout:
    begin, form = (10, "<H") if head[6] == 1 else (12, "<I")
    (length,) = struct.unpack_from(form, head, 8)
    row = ast.literal_eval(os.pread(fd, length, begin).decode())
    size = math.prod(row["shape"]) * int(row["descr"][2:])
    return Layout(begin + length, size, [Tensor("array", row["descr"], list(row["shape"]), 0, size)])


class PlainDevice:
    """Memory of the GPU and a stream, by the CUDA runtime alone."""

    def __init__(self) -> None:
        self.runtime = cuda.Runtime()
        self.stream = ctypes.c_void_p()
        self.runtime.call("cudaStreamCreate", ctypes.byref(self.stream))
        self.memory = ctypes.c_void_p()

    def allocate(self, size: int) -> None:
        self.runtime.call("cudaFree", self.memory)
        self.memory = ctypes.c_void_p()
        self.runtime.call("cudaMalloc", ctypes.byref(self.memory), ctypes.c_size_t(size))

    def fetch(self, memory: memoryview, start: int, size: int) -> None:
        """Queue a copy to the GPU."""
        source = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + start
        target = (self.memory.value or 0) + start
        self._copy(ctypes.c_void_p(target), ctypes.c_void_p(source), size, 1)

    def _copy(self, target: object, source: object, size: int, kind: int) -> None:
        self.runtime.call("cudaMemcpyAsync", target, source, ctypes.c_size_t(size), kind, self.stream)

    def wait(self) -> None:
        """Returns when the GPU has made all copies."""
        self.runtime.call("cudaStreamSynchronize", self.stream)

    def read_back(self, size: int) -> bytearray:
        copy = bytearray(size)
        self._copy((ctypes.c_char * size).from_buffer(copy), self.memory, size, 2)
        self.wait()
        return copy


class TorchDevice:
    """The same by PyTorch; `tensors` gives views of the memory by their names."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        if not torch.cuda.is_available():
            raise cuda.NoCudaError("no GPU can be used: torch.cuda.is_available() says no")
        self.stream = torch.cuda.Stream()
        self.memory = torch.empty(0, dtype=torch.uint8, device="cuda")
        self.runtime = cuda.Runtime()  # the one that PyTorch has loaded

    def allocate(self, size: int) -> None:
        self.memory = None  # frees the old weights before the new ones are there
        self.memory = self.torch.empty(size, dtype=self.torch.uint8, device="cuda")
        self.torch.cuda.synchronize()

    def fetch(self, memory: memoryview, start: int, size: int) -> None:
        source = self.torch.frombuffer(memory, dtype=self.torch.uint8, offset=start, count=size)
        with self.torch.cuda.stream(self.stream):
            self.memory[start : start + size].copy_(source, non_blocking=True)

    def wait(self) -> None:
        self.stream.synchronize()

    def read_back(self, size: int) -> bytes:
        return self.memory.cpu().numpy().tobytes()

    def tensors(self, layout: Layout) -> dict:
        """What a model takes (load_state_dict)."""
        dtypes = {
            "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
            "I8": "int8", "U8": "uint8", "BOOL": "bool", "<f8": "float64", "<f4": "float32", "<f2": "float16",
        }  # fmt: skip
        return {
            tensor.name: self.memory[tensor.start : tensor.end]
            .view(getattr(self.torch, dtypes[tensor.dtype]))
            .reshape(tensor.shape)
            for tensor in layout.tensors
            if tensor.dtype in dtypes
        }


def new_device(plain: bool) -> PlainDevice | TorchDevice:
    if not plain:
        try:
            return TorchDevice()
        except ImportError:
            pass
    return PlainDevice()


def load(registration: pinfs.Registration, layout: Layout, device: PlainDevice | TorchDevice) -> None:
    """Each chunk is queued within `copying`, so that none is queued when a break has begun (then OSError ENODATA)."""
    for start in range(0, layout.size, CHUNK):
        with registration.copying():
            device.fetch(registration.memory, start, min(CHUNK, layout.size - start))
    with registration.copying():
        device.wait()


def serve_one(fd: int, device: PlainDevice | TorchDevice, check: bool, stay: bool) -> None:
    """Load what is in the file and serve it until the file is about to be overwritten, or, not to `stay`, once."""
    layout = read_layout(fd)
    registrar = device.runtime.registrar(quiesce=device.wait)
    with pinfs.register(fd, registrar, layout.data, layout.size, note="gpu_weights") as registration:
        if read_layout(fd) != layout:  # it was overwritten before the pin stood
            raise IncompleteError("the header has changed")
        device.allocate(layout.size)
        began = time.perf_counter()
        load(registration, layout, device)
        seconds = time.perf_counter() - began
        digest = f", sha256 {hashlib.sha256(device.read_back(layout.size)).hexdigest()}" if check else ""
        print(
            f"serving {len(layout.tensors)} tensors, {layout.size} bytes, fetched at {layout.size / seconds / 1e9:.1f} "
            f"GB/s under pin {registration.pin.id}{digest}",
            flush=True,
        )
        if stay:
            registration.wait()
            print("a removal began: unregistered, and the pin is released", flush=True)


def serve(path: str, device: PlainDevice | TorchDevice, check: bool, reloads: int | None) -> None:
    fd = os.open(path, os.O_RDWR)
    told = ""
    while True:
        try:
            serve_one(fd, device, check, stay=reloads != 0)
        except IncompleteError as incomplete:
            if told != str(incomplete):
                told = str(incomplete)
                print(f"waiting for the file: {told}", file=sys.stderr, flush=True)
            time.sleep(0.05)
            continue
        except OSError as error:  # a removal is under way, the weights are not all there, or a break stopped the load
            if error.errno not in (errno.EAGAIN, errno.ENXIO, errno.ENODATA):
                raise
            time.sleep(0.05)
            continue
        if reloads == 0:
            return
        reloads = None if reloads is None else reloads - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Weights of a file of a pinfs mount on the GPU.")
    parser.add_argument("file")
    parser.add_argument("--reloads", type=int)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    try:
        serve(options.file, new_device(options.plain), options.check, options.reloads)
    except (cuda.NoCudaError, cuda.CudaError, pinfs.NotPinfsError) as error:
        sys.exit(f"gpu_weights: {error}")
