#!/usr/bin/env python3
"""Work on a numpy.memmap whose file cannot be cut while the work lasts.

    python3 numpy_memmap.py /mnt/FILE

A deny pin suits work of bounded length: a program that wants to truncate gets EBUSY and can try again later.
`dirty=True`: what was stored through the mapping is flushed before the release is answered.
"""

import sys
import time

import numpy as np

import pinfs


def main(path: str) -> None:
    with pinfs.pin(path, mode="deny", dirty=True, note="numpy_memmap") as pin:
        values = np.memmap(path, dtype=np.uint8, mode="r+")
        print(f"pin {pin.id} holds {values.size} bytes", flush=True)
        started = time.perf_counter()
        np.add(values, 1, out=values)  # wraps around at 255
        print(
            f"added 1 to each in {time.perf_counter() - started:.3f} s; the sum is {int(values.sum(dtype=np.uint64))}"
        )
        del values  # unmaps: the memory first, then the pin


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: numpy_memmap.py FILE")
    main(sys.argv[1])
