cimport cython

from pinfs.core.deadlines cimport Deadlines
from pinfs.core.files cimport Files, FileState
from pinfs.core.removals cimport Orphan, Removal, Reservation

cdef class Reservations:
    cdef public object on_orphan, on_orphan_gone
    cdef Files _files
    cdef Deadlines _deadlines
    cdef long long _last_order

    @cython.locals(file=FileState)
    cpdef add(self, Reservation reservation)
    @cython.locals(file=FileState)
    cpdef remove(self, Reservation reservation)
    @cython.locals(file=FileState, latest=Removal, reservation=Reservation)
    cpdef Removal latest_before(self, Removal removal)
    @cython.locals(file=FileState, orphan=Orphan)
    cpdef drop_orphans(self, Removal removal)
