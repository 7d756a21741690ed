"""Compiles the hot modules, where there is a C compiler; without one pinfs runs interpreted (docs/architecture.md).

All or nothing: half of them would be no faster than none. PINFS_PURE=1 leaves them out.
"""

import os
import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMPILED = (
    *("core/waits.py", "core/ranges.py", "core/pins.py", "core/removals.py", "core/events.py", "core/files.py"),
    *("core/table.py", "core/deadlines.py", "core/silence.py", "core/reservations.py", "core/breaks.py"),
    *("core/slices.py", "core/book.py"),
    *("linux/calls.pyx", "journal/slots.py", "runtime/clock.py", "runtime/asitis.py"),
    *("enforce/processes.py", "enforce/holders.py", "enforce/guard.py"),
    *("fs/openfile.py", "fs/inode.py", "fs/inodefds.py", "fs/inodes.py", "fs/backing.py", "fs/handles.py"),
    *("fs/seal.py", "fs/opens.py", "fs/names.py", "fs/set_ids.py", "fs/attributes.py", "fs/removals.py"),
    *("fs/pins.py", "fs/recorder.py", "fs/fast.py"),
    *("bridge/channel.pyx", "bridge/passthrough.py", "bridge/intents.py", "bridge/fast.py"),
)
"""The modules that are compiled. Those in .py have their C types beside them, in .pxd."""

PACKAGE = Path(__file__).parent / "pinfs"
UNBOUND_METHOD = re.compile(r"^static PyObject \*__Pyx_CFunc_\w+_to_py_\w+\(", re.MULTILINE)
"""In generated C: a method with a C signature was taken as a value, which loses its object. A lambda does not."""


class AllOrNothing(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        if not self.extensions:
            remove_compiled()
        super().run()

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as e:
            print(f"pinfs will run interpreted: {e}")
            self.extensions = []
            remove_compiled()
            remove_compiled(Path(self.build_lib))  # what was compiled before the failure would go into the wheel


def remove_compiled(below: Path = PACKAGE) -> None:
    """Nothing of an earlier build may stand in front of its source."""
    for path in below.rglob("*.so"):
        path.unlink()


def extensions() -> list[Extension]:
    if os.environ.get("PINFS_PURE"):
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    modules = [
        Extension(f"pinfs.{path.rpartition('.')[0].replace('/', '.')}", [f"pinfs/{path}"], extra_compile_args=["-g0"])
        for path in COMPILED
    ]
    directives = {"language_level": 3, "annotation_typing": False}
    made: list[Extension] = cythonize(
        modules, compiler_directives=directives, build_dir="build/cython", nthreads=os.cpu_count() or 1, quiet=True
    )
    for extension in made:
        for source in extension.sources:
            if UNBOUND_METHOD.search(Path(source).read_text()):
                raise SystemExit(f"{source}: a method with a C signature is taken as a value")
    return made


# Processes of cythonize import this file where multiprocessing does not fork (since CPython 3.14): they build nothing.
if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": AllOrNothing})
