cimport cython

from pinfs.core.pins cimport Pin
from pinfs.core.ranges cimport RangeTree

cdef class FileState:
    cdef public RangeTree breaking, deny, lease, reserved
    cdef public tuple orphans

    @cython.locals(tree=RangeTree)
    cpdef add(self, Pin pin)
    @cython.locals(tree=RangeTree)
    cpdef take(self, Pin pin)
    cpdef add_breaking(self, Pin pin)
    cpdef take_breaking(self, Pin pin)
    @cython.locals(tree=RangeTree)
    cpdef Pin first(self, object start, object end)
    cpdef bint is_reserved(self, object start, object end) except -1
