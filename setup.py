"""Compiles the hot modules, where there is a C compiler; without one pinfs runs interpreted (docs/architecture.md).

All or nothing: half of them would be no faster than none. PINFS_PURE=1 leaves them out.
"""

import os

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMPILED = (
    *("core/ranges.py", "core/pins.py", "core/files.py", "core/table.py", "core/book.py"),
    *("enforce/processes.py", "enforce/holders.py", "enforce/guard.py"),
    *("linux/calls.pyx", "bridge/channel.pyx", "bridge/fast.py"),
    *("fs/openfile.py", "fs/inode.py", "fs/inodefds.py", "fs/inodes.py", "fs/backing.py", "fs/handles.py"),
    *("fs/seal.py", "fs/opens.py", "fs/names.py", "fs/set_ids.py", "fs/attributes.py", "fs/removals.py"),
    *("fs/pins.py", "fs/recorder.py", "fs/fast.py", "journal/slots.py"),
)
"""The modules that are compiled. Those in .py have their C types beside them, in .pxd."""


class AllOrNothing(build_ext):
    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as e:
            print(f"pinfs runs interpreted: {e}")
            self.extensions = []


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
    directives = {"language_level": 3, "annotation_typing": False, "binding": True}
    return cythonize(modules, compiler_directives=directives, build_dir="build/cython", nthreads=os.cpu_count() or 1)


setup(ext_modules=extensions(), cmdclass={"build_ext": AllOrNothing})
