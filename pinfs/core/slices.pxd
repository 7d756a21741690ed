cimport cython

from pinfs.core.files cimport Files, FileState
from pinfs.core.pins cimport Pin
from pinfs.core.removals cimport Removal

cdef class Notifying:
    cdef public dict notified_up_to
    cdef Files _files
    cdef object _size, _notify, _more_to_do

    cpdef begin(self, Removal removal, double now)
    cpdef drop(self, Removal removal)
    @cython.locals(file=FileState, pin=Pin, pins=list)
    cpdef list go_on(self, Removal removal, double now)
    cpdef Removal inside(self, object waiter)
