cimport cython

from pinfs.core.files cimport Files, FileState
from pinfs.core.pins cimport Pin, PinRequest, PinSpec
from pinfs.core.table cimport PinTable

cdef class PinBook:
    cdef public Files files
    cdef public object deadlines, reservations, breaks, notifying, withdrawals, reaping, silent
    cdef public object is_dead, ended, on_end
    cdef public PinTable table
    cdef public bint closing, subscribed
    cdef object _emit, _slices
    cdef dict _waiting

    @cython.locals(file=FileState)
    cpdef bint touches(self, object inode, object start, object end) except -1
    @cython.locals(table=PinTable, old=Pin, pin=Pin, file=FileState, spec=PinSpec)
    cpdef Pin pin(self, PinRequest request, object size, double now)
    cpdef release(self, Pin pin, double now, str by=*)
    cdef _end(self, Pin pin, str kind, double now, str by)
