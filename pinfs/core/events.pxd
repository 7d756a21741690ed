from pinfs.core.pins cimport Break, Pin
from pinfs.core.removals cimport Removal

cdef class BookEvent:
    cdef readonly str kind, by, why
    cdef readonly double now
    cdef readonly Pin pin
    cdef readonly Removal removal
    cdef readonly Break breaking
    cdef readonly tuple mapped_by
