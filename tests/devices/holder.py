"""A process whose GPU writes into a file without end: python holder.py FILE. It prints a line when that has begun."""

import sys

import pinfs
from devices.gpu import FROM_DEVICE, SIZE, Gpu

gpu = Gpu()
with pinfs.register(sys.argv[1], gpu.runtime.registrar(), mode="deny") as registration:
    print("registered", flush=True)
    while True:
        gpu.copy(registration.address, min(SIZE, registration.length), FROM_DEVICE)
