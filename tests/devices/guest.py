"""A guest under qemu whose RAM is a file: the program `guest.S` counts there, and answers on its serial port."""

from __future__ import annotations

import os
import platform
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from support.actor import eventually
from support.mounts import DIES_WITH_US

HERE = Path(__file__).parent
SIZE = 16 << 20
COUNTER, PAGE = 0x10000, 0x20000
"""Where the program counts, and the page that it fills with Z: guest addresses, and offsets in the file of its RAM."""
LIMIT_S = 30.0
EMULATED = ("-machine", "pc", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio")


def qemu(ram: Path, more: str = "") -> list[str]:
    """The command of a guest with that file as its RAM, as in examples/guest_ram.sh. `more`: properties of the RAM."""
    backend = f"memory-backend-file,id=ram,size={SIZE >> 20}M,mem-path={ram},share=on{more}"
    return ["qemu-system-x86_64", "-m", f"{SIZE >> 20}M", "-machine", "memory-backend=ram", "-object", backend]


def firmware(directory: Path) -> Path:
    """`guest.S` as 64 KiB for qemu's -bios."""
    if platform.machine() != "x86_64":
        pytest.skip("the guest's program is assembled for x86, which takes the assembler of an x86-64 machine")
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("qemu-system-x86_64 is not installed (scripts/install-needs)")
    assembled, linked = directory / "guest.o", directory / "guest.bin"
    subprocess.run(["as", "--32", "-o", assembled, HERE / "guest.S"], check=True)
    flat = ("-m", "elf_i386", "--oformat", "binary", "-Ttext", "0")
    subprocess.run(["ld", *flat, "-o", linked, assembled], check=True)
    return linked


class Guest:
    """A running guest. `command` starts qemu; options that make it the machine of `guest.S` are added here.

    `with` kills it.
    """

    def __init__(self, command: Sequence[str | os.PathLike[str]], bios: Path, *options: str) -> None:
        self._errors = bios.with_name("qemu.err")
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*DIES_WITH_US, *command, *EMULATED, "-bios", bios, *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip
        try:
            assert self._sent() == b"u"
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # qemu as well, where `pinfs pin` has started it
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()

    def obeys(self, command: bytes) -> bytes:
        """What it sends when it has obeyed a byte."""
        assert self.process.stdin
        os.write(self.process.stdin.fileno(), command)
        return self._sent()

    def _sent(self) -> bytes:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], LIMIT_S)[0], "the guest is silent"
        sent = os.read(self.process.stdout.fileno(), 1)
        assert sent, f"qemu has ended with {self.process.wait()}: {self.errors()}"
        return sent

    def errors(self) -> str:
        """What qemu has said."""
        return self._errors.read_text()


def goes_on(ram: Path) -> bool:
    """Whether a guest counts in this file from now on."""
    begin = counter(ram)
    eventually(lambda: counter(ram) != begin)
    return True


def counter(ram: Path) -> bytes:
    return at(ram, COUNTER, 4)


def at(ram: Path, offset: int, length: int) -> bytes:
    """Bytes of the file, read by read(2)."""
    with ram.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)
