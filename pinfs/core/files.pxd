cimport cython

from pinfs.core.pins cimport Pin, PinSpec
from pinfs.core.ranges cimport RangeTree
from pinfs.core.removals cimport Reservation

cdef class FileState:
    cdef public RangeTree breaking, deny, lease, reserved
    cdef public tuple orphans

    @cython.locals(tree=RangeTree, spec=PinSpec)
    cpdef add(self, Pin pin)
    @cython.locals(tree=RangeTree, spec=PinSpec)
    cpdef take(self, Pin pin)
    cpdef add_breaking(self, Pin pin)
    cpdef take_breaking(self, Pin pin)
    @cython.locals(tree=RangeTree, spec=PinSpec)
    cpdef Pin first(self, object start, object end)
    @cython.locals(found=list)
    cpdef list some(self, object start, object end, Py_ssize_t count)
    cpdef reserve(self, Reservation reservation)
    cpdef unreserve(self, Reservation reservation)
    cpdef bint is_reserved(self, object start, object end) except -1

cdef class Files:
    cdef public object on_empty, on_failure
    cdef readonly dict states

    cpdef FileState get(self, object inode)
    @cython.locals(file=FileState)
    cpdef FileState of(self, object inode)
    @cython.locals(file=FileState)
    cpdef drop_if_empty(self, object inode)
