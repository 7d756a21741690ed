cimport cython

from pinfs.core.deadlines cimport Deadlines
from pinfs.core.files cimport Files, FileState
from pinfs.core.pins cimport Break, Pin
from pinfs.core.removals cimport Removal, Reservation
from pinfs.core.table cimport discard

cdef class Breaks:
    cdef public dict of_owner, of_handles, killed
    cdef Files _files
    cdef Deadlines _deadlines

    cpdef Break begin(self, Pin pin, Removal removal, double now)
    @cython.locals(pin=Pin)
    cdef _add(self, Break breaking, double deadline)
    @cython.locals(pin=Pin)
    cpdef end(self, Break breaking)
    @cython.locals(file=FileState)
    cpdef keep(self, Break breaking)
    @cython.locals(file=FileState, reservation=Reservation)
    cpdef bint is_waited_for(self, Pin pin) except -1
